"""The Open LLM Leaderboard, first version: scores from raw result files of lm-eval, and from checkpoints run by it."""

import importlib.metadata
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.data.decontaminate import benchmark_overlap
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.benchmarks import local_questions
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import BENCHMARKS, SUBJECTS
from zephyrctl.evaluation.benchmarks.lm_eval_files import (
    CUT_PROMPTS,
    GROUP,
    Measurement,
    ResultFile,
    read_file,
    read_folder,
)
from zephyrctl.evaluation.held_out import BASE
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import LeaderboardResult, LeaderboardScores
from zephyrctl.evaluation.statistics import around
from zephyrctl.launching.processes import Event, Work, worker, worker_environment
from zephyrctl.launching.weights import base_hash, loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Record
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.stages import Inputs, Source, Step

NAME = "open-llm"
FIGURES = ("arc", "hellaswag", "mmlu", "mmlu_by_size", "truthfulqa")
"""The scores, in the leaderboard's order; it took the unweighted mean over MMLU's subjects, lm-eval's group weighs."""
RESULTS = "results"
"""The folder of the artifact that holds a raw result file of lm-eval for each model."""
CUT = "prompts cut at the model's context"


class Scores(BaseModel):
    """What is known of one model, in per cent; a figure is None where nothing says it, and a warning says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="", description="whose scores; empty where no file says")
    arc: float | None = None
    hellaswag: float | None = None
    mmlu: float | None = Field(default=None, description="unweighted mean over the subjects")
    mmlu_by_size: float | None = Field(default=None, description="mean over all questions of MMLU")
    truthfulqa: float | None = None
    standard_errors: dict[str, float] = Field(default_factory=dict, description="figure: in per cent, where known")
    n: dict[str, int] = Field(default_factory=dict, description="figure: questions, where known")
    shots: dict[str, int] = Field(default_factory=dict, description="benchmark: shots, where known and the same")
    warnings: list[str] = Field(default_factory=list, description="why figures are not those of the leaderboard")

    @property
    def figures(self) -> dict[str, float | None]:
        """The five scores by name."""
        return {name: getattr(self, name) for name in FIGURES}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Figure: its 95 % interval in a normal approximation, within 0 and 100.

        Where the standard error is not known there is none, nor where it is 0: all right or all wrong says nothing.
        """
        known = {name: (value, self.standard_errors.get(name)) for name, value in self.figures.items()}
        reached = {name: around(value, error) for name, (value, error) in known.items() if value is not None and error}
        return {name: (max(0.0, low), min(100.0, high)) for name, (low, high) in reached.items()}

    def rounded(self) -> LeaderboardScores:
        """The scores to two decimals, as results keep them; None is what no file states."""
        intervals = {name: (round(low, 2), round(high, 2)) for name, (low, high) in self.intervals.items()}
        return LeaderboardScores(
            **{name: _rounded(value, 2) for name, value in self.figures.items()},
            standard_errors={name: _rounded(self.standard_errors.get(name), 4) for name in FIGURES},
            intervals={name: intervals.get(name) for name in FIGURES},
            n={name: self.n.get(name) for name in FIGURES},
            shots={name: self.shots.get(name) for name in BENCHMARKS},
            warnings=self.warnings,
        )


class Scored(Record):
    """What one model got for one question."""

    model: str
    benchmark: str
    category: str = Field(description="the subject for mmlu, else the benchmark")
    question: str = Field(description="its place in the split, and the beginning of its content's hash")
    score: float = Field(ge=0, le=1, description="1 or 0; for truthfulqa the share of probability on true answers")


class Task(BaseModel):
    """A task for the worker, by lm-eval's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shots: int
    metric: str = Field(description="the metric that counts, in lm-eval's words")
    files: dict[str, Path] | None = Field(description="split: JSONL file; None loads the published set from the Hub")


class Asked(BaseModel):
    """A model for the worker, and the tasks that it has still to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str = Field(description="folder or Hub id")
    revision: str | None
    trusts_code: bool
    tasks: list[Task]


class LeaderboardJob(BaseModel):
    """The worker's job file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[Asked]
    limit: int | None = Field(description="questions of each task; None asks them all")
    batch: int = Field(ge=1, description="rows at once on a CPU; on a GPU as many as fit")


@dataclass(frozen=True)
class _Figure:
    """A score as a share, with what is known of it."""

    value: float | None = None
    error: float | None = None
    questions: int | None = None


def read_results(paths: Sequence[Path]) -> Scores:
    """The scores of one model from raw result files of lm-eval, old and new, or folders of them.

    Raises ZephyrError where there are none, where they are of several models, or where a file cannot be read.
    """
    files = [file for file in _open(paths) if file.measurements]
    if not files:
        raise ZephyrError(
            f"no results of {', '.join(BENCHMARKS)} in {', '.join(map(str, paths)) or 'no files'}",
            "give raw result files of lm-eval, or a folder of them (what it wrote to its --output_path)",
        )
    models = sorted({file.model for file in files if file.model})
    if len(models) > 1:
        raise ZephyrError(
            f"these are results of several models: {', '.join(models)}", "give the files of one model at a time"
        )
    return _combine(files, models[0] if models else "")


def _open(paths: Sequence[Path]) -> list[ResultFile]:
    found: dict[Path, ResultFile] = {}
    for path in paths:
        files = read_folder(path) if path.is_dir() else [read_file(path)]
        found |= {file.path.resolve(): file for file in files}
    return list(found.values())


def _combine(files: Sequence[ResultFile], model: str) -> Scores:
    counted, replaced = _latest(files)
    subjects = {
        category: row
        for (benchmark, category), row in counted.items()
        if benchmark == "mmlu" and category != GROUP and row.value is not None
    }
    group = counted.pop(("mmlu", GROUP), None)
    by_size = _by_size(subjects) or _stated(group, subjects)
    figures = {name: _alone(counted.get((name, name))) for name in ("arc", "hellaswag", "truthfulqa")}
    figures |= {"mmlu": _mean(subjects, by_size.questions), "mmlu_by_size": by_size}
    n = {name: figures[name].questions for name in FIGURES}
    rows = [*counted.values(), *([group] if group and not subjects else [])]
    return Scores(
        model=model,
        **{name: None if figure.value is None else 100 * figure.value for name, figure in figures.items()},
        standard_errors={name: 100 * figure.error for name, figure in figures.items() if figure.error is not None},
        n={name: questions for name, questions in n.items() if questions},
        shots=_shots(rows),
        warnings=[
            *_missing(figures, subjects),
            *_remarks(rows),
            *_sizes(n, subjects),
            *([f"results left out, as a later one of the same task counts: {replaced}"] if replaced else []),
            *(note for file in files for note in file.notes),
            *_nameless(files),
        ],
    )


def _latest(files: Iterable[ResultFile]) -> tuple[dict[tuple[str, str], Measurement], int]:
    """One measurement a task, the last by date and then by the file's name, and how many others there are."""
    every = [row for file in files for row in file.measurements]
    every.sort(key=lambda row: (row.value is not None, row.date, str(row.path)))
    counted = {(row.benchmark, row.category): row for row in every}
    groups = [row for row in every if row.category == GROUP]
    return counted, len(every) - len(groups) - sum(category != GROUP for _, category in counted)


def _alone(row: Measurement | None) -> _Figure:
    return _Figure(row.value, _error(row), row.questions) if row else _Figure()


def _error(row: Measurement) -> float | None:
    """The standard error as stated, else of a share of right answers: sqrt(p (1 - p) / (n - 1))."""
    if row.standard_error is not None or row.value is None or row.benchmark == "truthfulqa":
        return row.standard_error
    if not row.questions or row.questions < 2:
        return None
    return math.sqrt(row.value * (1 - row.value) / (row.questions - 1))


def _mean(subjects: Mapping[str, Measurement], questions: int | None) -> _Figure:
    """The unweighted mean; its standard error is sqrt(sum of squares) / subjects, as subjects are apart."""
    rows = list(subjects.values())
    return _weighted(rows, [1 / len(rows)] * len(rows), questions) if rows else _Figure()


def _by_size(subjects: Mapping[str, Measurement]) -> _Figure | None:
    """The mean over all questions; None where the size of a subject is not known."""
    sizes = [row.questions for row in subjects.values() if row.questions]
    if not sizes or len(sizes) < len(subjects):
        return None
    return _weighted(list(subjects.values()), [size / sum(sizes) for size in sizes], sum(sizes))


def _weighted(rows: Sequence[Measurement], weights: Sequence[float], questions: int | None) -> _Figure:
    values = [row.value or 0.0 for row in rows]
    errors = [error for row in rows if (error := _error(row)) is not None]
    return _Figure(
        math.fsum(weight * value for weight, value in zip(weights, values, strict=True)),
        math.hypot(*(weight * error for weight, error in zip(weights, errors, strict=True)))
        if len(errors) == len(rows)
        else None,
        questions,
    )


def _stated(group: Measurement | None, subjects: Mapping[str, Measurement]) -> _Figure:
    """The group's own figure, where the subjects that count are those of its file; old ones pooled its error badly."""
    if group is None or any(row.path != group.path for row in subjects.values()):
        return _Figure()
    return _Figure(group.value)


def _shots(rows: Iterable[Measurement]) -> dict[str, int]:
    found: dict[str, set[int | None]] = {}
    for row in rows:
        found.setdefault(row.benchmark, set()).add(row.shots)
    alike = {benchmark: next(iter(shots)) for benchmark, shots in found.items() if len(shots) == 1}
    return {benchmark: shots for benchmark, shots in alike.items() if shots is not None}


def _remarks(rows: Sequence[Measurement]) -> list[str]:
    """Every remark once, with the benchmarks that it is of where it is not of all."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for remark in row.remarks:
            found.setdefault(remark, {})[row.benchmark] = None
    everywhere = {row.benchmark for row in rows}
    return [
        remark if set(benchmarks) == everywhere else f"{', '.join(benchmarks)}: {remark}"
        for remark, benchmarks in found.items()
    ]


def _missing(figures: Mapping[str, _Figure], subjects: Mapping[str, Measurement]) -> list[str]:
    """Which figures there are not, and which subjects of MMLU."""
    told = [f"{name}: no result" for name in FIGURES if name != "mmlu_by_size" and figures[name].value is None]
    if subjects and figures["mmlu_by_size"].value is None:
        told.append("mmlu_by_size: the subjects' sizes are neither stated, nor do they follow from standard errors")
    absent = [name for name in SUBJECTS if name not in subjects]
    if subjects and absent:
        few = f"without {', '.join(absent)}" if len(absent) < len(subjects) else f"only {', '.join(subjects)}"
        told.append(f"mmlu: {len(subjects)} of {len(SUBJECTS)} subjects, {few}")
    return told


def _sizes(n: Mapping[str, int | None], subjects: Mapping[str, Measurement]) -> list[str]:
    """Benchmarks of another size than the leaderboard's; that of MMLU tells nothing where subjects are missing."""
    return [
        f"{name}: {questions:,} questions where the leaderboard has {BENCHMARKS[name].questions:,}"
        for name in BENCHMARKS
        if (questions := n[name]) not in (None, BENCHMARKS[name].questions)
        and (name != "mmlu" or len(subjects) == len(SUBJECTS))
    ]


def _nameless(files: Sequence[ResultFile]) -> list[str]:
    names = [file.path.name for file in files if not file.model]
    return [f"of which model is not stated: {', '.join(names)}"] if names else []


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def step(
    recipe: Recipe,
    names: Sequence[str],
    *,
    tasks: Sequence[str] = tuple(BENCHMARKS),
    data: Path | None = None,
    limit: int | None = None,
    trained_on: Sequence[str] = (),
) -> Step:
    """The leaderboard's benchmarks on some of the recipe's checkpoints, and on the base where the recipe says so.

    `data` is a folder of local files, laid out as `local_benchmarks` says; without it they come from the Hub. `limit`
    asks so many questions of each task only. `trained_on` names the artifacts whose training rows are searched for the
    questions. No chat template is applied, as on the leaderboard. Raises ZephyrError
    for an unknown benchmark or a limit that asks nothing.
    """
    _check_asked(tasks, limit)
    asked = [name for name in BENCHMARKS if name in tasks]
    models = [*([BASE] if recipe.eval.base else []), *names]
    base = model_base(recipe)

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        told = {name: _told(recipe, name, inputs) for name in models}
        finished = _ask(recipe, told, _tasks(asked, data), limit, draft, progress)
        _write(finished, draft)
        turns = {question.id: question.turns for question in _questions(finished)}
        training_data = [inputs[name] for name in trained_on]
        benchmark_overlap.record_overlap(NAME, turns, training_data, recipe.decontaminate, draft)

    reads = {name: Source(artifact=name, stage=recipe.checkpoints[name].stage) for name in names}
    return Step(
        name=NAME,
        stage="eval",
        does=f"ask {', '.join(models)} the questions of {', '.join(asked)}, through lm-eval",
        settings={
            "shots": {name: BENCHMARKS[name].shots for name in asked},
            "limit": limit,
            "data": "local files" if data else "the Hub",
            "lm_eval": _version(),
            "checkpoints": {name: recipe.checkpoints[name].start for name in names},
            "base_content": base_hash(base) if recipe.eval.base else None,
            **benchmark_overlap.settings(recipe.decontaminate, trained_on),
        },
        reads=reads | benchmark_overlap.sources(trained_on) | ({"local files": Source(path=data)} if data else {}),
        work=work,
        check=lambda: _check_here(asked, data),
    )


def _check_asked(tasks: Sequence[str], limit: int | None) -> None:
    for name in tasks:
        if name not in BENCHMARKS:
            remedy = did_you_mean(name, BENCHMARKS, otherwise=f"there are {', '.join(BENCHMARKS)}")
            raise ZephyrError(f"the leaderboard has no benchmark {name!r}", remedy)
    if not tasks:
        raise ZephyrError("no benchmark to ask", f"name some of {', '.join(BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise ZephyrError(f"a limit of {limit} questions asks nothing", "give a limit of 1 or more, or none")


def _check_here(asked: Sequence[str], data: Path | None) -> None:
    if find_spec("lm_eval") is None:
        raise ZephyrError(
            "lm-eval is not installed, which runs the leaderboard", "pip install 'zephyrctl[leaderboard]'"
        )
    if data:
        local_questions.check(data, asked)


def _version() -> str | None:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def _told(recipe: Recipe, name: str, inputs: Inputs) -> dict[str, Any]:
    """What the worker is told of a model; no template, as none is applied."""
    artifact = inputs.get(name)
    told = loaded(model_base(recipe), artifact if isinstance(artifact, Artifact) else None)
    return {key: value for key, value in told.items() if key != "chat_template"}


def _tasks(asked: Sequence[str], data: Path | None) -> list[Task]:
    """lm-eval's tasks of the benchmarks; those of MMLU are its subjects, or as many of them as there are files of."""
    found = []
    for benchmark in asked:
        published = BENCHMARKS[benchmark]
        metric = "acc" if benchmark == "truthfulqa" else published.metric
        names = [f"mmlu_{subject}" for subject in SUBJECTS] if benchmark == "mmlu" else [published.task]
        files = local_questions.find(data.absolute(), benchmark) if data else dict.fromkeys(names)
        found += [Task(name=name, shots=published.shots, metric=metric, files=paths) for name, paths in files.items()]
    return found


def _ask(
    recipe: Recipe,
    told: Mapping[str, dict[str, Any]],
    tasks: Sequence[Task],
    limit: int | None,
    draft: Draft,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """What the worker says of every model and task, by model; what an interrupted run was told is not asked again."""
    with Journal(draft.scratch / "tasks.journal") as journal:
        left = {name: [task for task in tasks if _key(name, task.name) not in journal] for name in told}
        total = len(told) * len(tasks)
        progress.advance(total - sum(map(len, left.values())), total, "tasks")

        def follow(event: Event) -> None:
            if event["event"] == "task":
                journal.add(_key(event["model"], event["task"]), {"raw": event["raw"], "scores": event["scores"]})
                progress.advance(len(journal.rows), total, "tasks")

        models = [Asked(name=name, tasks=todo, **told[name]) for name, todo in left.items() if todo]
        if models:
            path = draft.scratch / "job.json"
            path.write_text(LeaderboardJob(models=models, limit=limit, batch=recipe.eval.batch).model_dump_json())
            environment = _environment(recipe, models, draft.scratch)
            Work("leaderboard", worker("leaderboard", path), draft.scratch, (), environment, progress.say).do(follow)
        return {name: {task.name: journal.rows[_key(name, task.name)] for task in tasks} for name in told}


def _key(model: str, task: str) -> str:
    return f"{model}/{task}"


def _environment(recipe: Recipe, models: Sequence[Asked], scratch: Path) -> dict[str, str]:
    """Without network where nothing is to be loaded; what is made of local files goes when the step is finished."""
    is_local = all(task.files is not None for model in models for task in model.tasks)
    environment = worker_environment(threads=recipe.launch.threads)
    if is_local:
        environment |= {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str((scratch / "datasets").absolute())}
        if all(Path(model.model).is_dir() for model in models):
            environment |= {"HF_HUB_OFFLINE": "1"}
    return environment


def _write(finished: Mapping[str, Mapping[str, Any]], draft: Draft) -> None:
    """Per-question scores, a raw result file for each model, and the scores that are read from it."""
    draft.write("scores", "test", _rows(finished), Scored)
    folder = draft.path / RESULTS
    folder.mkdir(exist_ok=True)
    scores = {}
    for name, rows in finished.items():
        path = folder / f"{name}.json"
        raw = merge([row["raw"] for row in rows.values()])
        path.write_text(json.dumps(raw, indent=2))
        draft.drop(CUT, sum(raw[CUT_PROMPTS].values()))
        scores[name] = read_results([path])
    draft.metrics |= LeaderboardResult(
        benchmark=NAME,
        models={name: score.rounded() for name, score in scores.items()},
        comparability=_shared({name: score.warnings for name, score in scores.items()}),
    ).as_json()


def _rows(finished: Mapping[str, Mapping[str, Any]]) -> Iterable[Scored]:
    tasks = {published.task: name for name, published in BENCHMARKS.items() if name != "mmlu"}
    for model, rows in finished.items():
        for task, row in rows.items():
            benchmark, category = tasks.get(task, "mmlu"), tasks.get(task, task.removeprefix("mmlu_"))
            for question, score, _ in row["scores"]:
                yield Scored(model=model, benchmark=benchmark, category=category, question=question, score=score)


def _questions(finished: Mapping[str, Mapping[str, Any]]) -> list[Question]:
    """What was asked, once for all models."""
    rows = next(iter(finished.values()), {})
    return [
        Question(f"{task} {question}", task, (text,))
        for task, row in rows.items()
        for question, _, text in row["scores"]
        if text.strip()
    ]


def merge(raws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One raw result of several of the same model: objects are put together, and of other values the first counts."""
    merged: dict[str, Any] = {}
    for raw in raws:
        for name, value in raw.items():
            is_shared = name != "config" and isinstance(value, Mapping) and name in merged
            merged[name] = {**merged[name], **value} if is_shared else merged.get(name, value)
    return merged


def _shared(warnings: Mapping[str, Sequence[str]]) -> list[str]:
    """Every warning once, with the models that it is of where it is not of all."""
    found: dict[str, list[str]] = {}
    for name, texts in warnings.items():
        for text in texts:
            found.setdefault(text, []).append(name)
    return [text if len(names) == len(warnings) else f"{', '.join(names)}: {text}" for text, names in found.items()]
