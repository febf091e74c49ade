"""A recipe names its loss as it names any plugin: unknown names, options and references are refused with a remedy."""

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.preference_loss import loss_settings, preference_loss
from zephyrctl.launching.weights import model_base
from zephyrctl.planning import plan
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Dpo, Recipe


def tiny(**changes: object) -> Recipe:
    """The recipe `tiny` with other settings of dDPO."""
    return loading.load("tiny", {f"dpo.{key}": value for key, value in changes.items()}).recipe


def dpo(**changes: object) -> Dpo:
    """The same settings alone."""
    return tiny(**changes).dpo


def test_the_shipped_loss_and_its_settings() -> None:
    settings = dpo(label_smoothing=0.1)
    assert preference_loss(settings).name == "sigmoid"
    assert (loss_settings(settings).beta, loss_settings(settings).label_smoothing) == (settings.beta, 0.1)


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"loss": "sigmoidd"}, "there is no loss 'sigmoidd'", "did you mean 'sigmoid'?"),
        ({"loss_options": {"gamma": 1.0}}, "wrong options for the loss 'sigmoid': gamma", "zephyrctl plugins"),
        ({"loss": "exo_pair"}, "dpo.label_smoothing: 'exo_pair' needs more than 0", "--set dpo.label_smoothing=0.001"),
        ({"loss": "sft", "reference": "live"}, "the loss 'sft' has no reference", "--set dpo.reference=null"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, object], problem: str, remedy: str) -> None:
    with pytest.raises(ZephyrError, match=problem) as raised:
        preference_loss(dpo(**changes))
    assert remedy in raised.value.remedy


@pytest.mark.parametrize("profile", ["fast", "paper"])
def test_no_reference_is_planned_for_a_loss_that_has_none(profile: str) -> None:
    layouts = {}
    for loss in ("sigmoid", "sft"):
        recipe = loading.load("tiny", {"dpo.loss": loss, "launch.profile": profile, "hardware.gpus": 0}).recipe
        solution = plan.solve(recipe, "dpo", model_base(recipe))
        layouts[loss] = solution
    assert layouts["sigmoid"].layout.reference == ("live" if profile == "paper" else "precomputed")
    assert layouts["sft"].layout.reference is None
    assert layouts["sft"].layout.engine == layouts["sigmoid"].layout.engine
    assert layouts["sft"].as_json()["reference_hours"] == 0
    assert layouts["sft"].peak_gb <= layouts["sigmoid"].peak_gb
    assert any("the loss needs no reference" in reason for reason in layouts["sft"].why)
