"""The built-in losses compute what TRL computes, and say truly what they are at the start."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.testing import Breach, check_loss
from zephyrctl.training.losses import ExpectedInitialLoss, LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

LOSSES = [offer.name for offer in plugins.load().offers_of_kind("loss") if offer.origin == "built in"]
LENGTHS = ((3, 7, 1, 12, 5, 2), (4, 2, 6, 12, 1, 9))
"""Tokens of the chosen and of the rejected answers of six pairs."""
LONGEST = 12


def loss_of(name: str) -> PreferenceLoss:
    """The loss, chosen by name as a recipe does."""
    return plugins.load().loss(name, {})


def settings_of(name: str, beta: float = 0.3) -> LossSettings:
    """Settings that the loss takes, with a smoothing that no loss should mistake for 0."""
    return LossSettings(beta, 0.1)


def batch(seed: int) -> tuple[Any, Any, Any]:
    """Log-probabilities of tokens [12, 12], a mask of completion tokens [12, 13], and the reference's sums [2, 6]."""
    import torch

    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS).flatten()
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    mask = torch.cat([torch.zeros(12, 1, dtype=torch.long), mask], dim=1)
    tokens = -5 * torch.rand(12, LONGEST, generator=random, dtype=torch.float64) * mask[:, 1:]
    reference = tokens.sum(1).view(2, 6) + torch.randn(2, 6, generator=random, dtype=torch.float64)
    return tokens.requires_grad_(), mask, reference


def pairs_of(tokens: Any, mask: Any, reference: Any, has_reference: bool) -> PairLogProbs:
    """What the trainer hands to a loss."""
    chosen, rejected = tokens.sum(1).chunk(2)
    chosen_lengths, rejected_lengths = mask.sum(1).chunk(2)
    sides = reference if has_reference else (None, None)
    return PairLogProbs(chosen, rejected, chosen_lengths, rejected_lengths, *sides)


def trl_loss(name: str, settings: LossSettings, tokens: Any, mask: Any, reference: Any) -> Any:
    """TRL's own loss of the same log-probabilities, and its metrics."""
    import torch
    from trl import DPOTrainer

    outputs = SimpleNamespace(
        log_probs=tokens,
        entropy=torch.zeros_like(tokens),
        mean_logits=torch.zeros_like(tokens),
        is_top1=torch.zeros_like(tokens, dtype=torch.bool),
    )
    trainer: Any = DPOTrainer.__new__(DPOTrainer)
    trainer.accelerator = SimpleNamespace(
        device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values
    )
    trainer.model = SimpleNamespace(training=True)
    trainer.args = SimpleNamespace(discopop_tau=0.05)
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    trainer.beta, trainer.label_smoothing = settings.beta, settings.label_smoothing
    trainer.f_divergence_type, trainer.ld_alpha = "reverse_kl", None
    trainer.use_weighting = trainer.aux_loss_enabled = False
    trainer.precompute_ref_logps = True
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": defaultdict(list)}, 0, 1
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return trainer._compute_loss(lambda **_: outputs, inputs, False), trainer._metrics["train"]


def test_every_loss_of_trl_is_there() -> None:
    assert set(LOSSES) == {
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_rewards_are_trls(name: str) -> None:
    import torch

    loss, settings = loss_of(name), settings_of(name)
    for seed in range(3):
        tokens, mask, reference = batch(seed)
        pairs = pairs_of(tokens, mask, reference, loss.needs_reference)
        ours = loss.loss(pairs, settings)
        assert ours.shape == (6,)
        (gradient,) = torch.autograd.grad(ours.mean(), tokens)
        theirs, metrics = trl_loss(name, settings, tokens, mask, reference)
        (trl_gradient,) = torch.autograd.grad(theirs, tokens)
        assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-7)
        is_token = mask[:, 1:]  # the forward pass gives padding a constant 0
        assert torch.allclose(gradient * is_token, trl_gradient * is_token, rtol=1e-6, atol=1e-9)
        if loss.needs_reference:
            chosen, rejected = loss.rewards(pairs, settings)
            assert chosen.mean().item() == pytest.approx(metrics["rewards/chosen"][0], rel=1e-9)
            assert (chosen - rejected).mean().item() == pytest.approx(metrics["rewards/margins"][0], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_initial_value_is_that_of_a_policy_that_is_still_the_start(name: str) -> None:
    loss = loss_of(name)
    for beta in (0.01, 0.1, 2.0):
        settings = settings_of(name, beta)
        tokens, mask, _ = batch(0)
        sums = tokens.detach().sum(1).view(2, 6)
        pairs = pairs_of(tokens.detach(), mask, sums, loss.needs_reference)
        start = StartLogProbs(sums[0].tolist(), sums[1].tolist(), *LENGTHS)
        expected = loss.initial_value(settings, None if loss.needs_reference else start)
        assert float(loss.loss(pairs, settings).mean()) == pytest.approx(expected.loss, rel=1e-9)
        assert expected.steepness > 0


def test_only_imitation_has_no_reference() -> None:
    assert [name for name in LOSSES if not loss_of(name).needs_reference] == ["sft"]


def test_a_smoothing_of_zero_is_refused_where_its_logarithm_is_needed() -> None:
    with pytest.raises(ZephyrError, match="'exo_pair' needs more than 0"):
        loss_of("exo_pair").check(LossSettings(0.1))
    loss_of("exo_pair").check(LossSettings(0.1, 1e-3))
    for name in set(LOSSES) - {"exo_pair"}:
        loss_of(name).check(LossSettings(0.1))


def test_the_start_of_zephyrs_loss_is_ln_2() -> None:
    assert loss_of("sigmoid").initial_value(LossSettings(0.1), None).loss == math.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_built_in_losses_keep_the_contract(name: str) -> None:
    check_loss(lambda: loss_of(name))


@pytest.mark.slow
def test_the_suite_notices_what_is_wrong() -> None:
    """A wrong initial value, a slope that is understated, pairs that are mixed in secret, and a turned sign."""
    sigmoid, ipo, aot = (type(loss_of(name)) for name in ("sigmoid", "ipo", "aot_unpaired"))

    def changed(kind: type[PreferenceLoss], **members: Any) -> PreferenceLoss:
        made: PreferenceLoss = type(kind.__name__, (kind,), members)(kind.Options())
        return made

    def low(self: Any, settings: LossSettings, start: Any) -> ExpectedInitialLoss:
        return ExpectedInitialLoss(0.5)

    def flat(self: Any, settings: LossSettings, start: Any) -> ExpectedInitialLoss:
        return ExpectedInitialLoss(1 / (4 * settings.beta**2), 0.01)

    def turned(self: Any, pairs: PairLogProbs, settings: LossSettings) -> Any:
        return 2 * math.log(2) - sigmoid(sigmoid.Options()).loss(pairs, settings)

    for breach, wrong in (
        ("initial_value says 0.5", lambda: changed(sigmoid, initial_value=low)),
        ("steeper than it says", lambda: changed(ipo, initial_value=flat)),
        ("rejected answers are more likely", lambda: changed(sigmoid, loss=turned)),
    ):
        with pytest.raises(Breach, match=breach):
            check_loss(wrong)
    assert aot.mixes_pairs
