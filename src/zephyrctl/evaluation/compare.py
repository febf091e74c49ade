"""Compare two models on the same questions: how far apart they are, and whether chance explains it."""

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.question_scores import KnownScores, QuestionScores, QuestionTurn, TotalScore
from zephyrctl.evaluation.results import MINUS, Difference
from zephyrctl.evaluation.statistics import paired, unpaired


class Comparison(BaseModel):
    """B compared with A. Differences are B minus A, so a worse B is below 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    a: str
    b: str
    score_a: float
    score_b: float
    difference: Difference
    categories: dict[str, Difference]
    shared: int = Field(description="questions that have a score for both")
    only_a: int
    only_b: int
    tolerance: float
    is_worse: bool = Field(description="whether B is below A by more than the tolerance, beyond chance")
    remarks: list[str]


def compare_all(
    a: Sequence[KnownScores], b: Sequence[KnownScores], benchmark: str | None, tolerance: float
) -> list[Comparison]:
    """B compared with A on each benchmark that scored both, or on the one that is named.

    Raises ZephyrError if there is none.
    """
    by_benchmark = {scores.benchmark: scores for scores in a}
    pairs = [(by_benchmark[scores.benchmark], scores) for scores in b if scores.benchmark in by_benchmark]
    chosen = [pair for pair in pairs if benchmark in (None, pair[0].benchmark, pair[0].benchmark.partition(" ")[0])]
    if not chosen:
        sides = (f"{side[0].model} on {', '.join(scores.benchmark for scores in side)}" for side in (a, b))
        raise ZephyrError(
            f"there is nothing to compare: {' and '.join(sides)}",
            "score both on one benchmark, with the same questions",
        )
    return [_compare(*pair, tolerance) for pair in chosen]


def _compare(a: KnownScores, b: KnownScores, tolerance: float) -> Comparison:
    if isinstance(a, QuestionScores) and isinstance(b, QuestionScores):
        return compare(a, b, tolerance)
    return compare_summaries(_total(a), _total(b), tolerance)


def compare_summaries(a: TotalScore, b: TotalScore, tolerance: float = 0.0) -> Comparison:
    """B compared with A if only scores and standard errors are known: unpaired, so only larger differences show."""
    difference = b.score - a.score
    low, high, p = unpaired(difference, math.hypot(a.error, b.error))
    unpaired_difference = Difference(mean=difference, low=low, high=high, n=min(a.n, b.n), p=p, needed=None)
    return Comparison(
        benchmark=a.benchmark,
        a=a.model,
        b=b.model,
        score_a=a.score,
        score_b=b.score,
        difference=rounded(unpaired_difference),
        categories={},
        shared=0,
        only_a=a.n,
        only_b=b.n,
        tolerance=tolerance,
        is_worse=high < -tolerance,
        remarks=["not paired: only the totals are known, and no scores of single questions"],
    )


def _total(scores: KnownScores) -> TotalScore:
    """The mean over questions and turns, with the standard error of a mean: std (ddof 1) / sqrt(n)."""
    if isinstance(scores, TotalScore):
        return scores
    values = list(scores.scores.values())
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    error = math.sqrt(variance / len(values))
    return TotalScore(scores.model, scores.benchmark, scores.origin, mean, error, len(values))


def compare(a: QuestionScores, b: QuestionScores, tolerance: float = 0.0) -> Comparison:
    """B compared with A, paired by question and turn; the turns of a question are resampled together.

    B counts as worse if the whole 95 % interval of its difference is below minus the tolerance. Raises ZephyrError if
    the two share no question or come from different benchmarks.
    """
    if a.benchmark != b.benchmark:
        raise ZephyrError(
            f"{a.model} was scored on {a.benchmark} and {b.model} on {b.benchmark}", "compare scores of one benchmark"
        )
    shared = [turn for turn in a.scores if turn in b.scores]
    if not shared:
        raise ZephyrError(f"{a.model} and {b.model} share no scored question", "score both on the same questions")
    name = f"{b.model}{MINUS}{a.model}"
    difference = paired(list(clusters(a, b, shared).values()), name)
    return Comparison(
        benchmark=a.benchmark,
        a=a.model,
        b=b.model,
        score_a=_mean([a.scores[turn] for turn in shared]),
        score_b=_mean([b.scores[turn] for turn in shared]),
        difference=rounded(difference),
        categories=_by_category(a, b, shared, name),
        shared=difference.n,
        only_a=len(_questions(a) - _questions(b)),
        only_b=len(_questions(b) - _questions(a)),
        tolerance=tolerance,
        is_worse=difference.high < -tolerance,
        remarks=_remarks(a, b),
    )


def clusters(a: QuestionScores, b: QuestionScores, shared: Sequence[QuestionTurn]) -> Mapping[str, list[float]]:
    """B minus A by question, with a value for each turn that both have."""
    differences: dict[str, list[float]] = {}
    for question, turn in shared:
        differences.setdefault(question, []).append(b.scores[question, turn] - a.scores[question, turn])
    return differences


def rounded(difference: Difference) -> Difference:
    """The values as they are stored: four decimals, and six of the p value."""
    kept = {name: round(getattr(difference, name), 4) for name in ("mean", "low", "high")}
    return difference.model_copy(update={**kept, "p": round(difference.p, 6)})


def differences(matches: Sequence[tuple[str, str]], by_model: Mapping[str, QuestionScores]) -> dict[str, Difference]:
    """The paired differences of these models as `B_minus_A`, for those that share a scored question."""
    compared = {}
    for name, other in matches:
        if name in by_model and other in by_model and set(by_model[name].scores) & set(by_model[other].scores):
            compared[f"{name}{MINUS}{other}"] = compare(by_model[other], by_model[name]).difference
    return compared


def _by_category(
    a: QuestionScores, b: QuestionScores, shared: Sequence[QuestionTurn], name: str
) -> dict[str, Difference]:
    by_category: dict[str, dict[str, list[float]]] = {}
    for question, values in clusters(a, b, shared).items():
        category = a.categories.get(question) or b.categories.get(question) or ""
        if category:
            by_category.setdefault(category, {})[question] = values
    return {
        category: rounded(paired(list(by_question.values()), f"{name} {category}"))
        for category, by_question in by_category.items()
    }


def _remarks(a: QuestionScores, b: QuestionScores) -> list[str]:
    if a.judges and b.judges and a.judges != b.judges:
        sides = (f"{scores.model} by {', '.join(sorted(scores.judges))}" for scores in (a, b))
        return [f"different judges: {' and '.join(sides)}"]
    return []


def _questions(scores: QuestionScores) -> set[str]:
    return {question for question, _ in scores.scores}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
