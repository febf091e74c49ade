"""Errors for what cannot be trained: the reason in numbers, and the nearest changes that would work, each solved."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from zephyrctl.errors import ZephyrError
from zephyrctl.planning import hardware
from zephyrctl.planning.candidates import LayoutCandidate, candidates, choose, fitting, memory_limit
from zephyrctl.planning.explanations import batch_factors, layout_name
from zephyrctl.planning.memory import PLANNED
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Adapter, Dpo, Hardware, Launch

STATE_BYTES = 16
"""Bytes per parameter: weights 2, gradients 2, fp32 masters 4 and AdamW's two moments 8 (ZeRO paper, section 3.1)."""
LONGEST_STEP = 3600.0
"""Seconds: a layout with longer steps fits, but is not worth suggesting."""
LENGTH_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Shorter rows to try, as shares of the recipe's `max_length`."""
SHORTEST = 128
"""Tokens of the shortest rows to suggest."""
MOST_PROCESSES = 64
"""Most processes per machine to suggest."""
SUGGESTED = 3
"""Most changes that an error suggests."""
SUGGESTED_GPU = "a100-80gb"
"""The GPU to suggest if there is none here."""

SettingValue = str | bool | None
"""A value of a recipe's setting."""


@dataclass(frozen=True)
class SuggestedChange:
    """Other settings or another machine, and the options that say so."""

    options: str
    what: str
    workload: Workload


def check_settings(workload: Workload) -> None:
    """Raise ZephyrError if the global batch cannot be divided equally, or if settings contradict each other."""
    if workload.settings.global_batch % workload.machine.world:
        _raise_indivisible(workload)
    if contradiction := _contradiction(workload):
        raise ZephyrError(*contradiction)


def _contradiction(workload: Workload) -> tuple[str, str] | None:
    """The problem and the remedy, if two settings exclude each other."""
    launch, adapter = workload.launch, workload.settings.adapter
    if launch.offload and workload.machine.on_cpu:
        return "launch.offload: there is no GPU to off-load from", "--set launch.offload=null"
    if launch.offload and launch.zero_stage == 0:
        return "launch.offload: ZeRO-0 cannot off-load optimizer states", "--set launch.zero_stage=null"
    if adapter and adapter.quantize and launch.zero_stage == 3:
        problem = f"{workload.stage}.adapter.quantize: ZeRO-3 cannot partition 4-bit weights"
        return problem, "--set launch.zero_stage=2"
    return None


def raise_infeasible(workload: Workload) -> NoReturn:
    """Raise ZephyrError because nothing fits: the memory of the smallest layout, and changes that would fit."""
    raise ZephyrError(
        f"{workload.stage} does not fit on {workload.machine}: {_states(workload)}; {_smallest_layout(workload)}",
        "; or ".join(suggestions(workload)) or "choose a smaller base, or machines with more memory",
    )


def suggestions(workload: Workload) -> list[str]:
    """The nearest changes with which the stage fits, each solved: the options, and the layout in brackets."""
    suggested = []
    for similar_changes in _changes(workload):
        for change in similar_changes:
            if candidate := _solve(change.workload):
                suggested.append(_describe(change, candidate))
                break
        if len(suggested) == SUGGESTED:
            break
    if workload.machine.on_cpu:
        suggested.append("see the whole recipe work here: zephyrctl run --recipe tiny")
    return suggested


def _raise_indivisible(workload: Workload) -> NoReturn:
    batch, world = workload.settings.global_batch, workload.machine.world
    changes = [*_other_batches(workload), *_other_worlds(workload)]
    suggested = [_describe(change, candidate) for change in changes if (candidate := _solve(change.workload))]
    if not suggested:  # the batch is not the only problem: suggest two changes together
        for change in changes:
            further = suggestions(change.workload)
            if further and further[0].startswith("--"):
                suggested.append(f"{change.options} {further[0]}")
        suggested = suggested[:SUGGESTED]
    raise ZephyrError(
        f"{workload.stage}.global_batch: {batch} rows cannot be divided equally among {world} processes "
        f"({workload.machine}): {batch / world:.2f} rows each",
        "; or ".join(suggested) or f"choose a global batch that {world} divides",
    )


def _other_batches(workload: Workload) -> Iterator[SuggestedChange]:
    """The nearest global batches, below and above, that the processes can share equally."""
    batch, world = workload.settings.global_batch, workload.machine.world
    for near in (batch // world * world, -(-batch // world) * world):
        if near:
            options = f"--set {workload.stage}.global_batch={near}"
            settings = workload.settings.model_copy(update={"global_batch": near})
            yield SuggestedChange(options, "nearest batch", replace(workload, settings=settings))


def _other_worlds(workload: Workload) -> Iterator[SuggestedChange]:
    """The nearest numbers of processes that can share the global batch equally."""
    machine, batch = workload.machine, workload.settings.global_batch
    divisors = [count for count in range(1, MOST_PROCESSES + 1) if batch % (machine.nodes * count) == 0]
    fewer = max((count for count in divisors if count < machine.processes), default=None)
    more = min((count for count in divisors if count > machine.processes), default=None)
    for count in (fewer, more):
        if count:
            yield _with_processes(workload, machine.nodes, count)


def _changes(workload: Workload) -> Iterator[Iterator[SuggestedChange]]:
    """Groups of similar changes, the nearest first; the first change of a group that works is suggested."""
    yield _lifted_limits(workload)
    yield _shorter_rows(workload)
    yield _adapter(workload, quantize=True)
    yield _adapter(workload, quantize=False)
    yield _more_gpus(workload)


def _lifted_limits(workload: Workload) -> Iterator[SuggestedChange]:
    """The recipe without the settings that exclude layouts: one setting at a time, and then all of them."""
    launch, settings = _limits(workload)
    for key, value in launch.items():
        yield _with_settings(workload, {key: value}, {})
    for key, value in settings.items():
        yield _with_settings(workload, {}, {key: value})
    if len(launch) + len(settings) > 1:
        yield _with_settings(workload, launch, settings)


def _limits(workload: Workload) -> tuple[dict[str, SettingValue], dict[str, SettingValue]]:
    """Settings of `launch` and of the stage that exclude layouts, with the values that would allow them."""
    launch, settings = workload.launch, workload.settings
    changed: dict[str, SettingValue] = {}
    if launch.zero_stage is not None:
        changed["zero_stage"] = None
    if launch.profile == "paper":
        changed["profile"] = "fast"
    if not workload.machine.on_cpu and (launch.offload is False or (launch.profile == "paper" and not launch.offload)):
        changed["offload"] = True
    own: dict[str, SettingValue] = {}
    if settings.gradient_checkpointing is False:
        own["gradient_checkpointing"] = True
    if isinstance(settings, Dpo) and settings.reference == "live":
        own["reference"] = "precomputed"
    return changed, own


def _with_settings(
    workload: Workload, launch: dict[str, SettingValue], settings: dict[str, SettingValue]
) -> SuggestedChange:
    options = [f"--set launch.{key}={_yaml(value)}" for key, value in launch.items()]
    options += [f"--set {workload.stage}.{key}={_yaml(value)}" for key, value in settings.items()]
    changed = replace(
        workload,
        launch=workload.launch.model_copy(update=launch),
        settings=workload.settings.model_copy(update=settings),
    )
    return SuggestedChange(" ".join(options), "if allowed", changed)


def _yaml(value: SettingValue) -> str:
    if value is None:
        return "null"
    return str(value).lower()


def _shorter_rows(workload: Workload) -> Iterator[SuggestedChange]:
    longest = workload.settings.max_length
    for share in LENGTH_SHARES:
        length = int(longest * share) // 64 * 64
        if length >= SHORTEST:
            settings = workload.settings.model_copy(update={"max_length": length})
            options = f"--set {workload.stage}.max_length={length}"
            yield SuggestedChange(options, "shorter rows", replace(workload, settings=settings))


def _adapter(workload: Workload, quantize: bool) -> Iterator[SuggestedChange]:
    """LoRA; or QLoRA, on a GPU only."""
    own = workload.settings.adapter
    if (own and own.quantize >= quantize) or (quantize and workload.machine.on_cpu):
        return
    adapter = (own or Adapter()).model_copy(update={"quantize": quantize})
    setting = "quantize=true" if quantize else f"rank={adapter.rank}"
    what = f"{'QLoRA' if quantize else 'LoRA'} of rank {adapter.rank}"
    settings = workload.settings.model_copy(update={"adapter": adapter})
    options = f"--set {workload.stage}.adapter.{setting}"
    yield SuggestedChange(options, what, replace(workload, settings=settings))


def _more_gpus(workload: Workload) -> Iterator[SuggestedChange]:
    """More GPUs of the same kind, or some if there are none: one machine with up to eight, then several machines."""
    machine = workload.machine
    if machine.on_cpu:
        for gpus in (1, 2, 4, 8):
            other = hardware.machine(Hardware(gpu_type=SUGGESTED_GPU, gpus=gpus), Launch())
            one_machine = "--nodes 1 " if machine.nodes > 1 else ""
            options = f"{one_machine}--gpus {gpus} --gpu-type {SUGGESTED_GPU}"
            yield SuggestedChange(options, str(other), replace(workload, machine=other))
        return
    for nodes, gpus in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8)):
        if nodes * gpus > machine.world:
            yield _with_processes(workload, nodes, gpus)


def _with_processes(workload: Workload, nodes: int, processes: int) -> SuggestedChange:
    """The same workload on another number of machines, or of processes per machine."""
    machine = workload.machine
    # machines with more GPUs are built with more memory, in proportion; those without have what they have
    memory = machine.host_memory if machine.on_cpu else machine.host_memory / machine.processes * processes
    other = machine.model_copy(update={"nodes": nodes, "processes": processes, "host_memory": memory})
    options = f"--set launch.processes={processes}" if machine.on_cpu else f"--gpus {processes}"
    if nodes != machine.nodes:
        options = f"--nodes {nodes} {options}"
    return SuggestedChange(options, str(other), replace(workload, machine=other))


def _solve(workload: Workload) -> LayoutCandidate | None:
    """The best layout of a changed workload; None if nothing fits, or if a step would take more than an hour."""
    if workload.settings.global_batch % workload.machine.world or _contradiction(workload):
        return None
    fitted = fitting(workload)
    best = choose(fitted) if fitted else None
    return best if best and best.step.seconds <= LONGEST_STEP else None


def _describe(change: SuggestedChange, candidate: LayoutCandidate) -> str:
    layout, gigabytes = candidate.layout, candidate.memory.peak / 1e9
    return f"{change.options} ({change.what}: {layout_name(layout)}, {batch_factors(layout)} rows, {gigabytes:.0f} GB)"


def _states(workload: Workload) -> str:
    count = f"{workload.sizes.parameters / 1e9:.2f} B parameters"
    if adapter := workload.settings.adapter:
        frozen = "4 bits" if adapter.quantize else workload.launch.precision
        return f"{count} are frozen in {frozen}, with adapters of rank {adapter.rank}"
    states = STATE_BYTES * workload.sizes.parameters / 1e9
    return f"{count} need {states:.0f} GB for weights, gradients and optimizer states"


def _smallest_layout(workload: Workload) -> str:
    """The memory of the layout that needs the least, and why off-loading does not help, if it could."""
    machine = workload.machine
    on_device, off_loaded = list(candidates(workload, offload=False)), list(candidates(workload, offload=True))
    smallest = min(on_device or off_loaded, key=lambda candidate: candidate.memory.peak)
    layout, limit = smallest.layout, memory_limit(machine)
    checkpointing = "with" if layout.gradient_checkpointing else "without"
    clause = (
        f"the smallest layout ({layout_name(layout)}, {batch_factors(layout)} rows, {checkpointing} checkpointing) "
        f"needs {smallest.memory.peak / 1e9:.0f} GB, and a plan may use {limit / 1e9:.0f} GB per "
        f"{'process' if machine.on_cpu else 'GPU'}"
    )
    if any(candidate.memory.peak <= limit for candidate in off_loaded):
        needed = min(candidate.memory.host for candidate in off_loaded) * machine.processes
        clause += (
            f"; off-loading would need {needed / 1e9:.0f} GB of the machine's memory, and a plan may use "
            f"{PLANNED * machine.host_memory / 1e9:.0f} GB of it"
        )
    return clause
