"""Chart what further epochs of preference training bring, as the paper's Figure 3: accuracy, and scores by epochs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from zephyrctl.evaluation.results import Estimate
from zephyrctl.publishing import charts
from zephyrctl.publishing.curves import MetricLog, metric_log, points
from zephyrctl.publishing.number_format import interval, number
from zephyrctl.publishing.reported_run import COLOURS, DASHES, ModelName, ReportedRun
from zephyrctl.publishing.stage_settings import StageSettings
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.training.kinds import DPO, KINDS
from zephyrctl.training.results import TrainingResult

MOST_CHECKPOINTS = 4
"""Checkpoints that the accuracy chart draws, two lines each: those with the most epochs."""
STRETCHES = 60
"""Equal stretches over which the training accuracy is averaged: the accuracy of one batch is mostly noise."""
LINE_COLOURS = (DPO.name, *COLOURS)
"""The colours of the lines of score charts: one for each model that the training started from."""
METHODS = tuple(kind.name for kind in KINDS.values() if kind.rows == "pairs" and kind.makes == "chat model")
"""The kinds of training that learn preferences."""


@dataclass(frozen=True)
class EpochScore:
    """One point of a score chart in words."""

    name: ModelName
    epochs: str
    score: str
    interval: str


@dataclass(frozen=True)
class EpochScoreChart:
    """One evaluation's score by epochs, as a chart and as rows."""

    chart: charts.LineChart
    rows: tuple[EpochScore, ...]


@dataclass(frozen=True)
class EpochCharts:
    """Both halves of Figure 3; `left_out` is the number of checkpoints that the accuracy chart does not draw."""

    method: str
    accuracy: charts.LineChart | None
    scores: tuple[EpochScoreChart, ...]
    left_out: int


def epoch_charts(run: ReportedRun) -> EpochCharts | None:
    """Figure 3 of this run; None if it trained no preferences, or logged and scored nothing of them."""
    trained = {
        artifact.manifest.plan.name: epochs
        for artifact in run.of_stage(*METHODS)
        if (epochs := _epochs(artifact)) is not None
    }
    longest = sorted(trained, key=lambda key: -trained[key])[:MOST_CHECKPOINTS]
    drawn = [run.named[key] for key in trained if key in longest]
    accuracy = _accuracy_chart(run, drawn)
    scores = tuple(_score_charts(run, trained))
    if not accuracy and not scores:
        return None
    methods = dict.fromkeys(KINDS[run.kind(key)].title for key in trained)
    return EpochCharts(" and ".join(methods), accuracy, scores, len(trained) - len(drawn))


def _epochs(artifact: Artifact) -> float | None:
    """The passes over the pairs, as the settings state; as the log says if `max_steps` ended the training earlier."""
    settings = StageSettings.of(artifact.manifest.plan).training
    if settings.epochs is not None and not settings.max_steps:
        return settings.epochs
    return max((value for _, value in points(metric_log(artifact), "epoch")), default=settings.epochs)


def _accuracy_chart(run: ReportedRun, drawn: Sequence[Artifact]) -> charts.LineChart | None:
    series = [line for artifact in drawn for line in _accuracies(run, artifact, is_only=len(drawn) == 1)]
    return charts.line_chart("epochs-accuracy", "Reward accuracy", series, bounds=[0.4, 1], unit="epoch")


def _accuracies(run: ReportedRun, artifact: Artifact, is_only: bool) -> Iterator[charts.Series]:
    """Training and held-out accuracy over epochs. Without logged held-out values, the final one is a single point."""
    name = run.name(artifact.manifest.plan.name)
    log = _with_epochs(metric_log(artifact))
    held_out = points(log, "eval_rewards/accuracies", "epoch")
    last, final = _epochs(artifact), TrainingResult.of(artifact).reward_accuracy
    if final is not None and last is not None and not held_out:
        held_out = [(last, final)]
    label = "" if is_only else f"{name.label}, "
    # At step 1 policy and reference are the same model: every margin is 0, and the accuracy means nothing.
    after_first = [line for line in log if line.get("step") != 1]
    training = _averaged(points(after_first, "rewards/accuracies", "epoch"))
    yield charts.Series(f"{label}training", name.colour, training)
    yield charts.Series(f"{label}held out", name.colour, held_out, dash=1)


def _with_epochs(log: MetricLog) -> list[Mapping[str, float]]:
    """The lines of a log, each with its epoch: a line that has only a step gets it from the epochs per step."""
    steps = [(step, epoch) for step, epoch in points(log, "epoch") if step]
    per_step = steps[-1][1] / steps[-1][0] if steps else None
    if per_step is None:
        return list(log)
    return [line if "epoch" in line else {**line, "epoch": per_step * line.get("step", 0)} for line in log]


def _averaged(accuracies: Sequence[charts.Point]) -> list[charts.Point]:
    """The points, or the means of 60 equal stretches if there are more points than stretches."""
    if len(accuracies) <= STRETCHES:
        return list(accuracies)
    last = accuracies[-1][0] or 1.0

    def stretch(point: charts.Point) -> int:
        return min(int(STRETCHES * point[0] / last), STRETCHES - 1)

    means = []
    for _, group in groupby(accuracies, key=stretch):
        part = list(group)
        means.append((fmean(x for x, _ in part), fmean(y for _, y in part)))
    return means


def _score_charts(run: ReportedRun, trained: Mapping[str, float]) -> Iterator[EpochScoreChart]:
    """A chart for each evaluation that scored two points or more: checkpoints, and what they started from."""
    for evaluation in run.evaluations:
        view = evaluation.view
        # Ratings compare only the models of one run, so their level over epochs means nothing.
        if view.has_main_figure and not view.figures[0].is_relative:
            series, rows = _score_lines(run, _lines(run, trained), view.main_scores)
            chart = charts.line_chart(f"epochs-{evaluation.anchor}", view.chart_title, series, unit="epoch")
            if chart and len(rows) > 1:
                yield EpochScoreChart(chart, rows)


def _lines(run: ReportedRun, trained: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Start of a chain of trainings: {checkpoint: epochs since that start}."""
    lines: dict[str, dict[str, float]] = {}
    for key in trained:
        start, epochs = _since_start(run, key, trained)
        lines.setdefault(start, {})[key] = epochs
    return lines


def _since_start(run: ReportedRun, key: str, trained: Mapping[str, float]) -> tuple[str, float]:
    """What a chain of preference trainings started from, and the sum of their epochs."""
    visited, epochs = [key], trained[key]
    start = run.start(key) or ""
    while start in trained and start not in visited:
        visited.append(start)
        epochs += trained[start]
        start = run.start(start) or ""
    return start, epochs


def _score_lines(
    run: ReportedRun, lines: Mapping[str, Mapping[str, float]], scores: Mapping[str, Estimate]
) -> tuple[list[charts.Series], tuple[EpochScore, ...]]:
    series: list[charts.Series] = []
    rows: list[EpochScore] = []
    for start, epochs in lines.items():
        scored = sorted((at, key) for key, at in {start: 0.0, **epochs}.items() if key in scores)
        if not any(key in epochs for _, key in scored):
            continue
        label = f"from {run.name(start).label}" if start else "trained"
        estimates = [scores[key] for _, key in scored]
        intervals = [
            None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
            for estimate in estimates
        ]
        line = [(at, estimate.mean) for (at, _), estimate in zip(scored, estimates, strict=True)]
        position = len(series)
        colour = LINE_COLOURS[position % len(LINE_COLOURS)]
        series.append(charts.Series(label, colour, line, position % DASHES, intervals))
        for at, key in scored:
            score = scores[key]
            rows.append(EpochScore(run.name(key), f"{at:g}", number(score.mean), interval(score.low, score.high)))
    return series, tuple(rows)
