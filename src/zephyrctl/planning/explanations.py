"""Why a layout was chosen, in plain sentences, and what the next best would be."""

from dataclasses import dataclass, replace
from typing import Any

from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning import memory
from zephyrctl.planning.candidates import Candidate, candidates, choose, fits, fitting, limit, run_hours
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Dpo


@dataclass(frozen=True)
class Alternative:
    """Another layout that fits, and what it would cost."""

    what: str
    candidate: Candidate
    hours: float | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` shows of it."""
        return {
            "what": self.what,
            "layout": str(self.candidate.layout),
            "peak_gb": round(self.candidate.memory.peak / 1e9, 2),
            "seconds_a_step": round(self.candidate.step.seconds, 3),
            "hours": None if self.hours is None else round(self.hours, 3),
        }


def alternatives(workload: Workload, chosen: Candidate, found: list[Candidate]) -> list[Alternative]:
    """The best of another kind, or else of another micro-batch, and what the other profile would choose."""
    others = [one for one in found if one.kind != chosen.kind] or [one for one in found if one is not chosen]
    told = [_alternative(workload, chosen, choose(others))] if others else []
    profile = "fast" if workload.launch.profile == "paper" else "paper"
    launch = workload.launch.model_copy(update={"profile": profile})
    if different := fitting(replace(workload, launch=launch)):
        best = choose(different)
        if best.layout != chosen.layout:
            told.append(_alternative(workload, chosen, best, f"profile {profile!r}: "))
    return told


def why(workload: Workload, chosen: Candidate, found: list[Candidate]) -> list[str]:
    """What decided: the batch, the memory, the kind of layout, the micro-batch, and what the time rests on."""
    layout = chosen.layout
    sentences = [
        f"{shares(layout)} is the global batch, {layout.global_batch} rows, exactly",
        _memory(workload, chosen),
        _stage(workload, chosen, found),
        _checkpointing(workload, chosen, found),
        _micro_batch(workload, chosen),
        _pairs(workload, chosen),
        _time(workload, chosen),
    ]
    return [sentence for sentence in sentences if sentence]


def difference(layout: Layout, other: Layout) -> str:
    """In what another layout differs: `ZeRO-3, without checkpointing, 8 x 4 x 16 rows`."""
    words = [name(other)] if (layout.zero_stage, layout.offload) != (other.zero_stage, other.offload) else []
    if layout.gradient_checkpointing != other.gradient_checkpointing:
        words.append("with checkpointing" if other.gradient_checkpointing else "without checkpointing")
    if layout.engine != other.engine:
        words.append(f"engine {other.engine}")
    if layout.reference != other.reference:
        words.append(f"a {other.reference} reference")
    return ", ".join([*words, f"{shares(other)} rows"])


def shares(layout: Layout) -> str:
    """Micro-batch x accumulation x processes."""
    return f"{layout.micro_batch} x {layout.accumulation} x {layout.world}"


def name(layout: Layout) -> str:
    """`plain torch`, or DeepSpeed's stage."""
    stage = "plain torch" if layout.zero_stage is None else f"ZeRO-{layout.zero_stage}"
    return f"{stage} with off-loading" if layout.offload else stage


def _alternative(workload: Workload, chosen: Candidate, other: Candidate, prefix: str = "") -> Alternative:
    seconds = other.step.seconds
    what = f"{prefix}{difference(chosen.layout, other.layout)}: {_compared(chosen, other)}"
    return Alternative(what, other, run_hours(workload, seconds, other.reference_seconds))


def _compared(chosen: Candidate, other: Candidate) -> str:
    """`12.0 % more time and 3.1 GB less`."""
    longer = round(100 * (other.cost / chosen.cost - 1), 1)
    more = round((other.memory.peak - chosen.memory.peak) / 1e9, 1)
    time = f"{abs(longer):.1f} % {_more(longer)} time" if longer else "as much time"
    return f"{time} and {f'{abs(more):.1f} GB {_more(more)}' if more else 'as much memory'}"


def _more(difference: float) -> str:
    return "more" if difference > 0 else "less"


def _memory(workload: Workload, chosen: Candidate) -> str:
    machine, layout = workload.machine, chosen.layout
    parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in chosen.memory.parts.items())
    whose = "of each process" if machine.on_cpu else f"of each {machine.device.name}"
    host = (
        f"; {chosen.memory.host * layout.processes / 1e9:.0f} GB lie in each machine's memory" if layout.offload else ""
    )
    return (
        f"{chosen.memory.peak / 1e9:.1f} GB at the peak, of {limit(machine) / 1e9:.1f} GB: {memory.PLANNED:g} of the "
        f"{machine.memory / 1e9:.1f} GB {whose} ({parts}){host}"
    )


def _stage(workload: Workload, chosen: Candidate, found: list[Candidate]) -> str:
    layout, launch = chosen.layout, workload.launch
    kept = _precision(workload, layout)
    if layout.zero_stage is None:
        return f"one process needs no DeepSpeed: {kept}"
    if launch.zero_stage is not None:
        return f"{name(layout)}, as launch.zero_stage says: {kept}"
    if layout.offload:
        return f"{name(layout)}, as nothing fits without: {kept}"
    if launch.profile == "paper":
        return f"{name(layout)}, as profile 'paper' says: {kept}"
    return f"{name(layout)}: {kept}; {_other_stages(workload, chosen, found)}"


def _other_stages(workload: Workload, chosen: Candidate, found: list[Candidate]) -> str:
    """What each other stage would have been: too large, or slower."""
    told = []
    for stage in (0, 1, 2, 3):
        if stage == chosen.layout.zero_stage:
            continue
        if fitted := [one for one in found if one.layout.zero_stage == stage]:
            told.append(f"ZeRO-{stage} would take {_compared(chosen, choose(fitted))}")
        elif tried := [one for one in candidates(workload, False) if one.layout.zero_stage == stage]:
            least = min(one.memory.peak for one in tried)
            told.append(f"ZeRO-{stage} would take {least / 1e9:.1f} GB at least")
    return "; ".join(told)


def _precision(workload: Workload, layout: Layout) -> str:
    if workload.settings.adapter:
        held = "4 bits" if workload.settings.adapter.quantize else workload.launch.precision
        return f"adapters are trained in fp32 beside weights that are frozen in {held}"
    if layout.zero_stage is None:
        return "weights, gradients and moments are fp32, 16 bytes a parameter"
    if workload.launch.precision == "bf16":
        return "weights are bf16, masters and moments fp32"
    masters = "" if layout.zero_stage == 0 else ", and DeepSpeed keeps masters beside the weights all the same"
    return f"everything is fp32{masters}"


def _checkpointing(workload: Workload, chosen: Candidate, found: list[Candidate]) -> str:
    is_on, settings = chosen.layout.gradient_checkpointing, workload.settings
    if settings.gradient_checkpointing is not None:
        return f"checkpointing is {'on' if is_on else 'off'}, as {workload.stage}.gradient_checkpointing says"
    if workload.launch.profile == "paper":
        return "checkpointing is on, as profile 'paper' says"
    others = [one for one in found if one.layout.gradient_checkpointing != is_on]
    if not others:
        return "checkpointing is on, as nothing fits without it" if is_on else ""
    return f"{'without' if is_on else 'with'} checkpointing it would take {_compared(chosen, choose(others))}"


def _micro_batch(workload: Workload, chosen: Candidate) -> str:
    """What the next larger micro-batch would have been."""
    size, settings = chosen.layout.micro_batch, workload.settings
    same = [one for one in candidates(workload, chosen.layout.offload) if one.kind == chosen.kind]
    larger = min((one for one in same if one.layout.micro_batch > size), key=_rows, default=None)
    if larger is None:
        is_stated = settings.micro_batch is not None and size < workload.share
        return f"{workload.stage}.micro_batch allows no more rows at once" if is_stated else ""
    if not fits(larger, workload.machine):
        return f"{_rows(larger)} rows at once would take {larger.memory.peak / 1e9:.1f} GB"
    return f"{_rows(larger)} rows at once would take {_compared(chosen, larger)}"


def _rows(candidate: Candidate) -> int:
    return candidate.layout.micro_batch


def _pairs(workload: Workload, chosen: Candidate) -> str:
    layout = chosen.layout
    if layout.engine is None:
        return ""
    engine = (
        "the prompt of a pair is computed once for both answers" if layout.engine == "prefix-shared" else "TRL's engine"
    )
    if layout.reference is None:
        return f"{engine}; the loss needs no reference"
    if layout.reference == "live":
        return f"{engine}; the reference is computed at every step"
    minutes = f", in {chosen.reference_seconds / 60:.0f} minutes" if chosen.reference_seconds else ""
    forced = ", as a live one does not fit" if workload.launch.profile == "paper" and not _is_stated(workload) else ""
    return f"{engine}; the reference is computed once, before training{minutes}{forced}"


def _is_stated(workload: Workload) -> bool:
    return isinstance(workload.settings, Dpo) and workload.settings.reference is not None


def _time(workload: Workload, chosen: Candidate) -> str:
    utilisation, step = workload.machine.device.utilisation, chosen.step
    travel = f"; {step.traffic / 1e9:.1f} GB travel in {step.traffic_seconds:.2f} s of them" if step.traffic else ""
    return (
        f"{step.seconds:.2f} s a step{travel}, if arithmetic reaches {utilisation:g} of the peak: --probe measures it"
    )
