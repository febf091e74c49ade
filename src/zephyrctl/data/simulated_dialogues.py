"""Generate dialogues between two teachers, of which one plays the user, over a tree of topics (as in UltraChat).

First the tree: subtopics for each topic. Then an opening message for each row, spread evenly over the tree. Then the
dialogues: one call answers, the next plays the user.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from zephyrctl import templates
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.data.conversations import run_conversations, seed_of
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe, Simulated
from zephyrctl.records import Dialogue, Message, Prompt, prompt_id
from zephyrctl.runs.artifacts import Draft
from zephyrctl.teachers import prices
from zephyrctl.teachers.client import Calls

SHIPPED = "shipped"
ATTEMPTS = 3
"""How often a list of subtopics is requested if it is too short, or an opening if another row has it."""

TOO_FEW = "requested subtopics that were not given"
NO_SUBTOPIC = "topics without a subtopic"
EMPTY = "empty openings"
REPEATED = "openings that another row has"
NO_USER = "an empty user turn"
NO_ANSWER = "an empty answer"
CUT = "an answer cut at the maximum length"


@dataclass(frozen=True)
class DialogueStart:
    """A row to be generated: its key, its place in the tree, and the user's first message once there is one."""

    key: str
    topic: str
    subtopic: str
    opening: str = ""


@dataclass(frozen=True)
class SimulatedDialogue:
    """The complete rounds of a dialogue, how many were planned, and why there are fewer."""

    turns: list[Message]
    rounds: int
    cause: str = ""


def describe(source: Simulated) -> str:
    """What the source generates, and in about how many calls."""
    rounds = f"{source.least_rounds} to {source.most_rounds} rounds"
    prompts = f" and {source.prompts} opening prompts" if source.prompts else ""
    user = source.user or source.assistant
    names = " and ".join(repr(name) for name in dict.fromkeys((source.assistant.name, user.name)))
    return f"simulate {source.dialogues} dialogues of {rounds}{prompts} in about {calls_of(source)} calls of {names}"


def calls_of(source: Simulated) -> int:
    """The expected calls: one for each topic and each opening, and one for each further turn of a dialogue."""
    rounds = (source.least_rounds + source.most_rounds) / 2
    topics = len(read_topics(source)) if source.topics == SHIPPED or Path(source.topics).is_file() else 0
    return round(topics + source.prompts + source.dialogues * 2 * rounds)


def read_topics(source: Simulated) -> list[str]:
    """The topics of the file, each once: one per line, without blank lines and lines that begin with `#`.

    Raises ZephyrError if the file is missing, is not text or has no topic.
    """
    path = templates.path("topics.txt") if source.topics == SHIPPED else Path(source.topics)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ZephyrError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise ZephyrError(f"{path} cannot be read: {error.strerror}", "give a file with one topic per line") from None
    if topics := _distinct(line for line in lines if not line.startswith("#")):
        return topics
    raise ZephyrError(f"{path} contains no topic", "write one per line")


async def collect(
    recipe: Recipe, source: Simulated, draft: Draft, progress: Progress, max_usd: float | None = None
) -> tuple[list[Dialogue], list[Prompt]]:
    """Dialogues that end on the assistant, and openings as prompts; what is missing is counted by cause in the draft.

    Raises ZephyrError if no topic has a subtopic, if a teacher cannot be reached, or when `max_usd` is spent.
    """
    topics = read_topics(source)
    async with Calls(draft.run.path, "build", prices.load(recipe.prices), max_usd, progress) as calls:
        assistant, user = calls.teacher(source.assistant), calls.teacher(source.user or source.assistant)
        rows = await Simulation(recipe.seed, source, assistant, user, draft, progress).collect(topics)
        calls.close_into(draft)
    return rows


class Simulation:
    """Generates the rows with two teachers, and reports to the draft and the progress display."""

    def __init__(
        self, seed: int, source: Simulated, assistant: Teacher, user: Teacher, draft: Draft, progress: Progress
    ) -> None:
        self._seed = seed
        self._source = source
        self._assistant = assistant
        self._user = user
        self._draft = draft
        self._progress = progress
        self._at_once = source.assistant.limits.concurrency + (source.user.limits.concurrency if source.user else 0)

    async def collect(self, topics: Sequence[str]) -> tuple[list[Dialogue], list[Prompt]]:
        """The dialogues and prompts in the order of their numbers. Dialogues take the first places in the tree."""
        tree = await self._tree(topics)
        opened = await self._open_all(list(_spread(tree, self._source.dialogues, self._source.prompts)))
        starts = [start for start in opened if start.key.startswith("dialogue:")]
        simulated = await run_conversations(
            self._simulate, starts, self._at_once, self._draft, self._progress, "dialogues"
        )
        dialogues = [self._dialogue(start, result) for start, result in simulated if self._is_kept(result)]
        prompts = [self._prompt(start) for start in opened if start.key.startswith("prompt:")]
        self._note_missing(dialogues, prompts)
        return dialogues, prompts

    async def _tree(self, topics: Sequence[str]) -> dict[str, list[str]]:
        """The subtopics of each topic; a list that is too short is requested again and extended."""
        subtopics: dict[str, list[str]] = {topic: [] for topic in topics}
        wanted = self._source.subtopics
        for attempt in range(ATTEMPTS):
            if not (short := [topic for topic in topics if len(subtopics[topic]) < wanted]):
                break
            proposed = await run_conversations(
                partial(self._propose, attempt),
                short,
                self._at_once,
                self._draft,
                self._progress,
                f"topics{_again(attempt)}",
                kind="lists of subtopics",
            )
            for topic, names in proposed:
                subtopics[topic] = _distinct([*subtopics[topic], *names])[:wanted]
        self._draft.drop(TOO_FEW, sum(wanted - len(names) for names in subtopics.values()))
        self._draft.drop(NO_SUBTOPIC, sum(not names for names in subtopics.values()))
        if not any(subtopics.values()):
            raise ZephyrError(
                f"{self._user.label!r} proposed no subtopic for any of {len(topics)} topics",
                "choose another teacher under build.source.user",
            )
        return {topic: names for topic, names in subtopics.items() if names}

    async def _propose(self, attempt: int, topic: str) -> list[str]:
        seed = seed_of(self._seed, f"subtopics:{topic}:{attempt}")
        return await self._user.propose_subtopics(topic, self._source.subtopics, seed)

    async def _open_all(self, starts: Sequence[DialogueStart]) -> list[DialogueStart]:
        """The rows with an opening; one that is empty or that an earlier row has is requested again."""
        opened: dict[str, DialogueStart] = {}
        taken: set[str] = set()
        rejected: dict[str, str] = {}
        waiting = list(starts)
        for attempt in range(ATTEMPTS):
            note = f"openings{_again(attempt)}"
            drawn = await run_conversations(
                partial(self._open, attempt), waiting, self._at_once, self._draft, self._progress, note, kind="openings"
            )
            rejected = {}
            for start, text in drawn:
                if not text or _key(text) in taken:
                    rejected[start.key] = REPEATED if text else EMPTY
                else:
                    taken.add(_key(text))
                    opened[start.key] = DialogueStart(start.key, start.topic, start.subtopic, text)
            waiting = [start for start, _ in drawn if start.key in rejected]
        for cause in rejected.values():
            self._draft.drop(f"{cause}, after {ATTEMPTS} attempts")
        return [opened[start.key] for start in starts if start.key in opened]

    async def _open(self, attempt: int, start: DialogueStart) -> str:
        seed = seed_of(self._seed, f"{start.key}:opening:{attempt}")
        return (await self._user.open_dialogue(start.topic, start.subtopic, seed)).strip()

    async def _simulate(self, start: DialogueStart) -> SimulatedDialogue:
        """The dialogue, round by round. A turn that is empty or cut ends it at the last complete round."""
        rounds = Random(f"{self._seed}:{start.key}:rounds").randint(self._source.least_rounds, self._source.most_rounds)
        turns: list[Message] = []
        question = start.opening
        for number in range(1, rounds + 1):
            prompt = [*turns, Message(role="user", content=question)]
            answer, cause = await self._answer(prompt, f"{start.key}:answer:{number}")
            if cause:
                return SimulatedDialogue(turns, rounds, cause)
            turns = [*prompt, Message(role="assistant", content=answer)]
            if number == rounds:
                break
            question = await self._user.speak_as_user(turns, seed_of(self._seed, f"{start.key}:user:{number}"))
            if not question.strip():
                return SimulatedDialogue(turns, rounds, NO_USER)
        return SimulatedDialogue(turns, rounds)

    async def _answer(self, prompt: Sequence[Message], key: str) -> tuple[str, str]:
        """(the assistant's turn, why it cannot be used): one of the two is empty."""
        sampling = Sampling(temperature=1.0, max_tokens=self._source.longest_reply, seed=seed_of(self._seed, key))
        reply = await self._assistant.ask(prompt, sampling)
        if not reply.text.strip():
            return "", NO_ANSWER
        return reply.text, CUT if reply.finish_reason == "length" else ""

    def _is_kept(self, dialogue: SimulatedDialogue) -> bool:
        """True if there is a complete round. What ended a dialogue early is counted."""
        if dialogue.cause:
            what = "dialogues ended early by" if dialogue.turns else "dialogues without a complete round because of"
            self._draft.drop(f"{what} {dialogue.cause}")
        return bool(dialogue.turns)

    def _dialogue(self, start: DialogueStart, simulated: SimulatedDialogue) -> Dialogue:
        rounds = len(simulated.turns) // 2
        planned = f" of {simulated.rounds}" if rounds < simulated.rounds else ""
        return Dialogue(
            id=prompt_id(start.opening),
            messages=simulated.turns,
            source=f"dialogues:{self._source.assistant.name}",
            origin=f"{_place(start)}, {rounds}{planned} round{'s' if simulated.rounds > 1 else ''}",
        )

    def _prompt(self, start: DialogueStart) -> Prompt:
        return Prompt(
            id=prompt_id(start.opening),
            messages=[Message(role="user", content=start.opening)],
            source=f"dialogues:{self._user.name}",
            origin=_place(start),
        )

    def _note_missing(self, dialogues: Sequence[Dialogue], prompts: Sequence[Prompt]) -> None:
        wanted = {"dialogues": self._source.dialogues, "prompts": self._source.prompts}
        for name, rows in (("dialogues", dialogues), ("prompts", prompts)):
            if missing := wanted[name] - len(rows):
                self._draft.notes.append(f"{missing} of the {wanted[name]} requested {name} are missing")


def _spread(tree: Mapping[str, Sequence[str]], dialogues: int, prompts: int) -> Iterator[DialogueStart]:
    """Give the rows to the topics in turn, and within a topic to its subtopics: topics differ by one row at most."""
    topics = list(tree)
    keys = [*(f"dialogue:{number}" for number in range(dialogues)), *(f"prompt:{number}" for number in range(prompts))]
    for number, key in enumerate(keys):
        topic = topics[number % len(topics)]
        yield DialogueStart(key, topic, tree[topic][number // len(topics) % len(tree[topic])])


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty, each once regardless of case and spaces, in their order."""
    first: dict[str, str] = {}
    for text in texts:
        if text.strip():
            first.setdefault(_key(text), text.strip())
    return list(first.values())


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _place(start: DialogueStart) -> str:
    return f"{start.topic} > {start.subtopic}"


def _again(attempt: int) -> str:
    return f", attempt {attempt + 1}" if attempt else ""
