"""Two models on the same questions: how far apart they are, and whether chance explains it."""

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.question_scores import Marks, Place, Summary
from zephyrctl.evaluation.results import Difference
from zephyrctl.evaluation.statistics import paired, unpaired


class Comparison(BaseModel):
    """B against A: differences are B minus A, so that a worse B is below 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    a: str
    b: str
    score_a: float
    score_b: float
    difference: Difference
    categories: dict[str, Difference]
    shared: int = Field(description="questions that both answered and that were scored")
    only_a: int
    only_b: int
    tolerance: float
    is_worse: bool = Field(description="whether B is below A by more than the tolerance, beyond chance")
    remarks: list[str]


def compare_all(
    a: Sequence[Marks | Summary], b: Sequence[Marks | Summary], benchmark: str | None, tolerance: float
) -> list[Comparison]:
    """B against A on every benchmark that scored both, or on the one that is named. Raises ZephyrError without one."""
    known = {one.benchmark: one for one in a}
    pairs = [(known[one.benchmark], one) for one in b if one.benchmark in known]
    chosen = [pair for pair in pairs if benchmark in (None, pair[0].benchmark, pair[0].benchmark.partition(" ")[0])]
    if not chosen:
        told = " and ".join(f"{side[0].model} on {', '.join(one.benchmark for one in side)}" for side in (a, b))
        raise ZephyrError(
            f"there is nothing to compare: {told}", "score both on one benchmark, with the same questions"
        )
    return [_compare(one, other, tolerance) for one, other in chosen]


def _compare(a: Marks | Summary, b: Marks | Summary, tolerance: float) -> Comparison:
    if isinstance(a, Marks) and isinstance(b, Marks):
        return compare(a, b, tolerance)
    return compare_summaries(_summed(a), _summed(b), tolerance)


def compare_summaries(a: Summary, b: Summary, tolerance: float = 0.0) -> Comparison:
    """B against A where only scores and their standard errors are known: unpaired, so that less can be told apart."""
    difference = b.score - a.score
    low, high, p = unpaired(difference, math.hypot(a.error, b.error))
    found = Difference(mean=difference, low=low, high=high, n=min(a.n, b.n), p=p, needed=None)
    return Comparison(
        benchmark=a.benchmark,
        a=a.model,
        b=b.model,
        score_a=a.score,
        score_b=b.score,
        difference=rounded(found),
        categories={},
        shared=0,
        only_a=a.n,
        only_b=b.n,
        tolerance=tolerance,
        is_worse=high < -tolerance,
        remarks=["not paired: only the scores are known and not what was scored question by question"],
    )


def _summed(one: Marks | Summary) -> Summary:
    if isinstance(one, Summary):
        return one
    values = list(one.scores.values())
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return Summary(one.model, one.benchmark, one.origin, mean, math.sqrt(variance / len(values)), len(values))


def compare(a: Marks, b: Marks, tolerance: float = 0.0) -> Comparison:
    """B against A, paired by question and turn; turns of a question are drawn together.

    B counts as worse where the whole 95 % interval of its difference lies below minus the tolerance. Raises
    ZephyrError where the two share no question or come from different benchmarks.
    """
    if a.benchmark != b.benchmark:
        raise ZephyrError(
            f"{a.model} was scored on {a.benchmark} and {b.model} on {b.benchmark}", "compare scores of one benchmark"
        )
    shared = [place for place in a.scores if place in b.scores]
    if not shared:
        raise ZephyrError(f"{a.model} and {b.model} share no scored question", "score both on the same questions")
    name = f"{b.model}_minus_{a.model}"
    found = paired(list(clusters(a, b, shared).values()), name)
    return Comparison(
        benchmark=a.benchmark,
        a=a.model,
        b=b.model,
        score_a=_mean([a.scores[place] for place in shared]),
        score_b=_mean([b.scores[place] for place in shared]),
        difference=rounded(found),
        categories=_by_category(a, b, shared, name),
        shared=found.n,
        only_a=len(_questions(a) - _questions(b)),
        only_b=len(_questions(b) - _questions(a)),
        tolerance=tolerance,
        is_worse=found.high < -tolerance,
        remarks=_remarks(a, b),
    )


def clusters(a: Marks, b: Marks, shared: Sequence[Place]) -> Mapping[str, list[float]]:
    """B minus A by question, a value for each turn that both have."""
    found: dict[str, list[float]] = {}
    for place in shared:
        found.setdefault(place[0], []).append(b.scores[place] - a.scores[place])
    return found


def rounded(found: Difference) -> Difference:
    """The figures as they are kept: four decimals, six of the p value."""
    kept = {name: round(getattr(found, name), 4) for name in ("mean", "low", "high")}
    return found.model_copy(update={**kept, "p": round(found.p, 6)})


def differences(matches: Sequence[tuple[str, str]], marks: Mapping[str, Marks]) -> dict[str, Difference]:
    """The paired differences of these models as `B_minus_A`, for those that have scores."""
    found = {}
    for name, other in matches:
        if name in marks and other in marks and set(marks[name].scores) & set(marks[other].scores):
            compared = compare(marks[other], marks[name])
            found[f"{name}_minus_{other}"] = compared.difference
    return found


def _by_category(a: Marks, b: Marks, shared: Sequence[Place], name: str) -> dict[str, Difference]:
    by_category: dict[str, dict[str, list[float]]] = {}
    for question, values in clusters(a, b, shared).items():
        category = a.categories.get(question) or b.categories.get(question) or ""
        if category:
            by_category.setdefault(category, {})[question] = values
    return {
        category: rounded(paired(list(found.values()), f"{name} {category}")) for category, found in by_category.items()
    }


def _remarks(a: Marks, b: Marks) -> list[str]:
    if a.judges and b.judges and a.judges != b.judges:
        said = (f"{one.model} by {', '.join(sorted(one.judges))}" for one in (a, b))
        return [f"different judges: {' and '.join(said)}"]
    return []


def _questions(marks: Marks) -> set[str]:
    return {question for question, _ in marks.scores}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
