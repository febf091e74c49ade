"""What cannot be laid out, said with its reason in numbers and the nearest things that would work, each solved."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from zephyrctl.errors import ZephyrError
from zephyrctl.planning import hardware
from zephyrctl.planning.candidates import Candidate, candidates, choose, fitting, limit
from zephyrctl.planning.explanations import name, shares
from zephyrctl.planning.memory import PLANNED
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Adapter, Dpo, Hardware, Launch

STATE_BYTES = 16
"""Bytes a parameter of weights, gradients, fp32 masters and AdamW's two moments."""
BEARABLE = 3600.0
"""Seconds of a step beyond which a layout fits but helps nobody."""
SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Lengths of rows to try, beside the recipe's."""
SHORTEST = 128
MOST_PROCESSES = 64
OFFERED = 3
"""Changes that a refusal names, at most."""
GPUS_ELSEWHERE = "a100-80gb"
"""What to plan for where there is no GPU."""


@dataclass(frozen=True)
class Change:
    """Other settings or machines, with the words that give them to the command."""

    words: str
    what: str
    workload: Workload


def check(workload: Workload) -> None:
    """Raise ZephyrError where the global batch cannot be shared exactly, or where settings contradict each other."""
    if workload.settings.global_batch % workload.machine.world:
        _refuse_to_share(workload)
    if told := _contradiction(workload):
        raise ZephyrError(*told)


def _contradiction(workload: Workload) -> tuple[str, str] | None:
    """A problem and its remedy where settings cannot go together."""
    launch, adapter = workload.launch, workload.settings.adapter
    if launch.offload and workload.machine.on_cpu:
        return "launch.offload: there is no GPU whose states could lie elsewhere", "--set launch.offload=null"
    if launch.offload and launch.zero_stage == 0:
        return "launch.offload: ZeRO-0 keeps its states where it computes", "--set launch.zero_stage=null"
    if adapter and adapter.quantize and launch.zero_stage == 3:
        problem = f"{workload.stage}.adapter.quantize: ZeRO-3 cannot share out weights in 4 bits"
        return problem, "--set launch.zero_stage=2"
    return None


def refuse(workload: Workload) -> NoReturn:
    """Raise ZephyrError: nothing fits; what the leanest layout takes, and what would fit."""
    raise ZephyrError(
        f"{workload.stage} does not fit {workload.machine}: {_states(workload)}; {_least(workload)}",
        "; or ".join(offers(workload)) or "choose a smaller base, or machines with more memory",
    )


def offers(workload: Workload) -> list[str]:
    """The nearest changes under which the stage fits, each solved, as words for the command line."""
    told = []
    for alike in _changes(workload):
        for change in alike:
            if found := _solved(change.workload):
                told.append(_told(change, found))
                break
        if len(told) == OFFERED:
            break
    if workload.machine.on_cpu:
        told.append("see the whole recipe work here: zephyrctl run --recipe tiny")
    return told


def _refuse_to_share(workload: Workload) -> NoReturn:
    batch, world = workload.settings.global_batch, workload.machine.world
    changes = [*_other_batches(workload), *_other_worlds(workload)]
    told = [_told(change, found) for change in changes if (found := _solved(change.workload))]
    if not told:  # the batch is not all that is wrong
        further = [(change.words, offer) for change in changes for offer in offers(change.workload)[:1]]
        told = [f"{words} {offer}" for words, offer in further if offer.startswith("--")][:OFFERED]
    raise ZephyrError(
        f"{workload.stage}.global_batch: {batch} rows cannot be shared by {world} processes ({workload.machine}): "
        f"{batch / world:.2f} each",
        "; or ".join(told) or f"choose a global batch that {world} divides",
    )


def _other_batches(workload: Workload) -> Iterator[Change]:
    """The nearest global batches that the processes can share."""
    batch, world = workload.settings.global_batch, workload.machine.world
    for near in (batch // world * world, -(-batch // world) * world):
        if near:
            settings = workload.settings.model_copy(update={"global_batch": near})
            yield Change(
                f"--set {workload.stage}.global_batch={near}", "another batch", replace(workload, settings=settings)
            )


def _other_worlds(workload: Workload) -> Iterator[Change]:
    """The nearest numbers of processes that can share the global batch."""
    machine, batch = workload.machine, workload.settings.global_batch
    fair = [count for count in range(1, MOST_PROCESSES + 1) if batch % (machine.nodes * count) == 0]
    fewer = max((count for count in fair if count < machine.processes), default=None)
    more = min((count for count in fair if count > machine.processes), default=None)
    for count in (fewer, more):
        if count:
            yield _with_processes(workload, machine.nodes, count)


def _changes(workload: Workload) -> Iterator[Iterator[Change]]:
    """What could be changed, the nearest first; of changes that are alike the first that works is enough."""
    yield _permissions(workload)
    yield _shorter_rows(workload)
    yield _adapter(workload, quantize=True)
    yield _adapter(workload, quantize=False)
    yield _more_gpus(workload)


def _permissions(workload: Workload) -> Iterator[Change]:
    """What the recipe forbids, allowed: one thing at a time and then all of them."""
    launch, settings = _forbidden(workload)
    for key, value in launch.items():
        yield _allowed(workload, {key: value}, {})
    for key, value in settings.items():
        yield _allowed(workload, {}, {key: value})
    if len(launch) + len(settings) > 1:
        yield _allowed(workload, launch, settings)


def _forbidden(workload: Workload) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the recipe's launch and stage could say instead, so that more layouts are tried."""
    launch, settings = workload.launch, workload.settings
    changed: dict[str, Any] = {}
    if launch.zero_stage is not None:
        changed["zero_stage"] = None
    if launch.profile == "paper":
        changed["profile"] = "fast"
    if not workload.machine.on_cpu and (launch.offload is False or (launch.profile == "paper" and not launch.offload)):
        changed["offload"] = True
    own: dict[str, Any] = {}
    if settings.gradient_checkpointing is False:
        own["gradient_checkpointing"] = True
    if isinstance(settings, Dpo) and settings.reference == "live":
        own["reference"] = "precomputed"
    return changed, own


def _allowed(workload: Workload, launch: dict[str, Any], settings: dict[str, Any]) -> Change:
    words = [f"--set launch.{key}={_yaml(value)}" for key, value in launch.items()]
    words += [f"--set {workload.stage}.{key}={_yaml(value)}" for key, value in settings.items()]
    changed = replace(
        workload,
        launch=workload.launch.model_copy(update=launch),
        settings=workload.settings.model_copy(update=settings),
    )
    return Change(" ".join(words), "allowed", changed)


def _yaml(value: Any) -> str:
    return {None: "null", True: "true"}.get(value, str(value))


def _shorter_rows(workload: Workload) -> Iterator[Change]:
    longest = workload.settings.max_length
    for share in SHARES:
        length = int(longest * share) // 64 * 64
        if length >= SHORTEST:
            settings = workload.settings.model_copy(update={"max_length": length})
            words = f"--set {workload.stage}.max_length={length}"
            yield Change(words, "shorter rows", replace(workload, settings=settings))


def _adapter(workload: Workload, quantize: bool) -> Iterator[Change]:
    """LoRA, or QLoRA where a GPU can unpack its weights."""
    own = workload.settings.adapter
    if (own and own.quantize >= quantize) or (quantize and workload.machine.on_cpu):
        return
    adapter = (own or Adapter()).model_copy(update={"quantize": quantize})
    words = f"--set {workload.stage}.adapter.{'quantize=true' if quantize else f'rank={adapter.rank}'}"
    what = f"{'QLoRA' if quantize else 'LoRA'} of rank {adapter.rank}"
    yield Change(words, what, replace(workload, settings=workload.settings.model_copy(update={"adapter": adapter})))


def _more_gpus(workload: Workload) -> Iterator[Change]:
    """More GPUs of the kind, or some where there are none: machines of up to eight, then several."""
    machine = workload.machine
    if machine.on_cpu:
        elsewhere = Hardware(gpu_type=GPUS_ELSEWHERE)
        machines = [hardware.machine(elsewhere.model_copy(update={"gpus": gpus}), Launch()) for gpus in (1, 2, 4, 8)]
        for other in machines:
            one = "--nodes 1 " if machine.nodes > 1 else ""
            words = f"{one}--gpus {other.processes} --gpu-type {GPUS_ELSEWHERE}"
            yield Change(words, str(other), replace(workload, machine=other))
        return
    for nodes, gpus in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8)):
        if nodes * gpus > machine.world:
            yield _with_processes(workload, nodes, gpus)


def _with_processes(workload: Workload, nodes: int, processes: int) -> Change:
    """The same on other numbers of machines and of processes on each."""
    machine = workload.machine
    each = machine.host_memory if machine.on_cpu else machine.host_memory / machine.processes * processes
    other = machine.model_copy(update={"nodes": nodes, "processes": processes, "host_memory": each})
    words = f"--set launch.processes={processes}" if machine.on_cpu else f"--gpus {processes}"
    if nodes != machine.nodes:
        words = f"--nodes {nodes} {words}"
    return Change(words, str(other), replace(workload, machine=other))


def _solved(workload: Workload) -> Candidate | None:
    """The layout of a changed workload, or None: nothing fits, or a step would take more than an hour."""
    if workload.settings.global_batch % workload.machine.world or _contradiction(workload):
        return None
    found = fitting(workload)
    best = choose(found) if found else None
    return best if best and best.step.seconds <= BEARABLE else None


def _told(change: Change, found: Candidate) -> str:
    layout = found.layout
    return f"{change.words} ({change.what}: {name(layout)}, {shares(layout)} rows, {found.memory.peak / 1e9:.0f} GB)"


def _states(workload: Workload) -> str:
    count = f"{workload.sizes.parameters / 1e9:.2f} B parameters"
    if adapter := workload.settings.adapter:
        held = "4 bits" if adapter.quantize else workload.launch.precision
        return f"{count} are frozen in {held} beside adapters of rank {adapter.rank}"
    states = STATE_BYTES * workload.sizes.parameters / 1e9
    return f"{count} have {states:.0f} GB of weights, gradients and optimizer states"


def _least(workload: Workload) -> str:
    """What the leanest layout takes, and why off-loading does not help where it might."""
    machine, (here, elsewhere) = workload.machine, [list(candidates(workload, away)) for away in (False, True)]
    leanest = min(here or elsewhere, key=lambda one: one.memory.peak)
    layout, whose = leanest.layout, "for each process" if machine.on_cpu else "on each GPU"
    told = (
        f"the leanest layout ({name(layout)}, {shares(layout)} rows, "
        f"{'with' if layout.gradient_checkpointing else 'without'} checkpointing) takes "
        f"{leanest.memory.peak / 1e9:.0f} GB where a plan may fill {limit(machine) / 1e9:.0f} GB {whose}"
    )
    if [one for one in elsewhere if one.memory.peak <= limit(machine)]:
        host = min(one.memory.host for one in elsewhere) * machine.processes
        room = PLANNED * machine.host_memory
        told += f"; off-loading would take {host / 1e9:.0f} GB of {room / 1e9:.0f} GB of a machine's memory"
    return told
