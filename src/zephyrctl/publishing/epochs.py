"""What further epochs of dDPO bring (paper, Figure 3): accuracy over epochs, and each benchmark's score by epochs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from zephyrctl.publishing import charts
from zephyrctl.publishing.curves import metric_log, points
from zephyrctl.publishing.measured import Estimate, estimate, mapping, real
from zephyrctl.publishing.number_format import anchor, interval, number
from zephyrctl.publishing.subject import DASHES, HUES, Name, Subject
from zephyrctl.runs.artifacts import Artifact

MOST_CHECKPOINTS = 4
"""How many checkpoints the accuracy chart draws, two lines each: those with the most epochs."""
STRETCHES = 60
"""Into how many stretches of equal length the training accuracy is averaged: a batch of 16 pairs alone says little."""
TONES = ("dpo", *HUES)
"""The colours of the lines, one for each model that dDPO began from."""
SCORED = {"eval": "Held-out score", "mt-bench": "MT-Bench score", "alpaca-eval": "AlpacaEval win rate, %"}


@dataclass(frozen=True)
class ScoredEpochs:
    """One point of a score chart in words."""

    name: Name
    epochs: str
    score: str
    interval: str


@dataclass(frozen=True)
class ScoreChart:
    """One benchmark's score by epochs of dDPO, drawn and as rows."""

    chart: charts.LineChart
    rows: tuple[ScoredEpochs, ...]


@dataclass(frozen=True)
class Epochs:
    """Both halves of Figure 3; `left_out` is how many checkpoints the accuracy chart lacks."""

    accuracy: charts.LineChart | None
    scores: tuple[ScoreChart, ...]
    left_out: int


def epochs(subject: Subject) -> Epochs | None:
    """Figure 3 of this run; None where it trained no dDPO, or nothing of it was logged or scored."""
    trained = {one.manifest.plan.name: reached for one in subject.of_stage("dpo") if (reached := _epochs(one))}
    longest = sorted(trained, key=lambda key: -trained[key])[:MOST_CHECKPOINTS]
    drawn = [subject.named[key] for key in trained if key in longest]
    accuracy = _accuracy(subject, drawn)
    scores = tuple(_score_charts(subject, trained))
    return Epochs(accuracy, scores, len(trained) - len(drawn)) if accuracy or scores else None


def _epochs(artifact: Artifact) -> float | None:
    """The passes over the pairs that a checkpoint was trained: as its log says where steps cut them short."""
    settings = mapping(artifact.manifest.plan.settings.get("dpo"))
    stated = real(settings.get("epochs"))
    if stated is not None and not settings.get("max_steps"):
        return stated
    return max((value for _, value in points(metric_log(artifact), "epoch")), default=stated)


def _accuracy(subject: Subject, drawn: Sequence[Artifact]) -> charts.LineChart | None:
    series = [one for artifact in drawn for one in _accuracies(subject, artifact, is_only=len(drawn) == 1)]
    return charts.line_chart("epochs-accuracy", "Reward accuracy", series, bounds=[0.4, 1], unit="epoch")


def _accuracies(subject: Subject, artifact: Artifact, is_only: bool) -> Iterator[charts.Series]:
    """Training and held-out accuracy over epochs; the held-out one ends with what the manifest says."""
    name = subject.name(artifact.manifest.plan.name)
    log = _with_epochs(metric_log(artifact))
    held_out = points(log, "eval_rewards/accuracies", "epoch")
    last, final = _epochs(artifact), real(artifact.manifest.metrics.get("reward_accuracy"))
    if final is not None and last is not None and not held_out:
        held_out = [(last, final)]
    label = "" if is_only else f"{name.label}, "
    # At the first step policy and reference are one model: no margin is above zero, and the accuracy says nothing.
    begun = [line for line in log if line.get("step") != 1]
    yield charts.Series(f"{label}training", name.hue, _averaged(points(begun, "rewards/accuracies", "epoch")))
    yield charts.Series(f"{label}held out", name.hue, held_out, dash=1)


def _with_epochs(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of a log, each with an epoch: a line that has only a step takes it from the log's pace."""
    paced = [(step, epoch) for step, epoch in points(log, "epoch") if step]
    pace = paced[-1][1] / paced[-1][0] if paced else None
    return [
        line if "epoch" in line or pace is None else {**line, "epoch": pace * (real(line.get("step")) or 0)}
        for line in log
    ]


def _averaged(found: Sequence[charts.Point]) -> list[charts.Point]:
    """The points, or the means over equal stretches where there are more points than stretches."""
    if len(found) <= STRETCHES:
        return list(found)
    last = found[-1][0] or 1.0
    stretches = groupby(found, key=lambda point: min(int(STRETCHES * point[0] / last), STRETCHES - 1))
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for _, each in stretches if (part := list(each))]


def _score_charts(subject: Subject, trained: Mapping[str, float]) -> Iterator[ScoreChart]:
    """A chart for each benchmark that scored two points or more: dDPO checkpoints, and what they began from."""
    for artifact in subject.of_stage("eval"):
        kind = str(artifact.manifest.metrics.get("benchmark") or "eval")
        found = _scores(artifact, kind)
        lines: dict[str, dict[str, float]] = {}
        for key in trained:
            origin, reached = _since(subject, key, trained)
            lines.setdefault(origin, {})[key] = reached
        series, rows = _series(subject, lines, found)
        id = f"epochs-{anchor(artifact.manifest.plan.name)}"
        chart = charts.line_chart(id, SCORED.get(kind, kind), series, unit="epoch")
        if chart and len(rows) > 1:
            yield ScoreChart(chart, rows)


def _scores(artifact: Artifact, kind: str) -> dict[str, Estimate]:
    metrics = artifact.manifest.metrics
    key = {"eval": "mean", "mt-bench": "score", "alpaca-eval": "win_rate"}.get(kind)
    found = mapping(metrics.get("scores" if kind == "eval" else "models")) if key else {}
    return {name: read for name, value in found.items() if (read := estimate(value, key or ""))}


def _since(subject: Subject, key: str, trained: Mapping[str, float]) -> tuple[str, float]:
    """What a chain of dDPO checkpoints began from, and the epochs of all of them."""
    passed, reached = [key], trained[key]
    while (start := subject.start(passed[-1]) or "") in trained and start not in passed:
        passed.append(start)
        reached += trained[start]
    return start, reached


def _series(
    subject: Subject, lines: Mapping[str, Mapping[str, float]], found: Mapping[str, Estimate]
) -> tuple[list[charts.Series], tuple[ScoredEpochs, ...]]:
    series: list[charts.Series] = []
    rows: list[ScoredEpochs] = []
    for origin, reached in lines.items():
        scored = sorted((at, key) for key, at in {origin: 0.0, **reached}.items() if key in found)
        if not any(key in reached for _, key in scored):
            continue
        label = f"from {subject.name(origin).label}" if origin else "dDPO"
        ends = [found[key] for _, key in scored]
        reaches = [None if one.low is None or one.high is None else (one.low, one.high) for one in ends]
        at = [(passed, one.mean) for (passed, _), one in zip(scored, ends, strict=True)]
        place = len(series)
        series.append(charts.Series(label, TONES[place % len(TONES)], at, place % DASHES, reaches))
        rows += [_row(subject, passed, key, found[key]) for passed, key in scored]
    return series, tuple(rows)


def _row(subject: Subject, reached: float, key: str, found: Estimate) -> ScoredEpochs:
    return ScoredEpochs(subject.name(key), f"{reached:g}", number(found.mean), interval(found.low, found.high))
