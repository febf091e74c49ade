"""Which layouts there are for a stage, what each takes, and which of them is best."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.preference_loss import preference_loss
from zephyrctl.planning import memory, throughput
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import MemoryEstimate
from zephyrctl.planning.throughput import Step
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Dpo

NEAR = 0.01
"""A layout that is slower by no more than this is as good as the fastest."""
SMALL_BUCKET = 5_000_000
"""Elements of 10 MB in bf16: smaller messages leave NCCL's bandwidth unused."""

Stage = Literal[0, 1, 2, 3] | None
Engine = Literal["prefix-shared", "trl"] | None
Reference = Literal["precomputed", "live"] | None


@dataclass(frozen=True)
class Candidate:
    """A layout with what it takes."""

    layout: Layout
    memory: MemoryEstimate
    step: Step
    reference_seconds: float
    """Of the whole run, before its first step."""
    cost: float
    """Seconds a step, with its part of what happens once."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two candidates have in common that differ in their micro-batch only."""
        layout = self.layout
        return layout.zero_stage, layout.offload, layout.gradient_checkpointing, layout.engine, layout.reference


def fitting(workload: Workload) -> list[Candidate]:
    """All layouts that fit; those that off-load, and the paper's with a precomputed reference, where no other does."""
    for tried in (workload, _with_precomputed(workload)):
        for offload in (False, True):
            found = [candidate for candidate in candidates(tried, offload) if fits(candidate, workload.machine)]
            if found:
                return found
    return []


def candidates(workload: Workload, offload: bool) -> Iterator[Candidate]:
    """All layouts that the recipe allows, whether they fit or not."""
    largest = workload.settings.micro_batch or workload.share
    for zero_stage in _stages(workload, offload):
        for is_checkpointed in _checkpointing(workload):
            for engine, reference in _engines(workload):
                for micro_batch in divisors(workload.share, largest):
                    layout = _layout(workload, micro_batch, zero_stage, offload, is_checkpointed)
                    yield _candidate(workload, layout.model_copy(update={"engine": engine, "reference": reference}))


def choose(found: Iterable[Candidate]) -> Candidate:
    """The leanest of those that are as good as the fastest; of equally lean ones the one that shares out most."""
    members = list(found)
    quickest = min(member.cost for member in members)
    return min(
        (member for member in members if member.cost <= quickest * (1 + NEAR)),
        key=lambda member: (member.memory.peak, member.cost, -(member.layout.zero_stage or 0)),
    )


def fits(candidate: Candidate, machine: Machine) -> bool:
    """True where it takes no more than a plan may fill, of the GPU and of the machine."""
    host = candidate.memory.host * machine.processes
    return candidate.memory.peak <= limit(machine) and host <= memory.PLANNED * machine.host_memory


def limit(machine: Machine) -> float:
    """Bytes that a plan may fill for each process."""
    return memory.PLANNED * machine.memory


def run_hours(workload: Workload, step_seconds: float, reference_seconds: float) -> float | None:
    """Hours of a stage; None where the amount of data is unknown."""
    steps = workload.steps()
    return None if steps is None else (steps * step_seconds + reference_seconds) / 3600


def divisors(share: int, most: int) -> list[int]:
    """Micro-batches that divide a process's share of the global batch and are no larger than `most`."""
    return [size for size in range(1, min(share, most) + 1) if share % size == 0]


def _layout(workload: Workload, micro_batch: int, zero_stage: Stage, offload: bool, is_checkpointed: bool) -> Layout:
    """A layout with DeepSpeed's buckets as accelerate derives them from the width, and no smaller than 10 MB on GPUs.

    DeepSpeed's own 500 M elements would take 1 GB each, and twice that where they are sent meanwhile.
    """
    machine, square = workload.machine, workload.sizes.width**2
    bucket = square if machine.on_cpu else max(square, SMALL_BUCKET)
    return Layout(
        nodes=machine.nodes,
        processes=machine.processes,
        on_cpu=machine.on_cpu,
        global_batch=workload.settings.global_batch,
        micro_batch=micro_batch,
        accumulation=workload.share // micro_batch,
        zero_stage=zero_stage,
        offload=offload,
        gradient_checkpointing=is_checkpointed,
        reduce_bucket=bucket,
        prefetch_bucket=bucket * 9 // 10,
        persistence_threshold=10 * workload.sizes.width,
    )


def _with_precomputed(workload: Workload) -> Workload:
    """The same where dDPO's reference is left open: a precomputed one is as exact as a live one and takes no memory."""
    settings = workload.settings
    is_open = isinstance(settings, Dpo) and settings.reference is None and preference_loss(settings).needs_reference
    if is_open:
        return replace(workload, settings=settings.model_copy(update={"reference": "precomputed"}))
    return workload


def _candidate(workload: Workload, layout: Layout) -> Candidate:
    model, machine, rows = workload.model, workload.machine, workload.rows(layout)
    step = throughput.step(model, layout, machine, rows)
    once, cost = 0.0, step.seconds
    if layout.reference == "precomputed":
        count, steps = workload.count(), workload.steps()
        if count and steps:
            once = throughput.reference_seconds(model, layout, machine, rows, count)
            cost += once / steps
        else:  # one pass over the data for so many epochs
            a_step = throughput.reference_seconds(model, layout, machine, rows, layout.global_batch)
            cost += a_step / max(1.0, workload.settings.epochs)
    return Candidate(
        layout, memory.estimate_memory(model, layout, workload.micro_batch_shape(layout)), step, once, cost
    )


def _stages(workload: Workload, offload: bool) -> list[Stage]:
    """ZeRO stages to try; None is plain torch, which one process takes unless it is told otherwise."""
    launch, machine, adapter = workload.launch, workload.machine, workload.settings.adapter
    if launch.offload is not None and launch.offload != offload:
        return []
    if offload and (machine.on_cpu or (launch.profile == "paper" and not launch.offload)):
        return []
    if launch.zero_stage is not None:
        stages: list[Stage] = [launch.zero_stage]
    elif machine.world == 1:
        stages = [2] if offload else [None]
    elif launch.profile == "paper":
        stages = [3, 2] if adapter and adapter.quantize else [3]
    else:
        stages = [0, 1, 2, 3]
    is_quantized = adapter is not None and adapter.quantize
    return [stage for stage in stages if not (offload and stage in (None, 0)) and not (is_quantized and stage == 3)]


def _checkpointing(workload: Workload) -> list[bool]:
    stated = workload.settings.gradient_checkpointing
    if stated is not None:
        return [stated]
    return [True] if workload.launch.profile == "paper" else [False, True]


def _engines(workload: Workload) -> list[tuple[Engine, Reference]]:
    """How dDPO computes its pairs and its reference.

    A precomputed reference takes a pass over all pairs: where fewer are trained on, a live one may be quicker.
    """
    settings = workload.settings
    if not isinstance(settings, Dpo):
        return [(None, None)]
    is_paper = workload.launch.profile == "paper"
    engine: Engine = settings.engine or ("trl" if is_paper else "prefix-shared")
    if not preference_loss(settings).needs_reference:
        return [(engine, None)]
    if settings.reference or is_paper:
        return [(engine, settings.reference or "live")]
    count, steps = workload.count(), workload.steps()
    is_short = count is not None and steps is not None and steps * settings.global_batch < count
    return [(engine, "precomputed"), (engine, "live")] if is_short else [(engine, "precomputed")]
