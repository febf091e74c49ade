"""`simpo` is the paper's formula, needs no reference, and says truly what its first loss must be."""

import math

import pytest
import torch
import zephyrctl_simpo

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.testing import check_loss, check_plugin
from zephyrctl.training.losses import LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

BETA = 2.5
CHOSEN, CHOSEN_LENGTHS = (-12.0, -3.5, -80.0, -0.25), (6, 1, 40, 3)
REJECTED, REJECTED_LENGTHS = (-20.0, -3.5, -30.0, -9.0), (5, 2, 60, 1)
START = StartLogProbs(CHOSEN, REJECTED, CHOSEN_LENGTHS, REJECTED_LENGTHS)


def simpo(**options: float) -> PreferenceLoss:
    """The loss, chosen by name as a recipe does."""
    return plugins.load().loss("simpo", options)


def pairs() -> PairLogProbs:
    """The pairs as the trainer hands them to a loss."""
    chosen, rejected = (torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in (CHOSEN, REJECTED))
    return PairLogProbs(chosen, rejected, torch.tensor(CHOSEN_LENGTHS), torch.tensor(REJECTED_LENGTHS))


def by_hand(beta: float, gamma: float) -> list[float]:
    """Equation 6 of the paper, pair by pair, as it is written there."""
    return [
        -math.log(1 / (1 + math.exp(-(beta / len_w * log_w - beta / len_l * log_l - gamma))))
        for log_w, len_w, log_l, len_l in zip(CHOSEN, CHOSEN_LENGTHS, REJECTED, REJECTED_LENGTHS, strict=True)
    ]


def test_it_keeps_the_contract_and_is_found() -> None:
    check_plugin(zephyrctl_simpo)
    check_loss(simpo)
    check_loss(lambda: simpo(gamma=0.0), LossSettings(BETA))
    assert plugins.load().find("loss", "simpo").origin.startswith("zephyrctl-simpo ")
    assert not simpo().needs_reference
    with pytest.raises(ZephyrError, match="gama"):
        simpo(gama=0.5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.6])
@pytest.mark.parametrize("beta", [0.1, BETA])
def test_it_is_the_formula_of_the_paper(beta: float, gamma: float) -> None:
    losses = simpo(gamma=gamma).loss(pairs(), LossSettings(beta))
    assert losses.tolist() == pytest.approx(by_hand(beta, gamma), rel=1e-12)


def test_its_gradient_pulls_each_token_alike() -> None:
    """By the derivative of equation 6: -beta / length * sigmoid(gamma - margin) for the chosen answer."""
    made = pairs()
    simpo(gamma=0.5).loss(made, LossSettings(BETA)).sum().backward()
    for place, (log_w, len_w, log_l, len_l) in enumerate(
        zip(CHOSEN, CHOSEN_LENGTHS, REJECTED, REJECTED_LENGTHS, strict=True)
    ):
        pull = BETA / (1 + math.exp(BETA * (log_w / len_w - log_l / len_l) - 0.5))
        assert made.chosen.grad[place].item() == pytest.approx(-pull / len_w, rel=1e-12)
        assert made.rejected.grad[place].item() == pytest.approx(pull / len_l, rel=1e-12)


def test_rewards_are_means_over_tokens() -> None:
    chosen, rejected = simpo().rewards(pairs(), LossSettings(BETA))
    assert chosen.tolist() == pytest.approx([BETA * -2, BETA * -3.5, BETA * -2, BETA * -0.25 / 3])
    assert rejected.tolist() == pytest.approx([BETA * -4, BETA * -1.75, BETA * -0.5, BETA * -9])


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_initial_value_is_the_mean_over_the_start_and_not_ln_2(gamma: float) -> None:
    expected = simpo(gamma=gamma).initial_value(LossSettings(BETA), START)
    assert expected.loss == pytest.approx(math.fsum(by_hand(BETA, gamma)) / 4, rel=1e-12)
    assert abs(expected.loss - math.log(2)) > 0.1
    with pytest.raises(ValueError, match="start"):
        simpo().initial_value(LossSettings(BETA), None)


def test_no_sum_of_log_probabilities_overflows_the_initial_value() -> None:
    far = StartLogProbs((-1e4,), (-1.0,), (1,), (1,))
    assert simpo().initial_value(LossSettings(10.0), far).loss == pytest.approx(1e5 - 9, rel=1e-9)


def test_no_loss_is_steeper_than_it_says() -> None:
    """An error of e in every sum moves the loss by at most steepness * beta / 2 * 2e."""
    loss, settings, error = simpo(gamma=0.5), LossSettings(BETA), 1e-3
    expected = loss.initial_value(settings, START)
    off = StartLogProbs([c - error for c in CHOSEN], [r + error for r in REJECTED], CHOSEN_LENGTHS, REJECTED_LENGTHS)
    moved = abs(loss.initial_value(settings, off).loss - expected.loss)
    assert 0 < moved <= expected.steepness * BETA / 2 * 2 * error
