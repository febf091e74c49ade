"""The built-in strategies that pick the chosen and the rejected answer of a rated prompt."""

from collections.abc import Sequence
from itertools import combinations
from random import Random

from pydantic import Field

from zephyrctl.contracts import Answer, Answers, Binarizer, NoPair, Picked, PluginOptions

ALL_TIED = NoPair("all answers tied")
BEST_TIED = NoPair("tie for the best answer")


class RandomRejected(Binarizer):
    """The highest score against a random lower-scored answer, as in the paper (section 3)."""

    name = "random-rejected"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """One of the best answers, as the recipe settles ties, against any answer with a lower score."""
        highest = answers.highest()
        return _against(answers, rng, [answer for answer in answers.scored if answer.score < highest])


class HighestLowest(Binarizer):
    """The highest score against the lowest."""

    name = "highest-lowest"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """Ties for the lowest score are settled by the prompt's seed."""
        lowest, highest = min(answer.score for answer in answers.scored), answers.highest()
        return _against(answers, rng, [answer for answer in answers.scored if answer.score == lowest < highest])


class Notus(Binarizer):
    """The rule of Notus: the best mean of the aspects against a random other answer; no pair for a tie for the best."""

    name = "notus"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """A tie for the best gives no pair, whatever the recipe says about ties."""
        best, *others = answers.by_score()
        return BEST_TIED if best.score == others[0].score else Picked(best, rng.choice(others))


class Margin(Binarizer):
    """The highest score against a random answer that is at least a margin lower."""

    class Options(PluginOptions):
        """Options of `margin`."""

        at_least: float = Field(default=1.0, gt=0, description="least difference between the two scores")

    name = "margin"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """No pair if no answer is so much lower than the best."""
        margin, highest = self.options.at_least, answers.highest()
        lower = [answer for answer in answers.scored if points_apart(highest, answer.score) >= margin]
        return _against(answers, rng, lower) if lower else NoPair(f"no answer {margin:g} points below the best")


class AllPairs(Binarizer):
    """Every two answers whose scores differ: up to six pairs for four answers."""

    class Options(PluginOptions):
        """Options of `all-pairs`."""

        at_least: float = Field(default=0.0, ge=0, description="least difference between the two scores")

    name = "all-pairs"

    def pick(self, answers: Answers, rng: Random) -> Sequence[Picked] | NoPair:
        """The better of each two is chosen. Two answers with equal scores give no pair, whatever `ties` says."""
        pairs = [
            Picked(better, worse)
            for better, worse in combinations(answers.by_score(), 2)
            if better.score > worse.score and points_apart(better.score, worse.score) >= self.options.at_least
        ]
        if pairs or answers.highest() == answers.by_score()[-1].score:
            return pairs or ALL_TIED
        return NoPair(f"no two answers {self.options.at_least:g} points apart")


class ZephyrV1(Binarizer):
    """The rule of the published set with its defect: the rejected answer depends on its position, not on chance.

    The random generator was seeded again for each row. With four answers, position 0 was rejected, or position 2 if 0
    was chosen (measured on the published set). Equal scores and equal texts are paired, as they were. If the answer at
    that position is missing or has no score, the last of the others is rejected: what the original did is not known.
    """

    name = "zephyr-v1"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """The first of the best answers against the position that the defect picks."""
        chosen = answers.by_score()[0]
        others = [answer for answer in answers.scored if answer is not chosen]
        wanted = 2 if chosen.place == 0 else 0
        return Picked(chosen, next((answer for answer in others if answer.place == wanted), others[-1]))


def points_apart(better: float, worse: float) -> float:
    """The difference of two scores, rounded to 9 decimals: 4.1 and 3.1 are 1 apart."""
    return round(better - worse, 9)


def _against(answers: Answers, rng: Random, lower: Sequence[Answer]) -> Picked | NoPair:
    """The best answer against one of the lower ones."""
    if not lower:
        return ALL_TIED
    if not answers.best:
        return BEST_TIED
    return Picked(rng.choice(answers.best), rng.choice(lower))
