"""What the evaluation on held-out prompts found: scores, paired differences and win rates, as rows with their marks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zephyrctl.publishing import charts
from zephyrctl.publishing.measured import Estimate, estimate, mapping, real, words
from zephyrctl.publishing.number_format import ABSENT, anchor, count, interval, number
from zephyrctl.publishing.subject import Name, Subject
from zephyrctl.runs.artifacts import Artifact

SCORE_AXIS = charts.scale_over([1, 4, 7, 10])
BENCHMARKS = {
    "mt_bench": "MT-Bench",
    "alpaca_eval": "AlpacaEval, win %",
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "truthfulqa": "TruthfulQA",
}
"""The heading of each figure that the paper prints."""


@dataclass(frozen=True)
class ScoreRow:
    """One model of a score table; `published` are the paper's figures for it, `more` other columns."""

    name: Name
    mean: float
    score: str
    interval: str
    n: str
    mark: charts.Whisker
    published: tuple[str, ...] = ()
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class DifferenceRow:
    """Two models compared on the same prompts; `p` is empty where no test was recorded."""

    left: Name
    right: Name
    estimate: Estimate
    score: str
    interval: str
    n: str
    mark: charts.Whisker
    p: str


@dataclass(frozen=True)
class WinRow:
    """Two models whose answers were laid side by side before the judge; shares are per cent."""

    left: Name
    right: Name
    rate: str
    interval: str
    counts: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Sheet:
    """All that one evaluation on held-out prompts found."""

    anchor: str
    title: str
    judge: str
    is_rule_based: bool
    rows: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...]
    difference_axis: charts.Scale | None
    wins: tuple[WinRow, ...]
    benchmarks: tuple[str, ...]
    orders: tuple[str, ...]
    notes: tuple[str, ...]


def sheet(subject: Subject, artifact: Artifact) -> Sheet | None:
    """What an evaluation found; None where its manifest has no scores of checkpoints."""
    metrics = artifact.manifest.metrics
    found = {key: read for key, value in mapping(metrics.get("scores")).items() if (read := estimate(value))}
    keys = subject.ordered(key for key in found if "_minus_" not in key)
    if not keys:
        return None
    figures = list(dict.fromkeys(figure for key in keys for figure in subject.published(key)))
    rows = tuple(_with_published(subject, score_row(subject, key, found[key]), figures) for key in keys)
    differences, axis = difference_rows(subject, mapping(metrics.get("scores")))
    judge = mapping(metrics.get("judge"))
    return Sheet(
        anchor=anchor(artifact.manifest.plan.name),
        title=artifact.manifest.plan.name,
        judge=str(judge.get("name", "not recorded")),
        is_rule_based=judge.get("rule_based") is True,
        rows=rows,
        differences=differences,
        difference_axis=axis,
        wins=tuple(win_rows(subject, mapping(metrics.get("pairwise")))),
        benchmarks=tuple(benchmark(figure) for figure in figures),
        orders=tuple(_orders(subject, rows, figures)),
        notes=(*_unparsed(metrics.get("unparsed")), *words(artifact.manifest.notes)),
    )


def score_row(
    subject: Subject, key: str, found: Estimate, axis: charts.Scale = SCORE_AXIS, more: Sequence[str] = ()
) -> ScoreRow:
    """A model's score as a row of a table."""
    return ScoreRow(
        name=subject.name(key),
        mean=found.mean,
        score=number(found.mean),
        interval=interval(found.low, found.high),
        n=count(found.n),
        mark=charts.whisker(axis, found.mean, found.low, found.high),
        more=tuple(more),
    )


def difference_rows(
    subject: Subject, found: Mapping[str, Any]
) -> tuple[tuple[DifferenceRow, ...], charts.Scale | None]:
    """The rows of all `A_minus_B` in what was found, and the axis that they share; None where there are none."""
    paired = {key: read for key, value in found.items() if "_minus_" in key and (read := estimate(value))}
    if not paired:
        return (), None
    axis = charts.scale(
        reach for one in paired.values() for reach in (one.mean, one.low, one.high) if reach is not None
    )
    tested = {key: real(mapping(found[key]).get("p")) for key in paired}
    return tuple(_difference_row(subject, key, one, axis, tested[key]) for key, one in paired.items()), axis


def win_rows(subject: Subject, pairwise: Mapping[str, Any]) -> Iterator[WinRow]:
    """The rows of all `A_over_B` that have a win rate."""
    for key, value in pairwise.items():
        left, over, right = key.partition("_over_")
        rate, low, high = (real(mapping(value).get(name)) for name in ("win_rate", "low", "high"))
        if not over or rate is None:
            continue
        counts = {name: int(real(mapping(value).get(name)) or 0) for name in ("wins", "draws", "losses")}
        total = sum(counts.values())
        shares = tuple((name, f"{n:,}", 100 * n / total) for name, n in counts.items()) if total else ()
        reach = "" if low is None or high is None else interval(100 * low, 100 * high, places=1)
        yield WinRow(subject.name(left), subject.name(right), f"{100 * rate:.1f} %", reach, shares)


def benchmark(figure: str) -> str:
    """The heading of a published figure."""
    return BENCHMARKS.get(figure, figure.replace("_", " "))


def _with_published(subject: Subject, row: ScoreRow, figures: Sequence[str]) -> ScoreRow:
    published = subject.published(row.name.key)
    shown = tuple(number(published[figure]) if figure in published else ABSENT for figure in figures)
    return replace(row, published=shown)


def _difference_row(subject: Subject, key: str, found: Estimate, axis: charts.Scale, p: float | None) -> DifferenceRow:
    left, _, right = key.partition("_minus_")
    return DifferenceRow(
        left=subject.name(left),
        right=subject.name(right),
        estimate=found,
        score=number(found.mean, "+"),
        interval=interval(found.low, found.high, "+" if found.mean < 0 or (found.low or 0) < 0 else ""),
        n=count(found.n),
        mark=charts.whisker(axis, found.mean, found.low, found.high),
        p="" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}",
    )


def _orders(subject: Subject, rows: Iterable[ScoreRow], figures: Iterable[str]) -> Iterator[str]:
    """How far our order of checkpoints is the paper's, benchmark by benchmark."""
    for figure in figures:
        both = [
            (row.mean, subject.published(row.name.key)[figure])
            for row in rows
            if figure in subject.published(row.name.key)
        ]
        pairs = [(one, other) for place, one in enumerate(both) for other in both[place + 1 :] if one[1] != other[1]]
        same = sum((one[0] - other[0]) * (one[1] - other[1]) > 0 for one, other in pairs)
        if pairs:
            yield f"{benchmark(figure).partition(',')[0]}: {same} of {len(pairs)} pairs in the paper’s order"


def _unparsed(count: Any) -> Iterator[str]:
    if isinstance(count, int) and count:
        yield f"{count:,} judgements could not be read and are left out."
