"""The layout of a training job over processes: the solver decides it, and the job file contains it."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Layout(BaseModel):
    """micro_batch x accumulation x world is the global batch, exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(ge=1, description="machines")
    processes: int = Field(ge=1, description="processes per machine: one per GPU; on a CPU, as many as the recipe says")
    on_cpu: bool = Field(description="True if there is no GPU")
    global_batch: int = Field(ge=1, description="rows per optimizer step, over all processes")
    micro_batch: int = Field(ge=1, description="rows per forward pass of a process; for dDPO a row is a pair")
    accumulation: int = Field(ge=1, description="micro-batches per optimizer step of a process")
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        description="DeepSpeed ZeRO stage; None is plain torch, no DeepSpeed"
    )
    offload: bool = Field(default=False, description="the optimizer's states are in the machine's memory")
    gradient_checkpointing: bool = Field(description="activations are recomputed in the backward pass")
    chunked_logits: bool = Field(default=True, description="logits are computed for a few thousand tokens at a time")
    engine: Literal["prefix-shared", "trl"] | None = Field(default=None, description="dDPO: what computes the pairs")
    reference: Literal["precomputed", "live"] | None = Field(
        default=None, description="dDPO: when the reference is computed"
    )
    reduce_bucket: int = Field(default=500_000_000, ge=1, description="elements of a gradient bucket")
    allgather_bucket: int = Field(default=500_000_000, ge=1, description="elements gathered at a time, ZeRO-1 and 2")
    prefetch_bucket: int = Field(default=50_000_000, ge=0, description="elements fetched ahead, ZeRO-3")
    persistence_threshold: int = Field(
        default=100_000, ge=0, description="smaller parameters are not partitioned, ZeRO-3"
    )
    max_live_parameters: int = Field(default=1_000_000_000, ge=1, description="elements gathered at most, ZeRO-3")

    @property
    def world(self) -> int:
        """Processes over all machines."""
        return self.nodes * self.processes

    def __str__(self) -> str:
        """For instance `16 x 2 x 16 rows (DeepSpeed ZeRO-3)`."""
        backend = "plain torch" if self.zero_stage is None else f"DeepSpeed ZeRO-{self.zero_stage}"
        if self.offload:
            backend += ", off-loaded"
        return f"{self.micro_batch} x {self.accumulation} x {self.world} rows ({backend})"

    @model_validator(mode="after")
    def _is_exact(self) -> Self:
        if self.micro_batch * self.accumulation * self.world != self.global_batch:
            raise ValueError(
                f"{self.micro_batch} x {self.accumulation} x {self.world} is not the global batch, {self.global_batch}"
            )
        return self
