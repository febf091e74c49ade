"""Whether simulated dialogues cover the tree of topics, keep to their rounds, and always end on the assistant."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

from tests.chat_server import ChatServer, serve
from tests.data.rows_made import Stop, offered, open_draft, tiny
from tests.data.test_self_instruct import bodies, through
from zephyrctl.contracts import GREEDY, Reply, Sampling, Teacher
from zephyrctl.data import simulated_dialogues
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.recipe.schema import Simulated
from zephyrctl.records import Dialogue, Message, Prompt, prompt_id
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run
from zephyrctl.tiny import world


class Player(Teacher):
    """A teacher of the tests that plays both sides, remembers who was asked, and fails where a test says so."""

    name = "player"
    is_rule_based = True
    asked: ClassVar[list[str]] = []

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """A numbered answer."""
        self.asked.append("answer")
        return Reply(f"Answer {len(messages)} to {messages[-1].content}", self.name)

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """A numbered question."""
        self.asked.append("user")
        return f"Question {len(messages)} {seed % 1000}?"

    async def propose_subtopics(self, topic: str, count: int, seed: int = 0) -> list[str]:
        """As many as are asked for."""
        self.asked.append("subtopics")
        return [f"{topic} {number}" for number in range(count)]

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """An opening that tells its seed."""
        self.asked.append("opening")
        return f"{subtopic}: how about {seed}?"


@pytest.fixture(autouse=True)
def player() -> Iterator[None]:
    """The teacher, offered and with nothing asked yet."""
    Player.asked = []
    with offered(Player):
        yield


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A chat server by the offline teacher's rules."""
    with serve() as chat:
        yield chat


def source(**values: Any) -> Simulated:
    """A source of few dialogues."""
    given = {"assistant": {"name": "player"}, "dialogues": 12, "subtopics": 3, **values}
    return Simulated.model_validate({"kind": "dialogues", **given})


def collect(
    made: Simulated, draft: Draft, progress: Progress | None = None, seed: int = 0
) -> tuple[list[Dialogue], list[Prompt]]:
    """What the source brings."""
    return asyncio.run(simulated_dialogues.collect(tiny(seed=seed), made, draft, progress or Silence()))


def built(folder: Path, made: Simulated, seed: int = 0) -> tuple[list[Dialogue], list[Prompt], Draft]:
    """What the source brings, and the draft with its losses."""
    with open_draft(Run(folder)) as draft:
        return (*collect(made, draft, seed=seed), draft)


def places(rows: Sequence[Dialogue | Prompt]) -> list[tuple[str, str]]:
    """Topic and subtopic of each row."""
    found = (re.sub(r", \d+( of \d+)? rounds?$", "", row.origin).partition(" > ") for row in rows)
    return [(topic, subtopic) for topic, _, subtopic in found]


def test_there_are_thirty_topics_of_our_own() -> None:
    topics = simulated_dialogues.read_topics(source())
    assert len(topics) == len({topic.casefold() for topic in topics}) == 30


def test_dialogues_keep_to_their_rounds_and_end_on_the_assistant(tmp_path: Path) -> None:
    rows, prompts, draft = built(tmp_path, source(dialogues=90, prompts=10, least_rounds=2, most_rounds=5))
    rounds = Counter(len(row.messages) // 2 for row in rows)
    assert set(rounds) == {2, 3, 4, 5}
    assert sum(rounds.values()) == 90
    for row in rows:
        assert [message.role for message in row.messages] == ["user", "assistant"] * (len(row.messages) // 2)
        assert row.id == prompt_id(row.messages[0].content)
        assert row.source == "dialogues:player"
        assert row.origin.endswith(f", {len(row.messages) // 2} rounds")
    assert [len(prompt.messages) for prompt in prompts] == [1] * 10
    assert draft.dropped == {}


def test_rows_are_spread_evenly_over_topics_and_subtopics(tmp_path: Path) -> None:
    rows, prompts, _ = built(tmp_path, source(dialogues=100, prompts=65, least_rounds=1, most_rounds=1))
    found = places([*rows, *prompts])
    topics = Counter(topic for topic, _ in found)
    assert len(topics) == 30
    assert set(topics.values()) == {5, 6}
    assert set(Counter(found).values()) == {1, 2}
    assert len({*(row.id for row in rows), *(row.id for row in prompts)}) == 165


@pytest.mark.parametrize("rounds", [1, 4])
def test_the_forecast_is_the_number_of_calls(tmp_path: Path, rounds: int) -> None:
    made = source(dialogues=7, prompts=5, least_rounds=rounds, most_rounds=rounds)
    built(tmp_path, made)
    counts = Counter(Player.asked)
    assert counts == {"subtopics": 30, "opening": 12, "answer": 7 * rounds} | (
        {"user": 7 * (rounds - 1)} if rounds > 1 else {}
    )
    assert simulated_dialogues.calls_of(made) == len(Player.asked)
    sentence = simulated_dialogues.describe(made)
    assert (
        f"7 dialogues of {rounds} to {rounds} rounds and 5 opening prompts in about {len(Player.asked)} calls"
        in sentence
    )
    assert simulated_dialogues.calls_of(source(topics="gone.txt")) == 12 * 10


class Mute(Player):
    """One who plays the user only: answering is a mistake."""

    name = "mute"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Never."""
        raise AssertionError("the user does not answer")


def test_another_teacher_may_play_the_user(tmp_path: Path) -> None:
    with offered(Mute):
        rows, prompts, _ = built(tmp_path, source(user={"name": "mute"}, prompts=1))
    assert len(rows) == 12
    assert {row.source for row in rows} == {"dialogues:player"}
    assert prompts[0].source == "dialogues:mute"


class Breaking(Player):
    """Turns that are empty or cut, at a place that the opening tells."""

    name = "breaking"

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """Named for the topic."""
        return topic

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Empty at first, later empty, or cut."""
        topic = messages[0].content
        is_empty = topic == "silent" or (topic == "tired" and len(messages) == 5)
        cut = topic == "long" and len(messages) == 3
        return Reply(" " if is_empty else "Yes.", self.name, finish_reason="length" if cut else "stop")

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """Empty for one."""
        return " " if messages[0].content == "bored" and len(messages) == 4 else "Why?"


def test_a_turn_that_cannot_be_used_ends_the_dialogue_at_its_last_whole_round(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("fine\nsilent\ntired\nlong\nbored\n")
    made = source(
        assistant={"name": "breaking"}, topics=str(topics), dialogues=5, subtopics=1, least_rounds=4, most_rounds=4
    )
    with offered(Breaking):
        rows, _, draft = built(tmp_path / "run", made)
    assert {row.messages[0].content: len(row.messages) for row in rows} == {
        "fine": 8,
        "tired": 4,
        "long": 2,
        "bored": 4,
    }
    assert all(row.messages[-1].role == "assistant" for row in rows)
    assert draft.dropped == {
        "dialogues without a complete round because of an empty answer": 1,
        "dialogues ended early by an empty answer": 1,
        "dialogues ended early by an answer cut at the maximum length": 1,
        "dialogues ended early by an empty user turn": 1,
    }
    assert draft.notes == ["1 of the 5 requested dialogues are missing"]
    assert [row.origin.rpartition(", ")[2] for row in rows] == [
        "4 rounds",
        "2 of 4 rounds",
        "1 of 4 rounds",
        "2 of 4 rounds",
    ]


class Sparse(Player):
    """It gives fewer subtopics than it is asked for, another one each time, and the same opening again and again."""

    name = "sparse"

    async def propose_subtopics(self, topic: str, count: int, seed: int = 0) -> list[str]:
        """One, or none."""
        return [] if topic == "barren" else ["Always", "always ", f"{topic} {seed}", ""][: 0 if topic == "void" else 4]

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """One of four openings, or nothing."""
        return (
            ""
            if topic == "mute"
            else f"{topic} opening {seed % 4}".upper()
            if seed % 2
            else f"{topic} opening {seed % 4}"
        )


def test_lists_that_are_too_short_and_openings_that_repeat_are_asked_for_again_then_counted(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("rich\nbarren\nmute\n")
    made = source(
        assistant={"name": "sparse"}, topics=str(topics), dialogues=24, subtopics=4, least_rounds=1, most_rounds=1
    )
    with offered(Sparse):
        rows, _, draft = built(tmp_path / "run", made)
    assert draft.dropped.pop(simulated_dialogues.NO_SUBTOPIC) == 1
    assert draft.dropped.pop(simulated_dialogues.TOO_FEW) == 4
    assert draft.dropped.pop(f"{simulated_dialogues.EMPTY}, after 3 attempts") == 12
    assert draft.dropped.pop(f"{simulated_dialogues.REPEATED}, after 3 attempts") == 12 - len(rows)
    assert draft.dropped == {}
    assert 2 <= len(rows) <= 4
    assert {topic for topic, _ in places(rows)} == {"rich"}
    assert len({row.messages[0].content.casefold() for row in rows}) == len(rows)


def test_a_user_teacher_without_any_subtopic_is_an_error(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("barren\n")
    with offered(Sparse), pytest.raises(ZephyrError, match="proposed no subtopic for any of 1 topics"):
        built(tmp_path / "run", source(assistant={"name": "sparse"}, topics=str(topics)))


def test_topics_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("\ufeff# ours\n Rivers \n\nrivers\nBridges\n")
    assert simulated_dialogues.read_topics(source(topics=str(path))) == ["Rivers", "Bridges"]
    for content, problem in ((b"# none\n\n", "contains no topic"), (b"caf\xe9", "is not UTF-8 text")):
        path.write_bytes(content)
        with pytest.raises(ZephyrError, match=problem):
            simulated_dialogues.read_topics(source(topics=str(path)))
    with pytest.raises(ZephyrError, match=r"gone\.txt cannot be read"):
        simulated_dialogues.read_topics(source(topics=str(tmp_path / "gone.txt")))


class Shuffling(Player):
    """It answers after a while that differs from call to call."""

    name = "shuffling"
    order: ClassVar[Random] = Random(1)

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """The answer, late; a failure for some dialogues."""
        for _ in range(self.order.randint(0, 9)):
            await asyncio.sleep(0)
        if "7?" in messages[0].content and len(messages) == 3:
            raise CallFailed("503", "wait", cause="the server was busy")
        return await super().reply(messages, sampling)

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """Late, and one of few."""
        for _ in range(self.order.randint(0, 9)):
            await asyncio.sleep(0)
        return f"How about {seed % 60}?"


def test_neither_order_nor_concurrency_changes_a_row_and_a_failed_call_costs_one_dialogue(tmp_path: Path) -> None:
    found = []
    with offered(Shuffling):
        for place, concurrency in enumerate((1, 64, 64)):
            assistant = {"name": "shuffling", "limits": {"concurrency": concurrency}}
            rows, prompts, draft = built(tmp_path / str(place), source(assistant=assistant, dialogues=30, prompts=10))
            found.append((rows, prompts, draft.dropped))
    assert found[0] == found[1] == found[2]
    rows, prompts, losses = found[0]
    failed = losses["conversations that failed: the server was busy"]
    assert failed > 0
    assert len(rows) + len(prompts) == 40 - failed - losses.get(f"{simulated_dialogues.REPEATED}, after 3 attempts", 0)
    assert not any("7?" in row.messages[0].content for row in rows)


def test_another_seed_gives_other_dialogues_and_more_keep_those_that_were_there(tmp_path: Path) -> None:
    made = source(assistant={"name": "offline"}, dialogues=20, subtopics=20)
    few, _, _ = built(tmp_path / "few", made)
    many, _, _ = built(tmp_path / "many", made.model_copy(update={"dialogues": 30}))
    other, _, _ = built(tmp_path / "other", made, seed=1)
    assert many[:20] == few
    assert [row.messages for row in other] != [row.messages for row in few]
    for row in many:
        assert all(
            world.read([turn.model_dump() for turn in row.messages[:end]]) for end in range(1, len(row.messages), 2)
        )


def test_a_server_brings_the_same_dialogues_as_its_rules_and_is_asked_once(tmp_path: Path, server: ChatServer) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("Words\nPlaces\nNumbers\n")
    values = {"topics": str(topics), "dialogues": 9, "prompts": 3, "subtopics": 5}
    rules, own, _ = built(tmp_path / "rules", source(assistant={"name": "offline"}, **values))
    made = source(assistant=through(server, concurrency=1), **values)
    with open_draft(Run(tmp_path / "server")) as draft, pytest.raises(KeyboardInterrupt):
        collect(made, draft, Stop(after=18))
    begun = len(server.calls)
    rows, prompts, draft = built(tmp_path / "server", made)
    assert [row.messages for row in rows] == [row.messages for row in rules]
    assert [row.messages for row in prompts] == [row.messages for row in own]
    assert 18 < begun < len(server.calls)
    assert sum(bodies(server).values()) - len(bodies(server)) <= 1, "only a call in flight at the stop is made again"
    assert draft.metrics["calls_from_log"] >= 18
