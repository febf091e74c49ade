"""Benchmarks and comparisons as the terminal shows them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from zephyrctl.evaluation.compare import Comparison
from zephyrctl.evaluation.statistics import Difference

LEADERBOARD = {
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU, mean of subjects",
    "mmlu_by_size": "MMLU, by size",
    "truthfulqa": "TruthfulQA",
}
WHOLE = "all"
DIFFERENCE = ("difference", "95 % interval", "p", "questions", "needed")


def benchmark_tables(metrics: Mapping[str, Any]) -> Iterator[Any]:
    """What one evaluation came to, by its benchmark, with what makes it not comparable and what the judge is worth."""
    yield from _SHOWN[metrics["benchmark"]](metrics)
    for line in metrics.get("comparability") or _warnings(metrics):
        yield Text(f"not comparable with the published scores: {line}", "yellow")
    overlap = metrics.get("contamination")
    if overlap:
        where = ", ".join(overlap["searched"])
        yield f"training data ({where}) holds {overlap['hits']} of {overlap['questions']} questions"
        for name, score in (overlap.get("scores_without_them") or {}).items():
            yield f"without them {name} has {_number(score)}"
    quality = metrics.get("judge_quality") or {}
    yield from (f"judge, {part}: {_told(values)}" for part, values in quality.items())


def _warnings(metrics: Mapping[str, Any]) -> Iterator[str]:
    return (line for one in (metrics.get("models") or {}).values() for line in one.get("warnings") or ())


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


def _mt_bench(metrics: Mapping[str, Any]) -> Iterator[Any]:
    models = metrics["models"]
    yield _by_model(
        "MT-Bench",
        models,
        {
            "score 1-10": lambda one: _number(one["score"]),
            "95 % interval": _interval,
            "turn 1": lambda one: _number(one["turn_1"]),
            "turn 2": lambda one: _number(one["turn_2"]),
            "rated": lambda one: str(one["rated"]),
            "no score, missing": lambda one: f"{one['unparsed'] + one['out_of_range']}, {one['missing']}",
        },
    )
    categories = dict.fromkeys(name for one in models.values() for name in one["categories"])
    yield _by_model("by category", models, {name: partial(_category, name=name) for name in categories})
    yield from _differences(metrics)


def _alpaca_eval(metrics: Mapping[str, Any]) -> Iterator[Any]:
    yield _by_model(
        "AlpacaEval",
        metrics["models"],
        {
            "win rate, %": lambda one: _with_error(one["win_rate"], one["standard_error"]),
            "95 % interval": _interval,
            "at equal length": lambda one: _number(one["length_controlled"]),
            "won, drawn, lost": lambda one: ", ".join(str(one[key]) for key in ("wins", "draws", "losses")),
            "missing": lambda one: str(one["missing"]),
            "characters": lambda one: "" if one["mean_length"] is None else f"{one['mean_length']:.0f}",
        },
    )
    yield from _differences(metrics)


def _open_llm(metrics: Mapping[str, Any]) -> Iterator[Any]:
    models = metrics["models"]
    yield _by_model(
        "Open LLM Leaderboard v1", models, {label: partial(_figure, key=key) for key, label in LEADERBOARD.items()}
    )


def _arena(metrics: Mapping[str, Any]) -> Iterator[Any]:
    table = _table("arena", "rating", "95 % interval", "wins", "draws", "losses")
    for name, one in metrics["ratings"].items():
        interval = f"{one['low']:.0f} to {one['high']:.0f}"
        table.add_row(name, f"{one['rating']:.0f}", interval, *(str(one[key]) for key in ("wins", "draws", "losses")))
    yield table


def _differences(metrics: Mapping[str, Any]) -> Iterator[Table]:
    found = metrics.get("differences") or {}
    if not found:
        return
    table = _table("on the same questions", *DIFFERENCE)
    for name, values in found.items():
        table.add_row(name.replace("_minus_", " minus "), *_difference(Difference.model_validate(values)))
    yield table


_SHOWN = {"mt-bench": _mt_bench, "alpaca-eval": _alpaca_eval, "open-llm": _open_llm, "arena": _arena}


def _table(first: str, *columns: str) -> Table:
    table = Table(first, *columns, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    return table


def _interval(one: Mapping[str, Any]) -> str:
    return "" if one["low"] is None or one["high"] is None else f"{one['low']:.2f} to {one['high']:.2f}"


def _by_model(title: str, models: Mapping[str, Any], rows: Mapping[str, Callable[[Any], str]]) -> Table:
    """A column a model: figures have longer names than most models."""
    table = _table(title, *models)
    for label, show in rows.items():
        table.add_row(label, *map(show, models.values()))
    return table


def _category(one: Mapping[str, Any], name: str) -> str:
    return _number(one["categories"].get(name, {}).get("score"))


def _figure(one: Mapping[str, Any], key: str) -> str:
    return _with_error(one.get(key), (one.get("standard_errors") or {}).get(key))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _with_error(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
