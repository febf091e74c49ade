"""The binarizer `length-matched`: the best answer against the worse one nearest to it in length."""

from random import Random

from pydantic import Field

from zephyrctl.contracts import Answers, Binarizer, NoPair, Picked, PluginOptions
from zephyrctl.hooks import hookimpl

zephyrctl_contract = "1"


class LengthMatched(Binarizer):
    """The best-rated answer against the lower-rated one nearest in length, so that DPO cannot learn length instead."""

    class Options(PluginOptions):
        """Options of `length-matched`."""

        at_most: float = Field(default=1.5, ge=1, description="how many times as long one answer may be as the other")

    name = "length-matched"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """Ties are settled as the recipe says, and by the prompt's own seed."""
        lower = [answer for answer in answers.scored if answer.score < answers.highest()]
        if not lower:
            return NoPair("no answer rated lower than the best")
        if not answers.best:
            return NoPair("tie for the best answer")
        chosen = rng.choice(answers.best)
        ratios = [times_as_long(chosen.completion.text, answer.completion.text) for answer in lower]
        if min(ratios) > self.options.at_most:
            return NoPair("no lower-rated answer of similar length")
        nearest = [answer for answer, ratio in zip(lower, ratios, strict=True) if ratio == min(ratios)]
        return Picked(chosen, rng.choice(nearest))


def times_as_long(one: str, other: str) -> float:
    """How many times as long the longer of two texts is, in characters; an empty one counts as one character."""
    short, long = sorted((max(1, len(one)), max(1, len(other))))
    return long / short


@hookimpl
def zephyrctl_binarizers() -> list[type[Binarizer]]:
    """`length-matched`."""
    return [LengthMatched]
