"""The embedded recipe `tiny`, whole: what it promises on held-out prompts, at the recipe's seed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The object that `zephyrctl run --recipe tiny --json` prints."""
    folder = tmp_path_factory.mktemp("tiny")
    ran = shell(["run", "--recipe", "tiny", "--json"], folder, timeout=1200)
    assert ran.code == 0, ran.err
    printed: dict[str, Any] = json.loads(ran.out)
    printed["folder"] = folder
    return printed


def test_dsft_is_far_above_the_base(outcome: dict[str, Any]) -> None:
    base, sft = outcome["scores"]["base"], outcome["scores"]["sft"]
    assert sft["low"] > base["high"] + 1


def test_ddpo_is_above_dsft_beyond_chance(outcome: dict[str, Any]) -> None:
    assert outcome["scores"]["dpo_minus_sft"]["low"] > 0


def test_dpo_starts_at_ln_2_and_tells_held_out_answers_apart(outcome: dict[str, Any]) -> None:
    assert abs(outcome["dpo"]["first_loss"] - math.log(2)) < 2e-3
    assert outcome["dpo"]["reward_accuracy"] >= 0.9


def test_dsft_hedges_as_its_dialogues_do_and_ddpo_does_not(outcome: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    folder: Path = outcome["folder"]
    rows = pq.read_table(folder / "runs" / "tiny" / "eval" / "answers" / "test.parquet").to_pylist()
    openings = ("i don't have", "i do not have")
    share = {
        name: sum(row["answer"].lower().startswith(openings) for row in rows if row["model"] == name)
        / sum(row["model"] == name for row in rows)
        for name in ("sft", "dpo")
    }
    assert share["sft"] > 0.5
    assert share["dpo"] < 0.1


def test_answers_end_by_themselves_after_training(outcome: dict[str, Any]) -> None:
    """The end of a turn is learnt: its token carries loss, and generation stops at it."""
    metrics = json.loads((outcome["folder"] / "runs" / "tiny" / "eval" / "manifest.json").read_text())["metrics"]
    asked = metrics["answers"] / 3
    assert metrics["cut_off"]["sft"] <= 0.01 * asked
    assert metrics["cut_off"]["dpo"] <= 0.05 * asked


def test_training_and_evaluation_render_conversations_alike(outcome: dict[str, Any]) -> None:
    runs = outcome["folder"] / "runs" / "tiny"
    metrics = {name: json.loads((runs / name / "manifest.json").read_text())["metrics"] for name in ("sft", "dpo")}
    contracts = json.loads((runs / "eval" / "manifest.json").read_text())["metrics"]["token_contract"]
    assert {metrics["sft"]["token_contract"], metrics["dpo"]["token_contract"]} == set(contracts.values())
    assert set(contracts) == {"base", "sft", "dpo"}


def test_the_judge_is_said_to_be_rules(outcome: dict[str, Any]) -> None:
    assert outcome["judge"]["rule_based"] is True
    report = (outcome["folder"] / outcome["report"]).read_text()
    assert "rule" in report
