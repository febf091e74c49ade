"""Solve for the layout that trains fastest within the memory of a machine, before anything starts."""

from dataclasses import dataclass
from typing import TypedDict

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning import explanations, infeasible, throughput
from zephyrctl.planning.candidates import LayoutCandidate, choose, fitting, memory_limit, run_hours
from zephyrctl.planning.explanations import Alternative, AlternativeJson
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Expected, Launch, Training

PROBE_ERROR = 0.03
"""Relative error of a time that rests on a probe."""


class SolutionJson(TypedDict):
    """What `zephyrctl plan --json` shows for a stage; sizes in GB of 1e9 bytes."""

    micro_batch: int
    accumulation: int
    world: int
    global_batch: int
    zero_stage: int | None
    offload: bool
    gradient_checkpointing: bool
    chunked_logits: bool
    engine: str | None
    reference: str | None
    peak_gb: float
    limit_gb: float
    memory_gb: dict[str, float]
    host_gb: float
    hours: float | None
    hours_range: list[float] | None
    reference_hours: float
    steps: int | None
    seconds_per_step: float
    tokens_per_second: float
    mfu: float
    mfu_from: str
    flops: float | None
    communication_gb_per_step: float
    communication_seconds_per_step: float
    next_best: list[AlternativeJson]
    why: list[str]


@dataclass(frozen=True)
class Solution:
    """The layout of a stage, its memory and time, and why it was chosen."""

    workload: Workload
    chosen: LayoutCandidate
    alternatives: list[Alternative]
    why: list[str]
    mfu: float
    """Model FLOPs utilisation: share of the peak that goes into the model's own operations, estimated or measured."""
    is_probed: bool
    """True if a probe measured `mfu`."""

    @property
    def layout(self) -> Layout:
        """The layout, which goes into the job file."""
        return self.chosen.layout

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of one process at its peak, by part."""
        return self.chosen.memory.parts

    @property
    def peak_gb(self) -> float:
        """Memory of one process at its peak, in GB of 1e9 bytes."""
        return self.chosen.memory.peak / 1e9

    @property
    def allocated_gb(self) -> float:
        """The part of `peak_gb` that torch's allocator counts: without CUDA's context and fragmentation."""
        # What a probe compares with `torch.cuda.max_memory_allocated`, which sees neither of the two.
        return (self.chosen.memory.peak - self.chosen.memory.parts["overhead"]) / 1e9

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None if the amount of data is unknown."""
        return self.workload.steps()

    @property
    def peak_flops(self) -> float:
        """Peak of the device of one process, in operations per second."""
        return self.workload.machine.flops(self.workload.launch.precision)

    @property
    def flops_per_token(self) -> float:
        """Operations of the model to train on one token, without recomputation."""
        return throughput.training_flops(self.workload.model, self.workload.average_row(self.layout).sequence)

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimizer step."""
        return self._seconds(self.chosen.step.seconds)

    @property
    def hours(self) -> float | None:
        """Hours of the stage, precomputed references included; None if the amount of data is unknown."""
        return self._hours(self.chosen.step.seconds)

    @property
    def hours_range(self) -> tuple[float, float] | None:
        """Hours in the best and in the worst case of utilisation and overlap."""
        best, worst = self._hours(self.chosen.step.best_case), self._hours(self.chosen.step.worst_case)
        return None if best is None or worst is None else (best, worst)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second over all processes; a pair's prompt counts with each of its answers."""
        return self.layout.global_batch * self.workload.average_row(self.layout).real / self.step_seconds

    def as_json(self) -> SolutionJson:
        """What `zephyrctl plan --json` shows for the stage."""
        layout, step, span = self.layout, self.chosen.step, self.hours_range
        return {
            "micro_batch": layout.micro_batch,
            "accumulation": layout.accumulation,
            "world": layout.world,
            "global_batch": layout.global_batch,
            "zero_stage": layout.zero_stage,
            "offload": layout.offload,
            "gradient_checkpointing": layout.gradient_checkpointing,
            "chunked_logits": layout.chunked_logits,
            "engine": layout.engine,
            "reference": layout.reference,
            "peak_gb": _gb(self.chosen.memory.peak),
            "limit_gb": _gb(memory_limit(self.workload.machine)),
            "memory_gb": {name: _gb(size) for name, size in self.memory.items()},
            "host_gb": _gb(self.chosen.memory.host * layout.processes),
            "hours": None if self.hours is None else round(self.hours, 3),
            "hours_range": None if span is None else [round(hours, 3) for hours in span],
            "reference_hours": round(self.chosen.reference_seconds / 3600, 3),
            "steps": self.steps,
            "seconds_per_step": round(self.step_seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "mfu": round(self.mfu, 3),
            "mfu_from": "probe" if self.is_probed else "hardware table",
            "flops": self.steps and step.useful_flops * self.steps,
            "communication_gb_per_step": _gb(step.traffic),
            "communication_seconds_per_step": round(step.traffic_seconds, 3),
            "next_best": [alternative.as_json() for alternative in self.alternatives],
            "why": self.why,
        }

    def _seconds(self, estimate: float) -> float:
        """Seconds of a step: the estimate, or what the measured utilisation gives, within `PROBE_ERROR` of it."""
        if not self.is_probed:
            return estimate
        # MFU = useful operations per second / (processes x peak), solved for the seconds. `estimate` is the likely, the
        # best or the worst case; a measurement leaves only its own small error between them.
        measured = self.chosen.step.useful_flops / (self.layout.world * self.peak_flops * self.mfu)
        if estimate > self.chosen.step.seconds:
            return measured * (1 + PROBE_ERROR)
        if estimate < self.chosen.step.seconds:
            return measured * (1 - PROBE_ERROR)
        return measured

    def _hours(self, estimate: float) -> float | None:
        return run_hours(self.workload, self._seconds(estimate), self.chosen.reference_seconds)


def solve(
    settings: Training,
    launch: Launch,
    machine: Machine,
    sizes: Sizes,
    stage: str,
    expected: Expected | None = None,
    mfu: float | None = None,
) -> Solution:
    """The layout of a stage on a machine; settings that the recipe states are kept, the others are solved.

    Of the layouts that fit, those within 1 % of the fastest are equal, and the one with the least memory is chosen.
    `mfu` is the utilisation that a probe measured; it replaces the estimate from the hardware table.
    Raises ZephyrError if the global batch cannot be divided among the processes, if settings contradict each other, or
    if nothing fits; its remedy is changes that would work.
    """
    workload = Workload(settings, launch, machine, sizes, stage, expected or Expected())
    infeasible.check_settings(workload)
    fitted = fitting(workload)
    if not fitted:
        infeasible.raise_infeasible(workload)
    chosen = choose(fitted)
    # Useful operations leave out recomputation and padding, so this is below the utilisation of the hardware table.
    flops_per_second = chosen.step.useful_flops / chosen.step.seconds
    estimated_mfu = flops_per_second / (chosen.layout.world * machine.flops(launch.precision))
    return Solution(
        workload=workload,
        chosen=chosen,
        alternatives=explanations.alternatives(workload, chosen, fitted),
        why=explanations.explain(workload, chosen, fitted),
        mfu=mfu or estimated_mfu,
        is_probed=mfu is not None,
    )


def _gb(size: float) -> float:
    return round(size / 1e9, 2)
