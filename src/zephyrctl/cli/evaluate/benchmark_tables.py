"""Results of benchmarks and comparisons as the terminal shows them."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from zephyrctl.evaluation.benchmarks.contract import ResultTable
from zephyrctl.evaluation.compare import Comparison
from zephyrctl.evaluation.installed import benchmark_named
from zephyrctl.evaluation.results import MINUS, BenchmarkResult, Difference, HeldOutResult

ALL = "all"
DIFFERENCE = ("difference", "95 % interval", "p", "questions", "needed")


def benchmark_tables(result: HeldOutResult | BenchmarkResult) -> Iterator[RenderableType]:
    """A benchmark's tables, why its scores cannot be compared with published ones, and how reliable the judge is."""
    assert isinstance(result, BenchmarkResult)
    benchmark = benchmark_named({"benchmark": result.benchmark}, result.benchmark)
    assert benchmark is not None
    yield from map(_result_table, benchmark.tables(result))
    if result.differences:
        table = _table("on the same questions", *DIFFERENCE)
        for name, difference in result.differences.items():
            table.add_row(name.replace(MINUS, " minus "), *_difference(difference))
        yield table
    for line in result.comparability:
        yield Text(f"not comparable with the published scores: {line}", "yellow")
    if overlap := result.contamination:
        yield f"training data ({', '.join(overlap.searched)}) contains {overlap.hits} of {overlap.questions} questions"
        for name, score in overlap.scores_without_them.items():
            yield f"without them {name} has {'' if score is None else f'{score:.2f}'}"
    for part, values in result.judge_quality.figures().items():
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        yield f"judge, {part}: {figures}"


def comparison_tables(comparisons: Sequence[Comparison]) -> Iterator[RenderableType]:
    """B compared with A, one table for each benchmark: in all, and by category."""
    for compared in comparisons:
        a, b = compared.a, compared.b
        heading = f"{compared.benchmark}: {b} ({compared.score_b:.4g}) against {a} ({compared.score_a:.4g})"
        yield Text(heading, "bold")
        table = _table("", *DIFFERENCE)
        for name, difference in ((ALL, compared.difference), *compared.categories.items()):
            table.add_row(name, *_difference(difference))
        yield table
        if compared.only_a or compared.only_b:
            yield f"scored for only one of them: {compared.only_a} questions of {a}, {compared.only_b} of {b}"
        yield from compared.remarks
        yield _verdict(compared)


def _verdict(compared: Comparison) -> Text:
    a, b, tolerance = compared.a, compared.b, compared.tolerance
    if compared.is_worse:
        allowed = f" by more than {tolerance:g}" if tolerance else ""
        return Text(f"{b} is worse than {a}{allowed}, and that is not chance", "bold red")
    if compared.difference.low > 0:
        return Text(f"{b} is better than {a}, and that is not chance", "bold green")
    if compared.difference.high < 0:
        return Text(f"{b} is worse than {a}, and within the tolerance of {tolerance:g}", "yellow")
    return Text(f"{b} and {a} cannot be told apart on these questions")


def _difference(difference: Difference) -> list[str]:
    needed = "" if difference.needed is None else f"{difference.needed:,}"
    interval = f"{difference.low:+.2f} to {difference.high:+.2f}"
    return [f"{difference.mean:+.2f}", interval, f"{difference.p:.2g}", str(difference.n), needed]


def _result_table(result: ResultTable) -> Table:
    table = _table(result.title, *result.columns)
    for row in result.rows:
        table.add_row(*row)
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(first, *columns, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    return table
