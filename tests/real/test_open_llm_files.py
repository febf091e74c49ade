"""Whether the raw result files of a published model give its published scores, the one that is not JSON included."""

import json
from pathlib import Path

import pytest

from zephyrctl.evaluation.benchmarks.lm_eval_files import read_file
from zephyrctl.evaluation.benchmarks.open_llm import FIGURES, read_results

pytestmark = pytest.mark.real


def test_notus_scores_as_published(real_data: Path) -> None:
    told = read_results([real_data / "open_llm" / "notus"]).rounded().as_json()
    assert {name: told[name] for name in FIGURES} == {
        "arc": 64.25,
        "hellaswag": 84.90,
        "mmlu": 62.59,
        "mmlu_by_size": 61.69,
        "truthfulqa": 52.77,
    }
    sizes = {"arc": 1172, "hellaswag": 10042, "mmlu": 14042, "mmlu_by_size": 14042, "truthfulqa": None}
    assert told["n"] == sizes
    assert told["shots"] == {"arc": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa": None}
    assert told["standard_errors"]["mmlu"] < 0.5, "the 12.67 that its group states is pooled badly"
    assert any("truthfulqa.json is not JSON (line 224" in text for text in told["warnings"])


def test_sizes_that_follow_from_standard_errors_give_the_groups_own_mean(real_data: Path) -> None:
    path = real_data / "open_llm" / "notus" / "mmlu.json"
    group = json.loads(path.read_text())["groups"]["mmlu"]["acc,none"]
    assert read_results([path]).mmlu_by_size == pytest.approx(100 * group, abs=1e-9)


def test_results_of_other_benchmarks_hold_nothing_of_the_leaderboards(real_data: Path) -> None:
    for name in ("drop.json", "gsm8k.json"):
        assert not read_file(real_data / "open_llm" / "notus" / name).measurements
