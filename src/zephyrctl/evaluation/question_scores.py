"""One model's scores on one benchmark, question by question, or only its total with a standard error."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zephyrctl.evaluation.judged_rows import JudgmentRow

QuestionTurn = tuple[str, int]
"""A question's id and a turn of it, counted from 1."""


@dataclass(frozen=True)
class QuestionScores:
    """One model's scores on one benchmark by question and turn: the mean if a judgment was repeated."""

    model: str
    benchmark: str
    origin: str
    """The run, folder or file that the scores are from."""
    scores: Mapping[QuestionTurn, float]
    categories: Mapping[str, str] = field(default_factory=dict)
    judges: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TotalScore:
    """One model's score on one benchmark, of which only the standard error over `n` questions is known."""

    model: str
    benchmark: str
    origin: str
    score: float
    error: float
    n: int


KnownScores = QuestionScores | TotalScore


def mean_by_question(
    benchmark: str, origin: str, judged: Iterable[JudgmentRow], factor: float = 1.0
) -> list[QuestionScores]:
    """The scores of each model in some judgments, multiplied by `factor`: 100 turns shares of a win into per cent."""
    scores: dict[str, dict[QuestionTurn, list[float]]] = {}
    categories: dict[str, str] = {}
    judges: dict[str, set[str]] = {}
    for row in judged:
        categories[row.question] = row.category
        of_model = scores.setdefault(row.model, {})
        if row.score is not None:
            judges.setdefault(row.model, set()).add(row.judge)
            of_model.setdefault((row.question, row.turn), []).append(factor * row.score)
    return [
        QuestionScores(
            model=model,
            benchmark=benchmark,
            origin=origin,
            scores={turn: sum(values) / len(values) for turn, values in by_turn.items()},
            categories=categories,
            judges=frozenset(judges.get(model, ())),
        )
        for model, by_turn in scores.items()
    ]
