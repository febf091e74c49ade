"""Whether `zephyrctl run` prints the first loss of a training beside what that loss must be."""

import pytest

from tests.training.test_training_results import BEFORE, checkpoint
from zephyrctl.cli.run import _training_lines
from zephyrctl.stages import Done


@pytest.mark.parametrize(
    ("metrics", "loss", "line"),
    [
        (BEFORE, "sigmoid", "dpo: first loss 0.693147 (expected 0.693147), held-out reward accuracy 0.900"),
        (
            {"first_loss": 1.000012, "expected_first_loss": 1.0},
            "hinge",
            "dpo: first loss 1.000012 (expected 1.000000)",
        ),
        (
            {"first_loss": 1.0, "reward_accuracy": 0.5},
            "hinge",
            "dpo: first loss 1.000000, held-out reward accuracy 0.500",
        ),
    ],
)
def test_the_expected_loss_is_that_of_the_training(metrics: dict[str, object], loss: str, line: str) -> None:
    done = {"dpo": Done(checkpoint(dict(metrics), loss), is_new=True)}
    assert list(_training_lines(done, ["dpo"])) == [line]


def test_a_training_without_a_first_loss_has_no_line() -> None:
    done = {"sft": Done(checkpoint({"train_loss": 0.5}), is_new=True)}
    assert list(_training_lines(done, ["sft"])) == []
