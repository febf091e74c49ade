"""Whether chains of instructions end where the rules say, are sifted in their order, and cost no call twice."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

from tests.chat_server import ChatServer, refusal, serve
from tests.data.rows_made import Stop, offered, open_draft, tiny, write_jsonl
from tests.data.test_novelty import rouge_l
from zephyrctl.contracts import GREEDY, Reply, Sampling, Teacher
from zephyrctl.data import novelty, self_instruct
from zephyrctl.errors import BadRow, CallFailed, ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.recipe.schema import Novelty, Recipe, SelfInstruct
from zephyrctl.records import Dialogue, Message, Prompt
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run

OPEN = {"rouge_l": 0.999, "shortest": 1, "keywords": []}
"""Rules that take nearly all."""


class Scripted(Teacher):
    """A teacher of the tests: it echoes, refines by adding a word of its own, and remembers what it was asked."""

    name = "scripted"
    is_rule_based = True
    asked: ClassVar[list[str]] = []

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """What was said, echoed."""
        self.asked.append(messages[-1].content)
        return Reply(f"Echo of {messages[-1].content}", self.name)

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """The instruction and a word that tells of the answer and the seed."""
        assert answer == f"Echo of {instruction}"
        self.asked.append(f"refine {instruction}")
        return f"{instruction} more{seed % 1000}"

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """A question."""
        return "And then?"


@pytest.fixture(autouse=True)
def scripted() -> Iterator[None]:
    """The teacher, offered and with nothing asked yet."""
    Scripted.asked = []
    with offered(Scripted):
        yield


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A chat server by the offline teacher's rules."""
    with serve() as chat:
        yield chat


def recipe(**source: Any) -> Recipe:
    """The recipe `tiny` with an own source: every seed is refined, and there is one turn unless the test says else."""
    values = {"dialogues": 6, "prompts": 0, "refined_share": 1.0, "two_turn_share": 0.0, "novelty": OPEN, **source}
    made = tiny()
    given = {**made.build.source.model_dump(), **values}
    build = made.build.model_copy(update={"source": SelfInstruct.model_validate(given)})
    return made.model_copy(update={"build": build})


def through(server: ChatServer, concurrency: int = 8) -> dict[str, Any]:
    """The choice of a teacher that asks the server."""
    options = {"model": "rules", "base_url": server.base_url}
    return {"name": "openai", "options": options, "limits": {"concurrency": concurrency, "attempts": 2}}


def collect(made: Recipe, draft: Draft, progress: Progress | None = None) -> tuple[list[Dialogue], list[Prompt]]:
    """What the source brings."""
    assert isinstance(made.build.source, SelfInstruct)
    return asyncio.run(self_instruct.collect(made, made.build.source, draft, progress or Silence()))


def seeds(folder: Path, *texts: str) -> str:
    """A file of seed prompts."""
    return str(write_jsonl(folder / "seeds.jsonl", [{"instruction": text} for text in texts]))


def texts(rows: Sequence[Dialogue | Prompt]) -> list[list[str]]:
    """What is said in each row."""
    return [[message.content for message in row.messages] for row in rows]


def both(rows: tuple[list[Dialogue], list[Prompt]]) -> list[Dialogue | Prompt]:
    """Dialogues and prompts."""
    return [*rows[0], *rows[1]]


def firsts(rows: Sequence[Dialogue | Prompt]) -> list[str]:
    """The instructions of the rows."""
    return [row.messages[0].content for row in rows]


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_chain_is_answered_and_refined_so_often_and_ends_on_its_last_pair(tmp_path: Path, rounds: int) -> None:
    made = recipe(teacher={"name": "scripted"}, seeds=seeds(tmp_path, "One."), dialogues=1, rounds=rounds)
    with open_draft(Run(tmp_path)) as draft:
        (row,), _ = collect(made, draft)
    instruction, answer = texts([row])[0]
    assert answer == f"Echo of {instruction}"
    assert instruction.count("more") == rounds
    steps = ["One."]
    for _ in range(rounds):
        steps.append(f"{steps[-1]} {instruction.split()[-1]}")
    asked = [step for text in steps[:-1] for step in (text, f"refine {text}")]
    assert Scripted.asked == [*asked, instruction]
    assert row.origin == "seeds.jsonl:1" + {0: "", 1: ", refined once", 3: ", refined 3 times"}[rounds]
    assert row.source == "self-instruct:scripted"
    assert isinstance(made.build.source, SelfInstruct)
    assert self_instruct.calls_of(made.build.source) == len(Scripted.asked) == 2 * rounds + 1


class Offering(Scripted):
    """It refines every instruction to the next of a list."""

    name = "offering"
    offers: ClassVar[dict[str, str]] = {
        "Seed one here.": "Short",
        "Seed two here.": "Draw a picture of it all, and quickly.",
        "Seed three here.": "word " * 30,
        "Seed four here.": "Seed four, here!",
        "Seed five here.": "Tell of Paris in the Spring of 1968.",
        "Seed six here.": "tell of paris in the spring of 1969.",
        "Seed seven here.": "",
        "Seed eight here.": 'New instruction: "Explain why Ada Lovelace wrote notes."',
    }

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """What is listed."""
        return self.offers[instruction]


def test_every_rule_has_its_count_and_leaves_the_chain_where_it_was(tmp_path: Path) -> None:
    rules = {"shortest": 3, "longest": 20, "rouge_l": 0.7, "keywords": ["picture"]}
    made = recipe(
        teacher={"name": "offering"}, seeds=seeds(tmp_path, *Offering.offers), dialogues=8, novelty=rules, waves=1
    )
    with offered(Offering), open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    assert draft.dropped == {
        novelty.TOO_SHORT: 1,
        novelty.EXCLUDED: 1,
        novelty.TOO_LONG: 1,
        novelty.TOO_SIMILAR: 2,
        self_instruct.EMPTY: 1,
    }
    refined = {4: "Tell of Paris in the Spring of 1968.", 7: "Explain why Ada Lovelace wrote notes."}
    expected = [refined.get(place, text) for place, text in enumerate(Offering.offers)]
    assert firsts(rows) == expected
    assert Counter("refined once" in row.origin for row in rows) == {False: 6, True: 2}


def test_a_seed_that_is_used_again_yields_nothing_and_waves_end_with_one_that_adds_nothing(tmp_path: Path) -> None:
    made = recipe(teacher={"name": "offering"}, seeds=seeds(tmp_path, "Seed one here.", "Seed two here."), dialogues=5)
    rules = made.build.source.model_copy(update={"novelty": Novelty(longest=6)})
    made = made.model_copy(update={"build": made.build.model_copy(update={"source": rules})})
    with offered(Offering), open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    assert firsts(rows) == ["Seed one here.", "Seed two here."]
    assert draft.dropped[self_instruct.AGAIN] == 3 + 3
    assert draft.dropped["requested dialogues that were not generated"] == 3
    assert draft.metrics["waves"] == 2
    assert draft.notes == ["3 of the 5 requested dialogues are missing after 2 waves: give more seeds, rounds or waves"]


def test_further_waves_draw_anew_from_the_next_seeds(tmp_path: Path) -> None:
    """Twenty rows from three seeds: the sampling seed of each chain is its own, so that refinements differ."""
    made = recipe(
        teacher={"name": "scripted"}, seeds=seeds(tmp_path, "One a.", "Two b.", "Three c."), dialogues=15, prompts=5
    )
    with open_draft(Run(tmp_path)) as draft:
        dialogues, prompts = collect(made, draft)
    assert len({*firsts(dialogues), *firsts(prompts)}) == 20
    assert [row.messages[-1].role for row in prompts] == ["user"] * 5
    used = Counter(row.origin.partition(",")[0] for row in both((dialogues, prompts)))
    assert used == {"seeds.jsonl:1": 7, "seeds.jsonl:2": 7, "seeds.jsonl:3": 6}


def test_without_rules_seeds_are_taken_in_their_order_and_again_from_the_top(tmp_path: Path) -> None:
    made = recipe(
        teacher={"name": "scripted"}, seeds=seeds(tmp_path, "a", "b", "c"), dialogues=7, rounds=0, novelty=None
    )
    with open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    assert firsts(rows) == list("abcabca")
    assert draft.dropped == {}


def test_rows_of_the_tiny_world_come_from_its_seeds_by_number(tmp_path: Path) -> None:
    made = recipe(dialogues=30, prompts=20, refined_share=0.3, two_turn_share=0.4, novelty=None)
    with open_draft(Run(tmp_path)) as draft:
        dialogues, prompts = collect(made, draft)
    origins = [row.origin.partition(",")[0] for row in both((dialogues, prompts))]
    assert origins == [f"tiny-world seed {number}" for number in range(50)]
    assert 0 < sum("refined once" in row.origin for row in dialogues) < 30
    assert {len(row.messages) for row in dialogues} == {2, 4}
    assert {len(row.messages) for row in prompts} == {1, 3}


def test_what_is_taken_from_the_real_seeds_is_new_by_the_definition(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "self_instruct" / "seed_tasks.jsonl"
    made = recipe(seeds=str(path), dialogues=60, prompts=20, rounds=2, novelty={"rouge_l": 0.6, "longest": 60}, waves=3)
    with open_draft(Run(tmp_path)) as draft:
        dialogues, prompts = collect(made, draft)
    rows = both((dialogues, prompts))
    taken = [row.messages[0].content for row in rows if "refined" in row.origin]
    asked = [json.loads(line)["instruction"] for line in path.read_text().splitlines()]
    assert len(taken) > 20
    assert draft.dropped[novelty.TOO_SIMILAR] > 20
    for text in taken:
        assert all(rouge_l(text, seed) < Fraction("0.6") for seed in asked)
    for first, second in itertools.combinations(taken, 2):
        assert rouge_l(first, second) < Fraction("0.6")
    assert len({*firsts(rows)}) == len(rows)


def test_the_real_seeds_bring_their_input(tmp_path: Path, real_data: Path) -> None:
    """125 of the 175 tasks cannot be answered without it."""
    path = real_data / "self_instruct" / "seed_tasks.jsonl"
    made = recipe(seeds=str(path), dialogues=175, rounds=0, novelty={"longest": 1000})
    with open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    tasks = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(tasks) - draft.dropped.get(self_instruct.AGAIN, 0)
    by_origin = {row.origin: row.messages[0].content for row in rows}
    with_input = [number for number, task in enumerate(tasks, 1) if task["instances"][0]["input"]]
    assert len(with_input) > 100
    for number in with_input:
        task = tasks[number - 1]
        assert by_origin[f"seed_tasks.jsonl:{number}"] == f"{task['instruction']}\n\n{task['instances'][0]['input']}"


class Shuffling(Scripted):
    """It answers after a while that differs from call to call, so that replies come in another order each time."""

    name = "shuffling"
    order: ClassVar[Random] = Random(1)

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """The echo, late."""
        for _ in range(self.order.randint(0, 9)):
            await asyncio.sleep(0)
        return await super().reply(messages, sampling)

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """One of few instructions, so that chains meet."""
        for _ in range(self.order.randint(0, 9)):
            await asyncio.sleep(0)
        return f"Tell me all about place number {seed % 40}, and then about place {instruction.count(' ')} too."


def test_neither_order_nor_concurrency_of_the_replies_changes_a_row(tmp_path: Path) -> None:
    found = []
    with offered(Shuffling):
        for place, concurrency in enumerate((1, 64, 64)):
            teacher = {"name": "shuffling", "limits": {"concurrency": concurrency}}
            made = recipe(teacher=teacher, dialogues=40, prompts=20, rounds=3, two_turn_share=0.5, novelty={})
            with open_draft(Run(tmp_path / str(place))) as draft:
                found.append((*collect(made, draft), draft.dropped))
    assert found[0] == found[1] == found[2]
    assert found[0][2][novelty.TOO_SIMILAR] > 10


class Failing(Scripted):
    """Some of its calls fail for good, and one setting makes all fail fatally."""

    name = "failing"
    error: ClassVar[type[ZephyrError]] = CallFailed

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """The echo, or a failure for two of the seeds."""
        if messages[0].content.startswith(("c", "f")):
            if self.error is CallFailed:
                raise CallFailed("503", "wait", cause="the server was busy")
            raise self.error("the budget is spent", "raise it")
        return await super().reply(messages, sampling)


def test_a_call_that_fails_costs_its_conversation_only(tmp_path: Path) -> None:
    files = seeds(tmp_path, *"abcdefgh")
    rows = {}
    for name in ("scripted", "failing"):
        made = recipe(teacher={"name": name}, seeds=files, dialogues=8, waves=1)
        with offered(Failing), open_draft(Run(tmp_path / name)) as draft:
            rows[name] = texts(collect(made, draft)[0])
    assert rows["failing"] == [row for row in rows["scripted"] if row[0][0] not in "cf"]
    assert draft.dropped == {
        "conversations that failed: the server was busy": 2,
        "requested dialogues that were not generated": 2,
    }


def test_an_error_that_is_no_failed_call_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "error", ZephyrError)
    made = recipe(teacher={"name": "failing"}, seeds=seeds(tmp_path, *"abcdefgh"), dialogues=8)
    with offered(Failing), open_draft(Run(tmp_path)) as draft, pytest.raises(ZephyrError, match="budget is spent"):
        collect(made, draft)


class Careless(Scripted):
    """Some answers are empty or cut, and some second turns are missing."""

    name = "careless"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """By the seed's first letter."""
        first = messages[0].content[0]
        text = " " if first == "e" else f"Echo of {messages[-1].content}"
        return Reply(text, self.name, finish_reason="length" if first == "c" else "stop")

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """Silence for one seed."""
        return "" if messages[0].content[0] == "s" else "And then?"


def test_what_is_empty_or_cut_is_counted(tmp_path: Path) -> None:
    files = seeds(tmp_path, "fine one", "empty one", "cut one", "silent one")
    made = recipe(teacher={"name": "careless"}, seeds=files, dialogues=4, two_turn_share=1.0, waves=1)
    with offered(Careless), open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    assert [len(row.messages) for row in rows] == [4, 2]
    assert [row[0][:4] for row in texts(rows)] == ["fine", "sile"]
    assert draft.dropped == {
        self_instruct.UNANSWERED: 1,
        "conversations of the teacher with an empty assistant turn": 1,
        self_instruct.CUT: 1,
        self_instruct.ONE_SIDED: 1,
        "requested dialogues that were not generated": 2,
    }


def test_seeds_that_cannot_be_used_stop_or_are_counted(tmp_path: Path) -> None:
    made = recipe(seeds=seeds(tmp_path, "Tell me of a.", " "), dialogues=1)
    with open_draft(Run(tmp_path / "run")) as draft:
        with pytest.raises(BadRow, match=r"seeds\.jsonl:2: an empty prompt"):
            collect(made, draft)
        collect(made.model_copy(update={"skip_bad_rows": True}), draft)
        assert draft.dropped["an empty prompt"] == 1
        seeds(tmp_path, " ")
        with pytest.raises(ZephyrError, match="contains no usable seed"):
            collect(made.model_copy(update={"skip_bad_rows": True}), draft)


def test_of_a_conversation_the_first_user_turn_is_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "seeds.jsonl", [{"data": ["First of all?", "Yes.", "And that?", "No."]}])
    made = recipe(teacher={"name": "scripted"}, seeds=str(path), dialogues=1, rounds=0)
    with open_draft(Run(tmp_path / "run")) as draft:
        assert firsts(collect(made, draft)[0]) == ["First of all?"]


def test_what_is_done_is_said_with_the_number_of_calls() -> None:
    source = recipe(dialogues=10, prompts=10, rounds=2, two_turn_share=0.5).build.source
    assert isinstance(source, SelfInstruct)
    assert self_instruct.calls_of(source) == 10 * (4 + 1 + 1) + 10 * (4 + 1)
    assert self_instruct.describe(source) == "build 10 dialogues and 10 prompts in about 110 calls of 'offline'"


def test_a_server_brings_the_same_rows_as_its_rules(tmp_path: Path, server: ChatServer) -> None:
    """The prompts carry everything: the rows are those of the offline teacher, text by text."""
    values = {"dialogues": 20, "prompts": 10, "rounds": 2, "two_turn_share": 0.5, "novelty": {"rouge_l": 0.9}}
    found = []
    for name, source in (("rules", {}), ("server", {"teacher": through(server)})):
        with open_draft(Run(tmp_path / name)) as draft:
            dialogues, prompts = collect(recipe(**values, **source), draft)
        found.append((texts(dialogues), texts(prompts)))
    assert found[0] == found[1]
    assert len(found[0][0]) == 20


def bodies(server: ChatServer) -> Counter[str]:
    """How often each request was made."""
    return Counter(json.dumps(call.body, sort_keys=True) for call in server.calls)


def test_an_interrupted_build_goes_on_without_a_settled_call_and_comes_to_the_same(
    tmp_path: Path, server: ChatServer
) -> None:
    made = recipe(teacher=through(server, concurrency=1), dialogues=8, prompts=4, rounds=2, two_turn_share=0.5)
    with open_draft(Run(tmp_path / "unbroken")) as draft:
        unbroken = collect(made, draft)
    whole = bodies(server)
    server.calls.clear()
    for after in (5, 20):
        with open_draft(Run(tmp_path / "broken")) as draft, pytest.raises(KeyboardInterrupt):
            collect(made, draft, Stop(after))
    assert 5 < sum(bodies(server).values()) < sum(whole.values())
    with open_draft(Run(tmp_path / "broken")) as draft:
        assert collect(made, draft) == unbroken
    again = bodies(server) - whole
    assert set(bodies(server)) == set(whole)
    assert sum(again.values()) <= 2, "only a call in flight at a stop is made again"
    server.calls.clear()
    with open_draft(Run(tmp_path / "broken")) as draft:
        assert collect(made, draft) == unbroken
    assert server.calls == []
    assert draft.metrics["calls_from_log"] == sum(whole.values())


def test_more_rows_pay_only_for_what_is_new(tmp_path: Path, server: ChatServer) -> None:
    for count in (4, 7):
        made = recipe(teacher=through(server), dialogues=count, two_turn_share=1.0)
        with open_draft(Run(tmp_path)) as draft:
            rows, _ = collect(made, draft)
        assert len(rows) == count
    assert max(bodies(server).values()) == 1
    assert len(server.calls) == 7 * 5


def test_a_request_that_the_server_refuses_costs_its_row_only(tmp_path: Path, server: ChatServer) -> None:
    server.fail(refusal(400, "too long"))
    made = recipe(teacher=through(server, concurrency=1), dialogues=4, waves=1)
    with open_draft(Run(tmp_path)) as draft:
        rows, _ = collect(made, draft)
    assert len(rows) == 3
    assert sum(lost for cause, lost in draft.dropped.items() if cause.startswith("conversations that failed: ")) == 1
