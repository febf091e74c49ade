"""IFEval: a real lm-eval run on a checkpoint with prompts of our own, and accuracies with their intervals."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.evaluation.benchmarks_made import write_lines
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.harness import QuestionScoreRow, TaskOutcome
from zephyrctl.evaluation.benchmarks.ifeval import LOOSE, STRICT, STRICT_EACH, IfEval
from zephyrctl.evaluation.results import FiguresResult, read_result
from zephyrctl.evaluation.score_sources import find
from zephyrctl.runs.run import Run

BENCHMARK = IfEval(IfEval.Options())


def ifeval_file(folder: Path) -> Path:
    """Prompts in the published form whose instructions need no data of NLTK."""
    rules: list[tuple[str, dict[str, Any]]] = [
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
        ("keywords:forbidden_words", {"forbidden_words": ["zebra", "quartz"]}),
        ("keywords:existence", {"keywords": ["zebra"]}),
    ]
    rows = []
    for key in range(6):
        chosen = [rules[key % 4], rules[(key + 1) % 4]] if key % 2 else [rules[key % 4]]
        rows.append(
            {
                "key": 1000 + key,
                "prompt": f"What is the capital of country {key}?",
                "instruction_id_list": [name for name, _ in chosen],
                "kwargs": [arguments for _, arguments in chosen],
            }
        )
    write_lines(folder / "ifeval" / "train.jsonl", rows)
    return folder


def outcome(*prompts: tuple[list[bool], list[bool]]) -> TaskOutcome:
    """A worker's report of prompts, each with its instructions followed strictly and loosely."""
    rows = []
    for number, (strict, loose) in enumerate(prompts):
        labels = ["punctuation:no_comma", "keywords:existence"][: len(strict)]
        values = {STRICT: all(strict), STRICT_EACH: strict, LOOSE: all(loose), "inst_level_loose_acc": loose}
        rows.append([f"{number}-abc", float(all(strict)), "a prompt", {**values, "labels": labels}])
    return TaskOutcome.from_journal({"raw": {}, "scores": rows})


def summarized(*prompts: tuple[list[bool], list[bool]]) -> FiguresResult:
    return BENCHMARK.summarize({"m": {"ifeval": outcome(*prompts)}}, Path("unused"))


def test_accuracies_count_prompts_and_instructions() -> None:
    result = summarized(
        ([True, False], [True, True]), ([True], [True]), ([False], [True]), ([True, True], [True, True])
    )
    figures = result.models["m"].figures
    assert {key: estimate.mean for key, estimate in figures.items()} == pytest.approx(
        {STRICT: 50.0, STRICT_EACH: 100 * 4 / 6, LOOSE: 100.0, "inst_level_loose_acc": 100.0}, abs=1e-4
    )
    assert {estimate.n for estimate in figures.values()} == {4}
    low, high = figures[STRICT].low, figures[STRICT].high
    assert low is not None and high is not None and 0 <= low < 50 < high <= 100
    assert (figures[LOOSE].low, figures[LOOSE].high) == (100.0, 100.0)
    categories = {name: estimate.mean for name, estimate in result.models["m"].categories.items()}
    assert categories == {"keywords": 50.0, "punctuation": 75.0}
    assert result.comparability == ["4 of 541 prompts"]


def test_the_class_says_what_tables_and_the_report_need() -> None:
    result = summarized(([True, True], [True, True]), ([False], [True]))
    scores = BENCHMARK.scores(result)
    assert [(score.model, score.figure.key) for score in scores] == [("m", figure.key) for figure in IfEval.figures]
    assert all(score.figure.unit == "%" and score.figure.higher_is_better for score in scores)
    assert BENCHMARK.categories(result) == ["keywords", "punctuation"]
    (table,) = BENCHMARK.tables(result)
    assert table.columns == ("m",)
    assert table.rows[0] == ("prompts, strict, %", "50.00")


def results_file(path: Path, entry: Mapping[str, object]) -> Path:
    """A result file of lm-eval with the task."""
    document = {"results": {"ifeval": entry}, "n-samples": {"ifeval": {"original": 541, "effective": 541}}}
    path.write_text(json.dumps(document))
    return path


ENTRY = {
    "prompt_level_strict_acc,none": 0.4,
    "prompt_level_strict_acc_stderr,none": 0.021,
    "inst_level_strict_acc,none": 0.5,
    "inst_level_strict_acc_stderr,none": "N/A",
}


def test_result_files_of_lm_eval_are_read(zephyrctl: Command, tmp_path: Path) -> None:
    path = results_file(tmp_path / "theirs.json", ENTRY)
    printed = zephyrctl("eval", "ifeval", "--results", path, "--json").json
    figures = printed["models"]["theirs"]["figures"]
    assert figures[STRICT]["mean"] == pytest.approx(40.0)
    assert figures[STRICT]["high"] - 40.0 == pytest.approx(1.96 * 2.1, abs=1e-3)
    assert figures[STRICT_EACH] == {"mean": 50.0}, "lm-eval states no error of instructions"
    (total,) = find(Run(tmp_path), str(path))
    assert (total.benchmark, total.model) == ("ifeval prompt_level_strict_acc", "theirs")
    other = results_file(tmp_path / "other.json", {**ENTRY, "prompt_level_strict_acc,none": 0.3})
    compared = zephyrctl("eval", "compare", path, other, "--json")
    assert compared.code == 3 and compared.json["comparisons"][0]["difference"]["mean"] == pytest.approx(-10.0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {"arc_challenge": {}}}))
    with pytest.raises(ZephyrError, match="has no results of ifeval"):
        BENCHMARK.read_results([path])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ""}, "train.jsonl:1: prompt"),
        ({"kwargs": []}, "an object is needed for each instruction"),
        ({"instruction_id_list": []}, "instruction_id_list"),
    ],
)
def test_a_local_file_in_another_form_is_refused_with_its_line(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_lines(tmp_path / "ifeval" / "train.jsonl", [row | change])
    with pytest.raises(ZephyrError, match=words):
        BENCHMARK.check_data(tmp_path, {})
    with pytest.raises(ZephyrError, match=r"there is no .*ifeval/train\.jsonl"):
        BENCHMARK.tasks({"data": tmp_path / "elsewhere"})


@pytest.mark.slow
def test_checkpoints_are_asked_through_lm_eval(zephyrctl: Command, small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
    ifeval_file(tmp_path / "files")
    asked = ["eval", "ifeval", "--checkpoint", "dpo", "--data", "files"]
    done = zephyrctl(*asked, "--set", "eval.benchmarks.ifeval.max_new_tokens=12", "--json")
    assert done.code == 0, done.err
    artifact = Run(tmp_path / "runs" / "small").require("ifeval", "")
    result = read_result(artifact.manifest)
    assert isinstance(result, FiguresResult) and set(result.models) == {"base", "dpo"}
    rows = list(artifact.read("scores", "test", QuestionScoreRow))
    for name, scores in result.models.items():
        raw = json.loads((artifact.path / "results" / f"{name}.json").read_text())["results"]["ifeval"]
        for figure in IfEval.figures:
            assert scores.figures[figure.key].mean == pytest.approx(100 * raw[f"{figure.key},none"], abs=1e-4)
        mine = [row.score for row in rows if row.model == name]
        assert len(mine) == 6
        assert scores.figures[STRICT].mean == pytest.approx(100 * sum(mine) / 6, abs=1e-4)
        assert scores.categories["punctuation"].n == 3
    assert "6 of 541 prompts" in result.comparability
    assert result.contamination and result.contamination.questions == 6
    assert zephyrctl(*asked, "--set", "eval.benchmarks.ifeval.max_new_tokens=12", "--json").json["unchanged"] is True
    wrong = zephyrctl(*asked, "--set", "eval.benchmarks.ifevl.max_new_tokens=12")
    assert wrong.code == 1 and "ifeval" in wrong.err
