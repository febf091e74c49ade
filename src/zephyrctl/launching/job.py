"""The job file: everything that a training worker needs, whichever launcher starts it."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

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
    start_hash: str = Field(description="content of the start; reference log-probabilities are kept under it")
    chat_template: str
    token_contract: TokenContract | None = Field(
        description="what the rows were tokenised by; the worker refuses another. None where rows are made up"
    )
    prepared: Path = Field(description="folder of the prepared rows; reference log-probabilities are kept there")
    prepared_hash: str = Field(description="content of the prepared rows")
    train: Path = Field(description="Parquet rows to train on")
    test: Path | None = Field(description="Parquet rows held out, where there are any")
    model_folder: Path = Field(description="where the trained model goes")
    scratch: Path = Field(description="events, resumable checkpoints and caches")
    launch: Launch
    layout: Layout
    deepspeed: dict[str, Any] | None = Field(description="DeepSpeed's configuration; None is plain torch")
    settings: SerializeAsAny[Training]
    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    flops_a_token: float = Field(default=0.0, ge=0, description="floating-point operations of the model for one token")
    peak_flops: float = Field(default=0.0, ge=0, description="most operations a second of one device; 0 is not known")
    is_probe: bool = Field(default=False, description="only to be timed: nothing is saved")
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
    found = resolve_name(kind.job)
    if isinstance(found, type) and issubclass(found, Job):
        return found
    raise TypeError(f"{kind.job} is no Job")
