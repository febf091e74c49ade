"""The job file: everything that a training worker needs, whichever door it is launched through."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl.recipe import Dpo, Launch, Sft


class Job(BaseModel):
    """What both kinds of training share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="folder or Hub id of the weights to start from")
    revision: str | None = Field(description="Hub revision; None for a folder")
    start_hash: str = Field(description="content of the start; reference log-probabilities are cached under it")
    chat_template: str
    train: Path = Field(description="Parquet rows to train on")
    test: Path | None = Field(description="Parquet rows held out, where there are any")
    model_folder: Path = Field(description="where the trained model goes")
    scratch: Path = Field(description="events, resumable checkpoints and caches")
    launch: Launch
    seed: int


class SftJob(Job):
    """A dSFT job; rows are dialogues."""

    kind: Literal["sft"] = "sft"
    settings: Sft


class DpoJob(Job):
    """A dDPO job; rows are preference pairs."""

    kind: Literal["dpo"] = "dpo"
    settings: Dpo
