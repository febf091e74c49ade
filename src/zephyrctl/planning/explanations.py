"""Explain in sentences why a layout was chosen, and describe the next best ones."""

from dataclasses import dataclass, replace
from typing import TypedDict

from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning import memory
from zephyrctl.planning.candidates import LayoutCandidate, candidates, choose, fits, fitting, memory_limit, run_hours
from zephyrctl.planning.workload import Workload
from zephyrctl.recipe.schema import Dpo


class AlternativeJson(TypedDict):
    """What `zephyrctl plan --json` shows for an alternative."""

    what: str
    layout: str
    peak_gb: float
    seconds_per_step: float
    hours: float | None


@dataclass(frozen=True)
class Alternative:
    """Another layout that fits, compared with the chosen one."""

    what: str
    candidate: LayoutCandidate
    hours: float | None

    def as_json(self) -> AlternativeJson:
        """What `--json` shows for it."""
        return {
            "what": self.what,
            "layout": str(self.candidate.layout),
            "peak_gb": round(self.candidate.memory.peak / 1e9, 2),
            "seconds_per_step": round(self.candidate.step.seconds, 3),
            "hours": None if self.hours is None else round(self.hours, 3),
        }


def alternatives(workload: Workload, chosen: LayoutCandidate, fitted: list[LayoutCandidate]) -> list[Alternative]:
    """The best layout of another kind (or else of another micro-batch), and what the other profile would choose."""
    others = [candidate for candidate in fitted if candidate.kind != chosen.kind]
    others = others or [candidate for candidate in fitted if candidate is not chosen]
    described = [_alternative(workload, chosen, choose(others))] if others else []
    profile = "fast" if workload.launch.profile == "paper" else "paper"
    launch = workload.launch.model_copy(update={"profile": profile})
    if fitted_by_profile := fitting(replace(workload, launch=launch)):
        best = choose(fitted_by_profile)
        if best.layout != chosen.layout:
            described.append(_alternative(workload, chosen, best, f"profile {profile!r}: "))
    return described


def explain(workload: Workload, chosen: LayoutCandidate, fitted: list[LayoutCandidate]) -> list[str]:
    """Sentences on the batch, the memory, the kind of layout, the micro-batch, and what the time depends on."""
    layout = chosen.layout
    sentences = [
        f"micro-batch {layout.micro_batch} x accumulation {layout.accumulation} x processes {layout.world} = "
        f"global batch {layout.global_batch}",
        _memory(workload, chosen),
        _stage(workload, chosen, fitted),
        _checkpointing(workload, chosen, fitted),
        _micro_batch(workload, chosen),
        _pairs(workload, chosen),
        _time(workload, chosen),
    ]
    return [sentence for sentence in sentences if sentence]


def difference(layout: Layout, other: Layout) -> str:
    """How another layout differs: `ZeRO-3, without checkpointing, 8 x 4 x 16 rows`."""
    words = [layout_name(other)] if (layout.zero_stage, layout.offload) != (other.zero_stage, other.offload) else []
    if layout.gradient_checkpointing != other.gradient_checkpointing:
        words.append("with checkpointing" if other.gradient_checkpointing else "without checkpointing")
    if layout.engine != other.engine:
        words.append(f"engine {other.engine}")
    if layout.reference != other.reference:
        words.append(f"a {other.reference} reference")
    return ", ".join([*words, f"{batch_factors(other)} rows"])


def batch_factors(layout: Layout) -> str:
    """Micro-batch x accumulation x processes."""
    return f"{layout.micro_batch} x {layout.accumulation} x {layout.world}"


def layout_name(layout: Layout) -> str:
    """`plain torch`, or DeepSpeed's stage."""
    stage = "plain torch" if layout.zero_stage is None else f"ZeRO-{layout.zero_stage}"
    return f"{stage} with off-loading" if layout.offload else stage


def _alternative(workload: Workload, chosen: LayoutCandidate, other: LayoutCandidate, prefix: str = "") -> Alternative:
    what = f"{prefix}{difference(chosen.layout, other.layout)}: {_compared(chosen, other)}"
    return Alternative(what, other, run_hours(workload, other.step.seconds, other.reference_seconds))


def _compared(chosen: LayoutCandidate, other: LayoutCandidate) -> str:
    """`12.0 % more time, 3.1 GB less memory`."""
    percent = round(100 * (other.cost / chosen.cost - 1), 1)
    gigabytes = round((other.memory.peak - chosen.memory.peak) / 1e9, 1)
    time = f"{abs(percent):.1f} % {_more_or_less(percent)} time" if percent else "the same time"
    size = f"{abs(gigabytes):.1f} GB {_more_or_less(gigabytes)} memory" if gigabytes else "the same memory"
    return f"{time}, {size}"


def _more_or_less(difference: float) -> str:
    return "more" if difference > 0 else "less"


def _memory(workload: Workload, chosen: LayoutCandidate) -> str:
    machine = workload.machine
    parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in chosen.memory.parts.items())
    owner = "process" if machine.on_cpu else machine.device.name
    sentence = (
        f"peak memory is {chosen.memory.peak / 1e9:.1f} GB per {owner} ({parts}); a plan may use "
        f"{memory_limit(machine) / 1e9:.1f} GB, {100 * memory.PLANNED:.0f} % of {machine.memory / 1e9:.1f} GB"
    )
    if chosen.layout.offload:
        host = chosen.memory.host * chosen.layout.processes
        sentence += f"; {host / 1e9:.0f} GB of states are in the memory of each machine"
    return sentence


def _stage(workload: Workload, chosen: LayoutCandidate, fitted: list[LayoutCandidate]) -> str:
    layout, launch = chosen.layout, workload.launch
    precision = _precision(workload, layout)
    if layout.zero_stage is None:
        return f"one process needs no DeepSpeed: {precision}"
    if launch.zero_stage is not None:
        return f"{layout_name(layout)}, set by launch.zero_stage: {precision}"
    if layout.offload:
        return f"{layout_name(layout)}, because nothing fits without off-loading: {precision}"
    if launch.profile == "paper":
        return f"{layout_name(layout)}, set by profile 'paper': {precision}"
    return f"{layout_name(layout)}: {precision}; {_other_stages(workload, chosen, fitted)}"


def _other_stages(workload: Workload, chosen: LayoutCandidate, fitted: list[LayoutCandidate]) -> str:
    """What each other ZeRO stage would take, or how much memory it would need at least."""
    clauses = []
    for stage in (0, 1, 2, 3):
        if stage == chosen.layout.zero_stage:
            continue
        same_stage = [candidate for candidate in fitted if candidate.layout.zero_stage == stage]
        if same_stage:
            clauses.append(f"ZeRO-{stage} would take {_compared(chosen, choose(same_stage))}")
            continue
        peaks = [each.memory.peak for each in candidates(workload, False) if each.layout.zero_stage == stage]
        if peaks:
            clauses.append(f"ZeRO-{stage} would need at least {min(peaks) / 1e9:.1f} GB")
    return "; ".join(clauses)


def _precision(workload: Workload, layout: Layout) -> str:
    if workload.settings.adapter:
        frozen = "4 bits" if workload.settings.adapter.quantize else workload.launch.precision
        return f"adapters are trained in fp32, and the other weights are frozen in {frozen}"
    if layout.zero_stage is None:
        return "weights, gradients and AdamW's two moments are fp32, 16 bytes per parameter"
    if workload.launch.precision == "bf16":
        return "weights are bf16, master weights and AdamW's moments are fp32"
    masters = "" if layout.zero_stage == 0 else ", and DeepSpeed keeps master weights even so"
    return f"everything is fp32{masters}"


def _checkpointing(workload: Workload, chosen: LayoutCandidate, fitted: list[LayoutCandidate]) -> str:
    is_on, settings = chosen.layout.gradient_checkpointing, workload.settings
    if settings.gradient_checkpointing is not None:
        return f"checkpointing is {'on' if is_on else 'off'}, set by {workload.stage}.gradient_checkpointing"
    if workload.launch.profile == "paper":
        return "checkpointing is on, set by profile 'paper'"
    others = [candidate for candidate in fitted if candidate.layout.gradient_checkpointing != is_on]
    if others:
        return f"{'without' if is_on else 'with'} checkpointing it would take {_compared(chosen, choose(others))}"
    return "checkpointing is on, because nothing fits without it" if is_on else ""


def _micro_batch(workload: Workload, chosen: LayoutCandidate) -> str:
    """What the next larger micro-batch would take."""
    size, settings = chosen.layout.micro_batch, workload.settings
    same_kind = [each for each in candidates(workload, chosen.layout.offload) if each.kind == chosen.kind]
    larger = [candidate for candidate in same_kind if candidate.layout.micro_batch > size]
    if not larger:
        is_limited = settings.micro_batch is not None and size < workload.rows_per_process
        return f"{workload.stage}.micro_batch allows no larger micro-batch" if is_limited else ""
    following = min(larger, key=lambda candidate: candidate.layout.micro_batch)
    micro_batch = f"a micro-batch of {following.layout.micro_batch}"
    if not fits(following, workload.machine):
        return f"{micro_batch} would need {following.memory.peak / 1e9:.1f} GB"
    return f"{micro_batch} would take {_compared(chosen, following)}"


def _pairs(workload: Workload, chosen: LayoutCandidate) -> str:
    layout = chosen.layout
    if layout.engine is None:
        return ""
    engine = "TRL computes the prompt of a pair twice, once for each answer"
    if layout.engine == "prefix-shared":
        engine = "the prompt of a pair is computed once for both answers"
    if layout.reference is None:
        return f"{engine}; the loss needs no reference"
    if layout.reference == "live":
        return f"{engine}; the reference is computed at every step"
    minutes = f", in {chosen.reference_seconds / 60:.0f} minutes" if chosen.reference_seconds else ""
    is_forced = workload.launch.profile == "paper" and not _names_reference(workload)
    reason = ", because a live one does not fit" if is_forced else ""
    return f"{engine}; the reference is computed once, before training{minutes}{reason}"


def _names_reference(workload: Workload) -> bool:
    return isinstance(workload.settings, Dpo) and workload.settings.reference is not None


def _time(workload: Workload, chosen: LayoutCandidate) -> str:
    step, percent = chosen.step, 100 * workload.machine.device.utilisation
    sentence = (
        f"a step takes {step.seconds:.2f} s if arithmetic reaches {percent:.0f} % of the peak; --probe measures it"
    )
    if step.traffic:
        sentence += f"; each process exchanges {step.traffic / 1e9:.1f} GB per step, in {step.traffic_seconds:.2f} s"
    return sentence
