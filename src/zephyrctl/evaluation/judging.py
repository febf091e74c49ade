"""Ask a judge about many answers, and read the scores from its replies."""

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
CALLS_AT_ONCE = 256
"""Most judgments in progress. The teacher's own limits apply too."""

ReadVerdict = Callable[[str], tuple[float | None, str]]
"""Reads a judge's reply: the score, or None with the cause."""


@dataclass(frozen=True)
class Case:
    """One question to the judge: about one answer, or about two answers to compare."""

    row: JudgmentRow
    """The judgment without its score."""
    messages: tuple[Message, ...]
    """The prompt for a judge that is a language model."""
    sampling: Sampling
    read: ReadVerdict
    """Reads the score of `row.model` from the judge's reply."""
    shown: tuple[Message, ...]
    """The conversation up to the answers, for teachers that judge by rules or as a reward model does."""
    answers: tuple[str, ...]
    """One or two answers, in the order in which the judge sees them."""


def judges_itself(judge: Teacher, compares: bool = False) -> bool:
    """True if a teacher has its own method to judge, and does not get the benchmark's prompt."""
    method = "compare" if compares else "judge"
    return getattr(type(judge), method) is not getattr(Teacher, method)


async def judge_all(judge: Teacher, cases: Sequence[Case], progress: Progress) -> list[JudgmentRow]:
    """The judgments in the order of the cases. If a call fails for good, its row has a cause and no score.

    Raises ZephyrError if the whole stage must stop: a wrong key, a spent budget, a server that does not answer.
    """
    judgments: dict[int, JudgmentRow] = {}

    async def judge_case(position: int) -> JudgmentRow:
        return await _judge(judge, cases[position])

    async for position, row in gather(judge_case, range(len(cases)), CALLS_AT_ONCE):
        judgments[position] = row
        progress.advance(len(judgments), len(cases), "answers judged")
    return [judgments[position] for position in range(len(cases))]


async def _judge(judge: Teacher, case: Case) -> JudgmentRow:
    if judges_itself(judge, compares=len(case.answers) > 1):
        return await _judge_itself(judge, case)
    try:
        reply = await judge.ask(case.messages, case.sampling, case.row.sample)
    except CallFailed as error:
        return case.row.model_copy(update={"cause": f"failed: {error.cause}", "judge": judge.label})
    score, cause = case.read(reply.text)
    if cause == UNPARSED and reply.finish_reason == "length":
        cause = CUT  # a longer limit would fix this one; a reply that ended by itself is wrong in another way
    return case.row.model_copy(update={"score": score, "cause": cause, "judge": reply.model, "text": reply.text})


async def _judge_itself(judge: Teacher, case: Case) -> JudgmentRow:
    """The judgment of a teacher with its own method; the score is that of `case.row.model`."""
    if len(case.answers) == 1:
        verdict = await judge.judge(case.shown, case.answers[0])
        score, text, model = verdict.score, verdict.reason, verdict.model or judge.label
    else:
        score, text, model = await judge.compare(case.shown, *case.answers), "", judge.label
    if score is not None and case.row.is_swapped:
        score = 1.0 - score
    cause = "" if score is not None else UNPARSED
    return case.row.model_copy(update={"score": score, "cause": cause, "judge": model, "text": text})


def causes(judged: Sequence[JudgmentRow]) -> dict[str, int]:
    """The number of judgments without a score by cause, the most frequent first."""
    return dict(Counter(row.cause for row in judged if row.score is None).most_common())


def check_unparsed(judged: Sequence[JudgmentRow], share: float) -> None:
    """Raise GateError if more than this share of judgments has no score: the mean of the others would mislead."""
    unscored = causes(judged)
    count = sum(unscored.values())
    if count > share * len(judged):
        listed = ", ".join(f"{number} {cause}" for cause, number in unscored.items())
        raise GateError(
            f"{count} of {len(judged)} judgments have no score ({listed}); eval.unparsed_share allows {share:g} of "
            "them",
            "read some: zephyrctl data calls; name another eval.judge, or raise eval.unparsed_share: finished "
            "judgments are kept and not paid again",
        )
