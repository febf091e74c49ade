"""Rank the run's models among those of the paper's tables, and compare its ablation with ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zephyrctl.evaluation.published import (
    PublishedRow,
    PublishedTable,
    published_tables,
    where_printed,
)
from zephyrctl.evaluation.results import BenchmarkResult, Estimate
from zephyrctl.publishing import charts
from zephyrctl.publishing.number_format import ABSENT, interval, number
from zephyrctl.publishing.paper_figures import paper_figure, paper_heading
from zephyrctl.publishing.reported_run import ModelName, ReportedRun

PER_CENT = charts.scale_over(charts.divide(0, 100))

Scores = Mapping[str, Mapping[str, Estimate]]
"""Model: {the paper's name of a figure: its value}."""


@dataclass(frozen=True)
class PaperCell:
    """One figure: its number, its interval or standard error, and its position on the column's axis."""

    score: str
    interval: str
    whisker: charts.Whisker | None


@dataclass(frozen=True)
class PaperRow:
    """One model of a table; `name` is None for the paper's models."""

    name: ModelName | None
    label: str
    kind: str
    cells: tuple[PaperCell, ...]


@dataclass(frozen=True)
class PaperColumn:
    """One column: its heading, and its axis if it is drawn."""

    heading: str
    axis: charts.Scale | None


@dataclass(frozen=True)
class PaperTable:
    """Our models among the paper's; `sorted_by` is the heading of the column that orders them."""

    id: str
    title: str
    source: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    sorted_by: str
    has_author_scores: bool


@dataclass(frozen=True)
class PaperComparison:
    """Every table, and why our numbers are not comparable with the paper's: (benchmark, sentences)."""

    tables: tuple[PaperTable, ...]
    warnings: tuple[tuple[str, tuple[str, ...]], ...]


def paper_comparison(run: ReportedRun) -> PaperComparison | None:
    """Our figures among the paper's; None if the run has none of its benchmarks."""
    scores = _scores(run)
    tables = []
    for printed in published_tables():
        arrange = _ablation if printed.is_ablation else _ranking
        tables.append(arrange(run, printed, scores))
    shown = tuple(table for table in tables if table)
    return PaperComparison(shown, tuple(_warnings(run))) if shown else None


def _warnings(run: ReportedRun) -> Iterator[tuple[str, tuple[str, ...]]]:
    for evaluation in run.evaluations:
        is_printed = any(figure.paper for figure in evaluation.view.figures)
        if isinstance(evaluation.result, BenchmarkResult) and is_printed and evaluation.result.comparability:
            yield evaluation.title, tuple(evaluation.result.comparability)


def _scores(run: ReportedRun) -> Scores:
    """The scores of every model of this run on the figures that the paper prints."""
    scores: dict[str, dict[str, Estimate]] = {}
    for evaluation in run.evaluations:
        for score in evaluation.view.scores:
            if score.figure.paper:
                scores.setdefault(score.model, {})[score.figure.paper] = score.estimate
    return {key: scores[key] for key in run.ordered(scores)}


def _ranking(run: ReportedRun, table: PublishedTable, scores: Scores) -> PaperTable | None:
    """A table of the paper with our models among its rows, sorted by the mean or by the first figure that ours have."""
    figures = table.figures
    ours = {key: values for key, values in scores.items() if any(figure in values for figure in figures)}
    if not ours:
        return None
    first = next(figure for figure in figures if any(figure in values for values in ours.values()))
    order = () if table.has_mean else (first, *(figure for figure in figures if figure != first))
    rows = [(_rank(values, figures, order), _own_row(run, key, values, table)) for key, values in ours.items()]
    for printed in table.rows:
        rows.append((_rank(_printed(printed), figures, order), _paper_row(printed, table)))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    sorted_by = "their mean" if table.has_mean else paper_heading(first).partition(",")[0]
    return _table(table, [row for _, row in rows], sorted_by)


def _ablation(run: ReportedRun, table: PublishedTable, scores: Scores) -> PaperTable | None:
    """Each checkpoint to which the recipe gives a row of this table, above that row; None for fewer than two."""
    rows = []
    for key, values in scores.items():
        match = where_printed(run.published(key))
        if match and match[0].name == table.name:
            printed = _paper_row(match[1], table)
            rows += [
                _own_row(run, key, values, table),
                PaperRow(None, match[1].align, f"paper, {match[1].size}", printed.cells),
            ]
    return _table(table, rows, sorted_by="") if len(rows) >= 4 else None


def _table(table: PublishedTable, rows: Sequence[PaperRow], sorted_by: str) -> PaperTable:
    return PaperTable(
        id=f"paper-{table.name.rpartition(' ')[2]}",
        title=table.title,
        source=f"{table.name} of the paper",
        columns=_columns(table),
        rows=tuple(rows),
        sorted_by=sorted_by,
        has_author_scores=any(figure.by_authors for row in table.rows for figure in row.figures.values()),
    )


def _rank(values: Mapping[str, Estimate], figures: Sequence[str], order: Sequence[str]) -> tuple[float, ...]:
    """The sort key of a row: these figures one after another, or the mean of all; a missing figure is last."""
    estimates = [values.get(figure) for figure in order] if order else [_mean(values, figures)]
    return tuple(estimate.mean if estimate else float("-inf") for estimate in estimates)


def _mean(values: Mapping[str, Estimate], figures: Sequence[str]) -> Estimate | None:
    """The mean over all figures; None if one is missing, since a mean of fewer is another quantity."""
    if any(figure not in values for figure in figures):
        return None
    return Estimate(mean=sum(values[figure].mean for figure in figures) / len(figures))


def _columns(table: PublishedTable) -> tuple[PaperColumn, ...]:
    if table.has_mean:
        return (*(PaperColumn(paper_heading(figure), None) for figure in table.figures), PaperColumn("Mean", PER_CENT))
    return tuple(PaperColumn(paper_heading(figure), _axis(figure)) for figure in table.figures)


def _axis(figure: str) -> charts.Scale:
    known = paper_figure(figure)
    return charts.scale_over(charts.divide(*known.scale)) if known else PER_CENT


def _own_row(run: ReportedRun, key: str, values: Mapping[str, Estimate], table: PublishedTable) -> PaperRow:
    name = run.name(key)
    cells = [_own_cell(figure, values.get(figure)) for figure in table.figures]
    return PaperRow(name, name.label, "this run", (*cells, *_mean_cell(values, table)))


def _paper_row(row: PublishedRow, table: PublishedTable) -> PaperRow:
    cells = [_paper_cell(figure, row) for figure in table.figures]
    kind = " ".join(part for part in (row.size, row.align) if part)
    return PaperRow(None, row.model, kind, (*cells, *_mean_cell(_printed(row), table)))


def _printed(row: PublishedRow) -> dict[str, Estimate]:
    return {name: Estimate.around(figure.value, figure.error) for name, figure in row.figures.items()}


def _mean_cell(values: Mapping[str, Estimate], table: PublishedTable) -> Iterator[PaperCell]:
    if table.has_mean:
        mean = _mean(values, table.figures)
        if mean is None:
            yield PaperCell(ABSENT, "", None)
        else:
            yield PaperCell(number(mean.mean), "", charts.whisker(PER_CENT, mean.mean, None, None))


def _own_cell(figure: str, estimate: Estimate | None) -> PaperCell:
    """A figure of ours with its interval."""
    if estimate is None:
        return PaperCell(ABSENT, "", None)
    whisker = charts.whisker(_axis(figure), estimate.mean, estimate.low, estimate.high)
    return PaperCell(number(estimate.mean), interval(estimate.low, estimate.high), whisker)


def _paper_cell(figure: str, row: PublishedRow) -> PaperCell:
    """A figure of the paper's with the standard error that it prints; an asterisk marks the authors' own evaluation."""
    if figure not in row.figures:
        return PaperCell(ABSENT, "", None)
    printed = row.figures[figure]
    estimate = Estimate.around(printed.value, printed.error)
    error = f"± {number(printed.error)}" if printed.error else ""
    whisker = charts.whisker(_axis(figure), estimate.mean, estimate.low, estimate.high)
    return PaperCell(number(printed.value) + ("*" if printed.by_authors else ""), error, whisker)
