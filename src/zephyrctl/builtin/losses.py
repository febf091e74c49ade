"""The preference losses that TRL's DPOTrainer knows, under its names; formulas and papers as TRL 1.16 gives them."""

import math
from typing import TYPE_CHECKING, ClassVar

from zephyrctl.errors import ZephyrError
from zephyrctl.training.losses import ExpectedInitialLoss, LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

if TYPE_CHECKING:
    from torch import Tensor

LN_2 = math.log(2)


def _log_sigmoid(values: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def _margin(pairs: PairLogProbs) -> "Tensor":
    """The log-ratio of the chosen answer minus that of the rejected one, [B]."""
    chosen, rejected = pairs.log_ratios()
    return chosen - rejected


def _margin_per_token(pairs: PairLogProbs) -> "Tensor":
    """The same, each log-ratio divided by the tokens of its answer, [B]."""
    chosen, rejected = pairs.log_ratios()
    return chosen / pairs.chosen_lengths.clamp(min=1) - rejected / pairs.rejected_lengths.clamp(min=1)


class Sigmoid(PreferenceLoss):
    """DPO as the Zephyr paper trains it: -log sigmoid of the reward margin (arXiv 2305.18290, equation 7)."""

    name = "sigmoid"
    title = "DPO"
    is_logistic = True

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log sigmoid(beta * margin)."""
        return -_log_sigmoid(settings.beta * _margin(pairs))

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """-log sigmoid(0) = ln 2."""
        return ExpectedInitialLoss(LN_2)


class SigmoidNorm(PreferenceLoss):
    """DPO on log-ratios per token, so that long answers weigh no more than short ones."""

    name = "sigmoid_norm"
    title = "length-normalised DPO"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log sigmoid(beta * margin per token)."""
        return -_log_sigmoid(settings.beta * _margin_per_token(pairs))

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """-log sigmoid(0) = ln 2."""
        return ExpectedInitialLoss(LN_2)


class Hinge(PreferenceLoss):
    """A hinge on the reward margin, which must reach 1 (SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657)."""

    name = "hinge"
    title = "hinge (SLiC)"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """max(0, 1 - beta * margin)."""
        return (1 - settings.beta * _margin(pairs)).relu()

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """1 - 0, with a slope of beta where 'sigmoid' has beta / 2."""
        return ExpectedInitialLoss(1, 2)


class Ipo(PreferenceLoss):
    """A squared distance of the margin per token from 1 / (2 beta) (IPO, arXiv 2310.12036, equation 17)."""

    name = "ipo"
    title = "IPO"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """(margin per token - 1 / (2 beta))^2."""
        return (_margin_per_token(pairs) - 1 / (2 * settings.beta)) ** 2

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """(1 / (2 beta))^2, with a slope of at most 1 / beta, for an answer of one token."""
        return ExpectedInitialLoss(1 / (4 * settings.beta**2), 2 / settings.beta**2)


class ExoPair(PreferenceLoss):
    """The reverse KL divergence from the smoothed labels to the policy (EXO, arXiv 2402.00856, equation 16)."""

    name = "exo_pair"
    title = "EXO"

    def check(self, settings: LossSettings) -> None:
        """The logarithm of the smoothing is part of the loss."""
        if not settings.label_smoothing:
            raise ZephyrError(
                "dpo.label_smoothing: 'exo_pair' needs more than 0", "--set dpo.label_smoothing=0.001, as in its paper"
            )

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e), with q = sigmoid(beta * margin)."""
        margin, smoothing = settings.beta * _margin(pairs), settings.label_smoothing
        right = margin.sigmoid() * (_log_sigmoid(margin) - math.log1p(-smoothing))
        wrong = (-margin).sigmoid() * (_log_sigmoid(-margin) - math.log(smoothing))
        return right + wrong

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """The divergence of (1/2, 1/2) from (1 - e, e)."""
        right, wrong = math.log1p(-settings.label_smoothing), math.log(settings.label_smoothing)
        return ExpectedInitialLoss(-LN_2 - (right + wrong) / 2, (right - wrong) / 2)


class NcaPair(PreferenceLoss):
    """A classifier of each answer against noise (NCA, arXiv 2402.05369): it keeps chosen answers likely."""

    name = "nca_pair"
    title = "NCA"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log s(c) - (log s(-c) + log s(-r)) / 2, with s the sigmoid and c, r the rewards."""
        chosen, rejected = self.rewards(pairs, settings)
        return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """ln 2 + (ln 2 + ln 2) / 2."""
        return ExpectedInitialLoss(2 * LN_2)


class Robust(PreferenceLoss):
    """DPO that stays unbiased if a known share of the labels is flipped (arXiv 2403.00409)."""

    name = "robust"
    title = "robust DPO"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """The loss of the label as it is and as flipped, weighted by 1 - e and -e, over 1 - 2 e."""
        margin, smoothing = settings.beta * _margin(pairs), settings.label_smoothing
        as_labelled = -(1 - smoothing) * _log_sigmoid(margin)
        as_flipped = -smoothing * _log_sigmoid(-margin)
        return (as_labelled - as_flipped) / (1 - 2 * smoothing)

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """ln 2 whatever the smoothing, which makes it steeper."""
        return ExpectedInitialLoss(LN_2, 1 / (1 - 2 * settings.label_smoothing))


class BcoPair(PreferenceLoss):
    """A binary classifier of chosen and rejected answers (BCO, arXiv 2404.04656)."""

    name = "bco_pair"
    title = "BCO"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log sigmoid(c) - log sigmoid(-r), with c and r the rewards."""
        chosen, rejected = self.rewards(pairs, settings)
        return -_log_sigmoid(chosen) - _log_sigmoid(-rejected)

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """ln 2 for each answer."""
        return ExpectedInitialLoss(2 * LN_2)


class SppoHard(PreferenceLoss):
    """Self-play preference optimization with hard labels (SPPO, arXiv 2405.00675, equation 4.7 with P of 1 and 0)."""

    name = "sppo_hard"
    title = "SPPO"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """(chosen log-ratio - 1 / (2 beta))^2 + (rejected log-ratio + 1 / (2 beta))^2."""
        chosen, rejected = pairs.log_ratios()
        return (chosen - 0.5 / settings.beta) ** 2 + (rejected + 0.5 / settings.beta) ** 2

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """Twice (1 / (2 beta))^2, with a slope of 1 / beta."""
        return ExpectedInitialLoss(1 / (2 * settings.beta**2), 2 / settings.beta**2)


class _Aot(PreferenceLoss):
    """Alignment via optimal transport (AOT, arXiv 2406.05882): values are compared in the order of their size."""

    mixes_pairs = True

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """Ln 2: sorted or not, every difference is 0."""
        return ExpectedInitialLoss(LN_2)

    def _smoothed(self, difference: "Tensor", settings: LossSettings) -> "Tensor":
        scaled, smoothing = settings.beta * difference, settings.label_smoothing
        return -_log_sigmoid(scaled) * (1 - smoothing) - _log_sigmoid(-scaled) * smoothing


class Aot(_Aot):
    """Optimal transport from the margins of the reference to those of the policy (AOT, arXiv 2406.05882)."""

    name = "aot"
    title = "paired AOT"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """The k-th smallest margin of the policy against the k-th smallest of the reference."""
        if pairs.reference_chosen is None or pairs.reference_rejected is None:
            raise ValueError("'aot' needs a reference")
        policy = (pairs.chosen - pairs.rejected).sort(dim=0).values
        reference = (pairs.reference_chosen - pairs.reference_rejected).sort(dim=0).values
        return self._smoothed(policy - reference, settings)


class AotUnpaired(_Aot):
    """Optimal transport from the log-ratios of rejected answers to those of chosen ones (AOT, arXiv 2406.05882)."""

    name = "aot_unpaired"
    title = "unpaired AOT"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """The k-th smallest log-ratio of the chosen answers against the k-th smallest of the rejected ones."""
        chosen, rejected = (side.sort(dim=0).values for side in pairs.log_ratios())
        return self._smoothed(chosen - rejected, settings)


class ApoZero(PreferenceLoss):
    """Chosen answers become more likely and rejected ones less (APO-zero, arXiv 2408.06266, equation 7)."""

    name = "apo_zero"
    title = "APO-zero"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """1 - sigmoid(c) + sigmoid(r), with c and r the rewards."""
        chosen, rejected = self.rewards(pairs, settings)
        return (1 - chosen.sigmoid()) + rejected.sigmoid()

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """1/2 for each answer."""
        return ExpectedInitialLoss(1)


class ApoDown(PreferenceLoss):
    """Both answers become less likely, rejected ones more so (APO-down, arXiv 2408.06266, equation 8)."""

    name = "apo_down"
    title = "APO-down"

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """sigmoid(c) + 1 - sigmoid(c - r), with c and r the rewards."""
        chosen, _ = self.rewards(pairs, settings)
        return chosen.sigmoid() + (1 - (settings.beta * _margin(pairs)).sigmoid())

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """1/2 for each term."""
        return ExpectedInitialLoss(1)


class DiscoPop(PreferenceLoss):
    """A loss that a language model discovered: logistic and exponential, blended (DiscoPOP, arXiv 2406.08414)."""

    name = "discopop"
    title = "DiscoPOP"
    temperature: ClassVar[float] = 0.05
    """TRL's `discopop_tau`: how sharply the blend turns at a margin of 0."""

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """-log sigmoid(m) (1 - w) + exp(-m) w, with m = beta * margin and w = sigmoid(m / temperature)."""
        margin = settings.beta * _margin(pairs)
        share = (margin / self.temperature).sigmoid()
        return -_log_sigmoid(margin) * (1 - share) + (-margin).exp() * share

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """Half of each: (ln 2 + 1) / 2."""
        return ExpectedInitialLoss((LN_2 + 1) / 2, 5)


class Imitation(PreferenceLoss):
    """The negative log-likelihood of the chosen answers, a mean over their tokens; there is no reference."""

    name = "sft"
    title = "likelihood of the chosen answers"
    needs_reference = False
    mixes_pairs = True

    def loss(self, pairs: PairLogProbs, settings: LossSettings) -> "Tensor":
        """The mean over all chosen tokens of the micro-batch, the same for each of its pairs."""
        mean = -pairs.chosen.sum() / pairs.chosen_lengths.sum()
        return mean.expand(len(pairs.chosen))

    def initial_value(self, settings: LossSettings, start: StartLogProbs | None) -> ExpectedInitialLoss:
        """The same mean under the start. All B answers may err, and each has a slope of 1 over all tokens."""
        if start is None:
            raise ValueError("'sft' needs the log-probabilities of the start")
        tokens = sum(start.chosen_lengths)
        return ExpectedInitialLoss(-math.fsum(start.chosen) / tokens, 2 * len(start.chosen) / (settings.beta * tokens))
