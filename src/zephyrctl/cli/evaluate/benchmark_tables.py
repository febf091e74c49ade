"""Benchmarks and comparisons as the terminal shows them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from zephyrctl.evaluation.compare import Comparison
from zephyrctl.evaluation.results import (
    MINUS,
    AlpacaEvalResult,
    ArenaResult,
    BenchmarkResult,
    Difference,
    Estimate,
    HeldOutResult,
    LeaderboardResult,
    LeaderboardScores,
    MtBenchResult,
    MtBenchScores,
)

LEADERBOARD = {
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU, mean of subjects",
    "mmlu_by_size": "MMLU, by size",
    "truthfulqa": "TruthfulQA",
}
WHOLE = "all"
DIFFERENCE = ("difference", "95 % interval", "p", "questions", "needed")


def benchmark_tables(result: HeldOutResult | BenchmarkResult) -> Iterator[Any]:
    """The scores of one benchmark, why they cannot be compared with published ones, and how reliable the judge is."""
    assert isinstance(result, BenchmarkResult)
    yield from _SHOWN[type(result)](result)
    for line in result.comparability:
        yield Text(f"not comparable with the published scores: {line}", "yellow")
    if overlap := result.contamination:
        yield f"training data ({', '.join(overlap.searched)}) holds {overlap.hits} of {overlap.questions} questions"
        for name, score in overlap.scores_without_them.items():
            yield f"without them {name} has {_number(score)}"
    for part, values in result.judge_quality.figures().items():
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
        yield f"judge, {part}: {figures}"


def comparison_tables(found: Sequence[Comparison]) -> Iterator[Any]:
    """B against A, one table a benchmark: in all, and by category."""
    for one in found:
        yield Text(f"{one.benchmark}: {one.b} ({one.score_b:.4g}) against {one.a} ({one.score_a:.4g})", "bold")
        table = _table("", *DIFFERENCE)
        for name, difference in ((WHOLE, one.difference), *one.categories.items()):
            table.add_row(name, *_difference(difference))
        yield table
        if one.only_a or one.only_b:
            yield f"scored for one of them only: {one.only_a} questions of {one.a}, {one.only_b} of {one.b}"
        yield from one.remarks
        yield _verdict(one)


def _verdict(one: Comparison) -> Text:
    low, high = one.difference.low, one.difference.high
    allowed = f" by more than {one.tolerance:g}" if one.tolerance else ""
    if one.is_worse:
        return Text(f"{one.b} is worse than {one.a}{allowed}, and that is not chance", "bold red")
    if low > 0:
        return Text(f"{one.b} is better than {one.a}, and that is not chance", "bold green")
    if high < 0:
        return Text(f"{one.b} is worse than {one.a}, and within the tolerance of {one.tolerance:g}", "yellow")
    return Text(f"{one.b} and {one.a} cannot be told apart on these questions")


def _difference(found: Difference) -> list[str]:
    needed = "" if found.needed is None else f"{found.needed:,}"
    return [f"{found.mean:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", f"{found.p:.2g}", str(found.n), needed]


def _mt_bench(result: MtBenchResult) -> Iterator[Any]:
    models = result.models
    yield _by_model(
        "MT-Bench",
        models,
        {
            "score 1-10": lambda scores: _number(scores.score),
            "95 % interval": lambda scores: _interval(scores.estimate),
            "turn 1": lambda scores: _number(scores.turn_1),
            "turn 2": lambda scores: _number(scores.turn_2),
            "rated": lambda scores: str(scores.rated),
            "no score, missing": lambda scores: f"{scores.unparsed + scores.out_of_range}, {scores.missing}",
        },
    )
    categories = dict.fromkeys(name for scores in models.values() for name in scores.categories)
    yield _by_model("by category", models, {name: partial(_category, name=name) for name in categories})
    yield from _differences(result)


def _alpaca_eval(result: AlpacaEvalResult) -> Iterator[Any]:
    yield _by_model(
        "AlpacaEval",
        result.models,
        {
            "win rate, %": lambda scores: _with_error(scores.win_rate, scores.standard_error),
            "95 % interval": lambda scores: _interval(scores.estimate),
            "at equal length": lambda scores: _number(scores.length_controlled),
            "won, drawn, lost": lambda scores: f"{scores.wins}, {scores.draws}, {scores.losses}",
            "missing": lambda scores: str(scores.missing),
            "characters": lambda scores: "" if scores.mean_length is None else f"{scores.mean_length:.0f}",
        },
    )
    yield from _differences(result)


def _open_llm(result: LeaderboardResult) -> Iterator[Any]:
    rows = {label: partial(_figure, key=key) for key, label in LEADERBOARD.items()}
    yield _by_model("Open LLM Leaderboard v1", result.models, rows)


def _arena(result: ArenaResult) -> Iterator[Any]:
    table = _table("arena", "rating", "95 % interval", "wins", "draws", "losses")
    for name, row in result.ratings.items():
        interval = f"{row.low:.0f} to {row.high:.0f}"
        table.add_row(name, f"{row.rating:.0f}", interval, str(row.wins), str(row.draws), str(row.losses))
    yield table


def _differences(result: BenchmarkResult) -> Iterator[Table]:
    if not result.differences:
        return
    table = _table("on the same questions", *DIFFERENCE)
    for name, difference in result.differences.items():
        table.add_row(name.replace(MINUS, " minus "), *_difference(difference))
    yield table


_SHOWN: dict[type[BenchmarkResult], Callable[[Any], Iterator[Any]]] = {
    MtBenchResult: _mt_bench,
    AlpacaEvalResult: _alpaca_eval,
    LeaderboardResult: _open_llm,
    ArenaResult: _arena,
}


def _table(first: str, *columns: str) -> Table:
    table = Table(first, *columns, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    return table


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.2f} to {estimate.high:.2f}"


def _by_model(title: str, models: Mapping[str, Any], rows: Mapping[str, Callable[[Any], str]]) -> Table:
    """One column per model, as the names of scores are longer than most models' names."""
    table = _table(title, *models)
    for label, show in rows.items():
        table.add_row(label, *map(show, models.values()))
    return table


def _category(scores: MtBenchScores, name: str) -> str:
    return _number(scores.categories[name].score) if name in scores.categories else ""


def _figure(scores: LeaderboardScores, key: str) -> str:
    return _with_error(getattr(scores, key), scores.standard_errors.get(key))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
