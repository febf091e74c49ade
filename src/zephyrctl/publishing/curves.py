"""Chart each training from its metric log, and compare its first loss with the expected one."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.errors import ZephyrError
from zephyrctl.publishing import charts
from zephyrctl.publishing.number_format import anchor, duration, number
from zephyrctl.publishing.reported_run import ModelName, ReportedRun
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.training.kinds import TrainingChart, training_kind
from zephyrctl.training.results import TrainingResult

EQUAL = 1e-4
"""Losses this close are called equal: logs keep four to six digits."""
BF16_ROUNDING = 1e-2
"""The difference that bf16 arithmetic may cause, if the run did not record a tolerance of its own."""

MetricLog = Sequence[Mapping[str, float]]
"""The lines of metrics.jsonl: the finite numbers that each states, by name."""


@dataclass(frozen=True)
class FirstLossCheck:
    """The first loss compared with what it must be, in a sentence."""

    sentence: str
    is_right: bool


@dataclass(frozen=True)
class TrainingCurves:
    """How one training went: facts, the check of its first loss, and its charts."""

    name: ModelName
    facts: tuple[tuple[str, str], ...]
    first_loss: FirstLossCheck | None
    charts: tuple[charts.LineChart, ...]


def training_curves(run: ReportedRun, artifact: Artifact) -> TrainingCurves:
    """The facts and charts of one checkpoint. Raises ZephyrError if its metric log or its result is damaged."""
    name = run.name(artifact.manifest.plan.name)
    result = TrainingResult.of(artifact)
    facts = tuple(_facts(result, artifact.manifest.seconds))
    return TrainingCurves(name, facts, check_first_loss(result), tuple(training_charts(artifact, anchor(name.key))))


def training_charts(artifact: Artifact, id: str) -> list[charts.LineChart]:
    """The charts of one training, without those of which the log has nothing; `id` begins their HTML ids."""
    expected = TrainingResult.of(artifact).expected_first_loss
    log = metric_log(artifact)
    drawn = (_draw(chart, id, log, expected) for chart in training_kind(artifact.manifest.plan.stage).charts)
    return [chart for chart in drawn if chart]


def metric_log(artifact: Artifact) -> list[dict[str, float]]:
    """The lines of a checkpoint's metric log; empty without one. Raises ZephyrError if a line is damaged."""
    return list(_lines(artifact.path / "metrics.jsonl"))


def points(log: Iterable[Mapping[str, float]], key: str, along: str = "step") -> list[charts.Point]:
    """(step, value) of every line that has both."""
    return [(line[along], line[key]) for line in log if along in line and key in line]


def check_first_loss(result: TrainingResult) -> FirstLossCheck | None:
    """The first loss compared with the expected one; None if one of them is unknown.

    For a sigmoid preference loss that is ln 2: before the first step policy and reference are the same model, every
    margin is 0, and -log(sigmoid(0)) = ln 2 (Rafailov et al. 2023, equation 7).
    """
    first, expected = result.first_loss, result.expected_first_loss
    if first is None or expected is None:
        return None
    gap = abs(first - expected)
    compared = f"First loss {first:.4f}, expected {_loss_label(expected)}"
    if gap <= EQUAL:
        return FirstLossCheck(
            f"{compared}: equal within {EQUAL:g}, so the training started from the right model.", True
        )
    if gap <= (result.first_loss_tolerance or BF16_ROUNDING):
        return FirstLossCheck(f"{compared}: {gap:.4f} apart, which rounding in bf16 explains.", True)
    return FirstLossCheck(f"{compared}: {gap:.4f} apart. Policy and reference did not start as the same model.", False)


def _lines(path: Path) -> Iterator[dict[str, float]]:
    if not path.is_file():
        return
    for number_of_line, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line) if line.strip() else None
        except ValueError:
            remedy = f"remove {path.parent} and run that stage again"
            raise ZephyrError(f"{path}:{number_of_line} is not JSON", remedy) from None
        if isinstance(values, dict):
            yield {key: float(value) for key, value in values.items() if _is_finite(value)}


def _is_finite(value: object) -> bool:
    """True for a number that can be drawn: a training that diverges logs NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw(chart: TrainingChart, id: str, log: MetricLog, expected: float | None) -> charts.LineChart | None:
    lines = [charts.Series(curve.label, curve.colour, points(log, curve.metric)) for curve in chart.curves]
    reference = None
    if chart.shows_initial_loss and expected is not None:
        reference = (expected, "ln 2" if _is_ln_2(expected) else "expected at the start")
    return charts.line_chart(f"{id}-{chart.key}", chart.title, lines, reference=reference, bounds=chart.bounds)


def _is_ln_2(loss: float) -> bool:
    return math.isclose(loss, math.log(2), abs_tol=1e-6)


def _loss_label(loss: float) -> str:
    return f"ln 2 = {loss:.4f}" if _is_ln_2(loss) else f"{loss:.4f}"


def _facts(result: TrainingResult, seconds: float) -> Iterator[tuple[str, str]]:
    if result.steps is not None:
        yield "Steps", f"{result.steps:,}"
    if result.train_loss is not None:
        yield "Training loss", number(result.train_loss, places=4)
    if result.eval_loss is not None:
        yield "Held-out loss", number(result.eval_loss, places=4)
    if result.reward_accuracy is not None:
        yield "Held-out reward accuracy", f"{100 * result.reward_accuracy:.1f} %"
    if result.reward_margin is not None:
        yield "Held-out reward margin", number(result.reward_margin, "+", places=4)
    yield "Wall time", duration(seconds)
