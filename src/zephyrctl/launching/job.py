"""The job file: everything that a training worker needs, whichever launcher starts it."""

from pathlib import Path
from pkgutil import resolve_name

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializeAsAny

from zephyrctl.launching.parallelism import Layout
from zephyrctl.recipe.schema import Dpo, Launch, Sft, Training
from zephyrctl.token_contract import TokenContract
from zephyrctl.training.kinds import DPO, SFT, TrainingKind


class Job(BaseModel):
    """What every kind of training shares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="the kind of training")
    model: str = Field(description="folder or Hub id of the weights to start from")
    revision: str | None = Field(description="Hub revision; None for a folder")
    trusts_code: bool = Field(default=False, description="Python code that comes with the model may run")
    start_hash: str = Field(description="content of the start; part of the key of reference log-probabilities")
    chat_template: str
    token_contract: TokenContract | None = Field(
        description="how the rows were tokenised; the worker refuses another. None for random rows"
    )
    prepared: Path = Field(description="folder of the prepared rows and of reference log-probabilities")
    prepared_hash: str = Field(description="content of the prepared rows")
    train: Path = Field(description="Parquet rows to train on")
    test: Path | None = Field(description="held-out Parquet rows, if there are any")
    model_folder: Path = Field(description="folder for the trained model")
    scratch: Path = Field(description="events, resumable checkpoints and caches")
    launch: Launch
    layout: Layout
    deepspeed: dict[str, JsonValue] | None = Field(description="DeepSpeed's configuration; None is plain torch")
    settings: SerializeAsAny[Training]
    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    flops_a_token: float = Field(default=0.0, ge=0, description="floating-point operations of the model per token")
    peak_flops: float = Field(default=0.0, ge=0, description="peak operations per second of one device; 0 if unknown")
    is_probe: bool = Field(default=False, description="only measures speed: nothing is saved")
    seed: int


class SftJob(Job):
    """A dSFT job; rows are dialogues."""

    kind: str = SFT.name
    settings: Sft


class DpoJob(Job):
    """A dDPO job; rows are preference pairs."""

    kind: str = DPO.name
    settings: Dpo


def job_type(kind: TrainingKind) -> type[Job]:
    """The type of a kind's jobs. Raises TypeError if what its description names is no Job."""
    named = resolve_name(kind.job)
    if isinstance(named, type) and issubclass(named, Job):
        return named
    raise TypeError(f"{kind.job} is no Job")
