"""An example plugin of zephyrctl: the teacher `echo`, the binarizer `brevity` and the base `smollm2-135m`."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from zephyrctl.contracts import (
    GREEDY,
    Answers,
    Binarizer,
    ModelBase,
    NoPair,
    Picked,
    PluginOptions,
    Reply,
    Sampling,
    Sizes,
    Teacher,
)
from zephyrctl.hooks import hookimpl
from zephyrctl.records import Message

zephyrctl_contract = "1"


class Echo(Teacher):
    """Says what the user said: a floor that every real teacher must beat, and a stand-in while a recipe is written."""

    class Options(PluginOptions):
        """Options of `echo`."""

        opening: str = Field(default="", description="words before the echo")

    name = "echo"
    is_rule_based = True

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """The last turn again."""
        return Reply(f"{self.options.opening}{messages[-1].content}", model=self.name)


class Brevity(Binarizer):
    """The best-rated answer against a lower-rated one that is longer, so that DPO learns to be brief."""

    class Options(PluginOptions):
        """Options of `brevity`."""

        at_least: float = Field(default=1.2, gt=1, description="how many times as long the rejected answer is")

    name = "brevity"

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """Ties are settled as the recipe says, and by the prompt's own seed."""
        lower = [answer for answer in answers.scored if answer.score < answers.highest()]
        if not lower:
            return NoPair("no answer rated lower than the best")
        if not answers.best:
            return NoPair("tie for the best answer")
        chosen = rng.choice(answers.best)
        length = self.options.at_least * len(chosen.completion.text)
        longer = [answer for answer in lower if len(answer.completion.text) >= length]
        return Picked(chosen, rng.choice(longer)) if longer else NoPair("no lower-rated answer is longer")


class SmolLM2(ModelBase):
    """SmolLM2-135M: a small base for a laptop with a GPU."""

    name = "smollm2-135m"

    def location(self) -> str:
        """The Hub id."""
        return "HuggingFaceTB/SmolLM2-135M"

    def sizes(self) -> Sizes:
        """As published; the embeddings are tied."""
        return Sizes(
            parameters=134_515_008, width=576, layers=30, feed_forward=1536, key_value_width=192, vocabulary=49152
        )

    @property
    def license(self) -> str:
        """Apache-2.0."""
        return "apache-2.0"


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`echo`."""
    return [Echo]


@hookimpl
def zephyrctl_binarizers() -> list[type[Binarizer]]:
    """`brevity`."""
    return [Brevity]


@hookimpl
def zephyrctl_model_bases() -> list[type[ModelBase]]:
    """`smollm2-135m`."""
    return [SmolLM2]
