"""Prepare a section of the report for each benchmark: scores, categories, differences and matches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from zephyrctl.evaluation.results import OVER, BenchmarkResult, Estimate, ScoreFigure, WinRate
from zephyrctl.publishing import charts
from zephyrctl.publishing.benchmark_figures import BenchmarkView, heading
from zephyrctl.publishing.held_out_scores import DifferenceRow, WinRow, difference_rows, win_rows
from zephyrctl.publishing.number_format import ABSENT, count, interval, join_words, number
from zephyrctl.publishing.radar import TOP_SCORE, Radar, radar
from zephyrctl.publishing.reported_run import Evaluation, ModelName, ReportedRun

MOST_POLYGONS = 5
"""Models of a radar chart that are drawn at first; the reader can tick the others."""
MOST_WIN_ROWS = 3
"""Matches that are drawn as bars; more of them are a matrix."""


@dataclass(frozen=True)
class ScoreCell:
    """One figure of one model: the number, its interval, and its position on the table's axis if it is drawn."""

    score: str
    interval: str
    whisker: charts.Whisker | None = None

    @property
    def text(self) -> str:
        """Number and interval."""
        return f"{self.score} {self.interval}".rstrip()


@dataclass(frozen=True)
class ModelRow:
    """One model of a table of scores."""

    name: ModelName
    mean: float | None
    cells: tuple[ScoreCell, ...]
    details: tuple[str, ...]
    categories: tuple[tuple[str, ScoreCell], ...]

    @property
    def drawn(self) -> tuple[ScoreCell, ...]:
        """The cells that are drawn."""
        return tuple(cell for cell in self.cells if cell.whisker)


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a benchmark. `axis` is None if they are not drawn; `are_bars` if they are drawn from zero."""

    caption: str
    headings: tuple[str, ...]
    details: tuple[str, ...]
    rows: tuple[ModelRow, ...]
    axis: charts.Scale | None
    are_bars: bool


@dataclass(frozen=True)
class RadarOutline:
    """One model of a radar chart, with its scores in the order of the categories."""

    name: ModelName
    mean: float
    score: str
    is_drawn: bool
    scores: tuple[ScoreCell, ...]


@dataclass(frozen=True)
class MatrixCell:
    """The win rate of the row's model over the column's, in per cent, and the same in words."""

    rate: float
    description: str


@dataclass(frozen=True)
class BenchmarkSection:
    """Everything that the report shows of one benchmark."""

    title: str
    anchor: str
    judge: str
    is_rule_based: bool
    facts: tuple[tuple[str, str], ...]
    judge_quality: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    table: ScoreTable
    has_main_figure: bool
    categories: tuple[str, ...]
    outlines: tuple[RadarOutline, ...]
    radar: Radar | None
    differences: tuple[DifferenceRow, ...]
    difference_axis: charts.Scale | None
    matches: tuple[WinRow, ...]
    matrix: tuple[tuple[ModelName, tuple[MatrixCell | None, ...]], ...]


def benchmark_sections(run: ReportedRun) -> Iterator[BenchmarkSection]:
    """A section for each benchmark that scored a model."""
    for evaluation in run.evaluations:
        if isinstance(evaluation.result, BenchmarkResult) and evaluation.view.scores:
            yield _section(run, evaluation, evaluation.result)


def _section(run: ReportedRun, evaluation: Evaluation, result: BenchmarkResult) -> BenchmarkSection:
    view = evaluation.view
    table = _score_table(run, view)
    categories = view.categories
    outlines = tuple(_outlines(run, view, categories)) if _fits_radar(view.figures[0]) else ()
    differences, axis = difference_rows(run, result.differences)
    matches = tuple(win_rows(run, view.matches))
    is_matrix = len(matches) > MOST_WIN_ROWS
    return BenchmarkSection(
        title=view.title,
        anchor=evaluation.anchor,
        judge=result.judge.name if result.judge else "",
        is_rule_based=result.judge is not None and result.judge.rule_based,
        facts=tuple(_facts(result)),
        judge_quality=tuple(_judge_quality(result)),
        notes=(*view.notes, *evaluation.artifact.manifest.notes),
        table=table,
        has_main_figure=view.has_main_figure and not view.figures[0].is_relative,
        categories=categories if outlines else (),
        outlines=outlines,
        radar=_radar(view, categories) if outlines else None,
        differences=differences,
        difference_axis=axis,
        matches=() if is_matrix else matches,
        matrix=tuple(_matrix(run, [row.name.key for row in table.rows], view.matches)) if is_matrix else (),
    )


def _facts(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    if judge := result.judge:
        models = [model for model in judge.models if model != judge.name]
        how = ""
        if judge.rule_based:
            how = " by rules"
        elif models:
            how = f" ({join_words(models)})"
        yield "Judge", f"{judge.name}{how}"
    if result.contamination:
        yield "Overlap with training data", _overlap(result)


def _overlap(result: BenchmarkResult) -> str:
    overlap = result.contamination
    if overlap is None or not overlap.searched:
        return "not searched"
    questions = f"{'none' if not overlap.hits else count(overlap.hits)} of {count(overlap.questions)} questions"
    rows = f", in {count(overlap.rows)} rows" if overlap.hits and overlap.rows else ""
    without = [f"{name} {number(score)}" for name, score in overlap.scores_without_them.items() if score is not None]
    scores = f"; scores without them: {join_words(without)}" if without else ""
    return f"{questions}{rows}; searched: {join_words(overlap.searched)}{scores}"


def _judge_quality(result: BenchmarkResult) -> Iterator[tuple[str, str]]:
    """What was measured of the judge itself, as (name, value)."""
    for part, figures in result.judge_quality.figures().items():
        for name, value in figures.items():
            shown = count(value) if value == int(value) else f"{value:,.3g}"
            yield f"{part}, {name}".replace("_", " "), shown


def _score_table(run: ReportedRun, view: BenchmarkView) -> ScoreTable:
    figures = view.figures
    main = figures[0]
    is_drawn = view.has_main_figure
    axis = _axis(view, main) if is_drawn else None
    # On a percentage axis every figure is a bar; on another axis only the main figure is drawn, as a dot.
    are_bars = is_drawn and main.unit == "%"
    drawn = [figure for figure in figures if axis and (figure is main or (are_bars and figure.scale == main.scale))]
    models = dict.fromkeys(score.model for score in view.scores)
    keys = list(models) if main.is_relative else run.ordered(models)  # ratings come best first
    details = list(dict.fromkeys(chain.from_iterable(view.details.get(key, {}) for key in keys)))
    rows = []
    for key in keys:
        estimates = [view.estimate(key, figure) for figure in figures]
        cells = [
            _cell(estimate, figure, axis if figure in drawn else None)
            for figure, estimate in zip(figures, estimates, strict=True)
        ]
        # Categories that no radar shows are listed below the table.
        categories = {} if _fits_radar(main) else view.by_category(key)
        listed = tuple((name, _cell(estimate, main, None, places=1)) for name, estimate in categories.items())
        known = view.details.get(key, {})
        rows.append(
            ModelRow(
                name=run.name(key),
                mean=estimates[0].mean if estimates[0] else None,
                cells=tuple(cells),
                details=tuple(known.get(name, ABSENT) for name in details),
                categories=listed,
            )
        )
    return ScoreTable(view.caption, tuple(map(heading, figures)), tuple(details), tuple(rows), axis, are_bars)


def _cell(estimate: Estimate | None, figure: ScoreFigure, axis: charts.Scale | None, places: int = 2) -> ScoreCell:
    if estimate is None:
        return ScoreCell(ABSENT, "")
    if figure.is_relative:
        places = 0  # ratings are hundreds, with intervals of tens
    score = number(estimate.mean, places=places)
    whisker = charts.whisker(axis, estimate.mean, estimate.low, estimate.high) if axis else None
    shown = f"{score} {figure.unit}" if axis and figure.unit else score
    return ScoreCell(shown, interval(estimate.low, estimate.high, places=places), whisker)


def _axis(view: BenchmarkView, figure: ScoreFigure) -> charts.Scale:
    """The figure's whole scale, or a range of round numbers around the scores if it has no bounds."""
    if not figure.is_relative:
        return charts.scale_over(charts.divide(*figure.scale))
    estimates = [score.estimate for score in view.scores if score.figure == figure]
    ends = [end for estimate in estimates for end in (estimate.mean, estimate.low, estimate.high) if end is not None]
    return charts.scale_over(charts.round_numbers(min(ends), max(ends), 4))


def _fits_radar(figure: ScoreFigure) -> bool:
    """True for ratings up to 10: a radar's rings are at 2, 4, 6, 8 and 10."""
    low, high = figure.scale
    return 0 <= low < high == TOP_SCORE


def _radar(view: BenchmarkView, categories: Sequence[str]) -> Radar | None:
    models = [score.model for score in view.scores if score.figure == view.figures[0]]
    means = [
        {name: estimate.mean for name, estimate in view.by_category(model).items()} for model in dict.fromkeys(models)
    ]
    return radar(categories, means)


def _outlines(run: ReportedRun, view: BenchmarkView, categories: Sequence[str]) -> Iterator[RadarOutline]:
    """Every model; the run's own models and then the best ones are drawn at first."""
    main = view.figures[0]
    scores = {score.model: score.estimate for score in view.scores if score.figure == main}
    ranked = sorted(scores, key=lambda key: (run.name(key).anchor is None, -scores[key].mean))
    drawn = ranked[:MOST_POLYGONS]
    for key, estimate in scores.items():
        by_category = view.by_category(key)
        cells = tuple(_cell(by_category.get(name), main, None) for name in categories)
        yield RadarOutline(run.name(key), estimate.mean, number(estimate.mean), key in drawn, cells)


def _matrix(
    run: ReportedRun, keys: Sequence[str], matches: Mapping[str, WinRate]
) -> Iterator[tuple[ModelName, tuple[MatrixCell | None, ...]]]:
    """A row for each model: its win rate over each other model; None if the two were not compared."""
    for left in keys:
        yield run.name(left), tuple(_matrix_cell(run, left, right, matches) for right in keys)


def _matrix_cell(run: ReportedRun, left: str, right: str, matches: Mapping[str, WinRate]) -> MatrixCell | None:
    forward, backward = matches.get(f"{left}{OVER}{right}"), matches.get(f"{right}{OVER}{left}")
    if forward is not None:
        rate = forward.win_rate
    elif backward is not None:
        rate = 1 - backward.win_rate
    else:
        return None
    return MatrixCell(100 * rate, f"{run.name(left).label} over {run.name(right).label}: {100 * rate:.1f} %")
