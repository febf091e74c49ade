"""The preference loss `simpo`: mean log-probabilities per token, a target margin, and no reference."""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from zephyrctl.contracts import PluginOptions
from zephyrctl.hooks import hookimpl
from zephyrctl.training.losses import ExpectedInitialLoss, LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

if TYPE_CHECKING:
    from torch import Tensor

zephyrctl_contract = "1"


class SimPO(PreferenceLoss):
    """SimPO (arXiv 2405.14734): the chosen answer's mean log-probability must exceed the rejected one's by a margin."""

    class Options(PluginOptions):
        """Options of `simpo`."""

        gamma: float = Field(default=1.0, ge=0, description="target margin, in units of the reward")

    name = "simpo"
    title = "SimPO"
    needs_reference = False
    is_length_normalised = True

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log sigmoid(margin - gamma) of each pair, equation 6 of the paper."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = self.rewards(pairs, settings)
        return -logsigmoid(chosen - rejected - self.options.gamma)

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """The mean of the same formula over the start's own log-probabilities, pair by pair.

        Its slope over an answer's summed log-probability is at most beta, for an answer of one token: twice that of
        'sigmoid' at its start.
        """
        if start is None:
            raise ValueError("the first loss of 'simpo' depends on the log-probabilities of the start")
        sides = zip(start.chosen, start.chosen_lengths, start.rejected, start.rejected_lengths, strict=True)
        excesses = [
            settings.beta * (c / c_tokens - r / r_tokens) - self.options.gamma for c, c_tokens, r, r_tokens in sides
        ]
        return ExpectedInitialLoss(math.fsum(map(_softplus_of_negative, excesses)) / len(excesses), steepness=2)


def _softplus_of_negative(value: float) -> float:
    """log(1 + exp(-value)), without overflow."""
    return max(0.0, -value) + math.log1p(math.exp(-abs(value)))


@hookimpl
def zephyrctl_losses() -> list[type[PreferenceLoss]]:
    """`simpo`."""
    return [SimPO]
