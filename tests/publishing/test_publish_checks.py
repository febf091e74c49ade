"""The checks before a push: what fails is named, and waived by its name alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.publishing import runs_made
from zephyrctl.errors import GateError
from zephyrctl.publishing.publish_checks import NAMES, failed_checks
from zephyrctl.publishing.push import require_checks
from zephyrctl.publishing.uploads import FailedCheck, Upload
from zephyrctl.records import Message, PreferencePair, prompt_id
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

BASE = runs_made.Base("an-org/a-base")


def artifact(folder: Path, name: str, settings: dict[str, Any] | None = None, **metrics: Any) -> Artifact:
    """A finished artifact with these metrics, and two pairs that tie."""
    run = Run(folder)
    stage = "eval" if name in ("mt-bench", "alpaca-eval") else name
    with run.draft(Plan(name=name, stage=stage, settings=settings or {}, inputs={}), {}, {}) as draft:
        draft.metrics |= {"benchmark": name, "models": {}, **metrics} if stage == "eval" else metrics
        if name == "binarize":
            pairs = [
                PreferencePair(
                    id=prompt_id(text),
                    messages=[Message(role="user", content=text)],
                    chosen="a",
                    rejected="b",
                    score_chosen=3,
                    score_rejected=3,
                )
                for text in ("one", "two")
            ]
            draft.write("pairs", "train", pairs, PreferencePair)
        return draft.finish()


def names(*given: Any, **changed: Any) -> list[str]:
    """The checks that these artifacts fail."""
    chain = [one for one in given if one.manifest.plan.stage != "eval"]
    evaluations = [one for one in given if one.manifest.plan.stage == "eval"]
    found = failed_checks(runs_made.make_recipe(**changed), BASE, chain, evaluations, [])
    return [one.name for one in found]


def test_questions_in_the_training_data_fail_the_check(tmp_path: Path) -> None:
    hit = artifact(tmp_path, "mt-bench", contamination={"hits": 1, "questions": 80})
    clean = artifact(tmp_path, "alpaca-eval", contamination={"hits": 0, "questions": 805})
    assert names(hit) == ["contamination"]
    assert names(clean) == []


def test_rows_that_were_kept_fail_the_check_and_dropped_ones_do_not(tmp_path: Path) -> None:
    kept = artifact(tmp_path / "a", "build", {"decontaminate": {"on_hit": "keep"}}, contaminated={"x": 2, "rows": 2})
    dropped = artifact(tmp_path / "b", "build", {"decontaminate": {"on_hit": "drop"}}, contaminated={"x": 2, "rows": 2})
    trained = artifact(tmp_path / "c", "dpo", contaminated=3)
    assert names(kept) == ["contamination"]
    assert names(dropped) == []
    assert names(trained) == ["contamination"]


def test_gates_of_the_recipe_are_held_against_its_data(tmp_path: Path) -> None:
    pairs = artifact(tmp_path, "binarize")
    assert names(pairs) == []
    assert names(pairs, audit={"gates": {"ties": 0}}) == ["gates"]
    assert names(pairs, audit={"gates": {"ties": 2}}) == []


def test_an_unknown_licence_and_a_pickle_fail_their_checks() -> None:
    class Nameless(runs_made.Base):
        """A base of which nobody knows the licence."""

        license = "unknown"

    found = failed_checks(runs_made.make_recipe(), Nameless("an-org/a-base"), [], [], ["model.safetensors", "old.bin"])
    assert [one.name for one in found] == ["licence", "pickle"]
    assert {one.name for one in found} <= set(NAMES)


def test_each_is_waived_by_its_own_name_alone() -> None:
    found = tuple(FailedCheck(name, f"about {name}", "fix it") for name in ("licence", "secrets"))
    upload = Upload("x", (), (), found)
    with pytest.raises(GateError, match=r"about licence \(and 1 more"):
        require_checks(upload, ())
    with pytest.raises(GateError, match="about secrets"):
        require_checks(upload, ("licence",))
    require_checks(upload, ("licence", "secrets"))
