"""The first Open LLM Leaderboard: evaluate checkpoints through lm-eval, and read lm-eval's result files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.errors import BadRow, ZephyrError, did_you_mean
from zephyrctl.evaluation.benchmarks import local_questions
from zephyrctl.evaluation.benchmarks.contract import CommandOption, ResultTable, error_text
from zephyrctl.evaluation.benchmarks.harness import HarnessBenchmark, HarnessTask, Outcomes, shared_warnings
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import SUBJECTS, TASKS
from zephyrctl.evaluation.benchmarks.lm_eval_files import (
    GROUP,
    Measurement,
    ResultFile,
    read_file,
    read_folder,
)
from zephyrctl.evaluation.question_scores import KnownScores, TotalScore
from zephyrctl.evaluation.results import (
    BenchmarkResult,
    LeaderboardResult,
    LeaderboardScores,
    ModelScore,
    ScoreFigure,
)
from zephyrctl.evaluation.statistics import around
from zephyrctl.rows.files import Raw

NAME = "open-llm"
FIGURES = ("arc", "hellaswag", "mmlu", "mmlu_by_size", "truthfulqa")
"""The scores in the leaderboard's order. It took the unweighted mean of MMLU's subjects, lm-eval weights them."""


class LeaderboardFigures(BaseModel):
    """The scores of one model in per cent. A score that no file states is None, and a warning says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="", description="the model; empty if no file states it")
    arc: float | None = None
    hellaswag: float | None = None
    mmlu: float | None = Field(default=None, description="unweighted mean over the subjects")
    mmlu_by_size: float | None = Field(default=None, description="mean over all questions of MMLU")
    truthfulqa: float | None = None
    standard_errors: dict[str, float] = Field(
        default_factory=dict, description="score: its standard error in per cent, if known"
    )
    n: dict[str, int] = Field(default_factory=dict, description="score: number of questions, if known")
    shots: dict[str, int] = Field(
        default_factory=dict, description="benchmark: number of shots, if known and the same in all files"
    )
    warnings: list[str] = Field(default_factory=list, description="why scores cannot be compared with the leaderboard")

    @property
    def figures(self) -> dict[str, float | None]:
        """The five scores in per cent, by name."""
        return {name: getattr(self, name) for name in FIGURES}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each score with a known standard error, in per cent (normal approximation)."""
        intervals = {}
        for name, value in self.figures.items():
            error = self.standard_errors.get(name)
            # An error of 0 (all answers right or all wrong) would give an interval of no width, which is not true.
            if value is not None and error:
                low, high = around(value, error)
                intervals[name] = max(0.0, low), min(100.0, high)
        return intervals

    def rounded(self) -> LeaderboardScores:
        """The scores to two decimals, as results store them."""
        intervals = {name: (round(low, 2), round(high, 2)) for name, (low, high) in self.intervals.items()}
        return LeaderboardScores(
            **{name: _rounded(value, 2) for name, value in self.figures.items()},
            standard_errors={name: _rounded(self.standard_errors.get(name), 4) for name in FIGURES},
            intervals={name: intervals.get(name) for name in FIGURES},
            n={name: self.n.get(name) for name in FIGURES},
            shots={name: self.shots.get(name) for name in TASKS},
            warnings=self.warnings,
        )


@dataclass(frozen=True)
class Share:
    """A score from 0 to 1, with its standard error and number of questions if they are known."""

    value: float | None = None
    error: float | None = None
    questions: int | None = None


def read_results(paths: Sequence[Path]) -> LeaderboardFigures:
    """The scores of one model from raw result files of lm-eval, old and new, or from folders of such files.

    Raises ZephyrError if there are no results, if they are of several models, or if a file cannot be read.
    """
    files = [file for file in _result_files(paths) if file.measurements]
    if not files:
        raise ZephyrError(
            f"no results of {', '.join(TASKS)} in {', '.join(map(str, paths)) or 'no files'}",
            "give raw result files of lm-eval, or a folder of them (what it wrote to its --output_path)",
        )
    models = sorted({file.model for file in files if file.model})
    if len(models) > 1:
        raise ZephyrError(
            f"these are results of several models: {', '.join(models)}", "give the files of one model only"
        )
    return _combine(files, models[0] if models else "")


def _result_files(paths: Sequence[Path]) -> list[ResultFile]:
    """The files, and those in the folders. A file that is given twice is read once."""
    by_path: dict[Path, ResultFile] = {}
    for path in paths:
        files = read_folder(path) if path.is_dir() else [read_file(path)]
        by_path |= {file.path.resolve(): file for file in files}
    return list(by_path.values())


def _combine(files: Sequence[ResultFile], model: str) -> LeaderboardFigures:
    """The scores of one model in some files: the latest result of each task, and MMLU from its subjects."""
    counted, replaced = _latest(files)
    subjects = {
        category: row
        for (benchmark, category), row in counted.items()
        if benchmark == "mmlu" and category != GROUP and row.value is not None
    }
    group = counted.pop(("mmlu", GROUP), None)
    by_size = _by_size(subjects) or _group_share(group, subjects)
    figures = {name: _share(counted.get((name, name))) for name in ("arc", "hellaswag", "truthfulqa")}
    figures |= {"mmlu": _subject_mean(subjects, by_size.questions), "mmlu_by_size": by_size}
    n = {name: figures[name].questions for name in FIGURES}
    rows = [*counted.values(), *([group] if group and not subjects else [])]
    warnings = [*_missing(figures, subjects), *_shared_remarks(rows), *_size_remarks(n, subjects)]
    if replaced:
        warnings.append(f"{replaced} results were left out because the same task has a later one")
    warnings += [note for file in files for note in file.notes]
    if nameless := [file.path.name for file in files if not file.model]:
        warnings.append(f"{', '.join(nameless)} {'do' if len(nameless) > 1 else 'does'} not state its model")
    return LeaderboardFigures(
        model=model,
        **{name: None if figure.value is None else 100 * figure.value for name, figure in figures.items()},
        standard_errors={name: 100 * figure.error for name, figure in figures.items() if figure.error is not None},
        n={name: questions for name, questions in n.items() if questions},
        shots=_shots(rows),
        warnings=warnings,
    )


def _latest(files: Iterable[ResultFile]) -> tuple[dict[tuple[str, str], Measurement], int]:
    """The latest measurement of each task by date, then by the file's name, and how many others there are."""
    measurements = [row for file in files for row in file.measurements]
    # A measurement without a value never replaces one that has a value.
    measurements.sort(key=lambda row: (row.value is not None, row.date, str(row.path)))
    counted = {(row.benchmark, row.category): row for row in measurements}
    groups = sum(row.category == GROUP for row in measurements)
    return counted, len(measurements) - groups - sum(category != GROUP for _, category in counted)


def _share(row: Measurement | None) -> Share:
    return Share(row.value, _error(row), row.questions) if row else Share()


def _error(row: Measurement) -> float | None:
    """The stated standard error, else that of a share p of right answers: sqrt(p (1 - p) / (n - 1))."""
    if row.standard_error is not None or row.value is None or row.benchmark == "truthfulqa":
        return row.standard_error
    if not row.questions or row.questions < 2:
        return None
    return math.sqrt(row.value * (1 - row.value) / (row.questions - 1))


def _subject_mean(subjects: Mapping[str, Measurement], questions: int | None) -> Share:
    """The unweighted mean over subjects. Its standard error is sqrt(sum of squared errors) / number of subjects."""
    rows = list(subjects.values())
    return _weighted(rows, [1 / len(rows)] * len(rows), questions) if rows else Share()


def _by_size(subjects: Mapping[str, Measurement]) -> Share | None:
    """The mean over all questions; None if the size of a subject is not known."""
    sizes = [row.questions for row in subjects.values() if row.questions]
    if not sizes or len(sizes) < len(subjects):
        return None
    return _weighted(list(subjects.values()), [size / sum(sizes) for size in sizes], sum(sizes))


def _weighted(rows: Sequence[Measurement], weights: Sequence[float], questions: int | None) -> Share:
    """sum(w value), and its standard error sqrt(sum((w error)^2)), because subjects have different questions."""
    mean = math.fsum(weight * (row.value or 0.0) for weight, row in zip(weights, rows, strict=True))
    errors = [error for row in rows if (error := _error(row)) is not None]
    if len(errors) < len(rows):
        return Share(mean, None, questions)
    error = math.hypot(*(weight * error for weight, error in zip(weights, errors, strict=True)))
    return Share(mean, error, questions)


def _group_share(group: Measurement | None, subjects: Mapping[str, Measurement]) -> Share:
    """The score that lm-eval states for the group, if the subjects are from the same file.

    Its standard error is left out: old versions of lm-eval pooled it wrongly.
    """
    if group is None or any(row.path != group.path for row in subjects.values()):
        return Share()
    return Share(group.value)


def _shots(rows: Iterable[Measurement]) -> dict[str, int]:
    """The number of shots of each benchmark whose measurements all have the same number."""
    by_benchmark: dict[str, set[int | None]] = {}
    for row in rows:
        by_benchmark.setdefault(row.benchmark, set()).add(row.shots)
    single = {benchmark: next(iter(shots)) for benchmark, shots in by_benchmark.items() if len(shots) == 1}
    return {benchmark: shots for benchmark, shots in single.items() if shots is not None}


def _shared_remarks(rows: Sequence[Measurement]) -> list[str]:
    """Each remark once, with the benchmarks that it is about unless it is about all."""
    by_remark: dict[str, dict[str, None]] = {}
    for row in rows:
        for remark in row.remarks:
            by_remark.setdefault(remark, {})[row.benchmark] = None
    all_benchmarks = {row.benchmark for row in rows}
    sentences = []
    for remark, benchmarks in by_remark.items():
        is_shared = set(benchmarks) == all_benchmarks
        sentences.append(remark if is_shared else f"{', '.join(benchmarks)}: {remark}")
    return sentences


def _missing(figures: Mapping[str, Share], subjects: Mapping[str, Measurement]) -> list[str]:
    """Which scores and which subjects of MMLU are missing."""
    sentences = [f"{name}: no result" for name in FIGURES if name != "mmlu_by_size" and figures[name].value is None]
    if subjects and figures["mmlu_by_size"].value is None:
        sentences.append("mmlu_by_size: no file states the sizes of the subjects, and standard errors do not give them")
    absent = [name for name in SUBJECTS if name not in subjects]
    if subjects and absent:
        listed = f"without {', '.join(absent)}" if len(absent) < len(subjects) else f"only {', '.join(subjects)}"
        sentences.append(f"mmlu: {len(subjects)} of {len(SUBJECTS)} subjects, {listed}")
    return sentences


def _size_remarks(n: Mapping[str, int | None], subjects: Mapping[str, Measurement]) -> list[str]:
    """Which benchmarks have another number of questions than on the leaderboard."""
    sentences = []
    for name, published in TASKS.items():
        questions = n[name]
        is_partial = name == "mmlu" and len(subjects) < len(SUBJECTS)  # `_missing` says so already
        if questions not in (None, published.questions) and not is_partial:
            sentences.append(f"{name}: {questions:,} questions; the leaderboard has {published.questions:,}")
    return sentences


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


class OpenLlm(HarnessBenchmark):
    """The Open LLM Leaderboard (v1): ARC, HellaSwag, MMLU and TruthfulQA, without a chat template, as it was run."""

    name = NAME
    title = "Open LLM Leaderboard"
    about = (
        "Ask ARC, HellaSwag, MMLU and TruthfulQA with the leaderboard's shots and metrics.\n\n"
        "--results runs nothing: it prints the scores in one model's result files of lm-eval, old or new."
    )
    Result = LeaderboardResult
    reads_folders = True
    figures = (
        ScoreFigure("arc", "ARC", "%", paper="arc"),
        ScoreFigure("hellaswag", "HellaSwag", "%", paper="hellaswag"),
        ScoreFigure("mmlu", "MMLU, mean of subjects", "%", paper="mmlu"),
        ScoreFigure("mmlu_by_size", "MMLU, by size", "%"),
        ScoreFigure("truthfulqa", "TruthfulQA", "%", paper="truthfulqa"),
    )
    command_options = (
        CommandOption("task", "arc, hellaswag, mmlu or truthfulqa. Repeatable. Default: all four.", is_repeatable=True),
        *HarnessBenchmark.command_options,
    )

    def settings(self, given: Mapping[str, object]) -> dict[str, object]:
        """The shots of each task that is asked."""
        return {"shots": {name: TASKS[name].shots for name in chosen_tasks(given)}}

    def describe(self, given: Mapping[str, object]) -> str:
        """The tasks that are asked."""
        return ", ".join(chosen_tasks(given))

    def tasks(self, given: Mapping[str, object]) -> list[HarnessTask]:
        """lm-eval's tasks. Those of MMLU are its subjects, or the subjects that there are local files of."""
        data = given.get("data")
        tasks = []
        for name in chosen_tasks(given):
            published = TASKS[name]
            task_names = [f"mmlu_{subject}" for subject in SUBJECTS] if name == "mmlu" else [published.task]
            files: Mapping[str, dict[str, Path] | None] = dict.fromkeys(task_names)
            if isinstance(data, Path):
                files = local_questions.find(data.absolute(), name)
            tasks += [
                HarnessTask(
                    name=task,
                    shots=published.shots,
                    metric="acc" if name == "truthfulqa" else published.metric,
                    folder=published.folder,
                    files=paths,
                )
                for task, paths in files.items()
            ]
        return tasks

    def check_data(self, folder: Path, given: Mapping[str, object]) -> None:
        """Raise ZephyrError if a local file is missing or not in the published form."""
        local_questions.check(folder, chosen_tasks(given))

    def question_place(self, task: str) -> tuple[str, str]:
        """The leaderboard's name of the task, and the subject for MMLU."""
        names = {published.task: name for name, published in TASKS.items() if name != "mmlu"}
        return names.get(task, "mmlu"), names.get(task, task.removeprefix("mmlu_"))

    def comparison_name(self, task: str) -> str:
        """Questions of MMLU count alike in a comparison, so subjects count by their size."""
        return f"{NAME} {task}{'_by_size' if task == 'mmlu' else ''}"

    def summarize(self, outcomes: Outcomes, results: Path) -> LeaderboardResult:
        """The scores that lm-eval's raw results state."""
        figures = {name: read_results([results / f"{name}.json"]) for name in outcomes}
        return LeaderboardResult(
            benchmark=NAME,
            models={name: each.rounded() for name, each in figures.items()},
            comparability=shared_warnings({name: each.warnings for name, each in figures.items()}),
        )

    def read_results(self, paths: Sequence[Path]) -> LeaderboardResult:
        """The scores of one model from result files of lm-eval, old and new."""
        figures = read_results(paths)
        scores = figures.rounded()
        name = figures.model or str(paths[0])
        return LeaderboardResult(benchmark=NAME, models={name: scores}, comparability=scores.warnings)

    def printed(self, result: BenchmarkResult) -> dict[str, object]:
        """The scores of the only model."""
        assert isinstance(result, LeaderboardResult)
        (scores,) = result.models.values()
        return dict(scores.as_json())

    def caption(self, result: BenchmarkResult) -> str:
        """What its scores are."""
        return "Per cent, with 95 % intervals."

    def scores(self, result: BenchmarkResult) -> list[ModelScore]:
        """The five scores of each model."""
        assert isinstance(result, LeaderboardResult)
        model_scores = []
        for name, scores in result.models.items():
            for figure in self.figures:
                if estimate := scores.estimate(figure.key):
                    model_scores.append(ModelScore(name, figure, estimate))
        return model_scores

    def tables(self, result: BenchmarkResult) -> Iterator[ResultTable]:
        """One row for each score."""
        assert isinstance(result, LeaderboardResult)
        models = result.models.values()
        rows = []
        for figure in self.figures:
            errors = [(getattr(scores, figure.key), scores.standard_errors.get(figure.key)) for scores in models]
            rows.append((figure.title, *(error_text(*error) for error in errors)))
        yield ResultTable(f"{self.title} v1", tuple(result.models), tuple(rows))

    @classmethod
    def reads_file(cls, first: Raw | BadRow) -> bool:
        """lm-eval's results. A file that is not strict JSON may be such a file too."""
        return isinstance(first, BadRow) or "results" in first

    @classmethod
    def scores_of_files(cls, path: Path) -> list[KnownScores]:
        """The scores in lm-eval's result files. They have no scores of single questions."""
        scores = read_results([path]).rounded()
        known = {name: (scores.estimate(name), scores.standard_errors.get(name)) for name in FIGURES}
        return [
            TotalScore(path.name, f"{NAME} {name}", str(path), score.mean, error, scores.n.get(name) or 0)
            for name, (score, error) in known.items()
            if score is not None and error is not None
        ]


def chosen_tasks(given: Mapping[str, object]) -> list[str]:
    """The tasks that `--task` names, in the leaderboard's order, else all. Raises ZephyrError for an unknown one."""
    names = given.get("task")
    if names is None:
        return list(TASKS)
    chosen = [str(name) for name in names] if isinstance(names, list | tuple) else []
    for name in chosen:
        if name not in TASKS:
            remedy = did_you_mean(name, TASKS, otherwise=f"there are {', '.join(TASKS)}")
            raise ZephyrError(f"the leaderboard has no task {name!r}", remedy)
    if not chosen:
        raise ZephyrError("no task to ask", f"name some of {', '.join(TASKS)}")
    return [name for name in TASKS if name in chosen]
