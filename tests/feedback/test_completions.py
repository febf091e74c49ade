"""Whether every prompt is asked of the right teachers under its own principle, and answers that exist are joined."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import prompt, tiny, ultrafeedback_row, write_jsonl
from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.feedback import completions
from zephyrctl.feedback.prompts import PromptSource, SplitPrompt, join_answers
from zephyrctl.records import Message, RatedPrompt, prompt_id


class Named(Teacher):
    """A teacher that is never asked."""

    name = "named"

    def __init__(self, label: str) -> None:
        super().__init__(PluginOptions())
        self._label = label

    @property
    def label(self) -> str:
        """The name that the test gave."""
        return self._label

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Nothing."""
        raise NotImplementedError


POOL = [Named(f"model {number}") for number in range(7)]
PROMPTS = [
    RatedPrompt(id=row.id, messages=row.messages, completions=[], source="test")
    for row in (prompt(f"Question {number}?") for number in range(400))
]


def test_a_pool_of_the_right_size_answers_in_its_order_and_a_smaller_one_whole() -> None:
    recipe = tiny()
    for size in (4, 2):
        found = completions.choose_slots(PROMPTS[0], POOL[:size], {}, 4, recipe.seed)
        assert [slot.teacher for slot in found] == POOL[:size]
        assert [slot.number for slot in found] == list(range(size))


def test_a_larger_pool_is_drawn_for_each_prompt_evenly_and_without_repeats() -> None:
    recipe = tiny()
    drawn = {
        row.id: [slot.number for slot in completions.choose_slots(row, POOL, {}, 4, recipe.seed)] for row in PROMPTS
    }
    assert all(len(set(numbers)) == 4 for numbers in drawn.values())
    counts = Counter(number for numbers in drawn.values() for number in numbers)
    assert all(abs(counts[number] - 400 * 4 / 7) < 60 for number in range(7)), counts
    again = {
        row.id: [slot.number for slot in completions.choose_slots(row, POOL, {}, 4, recipe.seed)]
        for row in PROMPTS[::-1]
    }
    assert again == drawn
    recipe = tiny(seed=1)
    other = {
        row.id: [slot.number for slot in completions.choose_slots(row, POOL, {}, 4, recipe.seed)] for row in PROMPTS
    }
    assert other != drawn


def test_principles_are_drawn_by_prompt_and_place_and_all_are_used() -> None:
    principles = completions.load_principles(tiny(feedback__principles="shipped").feedback)
    assert {"helpfulness", "honesty", "truthfulness", "verbalized_calibration", "harmlessness"} == set(principles)
    assert all(len(texts) >= 3 and len(set(texts)) == len(texts) for texts in principles.values())
    recipe = tiny()
    drawn = [completions.choose_slots(row, POOL[:4], principles, 4, recipe.seed) for row in PROMPTS]
    used = {(slot.principle, slot.system) for found in drawn for slot in found}
    assert used == {(name, text) for name, texts in principles.items() for text in texts}
    assert any(len({slot.system for slot in found}) > 1 for found in drawn)
    assert drawn == [completions.choose_slots(row, POOL[:4], principles, 4, recipe.seed) for row in PROMPTS]
    # One more at the end of the pool: who was drawn before keeps principle and seed.
    for row, found in zip(PROMPTS[:50], drawn, strict=False):
        later = {slot.number: slot for slot in completions.choose_slots(row, POOL[:5], principles, 4, recipe.seed)}
        assert all(later[slot.number] == slot for slot in found if slot.number in later)


def test_a_principle_stands_before_the_conversation_and_beside_a_system_turn_that_is_there() -> None:
    asked = [Message(role="user", content="Why?")]
    assert completions.add_system_prompt("", asked) == asked
    assert [turn.role for turn in completions.add_system_prompt("Be kind.", asked)] == ["system", "user"]
    own = [Message(role="system", content="Be brief."), *asked]
    (system, user) = completions.add_system_prompt("Be kind.", own)
    assert system.content == "Be kind.\n\nBe brief."
    assert user == asked[0]


def test_principles_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("brevity: Be brief.\nwit: [Be witty., Be very witty.]\n")
    found = completions.load_principles(tiny(feedback__principles=str(path)).feedback)
    assert found == {"brevity": ["Be brief."], "wit": ["Be witty.", "Be very witty."]}
    assert completions.load_principles(tiny().feedback) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n- b\n", "contains no principles"),
        ("", "contains no principles"),
        ("brevity: []\n", "'brevity' has no texts"),
        ("brevity: [1]\n", "'brevity' has no texts"),
        ("brevity: ' '\n", "'brevity' has no texts"),
        ("a: [\n", "is not YAML"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_states_no_principles_is_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ZephyrError, match=problem):
        completions.load_principles(tiny(feedback__principles=str(path)).feedback)


def gather(paths: Sequence[Path], skip_bad_rows: bool = False) -> tuple[list[RatedPrompt], Counter[str]]:
    """The joined rows, and what was left out."""
    lost: Counter[str] = Counter()

    def lose(cause: str) -> None:
        lost[cause] += 1

    return list(join_answers(paths, skip_bad_rows, lose)), lost


def alpaca(model: str, *pairs: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows in AlpacaEval's form."""
    return [{"instruction": ask, "output": said, "generator": model, "dataset": "own"} for ask, said in pairs]


def test_answers_of_several_files_are_joined_by_prompt_in_the_order_of_the_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", alpaca("one", ("A?", "a1"), ("B?", "b1"), ("C?", "c1"), ("A?", "again")))
    rows = [
        {"prompt": ask, "response": said, "model": "two"} for ask, said in (("B?", "b2"), ("A?", "a2"), ("D?", "d2"))
    ]
    two = write_jsonl(tmp_path / "two.jsonl", rows)
    three = write_jsonl(
        tmp_path / "three.jsonl", [{"instruction": "B?", "output": ""}, {"prompt": "D?", "output": "d3"}]
    )
    found, lost = gather([one, two, three])
    said = {row.messages[0].content: [(made.model, made.text) for made in row.completions] for row in found}
    assert said == {
        "A?": [("one", "a1"), ("two", "a2")],
        "B?": [("one", "b1"), ("two", "b2"), ("three", "")],
        "D?": [("two", "d2"), ("three", "d3")],
    }
    assert [row.id for row in found] == [prompt_id(ask) for ask in ("A?", "B?", "D?")]
    assert lost == {
        "answers given more than once in a file": 1,
        "prompts with an answer of one file only": 1,
        "answers that a file lacks": 2,
    }
    assert [(row.source, row.origin) for row in found][::2] == [("own", "one.jsonl:1"), ("two.jsonl", "two.jsonl:3")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "A?"}, "two.jsonl:2: no answer: neither `output` nor `response`"),
        ({"output": "a"}, "two.jsonl:2: no prompt: neither `instruction` nor `prompt`"),
        ({"instruction": "A?", "output": 1}, "two.jsonl:2: the answer is not text"),
        ({"instruction": " ", "output": "a"}, "two.jsonl:2: an empty prompt"),
    ],
)
def test_a_row_without_the_needed_keys_is_named_or_counted(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", alpaca("one", ("A?", "a1")))
    two = write_jsonl(tmp_path / "two.jsonl", [*alpaca("two", ("A?", "a2")), row])
    with pytest.raises(ZephyrError) as caught:
        gather([one, two])
    assert problem in caught.value.problem
    found, lost = gather([one, two], skip_bad_rows=True)
    assert len(found) == 1
    assert sum(lost.values()) == 1


def test_files_that_contradict_each_other_are_refused() -> None:
    recipe, one, two = tiny(), Path("one.jsonl"), Path("two.jsonl")
    for intake, problem in (
        (PromptSource(recipe, one, (one, two)), "--input and --answers"),
        (PromptSource(recipe, None, (one,)), "alone leaves nothing to compare"),
        (PromptSource(recipe, None, (one, two, one)), "names a file twice"),
    ):
        with pytest.raises(UsageError, match=problem):
            intake.check()
    PromptSource(recipe, None, (one, two)).check()
    PromptSource(recipe, one).check()


def test_rows_of_a_file_keep_their_answers_and_say_where_they_were(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?"}, ultrafeedback_row("Why?", {"one": "5", "two": "1"}), {"prompt": "Who?"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    lost: list[str] = []
    found: list[SplitPrompt] = list(PromptSource(tiny(), path).rows({"prompts": path}, lost.append))
    assert [(len(one.prompt.completions), one.prompt.origin) for one in found] == [
        (0, "rows.jsonl:1"),
        (2, "rows.jsonl:2"),
    ]
    assert lost == ["prompts given more than once"]
