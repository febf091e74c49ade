"""IFEval (Zhou et al. 2023, arXiv 2311.07911): 541 prompts with instructions that a program can check.

A local file is `ifeval/train.jsonl`, with rows of google/IFEval: `key`, `prompt`, `instruction_id_list` and `kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from zephyrctl.contracts import PluginOptions
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.evaluation.benchmarks.harness import HarnessBenchmark, HarnessTask, Outcomes, TaskOutcome
from zephyrctl.evaluation.benchmarks.lm_eval_files import parse
from zephyrctl.evaluation.question_scores import KnownScores, TotalScore
from zephyrctl.evaluation.results import Estimate, FigureScores, FiguresResult, ScoreFigure
from zephyrctl.evaluation.rows_of_files import bad, rows
from zephyrctl.evaluation.statistics import interval
from zephyrctl.rows.files import Raw

NAME = "ifeval"
PROMPTS = 541
STRICT, STRICT_EACH = "prompt_level_strict_acc", "inst_level_strict_acc"
LOOSE, LOOSE_EACH = "prompt_level_loose_acc", "inst_level_loose_acc"
"""Whether a prompt's instructions are all followed, and each of them. `loose` forgives an introduction, a closing line
and Markdown."""


class IfEvalRow(BaseModel):
    """A prompt as published. `kwargs` has the arguments of each instruction."""

    key: int
    prompt: str = Field(min_length=1)
    instruction_id_list: list[str] = Field(min_length=1)
    kwargs: list[dict[str, JsonValue]]

    @model_validator(mode="after")
    def _arguments_for_each_instruction(self) -> Self:
        if len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError("kwargs: an object is needed for each instruction")
        return self


class IfEval(HarnessBenchmark):
    """IFEval through lm-eval's task, in the model's chat template. Its options are `eval.benchmarks.ifeval`."""

    name = NAME
    title = "IFEval"
    about = (
        "Ask IFEval's 541 prompts and check whether their instructions are followed.\n\n"
        "No judge is needed. --results runs nothing: it prints the scores in one model's result file of lm-eval."
    )
    requires = ("langdetect", "immutabledict", "nltk")
    applies_chat_template = True
    figures = (
        ScoreFigure(STRICT, "prompts, strict", "%"),
        ScoreFigure(STRICT_EACH, "instructions, strict", "%"),
        ScoreFigure(LOOSE, "prompts, loose", "%"),
        ScoreFigure(LOOSE_EACH, "instructions, loose", "%"),
    )

    class Options(PluginOptions):
        """`eval.benchmarks.ifeval`."""

        max_new_tokens: int = Field(default=1280, ge=1, description="longest answer, in tokens")

    options: Options

    def tasks(self, given: Mapping[str, object]) -> list[HarnessTask]:
        """lm-eval's `ifeval`, with prompts from a local file if one is given."""
        data = given.get("data")
        files = {"train": _file(data.absolute())} if isinstance(data, Path) else None
        task = HarnessTask(
            name=NAME,
            shots=0,
            metric=STRICT,
            more_metrics=(STRICT, STRICT_EACH, LOOSE, LOOSE_EACH),
            labels="instruction_id_list",
            folder=NAME,
            files=files,
            max_new_tokens=self.options.max_new_tokens,
        )
        return [task]

    def check_data(self, folder: Path, given: Mapping[str, object]) -> None:
        """Raise ZephyrError if the local file is missing, empty, or not in the published form."""
        count = 0
        for location, row in rows(_file(folder)):
            try:
                IfEvalRow.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise bad(location, ": ".join(filter(None, (field, first["msg"])))) from None
            count += 1
        if not count:
            raise ZephyrError(f"{_file(folder)} has no prompts", "give the whole split as published")

    def summarize(self, outcomes: Outcomes, results: Path) -> FiguresResult:
        """Accuracies in per cent with bootstrap intervals over prompts; strict accuracy by group of instructions."""
        models = {name: _scores(name, by_task[NAME]) for name, by_task in outcomes.items()}
        counts = {len(by_task[NAME].questions) for by_task in outcomes.values()}
        remarks = [f"{count} of {PROMPTS} prompts" for count in sorted(counts - {PROMPTS})]
        return FiguresResult(benchmark=NAME, models=models, comparability=remarks)

    def read_results(self, paths: Sequence[Path]) -> FiguresResult:
        """The accuracies of a result file of lm-eval; of instructions it states no standard error, so no interval."""
        if len(paths) > 1:
            raise ZephyrError(f"{len(paths)} files of results", "give one file: lm-eval writes one for this task")
        document, notes = parse(paths[0].read_text("utf-8-sig"), paths[0])
        return FiguresResult(benchmark=NAME, models={paths[0].stem: _stated(document, paths[0])}, comparability=notes)

    @classmethod
    def reads_file(cls, first: Raw | BadRow) -> bool:
        """lm-eval's results with the task `ifeval`."""
        results = {} if isinstance(first, BadRow) else first.get("results")
        return isinstance(results, dict) and NAME in results

    @classmethod
    def scores_of_files(cls, path: Path) -> list[KnownScores]:
        """The accuracies whose standard error is stated."""
        document, _ = parse(path.read_text("utf-8-sig"), path)
        entry = _entry(document, path)
        known = [
            (figure.key, _number(entry, figure.key), _number(entry, f"{figure.key}_stderr")) for figure in cls.figures
        ]
        return [
            TotalScore(path.stem, f"{NAME} {key}", str(path), 100 * value, 100 * error, _prompts(document))
            for key, value, error in known
            if value is not None and error is not None
        ]


def _scores(model: str, outcome: TaskOutcome) -> FigureScores:
    by_prompt: dict[str, list[list[float]]] = {
        figure.key: [_values(question.values[figure.key]) for question in outcome.questions]
        for figure in IfEval.figures
    }
    groups: dict[str, list[list[float]]] = {}
    for question in outcome.questions:
        of_prompt: dict[str, list[float]] = {}
        for label, value in zip(question.values["labels"], question.values[STRICT_EACH], strict=True):
            of_prompt.setdefault(label.partition(":")[0], []).append(float(value))
        for group, values in of_prompt.items():
            groups.setdefault(group, []).append(values)
    return FigureScores(
        figures={key: _accuracy(values, f"{model} {key}") for key, values in by_prompt.items()},
        categories={group: _accuracy(values, f"{model} {group}") for group, values in sorted(groups.items())},
    )


def _values(value: object) -> list[float]:
    return [float(each) for each in value] if isinstance(value, list) else [float(bool(value))]


def _accuracy(by_prompt: Sequence[Sequence[float]], name: str) -> Estimate:
    """The share of 1 in per cent. The prompts are resampled, each with all its instructions."""
    values = [value for of_prompt in by_prompt for value in of_prompt]
    low, high = interval(by_prompt, name)
    return Estimate(
        mean=round(100 * sum(values) / len(values), 4),
        low=round(100 * low, 4),
        high=round(100 * high, 4),
        n=len(by_prompt),
    )


def _stated(document: Mapping[str, object], path: Path) -> FigureScores:
    entry = _entry(document, path)
    figures: dict[str, Estimate] = {}
    for figure in IfEval.figures:
        value, error = _number(entry, figure.key), _number(entry, f"{figure.key}_stderr")
        if value is not None:
            figures[figure.key] = Estimate.around(100 * value, None if error is None else 100 * error)
    return FigureScores(figures=figures)


def _entry(document: Mapping[str, object], path: Path) -> Mapping[str, object]:
    results = document.get("results")
    entry = results.get(NAME) if isinstance(results, dict) else None
    if not isinstance(entry, dict):
        raise ZephyrError(f"{path} has no results of {NAME}", "give what lm-eval wrote to its --output_path")
    return {str(key).removesuffix(",none"): value for key, value in entry.items()}


def _number(entry: Mapping[str, object], key: str) -> float | None:
    value = entry.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _prompts(document: Mapping[str, object]) -> int:
    sizes = document.get("n-samples")
    of_task = sizes.get(NAME) if isinstance(sizes, dict) else None
    return int(of_task["effective"]) if isinstance(of_task, dict) and "effective" in of_task else 0


def _file(folder: Path) -> Path:
    path = folder / NAME / "train.jsonl"
    if not path.is_file():
        raise ZephyrError(f"there is no {path}", "give a folder with ifeval/train.jsonl: rows of google/IFEval")
    return path
