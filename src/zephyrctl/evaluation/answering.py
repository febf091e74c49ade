"""Generate the answers of candidates: checkpoints and folders in batches, servers by calls, files as they are."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zephyrctl.concurrency import gather
from zephyrctl.contracts import Sampling
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.candidates import AnswerStats, Candidate, GenerationSettings
from zephyrctl.evaluation.judged_rows import AnswerRow
from zephyrctl.evaluation.questions import Question
from zephyrctl.launching.processes import ConversationWorker
from zephyrctl.launching.weights import loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.stages import Inputs
from zephyrctl.teachers.client import Calls

CALLS_AT_ONCE = 256
CUT_OFF_SHARE = 0.05
"""Share of a model's answers above which a remark says that they were cut off: half answers have low scores."""

ReadAnswers = Callable[[Path, Sequence[Question]], list[AnswerRow]]
"""Reads the answers to some questions from a file, in the form that the benchmark publishes them."""
AnswerText = dict[str, Any]
"""`text`, `finish_reason` and `at` (seconds since 1970) of one answer, as the worker and the journal have it."""


async def answer_all(
    candidates: Sequence[Candidate],
    questions: Sequence[Question],
    generation: GenerationSettings,
    recipe: Recipe,
    draft: Draft,
    inputs: Inputs,
    calls: Calls,
    read_answers: ReadAnswers,
    progress: Progress,
) -> tuple[list[AnswerRow], AnswerStats]:
    """Each candidate's answers to each turn. Generated answers are kept in the draft's journal batch by batch.

    A later turn sees the model's own earlier answers. Raises ZephyrError if a model cannot be loaded, or if its chat
    template writes other tokens than it was trained on.
    """
    stats = AnswerStats()
    answers: list[AnswerRow] = []
    with Journal(draft.scratch / "answers.journal") as journal, GenerationWorker(draft, recipe) as worker:
        for candidate in candidates:
            if candidate.file:
                answers += _renamed(candidate, read_answers(candidate.file, questions))
            elif candidate.server:
                answers += await _ask_server(candidate, questions, generation, calls, stats, progress)
            else:
                answers += _generate(candidate, questions, generation, worker, inputs, journal, stats, progress)
    _count_cut_off(answers, generation, stats)
    return answers, stats


class GenerationWorker:
    """The generation worker. It starts when it is first needed, and loads one model after another."""

    def __init__(self, draft: Draft, recipe: Recipe) -> None:
        self._log = draft.scratch / "generate.log"
        self._recipe = recipe
        self._conversation: ConversationWorker | None = None
        self._loaded: str | None = None

    def load(self, candidate: Candidate, inputs: Inputs, engine: str) -> str:
        """Load a candidate's model and return the fingerprint of its token contract."""
        request = self._model_request(candidate, inputs)
        reply = self.ask({"load": request.pop("model"), "engine": engine, **request})
        self._loaded = candidate.name
        fingerprint: str = reply["token_contract"]
        return fingerprint

    def has_loaded(self, candidate: Candidate) -> bool:
        """True if that candidate's model is the one that is loaded."""
        return self._loaded == candidate.name

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's reply to one request."""
        if self._conversation is None:
            self._conversation = ConversationWorker(self._log, self._recipe.launch.threads)
        return self._conversation.ask(request)

    def _model_request(self, candidate: Candidate, inputs: Inputs) -> dict[str, Any]:
        """Where the model is. A checkpoint has the recipe's chat template, other models have their own."""
        if candidate.checkpoint:
            artifact = inputs.get(candidate.key)
            return loaded(model_base(self._recipe), artifact if isinstance(artifact, Artifact) else None)
        return {"model": candidate.model, "revision": None, "chat_template": None, "trusts_code": False}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._conversation:
            self._conversation.close()


def batches(questions: Sequence[Question], turn: int, positions: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of questions to ask together: of one temperature and of similar length, the longest first.

    With the longest first, a batch that does not fit the memory fails at once. The batches depend on the questions
    alone, so a resumed run has the same ones as an unbroken run.
    """
    by_temperature: dict[float, list[int]] = {}
    for position in positions:
        by_temperature.setdefault(questions[position].temperature, []).append(position)
    for group in by_temperature.values():
        group.sort(key=lambda position: (-sum(map(len, questions[position].turns[:turn])), position))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _generate(
    candidate: Candidate,
    questions: Sequence[Question],
    generation: GenerationSettings,
    worker: GenerationWorker,
    inputs: Inputs,
    journal: Journal,
    stats: AnswerStats,
    progress: Progress,
) -> Iterator[AnswerRow]:
    """The answers of a model that the worker loads; batches in the journal are not generated again."""
    texts: list[list[AnswerText]] = [[] for _ in questions]
    total = sum(len(question.turns) for question in questions)
    done = 0
    for turn in range(1, max(len(question.turns) for question in questions) + 1):
        positions = [position for position, question in enumerate(questions) if len(question.turns) >= turn]
        for number, batch in enumerate(batches(questions, turn, positions, generation.batch)):
            key = f"{candidate.name}:{turn}:{number}"
            if key not in journal:
                if not worker.has_loaded(candidate):
                    contract = worker.load(candidate, inputs, generation.engine)
                    journal.add(f"{candidate.name}:contract", contract)
                asked = [questions[position] for position in batch]
                request = _request(asked, [texts[position] for position in batch], generation, key)
                replies = worker.ask(request)["answers"]
                journal.add(key, [{**reply, "at": round(time.time(), 3)} for reply in replies])
            for position, reply in zip(batch, journal.rows[key], strict=True):
                texts[position].append(reply)
            done += len(batch)
            progress.advance(done, total, f"answers of {candidate.name}")
    stats.contracts[candidate.name] = journal.rows[f"{candidate.name}:contract"]
    for question, replies in zip(questions, texts, strict=True):
        yield from _answer_rows(candidate.name, question, replies)


def _request(
    questions: Sequence[Question],
    earlier: Sequence[Sequence[AnswerText]],
    generation: GenerationSettings,
    key: str,
) -> dict[str, Any]:
    """A batch for the worker. Its seed follows from the key, so that a resumed batch is drawn as it would have been."""
    conversations = [
        [message.model_dump() for message in question.conversation(tuple(reply["text"] for reply in replies))]
        for question, replies in zip(questions, earlier, strict=True)
    ]
    seed = int(hashlib.sha256(f"{generation.seed}:{key}".encode()).hexdigest()[:8], 16)
    return {
        "conversations": conversations,
        "max_tokens": generation.max_tokens,
        "temperature": questions[0].temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "seed": seed,
        "batch": generation.batch,
    }


def _answer_rows(name: str, question: Question, replies: Sequence[AnswerText]) -> Iterator[AnswerRow]:
    texts = [reply["text"] for reply in replies]
    for turn, reply in enumerate(replies, 1):
        yield AnswerRow(
            model=name,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation(tuple(texts[: turn - 1]))),
            answer=reply["text"],
            finish_reason=reply["finish_reason"],
            answered_at=reply.get("at", 0.0),
        )


async def _ask_server(
    candidate: Candidate,
    questions: Sequence[Question],
    generation: GenerationSettings,
    calls: Calls,
    stats: AnswerStats,
    progress: Progress,
) -> list[AnswerRow]:
    """The answers of a model on a server, which templates the conversations itself."""
    assert candidate.server
    teacher = calls.teacher(candidate.server)

    async def converse(position: int) -> list[AnswerText]:
        question = questions[position]
        sampling = Sampling(
            temperature=question.temperature,
            top_p=generation.top_p,
            max_tokens=generation.max_tokens,
            seed=generation.seed,
        )
        replies: list[AnswerText] = []
        for _ in question.turns:
            reply = await teacher.ask(question.conversation(tuple(earlier["text"] for earlier in replies)), sampling)
            replies.append({"text": reply.text, "finish_reason": reply.finish_reason, "at": round(time.time(), 3)})
        return replies

    by_position: dict[int, list[AnswerText]] = {}
    async for position, replies in gather(converse, range(len(questions)), CALLS_AT_ONCE):
        by_position[position] = replies
        progress.advance(len(by_position), len(questions), f"questions answered by {candidate.name}")
    stats.remarks.append(
        f"{candidate.name} answers behind a server, which chooses the chat template: it is not checked"
    )
    rows: list[AnswerRow] = []
    for position, question in enumerate(questions):
        rows += _answer_rows(candidate.name, question, by_position[position])
    return rows


def _renamed(candidate: Candidate, answers: Sequence[AnswerRow]) -> list[AnswerRow]:
    """The answers of a file under the candidate's name. Raises ZephyrError if the file has several models."""
    models = list(dict.fromkeys(answer.model for answer in answers))
    if len(models) > 1:
        raise ZephyrError(f"{candidate.file} has answers of {', '.join(models)}", "give one file for each model")
    return [answer.model_copy(update={"model": candidate.name}) for answer in answers]


def _count_cut_off(answers: Iterable[AnswerRow], generation: GenerationSettings, stats: AnswerStats) -> None:
    """Count each model's answers that met the token limit, with a remark if they are many."""
    is_cut: dict[str, list[bool]] = {}
    for answer in answers:
        is_cut.setdefault(answer.model, []).append(answer.finish_reason == "length")
    for name, flags in is_cut.items():
        stats.cut_off[name] = sum(flags)
        if sum(flags) > CUT_OFF_SHARE * len(flags):
            stats.remarks.append(
                f"{sum(flags)} of {len(flags)} answers of {name} were cut off at {generation.max_tokens} tokens"
            )
