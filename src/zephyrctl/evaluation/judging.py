"""How a judge is asked about many answers: calls through the ledger, replies read strictly, nothing dropped."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zephyrctl.concurrency import gather
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.errors import CallFailed, GateError
from zephyrctl.evaluation.judged_rows import JudgmentRow
from zephyrctl.progress import Progress
from zephyrctl.records import Message

UNPARSED = "unparsed"
OUT_OF_RANGE = "out of range"
CUT = "unparsed: cut off"
AT_ONCE = 256
"""Judgments under way at most; the limits of the teacher are what holds calls back."""

Read = Callable[[str], tuple[float | None, str]]
"""What a judge's words say: a score, or none and why."""


@dataclass(frozen=True)
class Case:
    """One answer before the judge, alone or beside another one, with the words in which a model is asked.

    `row` is the judgment without its score, `answers` are in the order in which they are shown, and `shown` is the
    conversation up to them, for teachers that judge by rules or as reward models do.
    """

    row: JudgmentRow
    messages: tuple[Message, ...]
    sampling: Sampling
    read: Read
    shown: tuple[Message, ...]
    answers: tuple[str, ...]


def judges_itself(judge: Teacher, beside_another: bool = False) -> bool:
    """True where a teacher has its own way to judge and is not asked by a benchmark's prompt."""
    method = "compare" if beside_another else "judge"
    return getattr(type(judge), method) is not getattr(Teacher, method)


async def judge_all(judge: Teacher, cases: Sequence[Case], progress: Progress) -> list[JudgmentRow]:
    """Every judgment, in the order of the cases. A call that failed for good has no score and its cause.

    Raises ZephyrError where the whole stage must stop: a wrong key, a spent budget, a server that is gone.
    """
    judged: dict[int, JudgmentRow] = {}

    async def ask(place: int) -> JudgmentRow:
        return await _judge(judge, cases[place])

    async for place, row in gather(ask, range(len(cases)), AT_ONCE):
        judged[place] = row
        progress.advance(len(judged), len(cases), "answers judged")
    return [judged[place] for place in range(len(cases))]


async def _judge(judge: Teacher, case: Case) -> JudgmentRow:
    if judges_itself(judge, beside_another=len(case.answers) > 1):
        return await _by_itself(judge, case)
    try:
        reply = await judge.ask(case.messages, case.sampling, case.row.sample)
    except CallFailed as error:
        return case.row.model_copy(update={"cause": f"failed: {error.cause}", "judge": judge.label})
    score, cause = case.read(reply.text)
    if cause == UNPARSED and reply.finish_reason == "length":
        cause = CUT
    return case.row.model_copy(update={"score": score, "cause": cause, "judge": reply.model, "text": reply.text})


async def _by_itself(judge: Teacher, case: Case) -> JudgmentRow:
    if len(case.answers) == 1:
        verdict = await judge.judge(case.shown, case.answers[0])
        score, text, by = verdict.score, verdict.reason, verdict.model or judge.label
    else:
        score, text, by = await judge.compare(case.shown, *case.answers), "", judge.label
    if score is not None and case.row.is_swapped:
        score = 1.0 - score
    cause = "" if score is not None else UNPARSED
    return case.row.model_copy(update={"score": score, "cause": cause, "judge": by, "text": text})


def causes(judged: Sequence[JudgmentRow]) -> dict[str, int]:
    """Judgments without a score, by cause."""
    return dict(Counter(row.cause for row in judged if row.score is None).most_common())


def check_unparsed(judged: Sequence[JudgmentRow], share: float) -> None:
    """Raises GateError where more judgments than this share have no score: what is left would be another benchmark."""
    lost = causes(judged)
    count = sum(lost.values())
    if count > share * len(judged):
        told = ", ".join(f"{number} {cause}" for cause, number in lost.items())
        raise GateError(
            f"{count} of {len(judged)} judgments have no score ({told}); eval.unparsed_share allows {share:g} of them",
            "read some: zephyrctl data calls; name another eval.judge, or raise eval.unparsed_share: what is judged is "
            "kept and not paid again",
        )
