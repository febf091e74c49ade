"""The binarizer `ultrainteract`: every two answers that are a margin apart, the widest pairs of a prompt first."""

from collections.abc import Sequence
from itertools import combinations
from random import Random

from pydantic import Field

from zephyrctl.builtin.binarizers import points_apart
from zephyrctl.contracts import Answers, Binarizer, NoPair, Picked, PluginOptions
from zephyrctl.hooks import hookimpl

zephyrctl_contract = "1"


class UltraInteract(Binarizer):
    """All pairs that are a margin apart, at most so many a prompt, the widest first, as UltraInteract's trees give."""

    class Options(PluginOptions):
        """Options of `ultrainteract`."""

        at_least: float = Field(default=1.0, gt=0, description="points between the two scores, at least")
        at_most: int = Field(default=6, ge=1, description="pairs of one prompt, at most")

    name = "ultrainteract"

    def pick(self, answers: Answers, rng: Random) -> Sequence[Picked] | NoPair:
        """Whatever `ties` says: two answers of one score make no pair. Pairs of one margin are drawn by the seed."""
        pairs = [
            Picked(better, worse)
            for better, worse in combinations(answers.by_score(), 2)
            if points_apart(better.score, worse.score) >= self.options.at_least
        ]
        rng.shuffle(pairs)
        pairs.sort(key=lambda pair: -points_apart(pair.chosen.score, pair.rejected.score))
        return pairs[: self.options.at_most] or NoPair(f"no two answers {self.options.at_least:g} points apart")


@hookimpl
def zephyrctl_binarizers() -> list[type[Binarizer]]:
    """`ultrainteract`."""
    return [UltraInteract]
