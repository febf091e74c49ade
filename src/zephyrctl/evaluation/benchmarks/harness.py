"""Benchmarks that lm-eval asks and scores: the stage, the worker's job, and the class to extend."""

from __future__ import annotations

import importlib.metadata
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.data.decontaminate import benchmark_overlap
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.benchmarks.contract import Benchmark, CommandOption, EvaluationRequest
from zephyrctl.evaluation.benchmarks.lm_eval_files import CUT_PROMPTS
from zephyrctl.evaluation.held_out import BASE
from zephyrctl.evaluation.question_scores import KnownScores, QuestionScores
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import BenchmarkResult
from zephyrctl.launching.processes import Event, Work, worker, worker_environment
from zephyrctl.launching.weights import base_hash, loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.records import Record
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.stages import Inputs, Source, Stage

RESULTS = "results"
"""The folder of the artifact with a raw result file of lm-eval for each model."""
WORKER = "lm_eval_harness"
CUT = "prompts cut at the model's context"


class QuestionScoreRow(Record):
    """One model's score on one question."""

    model: str
    benchmark: str = Field(description="the task, as the benchmark calls it")
    category: str = Field(description="a part of the task, such as a subject; else the task")
    question: str = Field(description="its place in the split, and the beginning of its content's hash")
    score: float = Field(ge=0, le=1, description="1 or 0; for truthfulqa the share of probability on true answers")


class HarnessTask(BaseModel):
    """A task for the worker, by lm-eval's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shots: int
    metric: str = Field(description="the metric that is the score of a question, by lm-eval's name")
    folder: str = Field(description="the folder of lm-eval's tasks that defines it")
    files: dict[str, Path] | None = Field(description="split: JSONL file; None loads the published set from the Hub")
    more_metrics: tuple[str, ...] = Field(default=(), description="other metrics, each with a value or several")
    labels: str = Field(default="", description="field of a question with a label for each of several values")
    max_new_tokens: int | None = Field(default=None, description="longest answer; None is lm-eval's own limit")


class ModelTasks(BaseModel):
    """A model for the worker, and the tasks that are still to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str = Field(description="folder or Hub id")
    revision: str | None
    trusts_code: bool
    chat_template: str | None = Field(default=None, description="applied to each question; None applies none")
    tasks: list[HarnessTask]


class HarnessJob(BaseModel):
    """The worker's job file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: list[ModelTasks]
    limit: int | None = Field(description="questions of each task; None asks them all")
    batch: int = Field(ge=1, description="rows at once on a CPU; on a GPU as many as fit")


@dataclass(frozen=True)
class QuestionOutcome:
    """What the worker says of one question."""

    question: str
    score: float
    text: str
    values: Mapping[str, Any]
    """Each of the task's other metrics, and `labels` if the task has some."""


@dataclass(frozen=True)
class TaskOutcome:
    """What the worker says of one model's task: lm-eval's raw result, and each question."""

    raw: dict[str, Any]
    questions: tuple[QuestionOutcome, ...]

    @classmethod
    def from_journal(cls, row: Mapping[str, Any]) -> TaskOutcome:
        """From the journal, where a question is `[id, score, text]`, or has its other metrics after them."""
        outcomes = (
            QuestionOutcome(question, score, text, more[0] if more else {})
            for question, score, text, *more in row["scores"]
        )
        return cls(row["raw"], tuple(outcomes))


Outcomes = Mapping[str, Mapping[str, TaskOutcome]]
"""Model: {task: outcome}."""


class HarnessBenchmark(Benchmark):
    """A benchmark of tasks that lm-eval defines. Only checkpoints of the run, and the base, are evaluated."""

    takes_only_checkpoints = True
    file_form = "lm-eval's results"
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages that its tasks import, besides lm-eval."""
    applies_chat_template: ClassVar[bool] = False
    command_options: ClassVar[tuple[CommandOption, ...]] = (
        CommandOption(
            "data", "Local files of the benchmark, for machines without a network.", type=Path, metavar="DIR"
        ),
        CommandOption("limit", "Maximum number of questions per task, for trials only.", type=int, least=1),
        CommandOption(
            "results",
            "Score one model's result files of lm-eval instead. Repeatable.",
            type=Path,
            metavar="PATH",
            is_repeatable=True,
        ),
    )

    def stage(self, request: EvaluationRequest) -> Stage:
        """Ask lm-eval's tasks. Raises ZephyrError for a limit below 1."""
        return HarnessStage(self, request)

    @abstractmethod
    def tasks(self, given: Mapping[str, object]) -> list[HarnessTask]:
        """The tasks to ask. Raises ZephyrError if an option or a local file is wrong."""

    @abstractmethod
    def summarize(self, outcomes: Outcomes, results: Path) -> BenchmarkResult:
        """The scores of each model. `results` is the folder with lm-eval's raw results as MODEL.json."""

    @abstractmethod
    def read_results(self, paths: Sequence[Path]) -> BenchmarkResult:
        """The scores of one model from result files of lm-eval. Raises ZephyrError if they cannot be read."""

    def settings(self, given: Mapping[str, object]) -> dict[str, object]:
        """What its result depends on, besides models, questions and lm-eval's version."""
        return self.options.model_dump(mode="json")

    def describe(self, given: Mapping[str, object]) -> str:
        """Whose questions are asked, for people."""
        return self.title

    def check_data(self, folder: Path, given: Mapping[str, object]) -> None:
        """Raise ZephyrError if a local file is missing or not in the published form."""

    def question_place(self, task: str) -> tuple[str, str]:
        """The name and the category of a task's questions in the table of scores."""
        return task, task

    def read_given(self, given: Mapping[str, object], assets: Path | None) -> BenchmarkResult | None:
        """The scores of lm-eval's result files (`--results`)."""
        paths = given.get("results")
        if not isinstance(paths, list) or not paths:
            return None
        if missing := [path for path in paths if not path.exists()]:
            raise ZephyrError(f"there is no file or folder {missing[0]}", "check the path of --results")
        return self.read_results(paths)

    def question_scores(self, artifact: Artifact) -> list[KnownScores]:
        """The scores of questions in per cent, by task."""
        by_task: dict[tuple[str, str], dict[str, QuestionScoreRow]] = {}
        for row in artifact.read("scores", "test", QuestionScoreRow):
            by_task.setdefault((row.model, row.benchmark), {})[f"{row.category} {row.question}"] = row
        return [
            QuestionScores(
                model=model,
                benchmark=self.comparison_name(task),
                origin=str(artifact.path),
                scores={(question, 1): 100 * row.score for question, row in rows.items()},
                categories={question: row.category for question, row in rows.items()},
            )
            for (model, task), rows in by_task.items()
        ]

    def comparison_name(self, task: str) -> str:
        """How `eval compare` calls the scores of a task."""
        return f"{self.name} {task}"


class HarnessStage(Stage):
    """Ask lm-eval's tasks of some checkpoints, and of the base if the recipe says so."""

    stage = "eval"

    def __init__(self, benchmark: HarnessBenchmark, request: EvaluationRequest) -> None:
        recipe = self.recipe = request.recipe
        self.benchmark = benchmark
        self.given = request.given
        limit, data = request.given.get("limit"), request.given.get("data")
        self.limit = limit if isinstance(limit, int) else None
        if self.limit is not None and self.limit < 1:
            raise ZephyrError(f"a limit of {self.limit} questions asks nothing", "give a limit of 1 or more, or none")
        self.data = data if isinstance(data, Path) else None
        names = [candidate.name for candidate in request.candidates if candidate.name != BASE]
        self.models = [*([BASE] if recipe.eval.base else []), *names]
        self.base = model_base(recipe)
        self.searched = benchmark_overlap.trained_on(request.run)
        self.name = benchmark.name
        self.does = f"ask {', '.join(self.models)} the questions of {benchmark.describe(self.given)}, through lm-eval"
        self.settings = {
            **benchmark.settings(self.given),
            "limit": self.limit,
            "data": "local files" if self.data else "the Hub",
            "lm_eval": _version("lm_eval"),
            "checkpoints": {name: recipe.checkpoints[name].start for name in names},
            "base_content": base_hash(self.base) if recipe.eval.base else None,
            **({"chat_template": self.base.chat_template()} if benchmark.applies_chat_template else {}),
            **benchmark_overlap.settings(recipe.decontaminate, self.searched),
        }
        self.reads = {name: Source(artifact=name, stage=recipe.checkpoints[name].stage) for name in names}
        self.reads |= benchmark_overlap.sources(self.searched)
        if self.data:
            self.reads["local files"] = Source(path=self.data)

    def check(self) -> None:
        """Raise ZephyrError if lm-eval or a local file is missing."""
        for package in ("lm_eval", *self.benchmark.requires):
            if find_spec(package) is None:
                raise ZephyrError(
                    f"{package.replace('_', '-')} is not installed, which {self.benchmark.title} needs",
                    "pip install 'zephyrctl[leaderboard]'",
                )
        if self.data:
            self.benchmark.check_data(self.data, self.given)

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write per-question scores, lm-eval's raw results, and the benchmark's result into the draft."""
        tasks = self.benchmark.tasks(self.given)
        outcomes = self._ask(tasks, {name: self._model(name, inputs) for name in self.models}, draft, progress)
        draft.write("scores", "test", self._score_rows(outcomes), QuestionScoreRow)
        folder = draft.path / RESULTS
        folder.mkdir(exist_ok=True)
        for name, by_task in outcomes.items():
            raw = merge([outcome.raw for outcome in by_task.values()])
            (folder / f"{name}.json").write_text(json.dumps(raw, indent=2))
            draft.drop(CUT, sum(raw[CUT_PROMPTS].values()))
        draft.metrics |= self.benchmark.summarize(outcomes, folder).as_json()
        turns = {question.id: question.turns for question in _questions(outcomes)}
        searched = [inputs[name] for name in self.searched]
        benchmark_overlap.record_overlap(self.name, turns, searched, self.recipe.decontaminate, draft)

    def _model(self, name: str, inputs: Inputs) -> dict[str, Any]:
        """Where a model's weights are, and the chat template if one is applied."""
        artifact = inputs.get(name)
        request = loaded(self.base, artifact if isinstance(artifact, Artifact) else None)
        if not self.benchmark.applies_chat_template:
            request["chat_template"] = None
        return request

    def _ask(
        self, tasks: Sequence[HarnessTask], models: Mapping[str, dict[str, Any]], draft: Draft, progress: Progress
    ) -> dict[str, dict[str, TaskOutcome]]:
        """The outcome of each model and task. Tasks in the journal of an interrupted run are not asked again."""
        with Journal(draft.scratch / "tasks.journal") as journal:
            left = {name: [task for task in tasks if _key(name, task.name) not in journal] for name in models}
            total = len(models) * len(tasks)
            progress.advance(total - sum(map(len, left.values())), total, "tasks")

            def follow(event: Event) -> None:
                if event["event"] == "task":
                    journal.add(_key(event["model"], event["task"]), {"raw": event["raw"], "scores": event["scores"]})
                    progress.advance(len(journal.rows), total, "tasks")

            due = [ModelTasks(name=name, tasks=todo, **models[name]) for name, todo in left.items() if todo]
            if due:
                path = draft.scratch / "job.json"
                job = HarnessJob(models=due, limit=self.limit, batch=self.recipe.eval.batch)
                path.write_text(job.model_dump_json())
                environment = self._environment(due, draft.scratch)
                command = worker(WORKER, path)
                Work(WORKER, command, draft.scratch, (), environment, progress.say).do(follow)
            return {
                name: {task.name: TaskOutcome.from_journal(journal.rows[_key(name, task.name)]) for task in tasks}
                for name in models
            }

    def _environment(self, models: Sequence[ModelTasks], scratch: Path) -> dict[str, str]:
        """No network if there is nothing to load; data sets made of local files are in the draft's scratch folder."""
        is_local = all(task.files is not None for model in models for task in model.tasks)
        environment = worker_environment(threads=self.recipe.launch.threads)
        if is_local:
            environment |= {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str((scratch / "datasets").absolute())}
            if all(Path(model.model).is_dir() for model in models):
                environment |= {"HF_HUB_OFFLINE": "1"}
        return environment

    def _score_rows(self, outcomes: Outcomes) -> Iterable[QuestionScoreRow]:
        for model, by_task in outcomes.items():
            for task, outcome in by_task.items():
                name, category = self.benchmark.question_place(task)
                for question in outcome.questions:
                    yield QuestionScoreRow(
                        model=model,
                        benchmark=name,
                        category=category,
                        question=question.question,
                        score=question.score,
                    )


def merge(raws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One raw result of several of the same model: objects are merged, and of other values the first counts."""
    merged: dict[str, Any] = {}
    for raw in raws:
        for name, value in raw.items():
            is_shared = name != "config" and isinstance(value, Mapping) and name in merged
            merged[name] = {**merged[name], **value} if is_shared else merged.get(name, value)
    return merged


def shared_warnings(warnings: Mapping[str, Sequence[str]]) -> list[str]:
    """Each warning once, with the models that it is about unless it is about all."""
    models: dict[str, list[str]] = {}
    for name, texts in warnings.items():
        for text in texts:
            models.setdefault(text, []).append(name)
    return [text if len(names) == len(warnings) else f"{', '.join(names)}: {text}" for text, names in models.items()]


def _key(model: str, task: str) -> str:
    return f"{model}/{task}"


def _questions(outcomes: Outcomes) -> list[Question]:
    """The questions that were asked, once for all models."""
    by_task = next(iter(outcomes.values()), {})
    return [
        Question(f"{task} {question.question}", task, (question.text,))
        for task, outcome in by_task.items()
        for question in outcome.questions
        if question.text.strip()
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
