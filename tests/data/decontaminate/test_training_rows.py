"""Whether rows that hold what a benchmark asks are kept from training, unless the recipe says that they may stay."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import open_draft, tiny, write_jsonl
from zephyrctl.data import build
from zephyrctl.data.decontaminate.training_rows import check_training_dialogues, decontaminated_pairs
from zephyrctl.errors import GateError
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message, PreferencePair, prompt_id
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform
from zephyrctl.training.stage import TrainStage

ASKED = "Name the three tallest towers that were built of wood before steel."


def recipe(folder: Path, on_hit: str, **values: Any) -> Recipe:
    """A recipe that searches for one prompt of a benchmark."""
    benchmark = write_jsonl(folder / "question.jsonl", [{"turns": [ASKED]}])
    return tiny(decontaminate={"against": [str(benchmark)], "ngram": 8, "on_hit": on_hit}, **values)


def pair(text: str) -> PreferencePair:
    """A pair of answers to a prompt."""
    asked = [Message(role="user", content=text)]
    return PreferencePair(
        id=prompt_id(text), messages=asked, chosen="a", rejected="b", score_chosen=2.0, score_rejected=1.0
    )


PAIRS = [pair("Why?"), pair(f"please: {ASKED.upper()}"), pair("Who?")]


def kept(folder: Path, on_hit: str) -> tuple[list[PreferencePair], Draft]:
    """The pairs that stay, and what the draft was told."""
    with open_draft(Run(folder / "run"), "dpo") as draft:
        return list(decontaminated_pairs(PAIRS, recipe(folder, on_hit).decontaminate, draft)), draft


def test_pairs_with_a_hit_are_dropped_and_counted(tmp_path: Path) -> None:
    pairs, draft = kept(tmp_path, "drop")
    assert pairs == [PAIRS[0], PAIRS[2]]
    assert draft.dropped == {"training rows that contain a benchmark prompt": 1}


def test_pairs_with_a_hit_are_kept_and_noted_where_the_recipe_says_so(tmp_path: Path) -> None:
    pairs, draft = kept(tmp_path, "keep")
    assert pairs == PAIRS
    assert draft.dropped == {} and draft.metrics == {"contaminated": 1}
    assert "1 training rows" in draft.notes[0]


def test_pairs_with_a_hit_are_refused_with_both_texts(tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        kept(tmp_path, "refuse")
    assert ASKED in caught.value.problem and ASKED.upper() in caught.value.problem
    assert caught.value.exit_code == 3


def test_the_benchmark_is_an_input_of_training(tmp_path: Path) -> None:
    for name in ("sft", "dpo"):
        step = TrainStage(recipe(tmp_path, "drop"), name)
        assert step.reads["benchmark 1"].path == tmp_path / "question.jsonl"
        assert step.settings["decontaminate"]["on_hit"] == "drop"
        assert "decontaminate" not in TrainStage(tiny(), name).settings


def built(folder: Path, on_hit: str, **section: Any) -> Artifact:
    """Dialogues of which one holds the prompt, built by some policy."""
    rows = [{"instruction": f"Question {number}?", "output": "Yes."} for number in range(8)]
    rows.append({"instruction": f"Now {ASKED}", "output": "The first."})
    path = write_jsonl(folder / "rows.jsonl", rows)
    source = {"kind": "files", "paths": [str(path)]}
    values: dict[str, Any] = {"build__source": source, "build__test_share": 0.0}
    made = recipe(folder, on_hit, **values) if not section else tiny(decontaminate=section, **values)
    return perform(Run(folder / "run"), build.BuildStage(made)).artifact


@pytest.mark.parametrize(("is_searched", "on_hit"), [(True, "keep"), (False, "drop")])
def test_dialogues_that_still_hold_hits_are_refused(tmp_path: Path, is_searched: bool, on_hit: str) -> None:
    artifact = built(tmp_path, on_hit, **({} if is_searched else {"against": []}))
    with open_draft(Run(tmp_path / "run"), "sft") as draft:
        with pytest.raises(GateError, match=r"rows\.jsonl:9 turn 0 says") as caught:
            check_training_dialogues(artifact, recipe(tmp_path, "drop").decontaminate, draft)
        assert "zephyrctl data build" in caught.value.remedy
        check_training_dialogues(artifact, recipe(tmp_path, "keep").decontaminate, draft)
        assert draft.metrics == {"contaminated": 1}


def test_dialogues_that_were_built_without_hits_may_be_trained_on(tmp_path: Path) -> None:
    artifact = built(tmp_path, "drop")
    with open_draft(Run(tmp_path / "run"), "sft") as draft:
        check_training_dialogues(artifact, recipe(tmp_path, "drop").decontaminate, draft)
        check_training_dialogues(artifact, tiny().decontaminate, draft)
        assert draft.metrics == {} and draft.dropped == {}
