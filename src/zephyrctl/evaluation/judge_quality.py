"""How far a judge can be trusted: with itself, with the order of answers, with their length, and with other judges."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from zephyrctl.evaluation.judged_rows import Answered, Judged
from zephyrctl.evaluation.statistics import rank_correlation

CLOSE = 1.0
"""Ratings no further apart than this agree closely."""

Key = tuple[str, str, int]


def measure(judged: Sequence[Judged], answers: Iterable[Answered]) -> dict[str, Any]:
    """What can be said of a judge by its own judgments; a part that cannot be known is left out.

    `repeats`: agreement of repeated judgments of one answer; `position`: how often both orders of a pair agree;
    `length`: how often the longer of two answers is preferred, or how ratings go with length.
    """
    lengths = {(row.model, row.question, row.turn): len(row.answer) for row in answers}
    found = {
        "repeats": repeats(judged),
        "position": position(judged),
        "length": length_preference(judged, lengths),
    }
    return {name: value for name, value in found.items() if value}


def repeats(judged: Iterable[Judged]) -> dict[str, Any] | None:
    """Over all pairs of repeated ratings of one answer: how many are equal, and how far apart they are on average."""
    by_answer: dict[tuple[Any, ...], list[float]] = {}
    for row in judged:
        if row.score is not None:
            key = row.model, row.opponent, row.question, row.turn, row.judge, row.is_swapped
            by_answer.setdefault(key, []).append(row.score)
    gaps = [abs(one - other) for scores in by_answer.values() for one, other in combinations(scores, 2)]
    if not gaps:
        return None
    repeated = [scores for scores in by_answer.values() if len(scores) > 1]
    return {
        "answers": len(repeated),
        "all_equal": round(sum(len(set(scores)) == 1 for scores in repeated) / len(repeated), 4),
        "equal": round(sum(gap == 0 for gap in gaps) / len(gaps), 4),
        "mean_gap": round(sum(gaps) / len(gaps), 4),
    }


def position(judged: Iterable[Judged]) -> dict[str, Any] | None:
    """Of pairs that were judged in both orders: how often the verdict is the same, and whom the others prefer."""
    orders: dict[tuple[Any, ...], dict[bool, float]] = {}
    for row in judged:
        if row.opponent and row.score is not None:
            key = row.model, row.opponent, row.question, row.turn, row.sample, row.judge
            orders.setdefault(key, {})[row.is_swapped] = row.score
    both = [seen for seen in orders.values() if len(seen) == 2]
    if not both:
        return None
    changed = [seen for seen in both if seen[False] != seen[True]]
    return {
        "pairs": len(both),
        "consistent": round(1 - len(changed) / len(both), 4),
        "prefers_first": round(sum(seen[False] > seen[True] for seen in changed) / len(both), 4),
        "prefers_second": round(sum(seen[False] < seen[True] for seen in changed) / len(both), 4),
    }


def length_preference(judged: Sequence[Judged], lengths: Mapping[Key, int]) -> dict[str, Any] | None:
    """Beside another answer: how often the longer one wins. Alone: the rank correlation of rating and length."""
    wins = [
        (row.score, lengths[mine] - lengths[theirs])
        for row in judged
        if row.opponent and row.score not in (None, 0.5)
        if (mine := (row.model, row.question, row.turn)) in lengths
        and (theirs := (row.opponent, row.question, row.turn)) in lengths
        and lengths[mine] != lengths[theirs]
    ]
    if wins:
        longer = sum((score == 1.0) == (gap > 0) for score, gap in wins)
        return {"pairs": len(wins), "longer_wins": round(longer / len(wins), 4)}
    rated = [
        (row.score, float(lengths[key]))
        for row in judged
        if not row.opponent and row.score is not None and (key := (row.model, row.question, row.turn)) in lengths
    ]
    correlation = rank_correlation(rated)
    return None if correlation is None else {"answers": len(rated), "rank_correlation": round(correlation, 4)}


def against(judged: Iterable[Judged], others: Iterable[Judged]) -> dict[str, Any]:
    """Agreement with other judgments of the same answers, by people or another judge.

    Ratings: share that is equal, share within 1, mean difference, rank correlation. Pairs: share of equal verdicts,
    and without ties.
    """
    return _against_ratings(judged, others) | _against_pairs(judged, others)


def _against_ratings(judged: Iterable[Judged], others: Iterable[Judged]) -> dict[str, Any]:
    mine, theirs = _ratings(judged), _ratings(others)
    shared = [(mine[key], theirs[key]) for key in mine if key in theirs]
    if not shared:
        return {}
    correlation = rank_correlation(shared)
    return {
        "answers": len(shared),
        "equal": round(sum(one == other for one, other in shared) / len(shared), 4),
        "within_1": round(sum(abs(one - other) <= CLOSE for one, other in shared) / len(shared), 4),
        "mean_difference": round(sum(one - other for one, other in shared) / len(shared), 4),
        "rank_correlation": None if correlation is None else round(correlation, 4),
    }


def _against_pairs(judged: Iterable[Judged], others: Iterable[Judged]) -> dict[str, Any]:
    mine, theirs = _verdicts(judged), _verdicts(others)
    shared = [(one, other) for key in mine if key in theirs for one in mine[key] for other in theirs[key]]
    if not shared:
        return {}
    decided = [(one, other) for one, other in shared if 0.5 not in (one, other)]
    return {
        "verdicts": len(shared),
        "verdicts_equal": round(sum(one == other for one, other in shared) / len(shared), 4),
        "without_ties": len(decided),
        "without_ties_equal": round(sum(one == other for one, other in decided) / len(decided), 4) if decided else None,
    }


def _ratings(judged: Iterable[Judged]) -> dict[Key, float]:
    """The mean rating of each answer."""
    found: dict[Key, list[float]] = {}
    for row in judged:
        if row.score is not None and not row.opponent:
            found.setdefault((row.model, row.question, row.turn), []).append(row.score)
    return {key: sum(scores) / len(scores) for key, scores in found.items()}


def _verdicts(judged: Iterable[Judged]) -> dict[tuple[str, str, str, int], list[float]]:
    """Who won, seen from the model whose name comes first; orders that disagree are a tie."""
    orders: dict[tuple[str, str, str, int, str, int], list[float]] = {}
    for row in judged:
        if row.score is None or not row.opponent:
            continue
        first, second = sorted((row.model, row.opponent))
        score = row.score if row.model == first else 1.0 - row.score
        orders.setdefault((first, second, row.question, row.turn, row.judge, row.sample), []).append(score)
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for (first, second, question, turn, _, _), scores in orders.items():
        verdict = scores[0] if len(set(scores)) == 1 else 0.5
        found.setdefault((first, second, question, turn), []).append(verdict)
    return found
