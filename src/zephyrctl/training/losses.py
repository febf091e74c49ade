"""What a preference loss promises: its formula, its value at the start, and how rewards are measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zephyrctl.contracts import PluginOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LossSettings:
    """The settings of `dpo` that every loss may use; settings of one loss only are its options."""

    beta: float
    """Strength of the preference: how steeply the loss falls with the margin."""
    label_smoothing: float = 0.0
    """Share of the pairs that may be labelled the wrong way round."""


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities of the answers of B pairs, each summed over the tokens of its answer. All tensors are [B]."""

    chosen: "Tensor"
    """The policy's log-probability of each chosen answer; the gradient flows through it."""
    rejected: "Tensor"
    """The same of each rejected answer."""
    chosen_lengths: "Tensor"
    """Tokens of each chosen answer."""
    rejected_lengths: "Tensor"
    """Tokens of each rejected answer."""
    reference_chosen: "Tensor | None" = None
    """The reference's log-probability of each chosen answer, without a gradient; None if there is no reference."""
    reference_rejected: "Tensor | None" = None
    """The same of each rejected answer."""

    def log_ratios(self) -> "tuple[Tensor, Tensor]":
        """Policy minus reference, for the chosen and the rejected answers. Raises ValueError without a reference."""
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError("a loss that uses the reference must say `needs_reference = True`")
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    def per_token(self) -> "tuple[Tensor, Tensor]":
        """The policy's mean log-probability of a token, for the chosen and the rejected answers."""
        return self.chosen / self.chosen_lengths.clamp(min=1), self.rejected / self.rejected_lengths.clamp(min=1)


@dataclass(frozen=True)
class StartLogProbs:
    """The same pairs under the model that training starts from, as plain numbers from a forward pass of its own.

    The pass pads its rows and shares no prompts, whichever engine trains: what is computed from it is independent of
    the training's own forward pass and of the loss's tensor code.
    """

    chosen: Sequence[float]
    rejected: Sequence[float]
    chosen_lengths: Sequence[int]
    rejected_lengths: Sequence[int]


class ExpectedInitialLoss(NamedTuple):
    """What the mean loss of a micro-batch must be before the first optimizer step."""

    loss: float
    steepness: float = 1
    """The slope of the loss there, over one answer's summed log-probability, divided by that of 'sigmoid', beta / 2.

    The tolerance of the check grows with it, as an error in a log-probability does; it may be rounded up.
    """


class PreferenceLoss(ABC):
    """A loss over preference pairs. `dpo.loss` names it, and `dpo.loss_options` holds its options."""

    name: ClassVar[str]
    """By which a recipe chooses it."""
    title: ClassVar[str]
    """What people call it, in plans and errors."""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    needs_reference: ClassVar[bool] = True
    """False if the formula has no reference: then none is computed, and no memory or time is planned for one."""
    is_length_normalised: ClassVar[bool] = False
    """True if rewards, margins and accuracies are measured on mean log-probabilities of a token instead of sums."""
    mixes_pairs: ClassVar[bool] = False
    """True if a pair's loss depends on the other pairs of its micro-batch, so that pairs must not be regrouped."""
    is_logistic: ClassVar[bool] = False
    """True if the loss of a pair is -log(sigmoid(margin)): then diagnostics can say how hard pairs still pull."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, settings: LossSettings) -> None:  # noqa: B027
        """Raise ZephyrError if the loss cannot be computed with these settings; called before anything starts."""

    @abstractmethod
    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """The loss of each pair, [B]; training minimises its mean over the pairs of a micro-batch."""

    @abstractmethod
    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """What the mean loss must be while the policy is still the model that training starts from.

        With a reference, policy and reference are the same model there, every log-ratio is 0, the value follows from
        the settings alone, and `start` is None. Without a reference the value depends on the pairs: compute it from
        `start` in plain Python, not with `loss`. A run stops if its first loss is another one.
        """

    def rewards(self, pairs: PairLogProbs, settings: LossSettings) -> "tuple[Tensor, Tensor]":
        """The implied reward of each chosen and each rejected answer, both [B]. Their difference is the margin.

        With a reference it is beta times the log-ratio of policy and reference (equation 4 of the DPO paper, arXiv
        2305.18290, without its constant), and without one beta times the policy's log-probability.
        """
        if self.needs_reference:
            chosen, rejected = pairs.log_ratios()
        else:
            chosen, rejected = pairs.chosen, pairs.rejected
        if self.is_length_normalised:
            chosen = chosen / pairs.chosen_lengths.clamp(min=1)
            rejected = rejected / pairs.rejected_lengths.clamp(min=1)
        return settings.beta * chosen, settings.beta * rejected
