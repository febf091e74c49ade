"""The score table of the held-out evaluation, as the terminal shows it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from zephyrctl.evaluation.installed import paper_heading
from zephyrctl.evaluation.results import MINUS, OVER, Estimate, HeldOutResult, WinRate, read_result
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact


def score_tables(evaluation: Artifact, recipe: Recipe) -> list[Any]:
    """Scores and differences with intervals, win rates, and who judged."""
    result = read_result(evaluation.manifest)
    assert isinstance(result, HeldOutResult)
    parts: list[Any] = [_scores(result.scores, recipe)]
    if result.pairwise:
        parts.append(_wins(result.pairwise))
    if (judge := result.judge) and judge.rule_based:
        parts.append(f"Judged by {judge.name}: rules, not a language model. Only good for comparing these checkpoints.")
    return parts


def _scores(scores: Mapping[str, Estimate], recipe: Recipe) -> Table:
    published = sorted(
        {key for checkpoint in recipe.checkpoints.values() for key in checkpoint.published}, reverse=True
    )
    table = Table("checkpoint", "score 1-10", "95 % interval", "prompts", *[paper_heading(key) for key in published])
    for column in table.columns[1:]:
        column.justify = "right"
    for name, score in scores.items():
        checkpoint = recipe.checkpoints.get(name)
        mean = f"{score.mean:+.2f}" if MINUS in name else f"{score.mean:.2f}"
        figures = [_figure(checkpoint.published.get(key)) if checkpoint else "" for key in published]
        interval = f"{score.low:.2f} to {score.high:.2f}"
        table.add_row(_label(name, recipe), mean, interval, str(score.n), *figures)
    return table


def _wins(pairwise: Mapping[str, WinRate]) -> Table:
    table = Table("first turns compared", "win rate", "95 % interval", "wins", "draws", "losses")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, rate in pairwise.items():
        counts = str(rate.wins), str(rate.draws), str(rate.losses)
        interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
        table.add_row(name.replace(OVER, " over "), f"{100 * rate.win_rate:.1f} %", interval, *counts)
    return table


def _label(name: str, recipe: Recipe) -> str:
    checkpoint = recipe.checkpoints.get(name)
    if checkpoint and checkpoint.label:
        return checkpoint.label
    return name.replace(MINUS, " minus ")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
