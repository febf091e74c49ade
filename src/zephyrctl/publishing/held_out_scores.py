"""Prepare the scores on held-out prompts for the report: mean scores, paired differences and win rates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from zephyrctl.evaluation.results import MINUS, OVER, Difference, Estimate, HeldOutResult, WinRate
from zephyrctl.publishing import charts
from zephyrctl.publishing.number_format import ABSENT, anchor, count, interval, number
from zephyrctl.publishing.paper_figures import paper_heading
from zephyrctl.publishing.reported_run import ModelName, ReportedRun
from zephyrctl.runs.artifacts import Artifact

SCORE_AXIS = charts.scale_over([1, 4, 7, 10])


@dataclass(frozen=True)
class ScoreRow:
    """One model of a score table; `published` are the paper's figures for it."""

    name: ModelName
    mean: float
    score: str
    interval: str
    n: str
    whisker: charts.Whisker
    published: tuple[str, ...] = ()


@dataclass(frozen=True)
class DifferenceRow:
    """Two models compared on the same questions; `p` is empty if no test was recorded."""

    left: ModelName
    right: ModelName
    estimate: Estimate
    score: str
    interval: str
    n: str
    whisker: charts.Whisker
    p: str


@dataclass(frozen=True)
class WinRow:
    """How often the judge preferred one model's answer to another's; shares are per cent."""

    left: ModelName
    right: ModelName
    rate: str
    interval: str
    counts: tuple[tuple[str, str, float], ...]
    """(wins, draws or losses; their number; their share)."""


@dataclass(frozen=True)
class HeldOutScores:
    """Everything that one evaluation on held-out prompts measured."""

    anchor: str
    title: str
    judge: str
    is_rule_based: bool
    rows: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...]
    difference_axis: charts.Scale | None
    wins: tuple[WinRow, ...]
    paper_headings: tuple[str, ...]
    orders: tuple[str, ...]
    notes: tuple[str, ...]


def held_out_scores(run: ReportedRun) -> Iterator[HeldOutScores]:
    """The scores of each evaluation on held-out prompts that has some."""
    for evaluation in run.evaluations:
        if isinstance(evaluation.result, HeldOutResult) and evaluation.result.model_scores:
            yield _scores(run, evaluation.artifact, evaluation.result)


def _scores(run: ReportedRun, artifact: Artifact, result: HeldOutResult) -> HeldOutScores:
    keys = run.ordered(result.model_scores)
    figures = list(dict.fromkeys(figure for key in keys for figure in run.published(key)))
    rows = [_with_published(run, score_row(run, key, result.scores[key]), figures) for key in keys]
    differences, axis = difference_rows(run, result.differences)
    judge = result.judge
    unparsed = (f"{result.unparsed:,} judgments could not be read and are left out.",) if result.unparsed else ()
    return HeldOutScores(
        anchor=anchor(artifact.manifest.plan.name),
        title=artifact.manifest.plan.name,
        judge=judge.name if judge else "not recorded",
        is_rule_based=judge is not None and judge.rule_based,
        rows=tuple(rows),
        differences=differences,
        difference_axis=axis,
        wins=tuple(win_rows(run, result.pairwise)),
        paper_headings=tuple(map(paper_heading, figures)),
        orders=tuple(_orders(run, rows, figures)),
        notes=(*unparsed, *artifact.manifest.notes),
    )


def score_row(run: ReportedRun, key: str, score: Estimate, axis: charts.Scale = SCORE_AXIS) -> ScoreRow:
    """A model's score as a row of a table."""
    return ScoreRow(
        name=run.name(key),
        mean=score.mean,
        score=number(score.mean),
        interval=interval(score.low, score.high),
        n=count(score.n),
        whisker=charts.whisker(axis, score.mean, score.low, score.high),
    )


def difference_rows(
    run: ReportedRun, differences: Mapping[str, Estimate]
) -> tuple[tuple[DifferenceRow, ...], charts.Scale | None]:
    """The rows of `A_minus_B` differences, and the axis that they share; no axis if there are none."""
    if not differences:
        return (), None
    ends = [
        value
        for difference in differences.values()
        for value in (difference.mean, difference.low, difference.high)
        if value is not None
    ]
    axis = charts.scale(ends)
    return tuple(_difference_row(run, key, difference, axis) for key, difference in differences.items()), axis


def win_rows(run: ReportedRun, matches: Mapping[str, WinRate]) -> Iterator[WinRow]:
    """The rows of `A_over_B` matches."""
    for key, match in matches.items():
        left, _, right = key.partition(OVER)
        counts = {"wins": match.wins, "draws": match.draws, "losses": match.losses}
        total = sum(counts.values())
        shares = [(name, f"{n:,}", 100 * n / total) for name, n in counts.items()] if total else []
        ends = ""
        if match.low is not None and match.high is not None:
            ends = interval(100 * match.low, 100 * match.high, places=1)
        yield WinRow(run.name(left), run.name(right), f"{100 * match.win_rate:.1f} %", ends, tuple(shares))


def _with_published(run: ReportedRun, row: ScoreRow, figures: Sequence[str]) -> ScoreRow:
    published = run.published(row.name.key)
    shown = tuple(number(published[figure]) if figure in published else ABSENT for figure in figures)
    return replace(row, published=shown)


def _difference_row(run: ReportedRun, key: str, difference: Estimate, axis: charts.Scale) -> DifferenceRow:
    left, _, right = key.partition(MINUS)
    # An interval of positive numbers alone reads well without signs.
    sign = "+" if difference.mean < 0 or (difference.low or 0) < 0 else ""
    p = difference.p if isinstance(difference, Difference) else None
    return DifferenceRow(
        left=run.name(left),
        right=run.name(right),
        estimate=difference,
        score=number(difference.mean, "+"),
        interval=interval(difference.low, difference.high, sign),
        n=count(difference.n),
        whisker=charts.whisker(axis, difference.mean, difference.low, difference.high),
        p=_p_value(p),
    )


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _orders(run: ReportedRun, rows: Iterable[ScoreRow], figures: Iterable[str]) -> Iterator[str]:
    """How many pairs of checkpoints are in the paper's order, by figure."""
    published = {row.name.key: run.published(row.name.key) for row in rows}
    for figure in figures:
        # (our mean, the paper's figure) of each checkpoint that has both
        both = [(row.mean, published[row.name.key][figure]) for row in rows if figure in published[row.name.key]]
        pairs = [(a, b) for position, a in enumerate(both) for b in both[position + 1 :] if a[1] != b[1]]
        same = sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)
        if pairs:
            yield f"{paper_heading(figure).partition(',')[0]}: {same} of {len(pairs)} pairs in the paper’s order"
