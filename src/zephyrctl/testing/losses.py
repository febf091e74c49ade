"""Check that a preference loss keeps its contract."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from zephyrctl.testing.plugin_classes import require
from zephyrctl.training.losses import ExpectedInitialLoss, LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

LOSS_BATCHES = 5
LOSS_SETTINGS = LossSettings(beta=0.5, label_smoothing=0.1)


def check_loss(make: Callable[[], PreferenceLoss], settings: LossSettings = LOSS_SETTINGS) -> None:
    """Check that a preference loss computes one value per pair, and states its value at the start correctly."""
    import torch

    loss = make()
    loss.check(settings)
    for seed in range(LOSS_BATCHES):
        start, pairs = _pairs_at_the_start(seed, loss.needs_reference)
        values = loss.loss(pairs, settings)
        require(
            values.shape == pairs.chosen.shape, f"its losses have the shape {tuple(values.shape)}, not one per pair"
        )
        require(bool(values.isfinite().all()), "a loss is not finite")
        expected = loss.initial_value(settings, None if loss.needs_reference else start)
        require(
            abs(values.mean().item() - expected.loss) <= 1e-6 * max(1, abs(expected.loss)),
            f"its loss at the start is {values.mean().item():.6f}, and initial_value says {expected.loss:.6f}",
        )
        _check_steepness(loss, settings, pairs, expected)
        apart, swapped = (min(_losses_at_margins(loss, settings, pairs, sign)) for sign in (1, -1))
        require(apart < swapped, "its lowest values are where rejected answers are more likely than chosen ones")
        if not loss.mixes_pairs:
            order = torch.arange(len(values)).flip(0)
            turned = replace(pairs, **{name: side[order] for name, side in vars(pairs).items() if side is not None})
            is_same = torch.allclose(loss.loss(turned, settings), values[order])
            require(is_same, "a loss depends on the other pairs: say `mixes_pairs = True`")


def _pairs_at_the_start(seed: int, has_reference: bool) -> tuple[StartLogProbs, PairLogProbs]:
    """Six pairs of which policy and reference are the same model."""
    import torch

    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2, 6), generator=random)
    sums = -3 * torch.rand(2, 6, generator=random, dtype=torch.float64) * lengths
    chosen, rejected = (side.clone().requires_grad_() for side in sums)
    reference = [side.clone() if has_reference else None for side in sums]
    start = StartLogProbs(sums[0].tolist(), sums[1].tolist(), lengths[0].tolist(), lengths[1].tolist())
    return start, PairLogProbs(chosen, rejected, lengths[0], lengths[1], *reference)


def _losses_at_margins(loss: PreferenceLoss, settings: LossSettings, pairs: PairLogProbs, sign: int) -> Iterator[float]:
    """Mean losses at margins of one sign, from small ones to those at which most losses are nearly flat.

    Small ones alone would not do: DiscoPOP falls with the margin only after a small hill at 0.
    """
    for size in (0.1, 1, 10, 100):
        change = sign * size / settings.beta
        moved = replace(pairs, chosen=pairs.chosen + change, rejected=pairs.rejected - change)
        yield loss.loss(moved, settings).mean().item()


def _check_steepness(
    loss: PreferenceLoss, settings: LossSettings, pairs: PairLogProbs, expected: ExpectedInitialLoss
) -> None:
    """An error of e in both sums of every pair moves the loss by at most steepness x beta / 2 x 2e."""
    error = 1e-4
    for sign in (error, -error):
        moved = loss.loss(replace(pairs, chosen=pairs.chosen + sign, rejected=pairs.rejected - sign), settings)
        change = abs(moved.mean().item() - expected.loss)
        bound = max(1, expected.steepness) * settings.beta * error
        require(
            change <= 1.01 * bound, f"it is steeper than it says: {change:.2g} for an error that allows {bound:.2g}"
        )
