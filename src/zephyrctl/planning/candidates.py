"""List the layouts that a stage could use, estimate each, and choose the best."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.preference_loss import preference_loss
from zephyrctl.planning import memory, throughput
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import MemoryEstimate
from zephyrctl.planning.throughput import StepTime
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Dpo

NEAR = 0.01
"""A layout that is at most this much slower counts as equally fast."""
SMALL_BUCKET = 5_000_000
"""Elements, 10 MB in bf16: with smaller messages NCCL does not reach its bandwidth."""

ZeroStage = Literal[0, 1, 2, 3] | None
Engine = Literal["prefix-shared", "trl"] | None
Reference = Literal["precomputed", "live"] | None
Kind = tuple[ZeroStage, bool, bool, Engine, Reference]
"""ZeRO stage, off-loading, checkpointing, engine and reference of a layout."""


@dataclass(frozen=True)
class LayoutCandidate:
    """A layout with its memory and its time."""

    layout: Layout
    memory: MemoryEstimate
    step: StepTime
    reference_seconds: float
    """Seconds before the first step, to precompute the reference."""
    cost: float
    """Seconds per step, with each step's share of `reference_seconds`; candidates are compared by it."""

    @property
    def kind(self) -> Kind:
        """Everything but the micro-batch."""
        layout = self.layout
        return layout.zero_stage, layout.offload, layout.gradient_checkpointing, layout.engine, layout.reference


def fitting(workload: Workload) -> list[LayoutCandidate]:
    """The candidates that fit in memory.

    Off-loading is tried only if nothing fits without it, and then a precomputed instead of the paper's live reference.
    """
    # The smallest concession first: off-loading costs speed, a precomputed reference departs from the paper.
    for variant in (workload, _with_precomputed(workload)):
        for offload in (False, True):
            fitted = [candidate for candidate in candidates(variant, offload) if fits(candidate, workload.machine)]
            if fitted:
                return fitted
    return []


def candidates(workload: Workload, offload: bool) -> Iterator[LayoutCandidate]:
    """Every layout that the recipe allows, whether it fits or not."""
    # At most 4 ZeRO stages x 2 x 2 engines or references x the divisors of the rows per process: 64 rows have 7, so a
    # hundred layouts or so, each estimated by formulas in about a millisecond. No search is needed.
    largest = workload.settings.micro_batch or workload.rows_per_process
    for zero_stage in _stages(workload, offload):
        for is_checkpointed in _checkpointing(workload):
            for engine, reference in _engines(workload):
                for micro_batch in divisors(workload.rows_per_process, largest):
                    layout = _layout(workload, micro_batch, zero_stage, offload, is_checkpointed)
                    yield _candidate(workload, layout.model_copy(update={"engine": engine, "reference": reference}))


def choose(fitted: Iterable[LayoutCandidate]) -> LayoutCandidate:
    """The candidate that needs the least memory among those within 1 % of the fastest.

    If several need the same, the faster one, then the one with the highest ZeRO stage.
    """
    all_of_them = list(fitted)
    # Estimated times are wrong by far more than 1 %, so that among equals memory decides: it is what runs out.
    fastest = min(candidate.cost for candidate in all_of_them)
    equally_fast = [candidate for candidate in all_of_them if candidate.cost <= fastest * (1 + NEAR)]
    return min(
        equally_fast,
        key=lambda candidate: (candidate.memory.peak, candidate.cost, -(candidate.layout.zero_stage or 0)),
    )


def fits(candidate: LayoutCandidate, machine: Machine) -> bool:
    """True if it needs no more than a plan may fill, of the GPU and of the machine's memory."""
    host = candidate.memory.host * machine.processes
    return candidate.memory.peak <= memory_limit(machine) and host <= memory.PLANNED * machine.host_memory


def memory_limit(machine: Machine) -> float:
    """Bytes that a plan may fill for each process."""
    return memory.PLANNED * machine.memory


def run_hours(workload: Workload, step_seconds: float, reference_seconds: float) -> float | None:
    """Hours of a stage; None if the amount of data is unknown."""
    steps = workload.steps()
    return None if steps is None else (steps * step_seconds + reference_seconds) / 3600


def divisors(rows: int, largest: int) -> list[int]:
    """Micro-batches that divide the rows of a process exactly and are no larger than `largest`."""
    return [size for size in range(1, min(rows, largest) + 1) if rows % size == 0]


def _layout(
    workload: Workload, micro_batch: int, zero_stage: ZeroStage, offload: bool, is_checkpointed: bool
) -> Layout:
    """A layout whose DeepSpeed buckets are the ones that accelerate derives from the width, but 10 MB or more on GPUs.

    DeepSpeed's own default of 500 M elements would take 1 GB per bucket in bf16, and there are two.
    """
    machine, square = workload.machine, workload.sizes.width**2
    bucket = square if machine.on_cpu else max(square, SMALL_BUCKET)
    return Layout(
        nodes=machine.nodes,
        processes=machine.processes,
        on_cpu=machine.on_cpu,
        global_batch=workload.settings.global_batch,
        micro_batch=micro_batch,
        accumulation=workload.rows_per_process // micro_batch,
        zero_stage=zero_stage,
        offload=offload,
        gradient_checkpointing=is_checkpointed,
        reduce_bucket=bucket,
        prefetch_bucket=bucket * 9 // 10,  # accelerate's "auto": 0.9 width^2, and 10 width for the threshold
        persistence_threshold=10 * workload.sizes.width,
    )


def _with_precomputed(workload: Workload) -> Workload:
    """The same with a precomputed reference if the recipe names none: as exact as a live one, but without memory."""
    settings = workload.settings
    is_open = isinstance(settings, Dpo) and settings.reference is None and preference_loss(settings).needs_reference
    if is_open:
        return replace(workload, settings=settings.model_copy(update={"reference": "precomputed"}))
    return workload


def _candidate(workload: Workload, layout: Layout) -> LayoutCandidate:
    model, machine, row = workload.model, workload.machine, workload.average_row(layout)
    step = throughput.estimate_step(model, layout, machine, row)
    reference_seconds, cost = 0.0, step.seconds
    if layout.reference == "precomputed":
        rows, steps = workload.rows_per_epoch(), workload.steps()
        if rows and steps:
            reference_seconds = throughput.reference_seconds(model, layout, machine, row, rows)
            cost += reference_seconds / steps
        else:  # unknown amount of data: each row gets one reference pass, and is in as many steps as there are epochs
            per_step = throughput.reference_seconds(model, layout, machine, row, layout.global_batch)
            cost += per_step / max(1.0, workload.settings.epochs)
    estimate = memory.estimate_memory(model, layout, workload.micro_batch_shape(layout))
    return LayoutCandidate(layout, estimate, step, reference_seconds, cost)


def _stages(workload: Workload, offload: bool) -> list[ZeroStage]:
    """ZeRO stages to try; None is plain torch, the choice for one process."""
    launch, machine, adapter = workload.launch, workload.machine, workload.settings.adapter
    is_quantized = adapter is not None and adapter.quantize
    if launch.offload is not None and launch.offload != offload:
        return []
    # On a CPU the states are in the machine's memory already; the paper's profile off-loads only if the recipe says so.
    if offload and (machine.on_cpu or (launch.profile == "paper" and not launch.offload)):
        return []
    if launch.zero_stage is not None:
        stages: list[ZeroStage] = [launch.zero_stage]
    elif machine.world == 1:
        stages = [2] if offload else [None]
    elif launch.profile == "paper":
        stages = [2] if is_quantized else [3]
    else:
        stages = [0, 1, 2, 3]
    if offload:  # DeepSpeed off-loads partitioned states only
        stages = [stage for stage in stages if stage not in (None, 0)]
    if is_quantized:  # ZeRO-3 cannot partition 4-bit weights
        stages = [stage for stage in stages if stage != 3]
    return stages


def _checkpointing(workload: Workload) -> list[bool]:
    stated = workload.settings.gradient_checkpointing
    if stated is not None:
        return [stated]
    return [True] if workload.launch.profile == "paper" else [False, True]


def _engines(workload: Workload) -> list[tuple[Engine, Reference]]:
    """How dDPO can compute its pairs and its reference.

    Precomputing takes one pass over all pairs: if the run trains on few of them, a live reference may be faster.
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
    pairs, steps = workload.rows_per_epoch(), workload.steps()
    # A live reference passes once over each row that a step uses, a precomputed one over all pairs.
    is_short = pairs is not None and steps is not None and steps * settings.global_batch < pairs
    return [(engine, "precomputed"), (engine, "live")] if is_short else [(engine, "precomputed")]
