"""Our models among those of the paper's tables, best first, and its ablation beside ours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from zephyrctl.evaluation.published import Figure, PublishedRow, published_table, where_printed
from zephyrctl.publishing import charts
from zephyrctl.publishing.held_out_scores import benchmark
from zephyrctl.publishing.measured import Estimate, around, estimate, mapping, real, words
from zephyrctl.publishing.number_format import ABSENT, interval, number
from zephyrctl.publishing.subject import Name, Subject
from zephyrctl.runs.artifacts import Artifact

AXES = {"mt_bench": charts.scale_over([1, 4, 7, 10])}
PER_CENT = charts.scale_over([0, 25, 50, 75, 100])
CHAT = ("mt_bench", "alpaca_eval")
ACADEMIC = ("arc", "hellaswag", "mmlu", "truthfulqa")
TITLES = {"mt-bench": "MT-Bench", "alpaca-eval": "AlpacaEval", "open-llm": "Open LLM Leaderboard"}

Scores = Mapping[str, Mapping[str, Estimate]]
"""model: {figure: what it came to}."""


@dataclass(frozen=True)
class Cell:
    """One figure: its number, what stands behind it, and its mark on the column's axis."""

    score: str
    reach: str
    mark: charts.Whisker | None


@dataclass(frozen=True)
class Ranked:
    """One model of a table; `name` is None for those of the paper."""

    name: Name | None
    label: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """One column: its heading, and its axis where it is drawn."""

    heading: str
    axis: charts.Scale | None


@dataclass(frozen=True)
class Table:
    """Our rows among the paper's; `sorted_by` is the heading of the column that orders them."""

    id: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Ranked, ...]
    sorted_by: str


@dataclass(frozen=True)
class BesidePaper:
    """Every table, and what makes a number of ours another thing than the paper's: (benchmark, sentences)."""

    tables: tuple[Table, ...]
    warnings: tuple[tuple[str, tuple[str, ...]], ...]


def beside_paper(subject: Subject) -> BesidePaper | None:
    """Our figures among the paper's; None where the run has none of its benchmarks."""
    found = _scores(subject)
    tables = [
        _ranking(subject, "Table 1", CHAT, found),
        _ranking(subject, "Table 2", ACADEMIC, found),
        _ablation(subject, found),
    ]
    shown = tuple(table for table in tables if table)
    return BesidePaper(shown, tuple(_warnings(subject))) if shown else None


def _warnings(subject: Subject) -> Iterator[tuple[str, tuple[str, ...]]]:
    for artifact in subject.benchmarks(*TITLES):
        if sentences := words(artifact.manifest.metrics.get("comparability")):
            yield TITLES[artifact.manifest.metrics["benchmark"]], sentences


def _scores(subject: Subject) -> dict[str, dict[str, Estimate]]:
    """What every model of this run came to on the paper's benchmarks."""
    found: dict[str, dict[str, Estimate]] = {}
    for artifact in subject.benchmarks(*TITLES):
        for key, figure, read in _read(artifact):
            found.setdefault(key, {})[figure] = read
    return {key: found[key] for key in subject.ordered(found)}


def _read(artifact: Artifact) -> Iterator[tuple[str, str, Estimate]]:
    for key, value in mapping(artifact.manifest.metrics.get("models")).items():
        chat = {"mt_bench": estimate(value, "score"), "alpaca_eval": estimate(value, "win_rate")}
        academic = {figure: with_interval(value, figure) for figure in ACADEMIC}
        yield from ((key, figure, read) for figure, read in {**chat, **academic}.items() if read)


def with_interval(value: object, figure: str) -> Estimate | None:
    """One figure of the leaderboard with its interval, or that of its standard error."""
    of = mapping(value)
    mean, reach = real(of.get(figure)), mapping(of.get("intervals")).get(figure)
    if mean is None:
        return None
    if isinstance(reach, Sequence) and len(reach) == 2:
        return Estimate(mean, real(reach[0]), real(reach[1]), None)
    return around(mean, real(mapping(of.get("standard_errors")).get(figure)))


def _ranking(subject: Subject, name: str, figures: Sequence[str], found: Scores) -> Table | None:
    """A table of the paper with our models among its rows, sorted by the first figure that ours have."""
    ours = {key: of for key, of in found.items() if any(figure in of for figure in figures)}
    if not ours:
        return None
    table = published_table(name)
    by = next(figure for figure in figures if any(figure in of for of in ours.values()))
    is_mean = figures is ACADEMIC
    order = () if is_mean else (by, *(figure for figure in figures if figure != by))
    rows = [(_rank(of, order), _own_row(subject, key, of, figures)) for key, of in ours.items()]
    for row in table.rows:
        printed: dict[str, Estimate] = {figure: around(one.value, one.error) for figure, one in row.figures.items()}
        rows.append((_rank(printed, order), _paper_row(row, figures, printed)))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    return Table(
        id=f"paper-{name.rpartition(' ')[2]}",
        title=table.title,
        source=f"{name} of the paper",
        columns=_columns(figures, is_mean),
        rows=tuple(row for _, row in rows),
        sorted_by="the mean of the four" if is_mean else benchmark(by).partition(",")[0],
    )


def _rank(of: Mapping[str, Estimate], order: Sequence[str]) -> tuple[float, ...]:
    """What a row is sorted by: these figures one after another, or the mean of all; what it lacks comes last."""
    found = [of.get(figure) for figure in order] if order else [_mean(of)]
    return tuple(one.mean if one else float("-inf") for one in found)


def _mean(of: Mapping[str, Estimate]) -> Estimate | None:
    if any(figure not in of for figure in ACADEMIC):
        return None
    return Estimate(sum(of[figure].mean for figure in ACADEMIC) / len(ACADEMIC), None, None, None)


def _columns(figures: Sequence[str], is_mean: bool) -> tuple[Column, ...]:
    if is_mean:
        return (*(Column(benchmark(figure), None) for figure in figures), Column("Mean", PER_CENT))
    return tuple(Column(benchmark(figure), AXES.get(figure, PER_CENT)) for figure in figures)


def _own_row(subject: Subject, key: str, of: Mapping[str, Estimate], figures: Sequence[str]) -> Ranked:
    name = subject.name(key)
    cells = [_cell(figure, of.get(figure)) for figure in figures]
    return Ranked(name, name.label, "this run", (*cells, *_mean_cell(of, figures)))


def _paper_row(row: PublishedRow, figures: Sequence[str], printed: Mapping[str, Estimate]) -> Ranked:
    stated: dict[str, Figure] = dict(row.figures.items())
    cells = [_cell(figure, printed.get(figure), stated.get(figure)) for figure in figures]
    kind = " ".join(part for part in (row.size, row.align) if part)
    return Ranked(None, row.model, kind, (*cells, *_mean_cell(printed, figures)))


def _mean_cell(of: Mapping[str, Estimate], figures: Sequence[str]) -> Iterator[Cell]:
    if figures is ACADEMIC:
        mean = _mean(of)
        yield _cell("mean", mean)


def _cell(figure: str, found: Estimate | None, printed: Figure | None = None) -> Cell:
    """A figure of ours with its interval, or of the paper's with the standard error that it prints."""
    if found is None:
        return Cell(ABSENT, "", None)
    mark = charts.whisker(AXES.get(figure, PER_CENT), found.mean, found.low, found.high)
    if printed is None:
        return Cell(number(found.mean), interval(found.low, found.high), mark)
    error = f"± {number(printed.error)}" if printed.error else ""
    return Cell(number(found.mean) + ("*" if printed.by_authors else ""), error, mark)


def _ablation(subject: Subject, found: Scores) -> Table | None:
    """Each checkpoint that the recipe gives a row of Table 3, above that row; None for fewer than two."""
    rows = []
    for key, of in found.items():
        printed = where_printed(subject.published(key))
        if printed and printed[0].name == "Table 3":
            rows += [_own_row(subject, key, of, CHAT), _beside(printed[1])]
    if len(rows) < 4:
        return None
    table = published_table("Table 3")
    columns = _columns(CHAT, is_mean=False)
    return Table("paper-3", table.title, "Table 3 of the paper", columns, tuple(rows), sorted_by="")


def _beside(row: PublishedRow) -> Ranked:
    figures: dict[str, Estimate] = {figure: around(one.value, one.error) for figure, one in row.figures.items()}
    shown = _paper_row(row, CHAT, figures)
    return Ranked(None, row.align, f"paper, {row.size}", shown.cells)
