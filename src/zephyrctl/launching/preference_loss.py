"""The preference loss that a recipe names, with its settings."""

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Dpo
from zephyrctl.training.losses import LossSettings, PreferenceLoss


def preference_loss(settings: Dpo) -> PreferenceLoss:
    """The loss that `dpo.loss` names.

    Raises ZephyrError if no plugin offers it, if it refuses its options or the settings, and if the recipe asks for a
    reference that the loss does not have.
    """
    loss = plugins.load().loss(settings.loss, settings.loss_options)
    loss.check(loss_settings(settings))
    if settings.reference and not loss.needs_reference:
        raise ZephyrError(
            f"dpo.reference is {settings.reference!r}, and the loss {loss.name!r} has no reference",
            "leave it out: --set dpo.reference=null",
        )
    return loss


def loss_settings(settings: Dpo) -> LossSettings:
    """The part of `dpo` that losses may use."""
    return LossSettings(settings.beta, settings.label_smoothing)
