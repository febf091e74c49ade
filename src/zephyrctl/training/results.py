"""What a finished training reports: typed results, read from a checkpoint's manifest."""

import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.parallelism import Layout
from zephyrctl.runs.artifacts import Artifact

LN_2 = math.log(2)


def _finite(value: object) -> object:
    """JSON has no NaN: a figure that is not finite counts as missing."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_zero_stage(value: object) -> object:
    """Manifests leave out what is None, and a layout must state its ZeRO stage."""
    return {"zero_stage": None} | dict(value) if isinstance(value, Mapping) else value


Figure = Annotated[float | None, BeforeValidator(_finite)]


class RowReport(BaseModel):
    """What became of the rows of one split; each row and token is either kept or counted under a cause."""

    model_config = ConfigDict(extra="forbid")

    rows_in: int = Field(description="dialogues or pairs")
    rows_kept: int = 0
    tokens_in: int = Field(default=0, description="the prompt of a pair counts once")
    tokens_kept: int = 0
    lost_rows: dict[str, int] = Field(default_factory=dict, description="cause: dropped rows")
    lost_tokens: dict[str, int] = Field(default_factory=dict, description="cause: dropped tokens")
    rows: int = Field(default=0, description="rows to train on: packed rows, dialogues or pairs")
    learnt_tokens: int = Field(default=0, description="tokens in the loss; for pairs, those of both answers")
    cut: int = Field(default=0, description="dialogues that packing cut in two, counted once per cut")

    def shares_lost(self) -> dict[str, float]:
        """The dropped share of the rows and of the tokens."""
        return {
            "rows": 1 - self.rows_kept / self.rows_in if self.rows_in else 0.0,
            "tokens": 1 - self.tokens_kept / self.tokens_in if self.tokens_in else 0.0,
        }

    def dropped(self) -> dict[str, int]:
        """Dropped rows and tokens by cause."""
        return {**self.lost_rows, **self.lost_tokens}


class PreparedRows(RowReport):
    """The training rows of a checkpoint: their report, and how they were cut into steps."""

    padding_share: float = Field(ge=0, le=1, description="share of a micro-batch's token positions that are padding")
    steps_an_epoch: int = Field(ge=1, description="optimizer steps of one pass over the rows")
    steps: int = Field(ge=1, description="optimizer steps of the whole run")


class TrainingResult(BaseModel):
    """The metrics of a checkpoint's manifest. A kind of training that does not measure a figure leaves it None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hardware: str = Field(default="", description="what it was planned for and trained on")
    rows: int | None = Field(default=None, description="dialogues or pairs trained on")
    prepared: PreparedRows | None = Field(default=None, description="what became of the training rows")
    layout: Annotated[Layout | None, BeforeValidator(_with_zero_stage)] = Field(
        default=None, description="how a batch was cut over processes"
    )
    token_contract: str | None = Field(default=None, description="fingerprint of the contract its rows follow")
    steps: int | None = Field(default=None, description="optimizer steps taken")
    train_loss: Figure = Field(default=None, description="mean loss over all steps")
    eval_loss: Figure = Field(default=None, description="mean loss of a held-out token, in nats")
    first_loss: Figure = Field(default=None, description="mean loss before the first optimizer step")
    expected_first_loss: Figure = Field(default=None, description="what that loss must be, computed independently")
    first_loss_tolerance: Figure = Field(default=None, description="how far apart the two may be")
    reward_accuracy: Figure = Field(default=None, description="share of held-out pairs with a positive margin")
    reward_margin: Figure = Field(default=None, description="mean reward margin of the held-out pairs")
    held_out_pairs: int | None = Field(default=None, description="held-out pairs measured")

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """The result of a checkpoint, also of one trained by the version before.

        Raises ZephyrError if its manifest has figures of another type.
        """
        metrics, plan = artifact.manifest.metrics, artifact.manifest.plan
        settings = plan.settings.get(plan.stage, {})
        if "first_loss" in metrics and "expected_first_loss" not in metrics and settings.get("loss") == "sigmoid":
            metrics = {**metrics, "expected_first_loss": LN_2}  # the version before checked it and did not record it
        try:
            return cls.model_validate(metrics)
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise ZephyrError(
                f"{artifact.path / 'manifest.json'}: metrics.{key} is not of its type",
                f"train it again: remove {artifact.path}",
            ) from None
