"""The built-in binarization strategies: which answer of a rated prompt is chosen, and which rejected."""

from collections.abc import Callable
from random import Random

from zephyrctl.contracts import Binarizer, NoPair, pair
from zephyrctl.records import Completion, PreferencePair, RatedPrompt

Scored = list[tuple[float, Completion]]


class RandomRejected(Binarizer):
    """The highest mean rating against a random lower-scored answer, as in the paper (section 3)."""

    name = "random-rejected"

    def pick(self, rated: RatedPrompt, rng: Random) -> PreferencePair | NoPair:
        """Ties for the best are settled by the prompt's own seed."""
        return _pick(rated, rng, lambda score, best, worst: score < best)


class HighestLowest(Binarizer):
    """The highest mean rating against the lowest."""

    name = "highest-lowest"

    def pick(self, rated: RatedPrompt, rng: Random) -> PreferencePair | NoPair:
        """Ties at either end are settled by the prompt's own seed."""
        return _pick(rated, rng, lambda score, best, worst: score == worst < best)


class Notus(Binarizer):
    """As Notus: the best mean of the aspects against a random other; a tie for the best is dropped."""

    name = "notus"

    def pick(self, rated: RatedPrompt, rng: Random) -> PreferencePair | NoPair:
        """A tie for the best is no preference here."""
        scored = by_score(rated)
        if len(scored) < 2:
            return NoPair("fewer than two rated answers")
        if scored[0][0] == scored[1][0]:
            return NoPair("tie for the best answer")
        return pair(rated, scored[0][1], rng.choice([completion for _, completion in scored[1:]]))


def _pick(
    rated: RatedPrompt, rng: Random, may_be_rejected: Callable[[float, float, float], bool]
) -> PreferencePair | NoPair:
    """One of the best answers against one that `may_be_rejected`, given its score, the best and the worst."""
    scored = by_score(rated)
    if len(scored) < 2:
        return NoPair("fewer than two rated answers")
    best, worst = scored[0][0], scored[-1][0]
    highest = [completion for score, completion in scored if score == best]
    lower = [completion for score, completion in scored if may_be_rejected(score, best, worst)]
    return pair(rated, rng.choice(highest), rng.choice(lower)) if lower else NoPair("all answers tied")


def by_score(rated: RatedPrompt) -> Scored:
    """The answers that have a rating, best first."""
    scored = [
        (score, completion) for completion in rated.completions if (score := completion.mean_rating()) is not None
    ]
    return sorted(scored, key=lambda entry: -entry[0])
