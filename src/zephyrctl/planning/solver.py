"""Which layout trains fastest within the memory that is there: solved before anything starts, or refused."""

from dataclasses import dataclass
from typing import Any

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning import explanations, infeasible, throughput
from zephyrctl.planning.candidates import Candidate, choose, fitting, limit, run_hours
from zephyrctl.planning.explanations import Alternative
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Expected, Launch, Training

PROBED = 0.03
"""How far a time lies from one that a probe has measured."""


@dataclass(frozen=True)
class Solution:
    """The layout of a stage, what it takes, and why it was chosen."""

    workload: Workload
    chosen: Candidate
    alternatives: list[Alternative]
    why: list[str]
    mfu: float
    """Share of the peak that goes into the model's own operations: from the hardware table, or as a probe found it."""
    is_probed: bool

    @property
    def layout(self) -> Layout:
        """What a job file carries."""
        return self.chosen.layout

    @property
    def memory(self) -> dict[str, float]:
        """Bytes of one process at its peak, by part."""
        return self.chosen.memory.parts

    @property
    def peak_gb(self) -> float:
        """The sum of them, in GB of 1e9 bytes."""
        return self.chosen.memory.peak / 1e9

    @property
    def allocated_gb(self) -> float:
        """The part of it that torch's allocator counts: without CUDA's context and what its blocks lose."""
        return (self.chosen.memory.peak - self.chosen.memory.parts["overhead"]) / 1e9

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None where the amount of data is unknown."""
        return self.workload.steps()

    @property
    def peak_flops(self) -> float:
        """The peak of what one process computes on, operations a second."""
        return self.workload.machine.flops(self.workload.launch.precision)

    @property
    def flops_a_token(self) -> float:
        """Operations of the model for one token of training, nothing computed twice."""
        return throughput.training_flops(self.workload.model, self.workload.rows(self.layout).sequence)

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimizer step."""
        return self._seconds(self.chosen.step.seconds)

    @property
    def hours(self) -> float | None:
        """Hours of the stage with its references; None where the amount of data is unknown."""
        return self._hours(self.chosen.step.seconds)

    @property
    def hours_range(self) -> tuple[float, float] | None:
        """Hours where utilisation and overlap are as good, and as bad, as they may be."""
        quickest, slowest = self._hours(self.chosen.step.quickest), self._hours(self.chosen.step.slowest)
        return None if quickest is None or slowest is None else (quickest, slowest)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens of all processes; a pair's prompt counts with each of its answers."""
        return self.layout.global_batch * self.workload.rows(self.layout).real / self.step_seconds

    def as_json(self) -> dict[str, Any]:
        """What `zephyrctl plan --json` shows of a stage."""
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
            "limit_gb": _gb(limit(self.workload.machine)),
            "memory_gb": {name: _gb(size) for name, size in self.memory.items()},
            "host_gb": _gb(self.chosen.memory.host * layout.processes),
            "hours": _rounded(self.hours),
            "hours_range": span and [_rounded(hours) for hours in span],
            "reference_hours": _rounded(self.chosen.reference_seconds / 3600),
            "steps": self.steps,
            "seconds_a_step": round(self.step_seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "mfu": round(self.mfu, 3),
            "mfu_from": "probe" if self.is_probed else "hardware table",
            "flops": self.steps and step.useful_flops * self.steps,
            "communication_gb_a_step": _gb(step.traffic),
            "communication_seconds_a_step": round(step.traffic_seconds, 3),
            "next_best": [alternative.as_json() for alternative in self.alternatives],
            "why": self.why,
        }

    def _seconds(self, modelled: float) -> float:
        """Seconds of a step: by the model, or by the utilisation that a probe has found."""
        if not self.is_probed:
            return modelled
        likely = self.chosen.step.useful_flops / (self.layout.world * self.peak_flops * self.mfu)
        return likely * (1 + PROBED * ((modelled > self.chosen.step.seconds) - (modelled < self.chosen.step.seconds)))

    def _hours(self, modelled: float) -> float | None:
        return run_hours(self.workload, self._seconds(modelled), self.chosen.reference_seconds)


def solve(
    settings: Training,
    launch: Launch,
    machine: Machine,
    sizes: Sizes,
    stage: str,
    expected: Expected | None = None,
    mfu: float | None = None,
) -> Solution:
    """The layout of a stage on some machines; what a recipe states is obeyed, what it leaves open is solved.

    Of all layouts that fit, the leanest is taken of those within 1 % of the fastest. `mfu` is the utilisation that a
    probe has measured: it replaces the hardware table's. Raises ZephyrError, with what would work instead, where the
    global batch cannot be shared, where settings contradict each other, and where nothing fits.
    """
    workload = Workload(settings, launch, machine, sizes, stage, expected or Expected())
    infeasible.check(workload)
    found = fitting(workload)
    if not found:
        infeasible.refuse(workload)
    chosen = choose(found)
    useful = chosen.step.useful_flops / chosen.step.seconds
    modelled = useful / (chosen.layout.world * machine.flops(launch.precision))
    return Solution(
        workload=workload,
        chosen=chosen,
        alternatives=explanations.alternatives(workload, chosen, found),
        why=explanations.why(workload, chosen, found),
        mfu=mfu or modelled,
        is_probed=mfu is not None,
    )


def _gb(size: float) -> float:
    return round(size / 1e9, 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
