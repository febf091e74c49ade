"""Which dialogues come of two teachers, of whom one plays the user, over a tree of topics (as UltraChat)?

The tree first: each topic's subtopics. Then an opening for each row, spread evenly over the tree. Then the dialogues,
each by itself: one call answers, the next plays the user.
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
ASKS = 3
"""Times that a list of subtopics which is too short, or an opening that another row has, is asked for."""

TOO_FEW = "subtopics that were asked for and not given"
BARREN = "topics without a subtopic"
EMPTY = "openings that were empty"
REPEATED = "openings that another row has"
NO_USER = "an empty user turn"
NO_ANSWER = "an empty answer"
CUT = "an answer cut at its longest"


@dataclass(frozen=True)
class Start:
    """A row to be made: its key, its place in the tree, and the user's first message once there is one."""

    key: str
    topic: str
    subtopic: str
    opening: str = ""


@dataclass(frozen=True)
class SimulatedDialogue:
    """A dialogue's whole rounds, how many were meant, and why there are fewer."""

    turns: list[Message]
    rounds: int
    cause: str = ""


def describe(source: Simulated) -> str:
    """What the source makes, and in about how many calls."""
    rounds = f"{source.least_rounds} to {source.most_rounds} rounds"
    prompts = f" and {source.prompts} opening prompts" if source.prompts else ""
    user = source.user or source.assistant
    names = " and ".join(repr(name) for name in dict.fromkeys((source.assistant.name, user.name)))
    return f"simulate {source.dialogues} dialogues of {rounds}{prompts} in about {calls_of(source)} calls of {names}"


def calls_of(source: Simulated) -> int:
    """The calls to expect: one a topic, one an opening, and in a dialogue one for every other turn."""
    rounds = (source.least_rounds + source.most_rounds) / 2
    topics = len(read_topics(source)) if source.topics == SHIPPED or Path(source.topics).is_file() else 0
    return round(topics + source.prompts + source.dialogues * 2 * rounds)


def read_topics(source: Simulated) -> list[str]:
    """The topics, each once: one a line, without blank lines and those that begin with `#`.

    Raises ZephyrError for a file that is missing, is not text or names none.
    """
    path = templates.path("topics.txt") if source.topics == SHIPPED else Path(source.topics)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ZephyrError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise ZephyrError(f"{path} cannot be read: {error.strerror}", "name a file with a topic a line") from None
    if topics := _distinct(line for line in lines if not line.startswith("#")):
        return topics
    raise ZephyrError(f"{path} names no topic", "write one a line")


async def collect(
    recipe: Recipe, source: Simulated, draft: Draft, progress: Progress, max_usd: float | None = None
) -> tuple[list[Dialogue], list[Prompt]]:
    """Dialogues that end on the assistant, and further openings as prompts; what is missing is counted by cause.

    Raises ZephyrError where no topic has a subtopic, a teacher cannot be asked at all, or at the end of `max_usd`.
    """
    topics = read_topics(source)
    async with Calls(draft.run.path, "build", prices.load(recipe.prices), max_usd, progress) as calls:
        assistant, user = calls.teacher(source.assistant), calls.teacher(source.user or source.assistant)
        rows = await Simulation(recipe.seed, source, assistant, user, draft, progress).collect(topics)
        calls.close_into(draft)
    return rows


class Simulation:
    """One build of simulated dialogues: its teachers, and where its progress and losses go."""

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
        """The rows, in the order of their numbers; dialogues first take their places in the tree."""
        tree = await self._tree(topics)
        opened = await self._open_all(list(_starts(tree, self._source.dialogues, self._source.prompts)))
        to_talk = [start for start in opened if start.key.startswith("dialogue:")]
        talks = await run_conversations(self._talk, to_talk, self._at_once, self._draft, self._progress, "dialogues")
        dialogues = [self._dialogue(start, talk) for start, talk in talks if self._is_kept(talk)]
        prompts = [self._prompt(start) for start in opened if start.key.startswith("prompt:")]
        self._tell_what_is_missing(dialogues, prompts)
        return dialogues, prompts

    async def _tree(self, topics: Sequence[str]) -> dict[str, list[str]]:
        """The subtopics of each topic; a list that is too short is asked for again and added to."""
        found: dict[str, list[str]] = {topic: [] for topic in topics}
        wanted = self._source.subtopics
        for ask in range(ASKS):
            if not (short := [topic for topic in topics if len(found[topic]) < wanted]):
                break
            proposed = await run_conversations(
                partial(self._propose, ask),
                short,
                self._at_once,
                self._draft,
                self._progress,
                f"topics{_again(ask)}",
                kind="lists of subtopics",
            )
            for topic, names in proposed:
                found[topic] = _distinct([*found[topic], *names])[:wanted]
        self._draft.drop(TOO_FEW, sum(wanted - len(names) for names in found.values()))
        self._draft.drop(BARREN, sum(not names for names in found.values()))
        if not any(found.values()):
            raise ZephyrError(
                f"{self._user.label!r} proposed no subtopic for any of {len(topics)} topics",
                "choose another teacher under build.source.user",
            )
        return {topic: names for topic, names in found.items() if names}

    async def _propose(self, ask: int, topic: str) -> list[str]:
        seed = seed_of(self._seed, f"subtopics:{topic}:{ask}")
        return await self._user.propose_subtopics(topic, self._source.subtopics, seed)

    async def _open_all(self, starts: Sequence[Start]) -> list[Start]:
        """The rows with an opening of their own; one that is empty or that an earlier row has is asked for again."""
        opened: dict[str, Start] = {}
        taken: set[str] = set()
        refused: dict[str, str] = {}
        waiting = list(starts)
        for ask in range(ASKS):
            note = f"openings{_again(ask)}"
            drawn = await run_conversations(
                partial(self._open, ask), waiting, self._at_once, self._draft, self._progress, note, kind="openings"
            )
            refused = {}
            for start, text in drawn:
                if not text or _key(text) in taken:
                    refused[start.key] = REPEATED if text else EMPTY
                else:
                    taken.add(_key(text))
                    opened[start.key] = Start(start.key, start.topic, start.subtopic, text)
            waiting = [start for start, _ in drawn if start.key in refused]
        for cause in refused.values():
            self._draft.drop(f"{cause}, asked for {ASKS} times")
        return [opened[start.key] for start in starts if start.key in opened]

    async def _open(self, ask: int, start: Start) -> str:
        seed = seed_of(self._seed, f"{start.key}:opening:{ask}")
        return (await self._user.open_dialogue(start.topic, start.subtopic, seed)).strip()

    async def _talk(self, start: Start) -> SimulatedDialogue:
        """The dialogue round by round; a turn that is empty or cut ends it at the last whole round."""
        rounds = Random(f"{self._seed}:{start.key}:rounds").randint(self._source.least_rounds, self._source.most_rounds)
        turns: list[Message] = []
        question = start.opening
        for number in range(1, rounds + 1):
            asked = [*turns, Message(role="user", content=question)]
            answer, cause = await self._answer(asked, f"{start.key}:answer:{number}")
            if cause:
                return SimulatedDialogue(turns, rounds, cause)
            turns = [*asked, Message(role="assistant", content=answer)]
            if number == rounds:
                break
            question = await self._user.speak_as_user(turns, seed_of(self._seed, f"{start.key}:user:{number}"))
            if not question.strip():
                return SimulatedDialogue(turns, rounds, NO_USER)
        return SimulatedDialogue(turns, rounds)

    async def _answer(self, asked: Sequence[Message], key: str) -> tuple[str, str]:
        """The assistant's turn, and why it cannot be used, if so."""
        sampling = Sampling(temperature=1.0, max_tokens=self._source.longest_reply, seed=seed_of(self._seed, key))
        reply = await self._assistant.ask(asked, sampling)
        if not reply.text.strip():
            return "", NO_ANSWER
        return reply.text, CUT if reply.finish_reason == "length" else ""

    def _is_kept(self, talk: SimulatedDialogue) -> bool:
        """True where there is a whole round; what ended a dialogue early is counted."""
        if talk.cause:
            what = "dialogues ended early by" if talk.turns else "dialogues without a whole round, for"
            self._draft.drop(f"{what} {talk.cause}")
        return bool(talk.turns)

    def _dialogue(self, start: Start, talk: SimulatedDialogue) -> Dialogue:
        rounds = len(talk.turns) // 2
        meant = f" of {talk.rounds}" if rounds < talk.rounds else ""
        return Dialogue(
            id=prompt_id(start.opening),
            messages=talk.turns,
            source=f"dialogues:{self._source.assistant.name}",
            origin=f"{_place(start)}, {rounds}{meant} round{'s' if talk.rounds > 1 else ''}",
        )

    def _prompt(self, start: Start) -> Prompt:
        return Prompt(
            id=prompt_id(start.opening),
            messages=[Message(role="user", content=start.opening)],
            source=f"dialogues:{self._user.name}",
            origin=_place(start),
        )

    def _tell_what_is_missing(self, dialogues: Sequence[Dialogue], prompts: Sequence[Prompt]) -> None:
        wanted = {"dialogues": self._source.dialogues, "prompts": self._source.prompts}
        for name, rows in (("dialogues", dialogues), ("prompts", prompts)):
            if missing := wanted[name] - len(rows):
                self._draft.notes.append(f"{missing} of the {wanted[name]} {name} asked for are missing")


def _starts(tree: Mapping[str, Sequence[str]], dialogues: int, prompts: int) -> Iterator[Start]:
    """A row a topic in turn, and within a topic a subtopic in turn: no topic has two rows more than another."""
    topics = list(tree)
    keys = [*(f"dialogue:{number}" for number in range(dialogues)), *(f"prompt:{number}" for number in range(prompts))]
    for number, key in enumerate(keys):
        topic = topics[number % len(topics)]
        yield Start(key, topic, tree[topic][number // len(topics) % len(tree[topic])])


def _distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty, each once, whatever its letter case, in the order in which they first come."""
    first: dict[str, str] = {}
    for text in texts:
        if text.strip():
            first.setdefault(_key(text), text.strip())
    return list(first.values())


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _place(start: Start) -> str:
    return f"{start.topic} > {start.subtopic}"


def _again(ask: int) -> str:
    return f", asked for again ({ask})" if ask else ""
