"""How long a step of a layout takes: arithmetic, what travels between devices, and how much of that is waited for."""

from dataclasses import dataclass
from math import log, sqrt

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import TrainedModel, linear_parameters

MATMUL = 0.77
"""Share of the peak that large matrix products reach; with some hundred tokens reading the weights takes longer."""
EXPOSED = 0.1
"""Share of the shorter of arithmetic and communication that does not hide behind the other; ours."""
EXPOSED_AT_WORST = 0.5
SPREAD = 1 / 6
"""How far the utilisation may lie from the table's: 0.40 to 0.56 on A100s."""
UPDATE_BYTES = 28
"""Bytes a parameter that AdamW reads and writes: weight, gradient and two moments in fp32."""
HOST_UPDATE_RATE = 100e9
"""Bytes a second that DeepSpeed's CPU Adam moves on a machine with GPUs; ours, for eight channels of memory."""
QUANTIZED = 0.85
"""Speed of arithmetic on weights that are unpacked from 4 bits, beside weights in bf16; ours."""
CPU_SECONDS, CPU_LAYER_SECONDS = 0.02, 0.006
"""What a micro-step and each of its layers take on a CPU however few tokens there are: 45 ms with four layers."""
GLOO_SECONDS, NCCL_SECONDS = 1e-3, 3e-5
"""What a collective takes however small it is; ours."""
HOOK_SECONDS = 7e-5
"""What ZeRO-3 takes beside it to fetch and to release weights around a module; ours."""
MATRICES = 7
"""A layer's parameters that travel: its norms are too small to be worth it."""
DEVIATION = 0.37
"""Of the length of a sequence, in means: with it UltraFeedback's answers, padded four at a time, are 0.62 full."""


@dataclass(frozen=True)
class Rows:
    """What a row of the data is, on average; for dDPO a row is a pair."""

    real: float
    """Tokens as training counts them: no padding, and a pair's prompt with each of its answers."""
    tokens: float
    """Tokens that are computed, but for padding; a prompt that its answers share counts once."""
    sequence: float
    """Tokens that attend to each other."""
    longest: float
    """What sequences are padded to, at most."""
    padded_together: int
    """Sequences of a row that are padded to one length with those of the micro-batch's other rows; 0 pads nothing."""

    def with_padding(self, micro_batch: int) -> float:
        """Tokens of a row that are computed in a micro-batch of so many.

        The longest of n sequences lies about sqrt(2 ln n) deviations above their mean.
        """
        count = max(1, self.padded_together * micro_batch)
        longest = 1 + DEVIATION * sqrt(2 * log(count))
        return self.tokens * max(1.0, min(longest, self.longest / self.sequence))


@dataclass(frozen=True)
class Step:
    """One optimizer step of all processes."""

    seconds: float
    quickest: float
    slowest: float
    """Seconds where utilisation and overlap are as good, and as bad, as they may be."""
    traffic: float
    """Bytes that each process sends and receives."""
    traffic_seconds: float
    """Seconds that this takes, hidden or not."""
    useful_flops: float
    """Operations of the model on real tokens: nothing that is computed again, no padding, no reference."""


def step(model: TrainedModel, layout: Layout, machine: Machine, rows: Rows) -> Step:
    """What an optimizer step takes."""
    computed = layout.micro_batch * rows.with_padding(layout.micro_batch)
    flops = computed * forward_flops(model.sizes, rows.sequence) * _passes(model, layout)
    traffic = _traffic(model, layout)

    def seconds(utilisation: float, exposed: float) -> float:
        arithmetic = flops / _rate(model, machine, computed, utilisation)
        arithmetic += CPU_SECONDS + CPU_LAYER_SECONDS * model.sizes.layers if layout.on_cpu else 0
        within = _beside(arithmetic, traffic.often, layout, machine, exposed)
        last = _beside(arithmetic, traffic.often + traffic.last, layout, machine, exposed)
        after = sum(_travel(traffic.after, layout, machine)) + _update(model, layout, machine)
        return (layout.accumulation - 1) * within + last + after

    likely = machine.device.utilisation
    return Step(
        seconds=seconds(likely, EXPOSED),
        quickest=seconds(min(1.0, likely * (1 + SPREAD)), 0.0),
        slowest=seconds(likely * (1 - SPREAD), EXPOSED_AT_WORST),
        traffic=traffic.whole(layout.accumulation).size,
        traffic_seconds=sum(_travel(traffic.whole(layout.accumulation), layout, machine)),
        useful_flops=layout.global_batch * rows.real * training_flops(model, rows.sequence),
    )


def reference_seconds(model: TrainedModel, layout: Layout, machine: Machine, rows: Rows, count: int) -> float:
    """What one forward pass over so many rows takes, for references that are computed beforehand."""
    tokens = rows.with_padding(layout.micro_batch) * count / layout.world
    rate = _rate(model, machine, rows.with_padding(layout.micro_batch) * layout.micro_batch, machine.device.utilisation)
    return tokens * forward_flops(model.sizes, rows.sequence) / rate


def forward_flops(sizes: Sizes, sequence: float) -> float:
    """Operations of a forward pass for one token: 2 N' + 2 L d s, N' without embeddings, s the sequence's length."""
    head = sizes.vocabulary * sizes.width
    is_tied = sizes.parameters < linear_parameters(sizes) + 1.5 * head
    products = sizes.parameters - (0 if is_tied else head)
    return 2 * products + 2 * sizes.layers * sizes.width * sequence


def training_flops(model: TrainedModel, sequence: float) -> float:
    """Operations of training for one token: a forward pass, and as much for inputs and for trained weights each."""
    return (2 if model.adapter else 3) * forward_flops(model.sizes, sequence)


def _passes(model: TrainedModel, layout: Layout) -> int:
    """Forward passes' worth of arithmetic in a micro-batch."""
    again = 1 if layout.gradient_checkpointing else 0
    return (2 if model.adapter else 3) + again + (1 if layout.reference == "live" else 0)


def _rate(model: TrainedModel, machine: Machine, tokens: float, utilisation: float) -> float:
    """Operations a second of one process, which waits for its weights to be read where tokens are few."""
    peak = machine.flops(model.precision)
    cores = machine.flops(model.precision) / machine.device.flops(model.precision)
    half = MATMUL * peak * model.element / (2 * machine.device.memory_rate * cores)
    unpacking = QUANTIZED if model.adapter and model.adapter.quantize else 1.0
    return peak * utilisation * unpacking * tokens / (tokens + half)


@dataclass(frozen=True)
class _Messages:
    """What a process sends and receives: bytes, in so many collectives."""

    size: float = 0.0
    count: float = 0.0

    def __add__(self, other: "_Messages") -> "_Messages":
        return _Messages(self.size + other.size, self.count + other.count)

    def __mul__(self, times: float) -> "_Messages":
        return _Messages(self.size * times, self.count * times)


@dataclass(frozen=True)
class _Traffic:
    """What travels beside every micro-step, beside the last one only, and after it while all wait."""

    often: _Messages = _Messages()
    last: _Messages = _Messages()
    after: _Messages = _Messages()

    def whole(self, accumulation: int) -> _Messages:
        """That of an optimizer step."""
        return self.often * accumulation + self.last + self.after


def _traffic(model: TrainedModel, layout: Layout) -> _Traffic:
    """ZeRO-3 gathers weights for each pass and spreads gradients; ZeRO-2 spreads gradients at every micro-step, ZeRO-1
    at the last, and both gather what the step has changed; ZeRO-0 sums gradients when all are there.
    """
    if layout.zero_stage is None or layout.world == 1:
        return _Traffic()
    tensors = model.sizes.layers * MATRICES
    weights = _Messages(model.element * model.sizes.parameters, tensors)
    gradients = _Messages(model.element * model.trained, tensors)
    changed = _Messages(model.element * model.trained, 1)
    if layout.zero_stage == 3:
        return _Traffic(often=weights * (3 if layout.reference == "live" else 2) + gradients)
    if layout.zero_stage == 2:
        return _Traffic(often=gradients, after=changed)
    if layout.zero_stage == 1:
        return _Traffic(last=gradients, after=changed)
    return _Traffic(after=changed * 2)


def _beside(arithmetic: float, messages: _Messages, layout: Layout, machine: Machine, exposed: float) -> float:
    """Seconds of a micro-step: bytes travel beside the arithmetic, each collective's start holds it up."""
    travelling, starting = _travel(messages, layout, machine)
    return max(arithmetic, travelling) + exposed * min(arithmetic, travelling) + starting


def _travel(messages: _Messages, layout: Layout, machine: Machine) -> tuple[float, float]:
    """Seconds of the bytes, by the slower of the links inside and between machines, and of starting collectives."""
    rates = [machine.device.inside_rate] if layout.processes > 1 else []
    rates += [machine.device.between_rate] if layout.nodes > 1 else []
    if not rates:
        return 0.0, 0.0
    share = (layout.world - 1) / layout.world
    start = (GLOO_SECONDS if layout.on_cpu else NCCL_SECONDS) + (HOOK_SECONDS if layout.zero_stage == 3 else 0)
    return messages.size * share / min(rates), messages.count * start


def _update(model: TrainedModel, layout: Layout, machine: Machine) -> float:
    """Seconds of AdamW, on the device or, off-loaded, on the machine that the processes share."""
    count = model.trained / (layout.world if layout.zero_stage else 1)
    if layout.offload:
        moved = 2 * model.element * count / machine.device.host_rate
        return moved + UPDATE_BYTES * count * layout.processes / HOST_UPDATE_RATE
    cores = machine.flops(model.precision) / machine.device.flops(model.precision)
    return UPDATE_BYTES * count / (machine.device.memory_rate * cores)
