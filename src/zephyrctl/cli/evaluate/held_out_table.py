"""The score table as the terminal shows it."""

from typing import Any

from rich.table import Table

from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Artifact

NAMES = {"mt_bench": "MT-Bench, paper", "alpaca_eval": "AlpacaEval %, paper"}


def score_tables(evaluation: Artifact, recipe: Recipe) -> list[Any]:
    """Scores and differences with intervals, win rates, and who judged."""
    metrics = evaluation.manifest.metrics
    judge = metrics["judge"]
    parts: list[Any] = [_scores(metrics["scores"], recipe)]
    if metrics["pairwise"]:
        parts.append(_wins(metrics["pairwise"]))
    if judge["rule_based"]:
        parts.append(
            f"Judged by {judge['name']}: rules, not a language model. Only good for comparing these checkpoints."
        )
    return parts


def _scores(scores: dict[str, Any], recipe: Recipe) -> Table:
    published = sorted(
        {key for checkpoint in recipe.checkpoints.values() for key in checkpoint.published}, reverse=True
    )
    table = Table("checkpoint", "score 1-10", "95 % interval", "prompts", *[NAMES.get(key, key) for key in published])
    for column in table.columns[1:]:
        column.justify = "right"
    for name, score in scores.items():
        is_difference = "_minus_" in name
        checkpoint = recipe.checkpoints.get(name)
        shown = f"{score['mean']:+.2f}" if is_difference else f"{score['mean']:.2f}"
        figures = [_figure(checkpoint.published.get(key)) if checkpoint else "" for key in published]
        table.add_row(
            _label(name, recipe),
            shown,
            f"{score['low']:.2f} to {score['high']:.2f}",
            str(score["n"]),
            *figures,
        )
    return table


def _wins(pairwise: dict[str, Any]) -> Table:
    table = Table("first turns compared", "win rate", "95 % interval", "wins", "draws", "losses")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, rate in pairwise.items():
        counts = [str(rate[key]) for key in ("wins", "draws", "losses")]
        interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
        table.add_row(name.replace("_over_", " over "), f"{100 * rate['win_rate']:.1f} %", interval, *counts)
    return table


def _label(name: str, recipe: Recipe) -> str:
    checkpoint = recipe.checkpoints.get(name)
    if checkpoint and checkpoint.label:
        return checkpoint.label
    return name.replace("_minus_", " minus ")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
