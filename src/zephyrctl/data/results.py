"""What the stages that make or select rows report: typed results, read from their manifests."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.errors import ZephyrError
from zephyrctl.runs.manifest import Manifest


class ContaminatedRows(BaseModel):
    """The rows of `data build` that contain a benchmark's prompt; the counts by benchmark are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: int = 0


class RowsResult(BaseModel):
    """The metrics of a stage that made or selected rows. A figure that the stage does not measure keeps its default."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    contaminated: ContaminatedRows | int | None = Field(
        default=None, description="rows that contain a benchmark's prompt: of a training, those that it kept"
    )
    calls: int = Field(default=0, description="calls to teachers")

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The result that a manifest states. Raises ZephyrError if a figure has another type."""
        try:
            return cls.model_validate(manifest.metrics)
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise ZephyrError(
                f"the manifest of {manifest.plan.name}: metrics.{key} is not of its type",
                f"remove the artifact {manifest.plan.name!r} and run its stage again",
            ) from None

    def kept_contaminated(self, on_hit: str) -> int:
        """Contaminated rows that were trained on all the same, if `on_hit` is what the stage did with such rows."""
        if isinstance(self.contaminated, ContaminatedRows):
            return self.contaminated.rows if on_hit == "keep" else 0
        return self.contaminated or 0
