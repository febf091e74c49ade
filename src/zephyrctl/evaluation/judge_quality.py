"""Measure how reliable a judge is: repeated judgments, order and length of answers, agreement with other judges."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.results import (
    JudgeAgreement,
    JudgeQuality,
    LengthPreference,
    PositionBias,
    RepeatAgreement,
    ResultPart,
)
from zephyrctl.evaluation.statistics import rank_correlation

CLOSE = 1.0
"""Ratings no further apart than this agree closely."""

Key = tuple[str, str, int]


def measure(
    judged: Sequence[JudgmentRow], answers: Iterable[AnswerRow], others: Iterable[JudgmentRow] | None = None
) -> JudgeQuality:
    """How reliable a judge is by its own judgments, and by those of `others` if some are given.

    A part that cannot be measured is not set.
    """
    lengths = {(row.model, row.question, row.turn): len(row.answer) for row in answers}
    parts: dict[str, ResultPart | None] = {
        "repeats": repeats(judged),
        "position": position(judged),
        "length": length_preference(judged, lengths),
        "against": None if others is None else against(judged, others),
    }
    return JudgeQuality.model_validate({name: part for name, part in parts.items() if part is not None})


def repeats(judged: Iterable[JudgmentRow]) -> RepeatAgreement | None:
    """Over all pairs of repeated ratings of one answer: how many are equal, and how far apart they are on average."""
    by_answer: dict[tuple[str, str, str, int, str, bool], list[float]] = {}
    for row in judged:
        if row.score is not None:
            key = row.model, row.opponent, row.question, row.turn, row.judge, row.is_swapped
            by_answer.setdefault(key, []).append(row.score)
    gaps = [abs(first - second) for scores in by_answer.values() for first, second in combinations(scores, 2)]
    if not gaps:
        return None
    repeated = [scores for scores in by_answer.values() if len(scores) > 1]
    return RepeatAgreement(
        answers=len(repeated),
        all_equal=round(sum(len(set(scores)) == 1 for scores in repeated) / len(repeated), 4),
        equal=round(sum(gap == 0 for gap in gaps) / len(gaps), 4),
        mean_gap=round(sum(gaps) / len(gaps), 4),
    )


def position(judged: Iterable[JudgmentRow]) -> PositionBias | None:
    """Of pairs judged in both orders: how often the verdict is the same, and which position the others prefer."""
    orders: dict[tuple[str, str, str, int, int, str], dict[bool, float]] = {}
    for row in judged:
        if row.opponent and row.score is not None:
            key = row.model, row.opponent, row.question, row.turn, row.sample, row.judge
            orders.setdefault(key, {})[row.is_swapped] = row.score
    both = [scores for scores in orders.values() if len(scores) == 2]
    if not both:
        return None
    changed = [scores for scores in both if scores[False] != scores[True]]
    return PositionBias(
        pairs=len(both),
        consistent=round(1 - len(changed) / len(both), 4),
        prefers_first=round(sum(scores[False] > scores[True] for scores in changed) / len(both), 4),
        prefers_second=round(sum(scores[False] < scores[True] for scores in changed) / len(both), 4),
    )


def length_preference(judged: Sequence[JudgmentRow], lengths: Mapping[Key, int]) -> LengthPreference | None:
    """Of comparisons: how often the longer answer wins. Of ratings: their rank correlation with length."""
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
        return LengthPreference(pairs=len(wins), longer_wins=round(longer / len(wins), 4))
    rated = [
        (row.score, float(lengths[key]))
        for row in judged
        if not row.opponent and row.score is not None and (key := (row.model, row.question, row.turn)) in lengths
    ]
    correlation = rank_correlation(rated)
    if correlation is None:
        return None
    return LengthPreference(answers=len(rated), rank_correlation=round(correlation, 4))


def against(judged: Iterable[JudgmentRow], others: Iterable[JudgmentRow]) -> JudgeAgreement:
    """Agreement with other judgments of the same answers, by people or another judge.

    Ratings: share that is equal, share within 1, mean difference, rank correlation. Pairs: share of equal verdicts,
    and without ties. What the two do not share is not set.
    """
    judged, others = list(judged), list(others)
    return JudgeAgreement.model_validate(_against_ratings(judged, others) | _against_pairs(judged, others))


def _against_ratings(judged: Iterable[JudgmentRow], others: Iterable[JudgmentRow]) -> dict[str, float | None]:
    mine, theirs = _ratings(judged), _ratings(others)
    shared = [(mine[key], theirs[key]) for key in mine if key in theirs]
    if not shared:
        return {}
    correlation = rank_correlation(shared)
    return {
        "answers": len(shared),
        "equal": round(sum(rating == other for rating, other in shared) / len(shared), 4),
        "within_1": round(sum(abs(rating - other) <= CLOSE for rating, other in shared) / len(shared), 4),
        "mean_difference": round(sum(rating - other for rating, other in shared) / len(shared), 4),
        "rank_correlation": None if correlation is None else round(correlation, 4),
    }


def _against_pairs(judged: Iterable[JudgmentRow], others: Iterable[JudgmentRow]) -> dict[str, float | None]:
    mine, theirs = _verdicts(judged), _verdicts(others)
    shared = [(verdict, other) for key in mine if key in theirs for verdict in mine[key] for other in theirs[key]]
    if not shared:
        return {}
    decided = [verdict == other for verdict, other in shared if 0.5 not in (verdict, other)]
    return {
        "verdicts": len(shared),
        "verdicts_equal": round(sum(verdict == other for verdict, other in shared) / len(shared), 4),
        "without_ties": len(decided),
        "without_ties_equal": round(sum(decided) / len(decided), 4) if decided else None,
    }


def _ratings(judged: Iterable[JudgmentRow]) -> dict[Key, float]:
    """The mean rating of each answer."""
    found: dict[Key, list[float]] = {}
    for row in judged:
        if row.score is not None and not row.opponent:
            found.setdefault((row.model, row.question, row.turn), []).append(row.score)
    return {key: sum(scores) / len(scores) for key, scores in found.items()}


def _verdicts(judged: Iterable[JudgmentRow]) -> dict[tuple[str, str, str, int], list[float]]:
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
