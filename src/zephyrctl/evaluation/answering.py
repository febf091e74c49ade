"""Who answers a benchmark and how: checkpoints and folders in batches, servers by calls, files as they are."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.concurrency import gather
from zephyrctl.contracts import ModelBase, Sampling
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.judged_rows import AnswerRow
from zephyrctl.evaluation.questions import Question
from zephyrctl.launching.processes import Conversation
from zephyrctl.launching.weights import base_hash, loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.stages import Inputs, Source
from zephyrctl.teachers.client import Calls

BASE = "base"
AT_ONCE = 256
CUT_OFF = 0.05
"""Share of a model's answers that may be cut off before it is said: such scores are of half answers."""

ReadFile = Callable[[Path, Sequence[Question]], list[AnswerRow]]


@dataclass(frozen=True)
class Contestant:
    """One model that answers: a checkpoint of the run, a folder or Hub id, a model behind a server, or a file."""

    name: str
    checkpoint: str | None = None
    model: str | None = None
    server: TeacherChoice | None = None
    file: Path | None = None

    @property
    def key(self) -> str:
        """Its name among the inputs of a step."""
        return f"model {self.name}" if self.checkpoint is None else self.checkpoint

    def source(self, recipe: Recipe) -> Source | None:
        """What it reads: an artifact, a folder or a file; None for a Hub id, a server and the base."""
        if self.checkpoint and self.checkpoint != BASE:
            return Source(artifact=self.checkpoint, stage=recipe.checkpoints[self.checkpoint].stage)
        if self.file:
            return Source(path=self.file)
        return Source(path=Path(self.model)) if self.model and Path(self.model).is_dir() else None

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """What its answers depend on, beside what it reads."""
        if self.checkpoint:
            base = model_base(recipe)
            start = BASE if self.checkpoint == BASE else recipe.checkpoints[self.checkpoint].start
            content = base_hash(base) if self.checkpoint == BASE else None
            return {"start": start, "chat_template": base.chat_template(), "base_content": content}
        if self.server:
            return {"server": self.server.model_dump(mode="json", exclude={"limits"})}
        return {"model": self.model} if self.model else {"file": True}


@dataclass
class Telling:
    """What is known of the answers beside their texts."""

    contracts: dict[str, str] = field(default_factory=dict)
    cut_off: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """How answers are drawn: the longest one in tokens, how many at once, the seed, and by which engine."""

    max_tokens: int
    top_p: float
    top_k: int
    batch: int
    seed: int
    engine: str


def sources(contestants: Iterable[Contestant], recipe: Recipe) -> dict[str, Source]:
    """Everything that the contestants read."""
    return {one.key: source for one in contestants if (source := one.source(recipe))}


def check_names(contestants: Sequence[Contestant]) -> None:
    """Raises ZephyrError where two contestants have one name: their answers would be mixed."""
    names = [one.name for one in contestants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ZephyrError(f"two models are called {twice[0]!r}", "name one of them: --model NAME=FOLDER")
    if not names:
        raise ZephyrError("there is nobody to ask", "train a checkpoint, or give --model or --answers")


async def answer_all(
    contestants: Sequence[Contestant],
    questions: Sequence[Question],
    way: Way,
    recipe: Recipe,
    draft: Draft,
    inputs: Inputs,
    calls: Calls,
    read_file: ReadFile,
    progress: Progress,
) -> tuple[list[AnswerRow], Telling]:
    """Every contestant's answers to every turn, each kept in the draft's journal as soon as it is there.

    A later turn sees the model's own earlier answers. Raises ZephyrError where a model cannot be loaded or where its
    template writes other tokens than it was trained with.
    """
    telling = Telling()
    answers: list[AnswerRow] = []
    with Journal(draft.scratch / "answers.journal") as journal, Worker(draft, recipe) as worker:
        for one in contestants:
            if one.file:
                answers += _named(one, read_file(one.file, questions))
            elif one.server:
                answers += await _served(one, questions, way, calls, telling, progress)
            else:
                answers += _generated(one, questions, way, worker, inputs, journal, telling, progress)
    _tell_cut_off(answers, way, telling)
    return answers, telling


class Worker:
    """The generation worker, which starts when it is first needed and loads one model after another."""

    def __init__(self, draft: Draft, recipe: Recipe) -> None:
        self._log = draft.scratch / "generate.log"
        self._recipe = recipe
        self._conversation: Conversation | None = None
        self._loaded: str | None = None

    def load(self, one: Contestant, inputs: Inputs, engine: str) -> str:
        """Have it hold that model; the fingerprint of its token contract."""
        base = model_base(self._recipe)
        told = _told(one, base, inputs)
        reply = self.ask({"load": told.pop("model"), "engine": engine, **told})
        self._loaded = one.name
        fingerprint: str = reply["token_contract"]
        return fingerprint

    def has(self, one: Contestant) -> bool:
        """True where that model is loaded."""
        return self._loaded == one.name

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request to the worker."""
        if self._conversation is None:
            self._conversation = Conversation(self._log, self._recipe.launch.threads)
        return self._conversation.ask(request)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self._conversation:
            self._conversation.close()


def batches(questions: Sequence[Question], turn: int, asked: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of questions to ask together: of one temperature and of like length, the longest first.

    What does not fit the memory is then found out at once, and the batches of a resumed run are those of an unbroken
    one: they hang on the questions alone.
    """
    by_temperature: dict[float, list[int]] = {}
    for place in asked:
        by_temperature.setdefault(questions[place].temperature, []).append(place)
    for places in by_temperature.values():
        places.sort(key=lambda place: (-sum(map(len, questions[place].turns[:turn])), place))
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _generated(
    one: Contestant,
    questions: Sequence[Question],
    way: Way,
    worker: Worker,
    inputs: Inputs,
    journal: Journal,
    telling: Telling,
    progress: Progress,
) -> Iterator[AnswerRow]:
    given: list[list[dict[str, Any]]] = [[] for _ in questions]
    total = sum(len(question.turns) for question in questions)
    done = 0
    for turn in range(1, max(len(question.turns) for question in questions) + 1):
        asked = [place for place, question in enumerate(questions) if len(question.turns) >= turn]
        for number, places in enumerate(batches(questions, turn, asked, way.batch)):
            key = f"{one.name}:{turn}:{number}"
            if key not in journal:
                if not worker.has(one):
                    contract = worker.load(one, inputs, way.engine)
                    journal.add(f"{one.name}:contract", contract)
                request = _request([questions[place] for place in places], [given[place] for place in places], way, key)
                replies = worker.ask(request)["answers"]
                journal.add(key, [{**reply, "at": round(time.time(), 3)} for reply in replies])
            for place, reply in zip(places, journal.rows[key], strict=True):
                given[place].append(reply)
            done += len(places)
            progress.advance(done, total, f"answers of {one.name}")
    telling.contracts[one.name] = journal.rows[f"{one.name}:contract"]
    for question, replies in zip(questions, given, strict=True):
        yield from _answered(one.name, question, replies)


def _request(
    questions: Sequence[Question], given: Sequence[Sequence[dict[str, Any]]], way: Way, key: str
) -> dict[str, Any]:
    conversations = [
        [message.model_dump() for message in question.conversation(tuple(reply["text"] for reply in replies))]
        for question, replies in zip(questions, given, strict=True)
    ]
    seed = int(hashlib.sha256(f"{way.seed}:{key}".encode()).hexdigest()[:8], 16)
    return {
        "conversations": conversations,
        "max_tokens": way.max_tokens,
        "temperature": questions[0].temperature,
        "top_p": way.top_p,
        "top_k": way.top_k,
        "seed": seed,
        "batch": way.batch,
    }


def _answered(name: str, question: Question, replies: Sequence[dict[str, Any]]) -> Iterator[AnswerRow]:
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


async def _served(
    one: Contestant, questions: Sequence[Question], way: Way, calls: Calls, telling: Telling, progress: Progress
) -> list[AnswerRow]:
    assert one.server
    teacher = calls.teacher(one.server)

    async def converse(place: int) -> list[dict[str, Any]]:
        question = questions[place]
        replies: list[dict[str, Any]] = []
        for _ in question.turns:
            sampling = Sampling(
                temperature=question.temperature, top_p=way.top_p, max_tokens=way.max_tokens, seed=way.seed
            )
            reply = await teacher.ask(question.conversation(tuple(said["text"] for said in replies)), sampling)
            replies.append({"text": reply.text, "finish_reason": reply.finish_reason, "at": round(time.time(), 3)})
        return replies

    given: dict[int, list[dict[str, Any]]] = {}
    async for place, replies in gather(converse, range(len(questions)), AT_ONCE):
        given[place] = replies
        progress.advance(len(given), len(questions), f"questions answered by {one.name}")
    telling.remarks.append(f"{one.name} answers behind a server, which chooses the chat template: it is not checked")
    return [
        answer for place, question in enumerate(questions) for answer in _answered(one.name, question, given[place])
    ]


def _named(one: Contestant, answers: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Answers of a file under the contestant's name. Raises ZephyrError where the file holds several models."""
    models = list(dict.fromkeys(answer.model for answer in answers))
    if len(models) > 1:
        raise ZephyrError(f"{one.file} holds answers of {', '.join(models)}", "give one file for each model")
    return [answer.model_copy(update={"model": one.name}) for answer in answers]


def _told(one: Contestant, base: ModelBase, inputs: Inputs) -> dict[str, Any]:
    """What the worker is told of a model: a checkpoint with the recipe's template, others with their own."""
    if one.checkpoint:
        artifact = inputs.get(one.key)
        return loaded(base, artifact if isinstance(artifact, Artifact) else None)
    return {"model": one.model, "revision": None, "chat_template": None, "trusts_code": False}


def _tell_cut_off(answers: Iterable[AnswerRow], way: Way, telling: Telling) -> None:
    counts: dict[str, list[bool]] = {}
    for answer in answers:
        counts.setdefault(answer.model, []).append(answer.finish_reason == "length")
    for name, cut in counts.items():
        telling.cut_off[name] = sum(cut)
        if sum(cut) > CUT_OFF * len(cut):
            telling.remarks.append(
                f"{sum(cut)} of {len(cut)} answers of {name} were cut off at {way.max_tokens} tokens"
            )
