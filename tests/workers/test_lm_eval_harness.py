"""Whether checkpoints are run through lm-eval as on the leaderboard, task by task, and nothing is asked twice."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import tiny
from tests.evaluation.leaderboard_made import SIZES, leaderboard_stage, write_questions
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.benchmarks.harness import CUT, HarnessTask, ModelTasks, QuestionScoreRow
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import TASKS
from zephyrctl.evaluation.benchmarks.open_llm import FIGURES, OpenLlm, read_results
from zephyrctl.launching.weights import MODEL
from zephyrctl.runs.run import Run
from zephyrctl.stages import Done, perform

pytestmark = pytest.mark.slow

ROWS = 7
FOLDERS = {task.folder for task in TASKS.values()}
"""Where lm-eval defines the leaderboard's tasks."""


def copied(small_run: Path, folder: Path) -> Run:
    """A run of one's own with the trained checkpoints of the small one."""
    source = small_run / "runs" / "small"
    for name in ("sft", "dpo"):
        shutil.copytree(source / name, folder / name)
    return Run(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local files of every benchmark."""
    return write_questions(tmp_path_factory.mktemp("questions"), ROWS)


@pytest.fixture(scope="module")
def done(small_run: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The whole leaderboard, on the base and on a checkpoint."""
    run = copied(small_run, tmp_path_factory.mktemp("run"))
    made = perform(run, leaderboard_stage(tiny(), ["dpo"], data=questions))
    assert made.is_new
    assert not perform(run, leaderboard_stage(tiny(), ["dpo"], data=questions)).is_new
    return made


def means(rows: list[QuestionScoreRow]) -> dict[str, dict[str, float]]:
    """benchmark: {category: mean score in per cent}."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row.benchmark, {}).setdefault(row.category, []).append(100 * row.score)
    return {
        benchmark: {category: sum(scores) / len(scores) for category, scores in categories.items()}
        for benchmark, categories in found.items()
    }


def test_scores_are_the_means_of_the_questions_that_are_kept(done: Done) -> None:
    metrics = done.artifact.manifest.metrics
    rows = list(done.artifact.read("scores", "test", QuestionScoreRow))
    assert len(rows) == 2 * (3 * ROWS + sum(SIZES.values()))
    assert len({(row.model, row.category, row.question) for row in rows}) == len(rows)
    assert list(metrics["models"]) == ["base", "dpo"]
    for model, told in metrics["models"].items():
        mine = [row for row in rows if row.model == model]
        by_benchmark = means(mine)
        assert set(by_benchmark["mmlu"]) == set(SIZES)
        mmlu = [100 * row.score for row in mine if row.benchmark == "mmlu"]
        expected = {name: by_benchmark[name][name] for name in ("arc", "hellaswag", "truthfulqa")}
        expected |= {"mmlu": sum(by_benchmark["mmlu"].values()) / len(SIZES), "mmlu_by_size": sum(mmlu) / len(mmlu)}
        assert {name: told[name] for name in FIGURES} == pytest.approx(expected, abs=0.0051)
        assert told["shots"] == {name: each.shots for name, each in TASKS.items()}
        assert told["n"] == {name: sum(SIZES.values()) if name.startswith("mmlu") else ROWS for name in FIGURES}
    scores = {row.score for row in rows if row.benchmark != "truthfulqa"}
    assert scores == {0.0, 1.0}


def test_what_is_written_is_read_again_as_what_lm_eval_writes(done: Done, questions: Path) -> None:
    told = done.artifact.manifest.metrics["models"]
    for model in ("base", "dpo"):
        path = done.artifact.path / "results" / f"{model}.json"
        scores = read_results([path])
        assert scores.model == model
        assert scores.rounded().as_json() == told[model]
        assert str(questions) not in path.read_text(), "no path of this machine is written"
        assert str(done.artifact.path.parent) not in path.read_text()


def test_what_makes_the_scores_not_comparable_is_said(done: Done) -> None:
    said = done.artifact.manifest.metrics["comparability"]
    assert "mmlu: 3 of 57 subjects, only abstract_algebra, anatomy, virology" in said
    assert f"arc: {ROWS} questions; the leaderboard has 1,172" in said
    assert any(text.startswith("computed by lm-eval 0.4") for text in said)
    assert not any("shots" in text or "template" in text for text in said)


def test_models_answer_by_themselves(done: Done) -> None:
    rows = list(done.artifact.read("scores", "test", QuestionScoreRow))
    truthful = {
        model: {row.question: row.score for row in rows if row.model == model and row.benchmark == "truthfulqa"}
        for model in ("base", "dpo")
    }
    assert truthful["base"].keys() == truthful["dpo"].keys()
    assert all(truthful["base"][key] != truthful["dpo"][key] for key in truthful["base"])


def test_lm_eval_called_by_itself_gives_the_same(
    done: Done, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simple_evaluate` over whole groups, MMLU weighed both ways, against our task by task."""
    import datasets
    import lm_eval

    from zephyrctl.workers import lm_eval_harness

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    folder = done.artifact.path.parent / "dpo" / MODEL
    asked = ModelTasks(name="dpo", model=str(folder), revision=None, trusts_code=False, tasks=[])
    tasks = OpenLlm(OpenLlm.Options()).tasks({"data": questions})
    subjects = [lm_eval_harness.override(task) for task in tasks if task.name.startswith("mmlu")]
    others = [lm_eval_harness.override(task) for task in tasks if not task.name.startswith("mmlu")]

    def group(weighed: bool) -> dict[str, Any]:
        metric = {"metric": "acc", "weight_by_size": weighed}
        inner = {"group": f"weighed_{weighed}", "task": subjects, "aggregate_metric_list": [metric]}
        return {"group": "outer", "task": [inner]}

    def evaluated(groups: list[dict[str, Any]]) -> Mapping[str, Any]:
        results = lm_eval.simple_evaluate(
            model=lm_eval_harness.load(asked, batch=3),
            tasks=groups,
            task_manager=lm_eval_harness.task_manager(FOLDERS),
            bootstrap_iters=10,
        )
        assert results
        found: Mapping[str, Any] = results["results"]
        return found

    by_mean = evaluated([group(False), {"group": "others", "task": others}])
    by_size = evaluated([group(True)])
    ours = read_results([done.artifact.path / "results" / "dpo.json"])
    assert ours.figures == pytest.approx(
        {
            "arc": 100 * by_mean["arc_challenge"]["acc_norm,none"],
            "hellaswag": 100 * by_mean["hellaswag"]["acc_norm,none"],
            "mmlu": 100 * by_mean["outer::weighed_False"]["acc,none"],
            "mmlu_by_size": 100 * by_size["outer::weighed_True"]["acc,none"],
            "truthfulqa": 100 * by_mean["truthfulqa_mc2"]["acc,none"],
        },
        abs=1e-4,
    )
    error = by_mean["outer::weighed_False"]["acc_stderr,none"]
    assert ours.standard_errors["mmlu"] == pytest.approx(100 * error, abs=1e-4)


class Cut:
    """A watcher that interrupts once so many tasks are done, and remembers what it was told."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.told: list[tuple[int, int]] = []

    def say(self, line: str) -> None:
        """Drop the sentence."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Drop the figures."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Remember the count, and interrupt where it is time."""
        self.told.append((done, total))
        if done == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_repeats_no_task(small_run: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "data", ROWS, words=12)  # 25 of them are longer than the tiny model's context
    run = copied(small_run, tmp_path / "run")
    made = leaderboard_stage(tiny(eval__base=False), ["sft"], task=["arc", "mmlu"], data=data, limit=5)
    with pytest.raises(KeyboardInterrupt):
        perform(run, made, Cut(after=2))
    scratch = run.path / ".open-llm.unfinished" / ".scratch"
    with Journal(scratch / "tasks.journal") as journal:
        before = dict(journal.rows)
    assert list(before) == ["sft/arc_challenge", "sft/mmlu_abstract_algebra"]
    watcher = Cut()
    artifact = perform(run, made, watcher).artifact
    assert watcher.told == [(2, 4), (3, 4), (4, 4)]
    raw = json.loads((artifact.path / "results" / "sft.json").read_text())
    assert raw["date"] == before["sft/arc_challenge"]["raw"]["date"]
    for key, row in before.items():
        task = key.partition("/")[2]
        assert raw["results"][task] == row["raw"]["results"][task]
    assert artifact.manifest.dropped == {CUT: 5}
    told = artifact.manifest.metrics["models"]["sft"]
    assert "arc: some prompts are longer than the model's context, and their beginning was cut off" in told["warnings"]
    assert "only a part of the questions was asked (--limit)" in told["warnings"]
    sizes = {"arc": 5, "hellaswag": None, "mmlu": 5 + 4 + 5, "mmlu_by_size": 5 + 4 + 5, "truthfulqa": None}
    assert told["n"] == sizes
    assert told["hellaswag"] is None


def test_questions_that_cannot_be_loaded_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    from zephyrctl.errors import ZephyrError
    from zephyrctl.workers import lm_eval_harness

    files = {split: tmp_path / f"{split}.jsonl" for split in ("dev", "test")}
    task = HarnessTask(name="mmlu_anatomy", shots=5, metric="acc", folder="mmlu/default", files=files)
    with pytest.raises(ZephyrError, match="the questions of mmlu_anatomy cannot be loaded") as refused:
        lm_eval_harness.measure(None, task, lm_eval_harness.task_manager(FOLDERS), None)  # type: ignore[arg-type]
    assert "--data" in refused.value.remedy
