"""Estimate how long an optimizer step takes: arithmetic, communication, and how much the two overlap.

Times are in seconds, sizes in bytes, arithmetic in floating-point operations (FLOPs). Symbols as in `memory.py`; s is
the length of a sequence in tokens. Constants marked "ours" are estimates, which `zephyrctl plan --probe` replaces.
"""

from dataclasses import dataclass
from math import log, sqrt

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import TrainedModel, linear_parameters

MATMUL = 0.77
"""Share of the peak that large matrix products reach; with a few hundred tokens, reading the weights takes longer."""
EXPOSED = 0.1
"""Share of the shorter of arithmetic and communication that does not overlap with the other; ours."""
EXPOSED_AT_WORST = 0.5
SPREAD = 1 / 6
"""How far the utilisation may be from the hardware table's: on A100s it is 0.40 to 0.56."""
UPDATE_BYTES = 28
"""Bytes per parameter that AdamW reads (weight, gradient, two moments) and writes (all but the gradient), in fp32."""
HOST_UPDATE_RATE = 100e9
"""Bytes per second that DeepSpeed's CPU Adam reads and writes beside GPUs; ours, for eight memory channels."""
QUANTIZED = 0.85
"""Speed of arithmetic on weights that are dequantized from 4 bits, relative to bf16 weights; ours."""
CPU_SECONDS, CPU_LAYER_SECONDS = 0.02, 0.006
"""Fixed cost of a micro-step and of each of its layers on a CPU; with four layers it is 45 ms."""
GLOO_SECONDS, NCCL_SECONDS = 1e-3, 3e-5
"""Latency of a collective, however small it is; ours."""
HOOK_SECONDS = 7e-5
"""What ZeRO-3's hooks add to it when they gather and release the weights of a module; ours."""
MATRICES = 7
"""Matrices of a layer, each communicated on its own; the norms are too small to count."""
DEVIATION = 0.37
"""Standard deviation of sequence lengths over their mean: UltraFeedback's answers, padded in fours, are 0.62 full."""


@dataclass(frozen=True)
class AverageRow:
    """Average lengths of a row, in tokens; for dDPO a row is a pair."""

    real: float
    """Tokens as training counts them: without padding, and the prompt with each of its two answers."""
    computed: float
    """Tokens in the forward pass before padding; a prompt that two answers share counts once."""
    sequence: float
    """Tokens that attend to each other."""
    longest: float
    """Most tokens that a sequence is padded to."""
    padded_together: int
    """Sequences of a row that are padded to one length with those of the micro-batch's other rows; 0 pads nothing."""

    def with_padding(self, micro_batch: int) -> float:
        """Tokens of a row in the forward pass of a micro-batch of that size, padding included.

        The longest of n normal lengths is about sqrt(2 ln n) standard deviations above their mean.
        """
        count = max(1, self.padded_together * micro_batch)
        longest = 1 + DEVIATION * sqrt(2 * log(count))
        return self.computed * max(1.0, min(longest, self.longest / self.sequence))


@dataclass(frozen=True)
class StepTime:
    """The time of one optimizer step of all processes."""

    seconds: float
    best_case: float
    """Seconds if utilisation and overlap are as good as they may be."""
    worst_case: float
    """Seconds if both are as bad as they may be."""
    traffic: float
    """Bytes that each process sends and receives."""
    traffic_seconds: float
    """Seconds of communication, whether arithmetic hides it or not."""
    useful_flops: float
    """Operations of the model on real tokens: without recomputation, padding or a reference."""


def estimate_step(model: TrainedModel, layout: Layout, machine: Machine, row: AverageRow) -> StepTime:
    """The time of an optimizer step."""
    tokens = layout.micro_batch * row.with_padding(layout.micro_batch)
    flops = tokens * forward_flops(model.sizes, row.sequence) * _passes(model, layout)
    traffic = _traffic(model, layout)
    whole = traffic.of_step(layout.accumulation)

    def seconds(utilisation: float, exposed: float) -> float:
        arithmetic = flops / _flops_per_second(model, machine, tokens, utilisation)
        if layout.on_cpu:
            arithmetic += CPU_SECONDS + CPU_LAYER_SECONDS * model.sizes.layers
        # all micro-steps but the last, the last with what is sent only then, and what follows while everyone waits
        each = _micro_step_seconds(arithmetic, traffic.each, layout, machine, exposed)
        last = _micro_step_seconds(arithmetic, traffic.each + traffic.last, layout, machine, exposed)
        after = sum(_communication_seconds(traffic.after, layout, machine)) + _update_seconds(model, layout, machine)
        return (layout.accumulation - 1) * each + last + after

    likely = machine.device.utilisation
    return StepTime(
        seconds=seconds(likely, EXPOSED),
        best_case=seconds(min(1.0, likely * (1 + SPREAD)), 0.0),
        worst_case=seconds(likely * (1 - SPREAD), EXPOSED_AT_WORST),
        traffic=whole.size,
        traffic_seconds=sum(_communication_seconds(whole, layout, machine)),
        useful_flops=layout.global_batch * row.real * training_flops(model, row.sequence),
    )


def reference_seconds(model: TrainedModel, layout: Layout, machine: Machine, row: AverageRow, count: int) -> float:
    """The time of one forward pass over `count` rows, which precomputes the reference's log-probabilities."""
    per_row = row.with_padding(layout.micro_batch)
    utilisation = machine.device.utilisation
    speed = _flops_per_second(model, machine, per_row * layout.micro_batch, utilisation)
    tokens = per_row * count / layout.world
    return tokens * forward_flops(model.sizes, row.sequence) / speed


def forward_flops(sizes: Sizes, sequence: float) -> float:
    """Operations of a forward pass per token: 2 N' + 2 L d s (Kaplan et al., arXiv 2001.08361, section 2.1).

    N' leaves out the embedding, which is looked up and not multiplied; the head is multiplied, so N' includes it.
    """
    head = sizes.vocabulary * sizes.width
    # tied embeddings are counted once in the parameters, and that one matrix is multiplied as the head
    is_tied = sizes.parameters < linear_parameters(sizes) + 1.5 * head
    multiplied = sizes.parameters - (0 if is_tied else head)
    # attention: scores and their sum over values, 2 x 2 d s per layer, of which causality needs one half
    return 2 * multiplied + 2 * sizes.layers * sizes.width * sequence


def training_flops(model: TrainedModel, sequence: float) -> float:
    """Operations of training per token, without recomputation.

    The forward pass, as much again for gradients of activations, and as much for gradients of weights; with adapters
    the last is negligible, since the base is frozen.
    """
    return (2 if model.adapter else 3) * forward_flops(model.sizes, sequence)


def _passes(model: TrainedModel, layout: Layout) -> int:
    """Arithmetic of a micro-batch in forward passes: training, one more to recompute, one more for a live reference."""
    training = 2 if model.adapter else 3
    return training + (1 if layout.gradient_checkpointing else 0) + (1 if layout.reference == "live" else 0)


def _flops_per_second(model: TrainedModel, machine: Machine, tokens: float, utilisation: float) -> float:
    """Operations per second of one process with so many tokens in a micro-batch.

    A matrix of n weights takes 2 n tokens / (MATMUL peak) to multiply and b n / memory_rate to read. With `half` tokens
    the two are equal, and the speed is half of what many tokens reach (a roofline, with its corner rounded).
    """
    peak = machine.flops(model.precision)
    cores = peak / machine.device.flops(model.precision)  # 1 on a GPU; on a CPU each core adds bandwidth
    half = MATMUL * peak * model.element / (2 * machine.device.memory_rate * cores)
    dequantizing = QUANTIZED if model.adapter and model.adapter.quantize else 1.0
    return peak * utilisation * dequantizing * tokens / (tokens + half)


@dataclass(frozen=True)
class _Messages:
    """What a process sends and receives: bytes in total, and the number of collectives that carry them."""

    size: float = 0.0
    count: float = 0.0

    def __add__(self, other: "_Messages") -> "_Messages":
        return _Messages(self.size + other.size, self.count + other.count)

    def __mul__(self, times: float) -> "_Messages":
        return _Messages(self.size * times, self.count * times)


@dataclass(frozen=True)
class _Traffic:
    """Communication of an optimizer step."""

    each: _Messages = _Messages()
    """During every micro-step."""
    last: _Messages = _Messages()
    """During the last micro-step only."""
    after: _Messages = _Messages()
    """After the last micro-step, while all processes wait."""

    def of_step(self, accumulation: int) -> _Messages:
        """All messages of an optimizer step."""
        return self.each * accumulation + self.last + self.after


def _traffic(model: TrainedModel, layout: Layout) -> _Traffic:
    """What a layout communicates (ZeRO paper, section 7): weights b N, gradients b N of what is trained."""
    if layout.zero_stage is None or layout.world == 1:
        return _Traffic()
    tensors = model.sizes.layers * MATRICES
    weights = _Messages(model.element * model.sizes.parameters, tensors)
    gradients = _Messages(model.element * model.trained, tensors)
    updated = _Messages(model.element * model.trained, 1)
    if layout.zero_stage == 3:
        # all-gather of the weights for the forward, the backward and a reference's pass; reduce-scatter of gradients
        return _Traffic(each=weights * (3 if layout.reference == "live" else 2) + gradients)
    if layout.zero_stage == 2:
        # reduce-scatter of gradients in each micro-step, all-gather of the updated weights after the step
        return _Traffic(each=gradients, after=updated)
    if layout.zero_stage == 1:
        # the same, but gradients are added up locally until the last micro-step
        return _Traffic(last=gradients, after=updated)
    return _Traffic(after=updated * 2)  # all-reduce of the gradients: a reduce-scatter and an all-gather


def _micro_step_seconds(
    arithmetic: float, messages: _Messages, layout: Layout, machine: Machine, exposed: float
) -> float:
    """Seconds of a micro-step: bytes are sent during the arithmetic, but the start of each collective delays it."""
    sending, starting = _communication_seconds(messages, layout, machine)
    return max(arithmetic, sending) + exposed * min(arithmetic, sending) + starting


def _communication_seconds(messages: _Messages, layout: Layout, machine: Machine) -> tuple[float, float]:
    """Seconds to send the bytes, over the slower of the links inside and between machines, and to start collectives."""
    rates = [machine.device.inside_rate] if layout.processes > 1 else []
    rates += [machine.device.between_rate] if layout.nodes > 1 else []
    if not rates:
        return 0.0, 0.0
    sent = (layout.world - 1) / layout.world  # in a ring each process passes on all partitions but one
    start = (GLOO_SECONDS if layout.on_cpu else NCCL_SECONDS) + (HOOK_SECONDS if layout.zero_stage == 3 else 0)
    return messages.size * sent / min(rates), messages.count * start


def _update_seconds(model: TrainedModel, layout: Layout, machine: Machine) -> float:
    """Seconds of AdamW, which only reads and writes memory: the device's, or the machine's if states are off-loaded."""
    count = model.trained / (layout.world if layout.zero_stage else 1)
    if layout.offload:
        # gradients go down and weights come up, b bytes each; all processes share the machine's memory
        transfer = 2 * model.element * count / machine.device.host_rate
        return transfer + UPDATE_BYTES * count * layout.processes / HOST_UPDATE_RATE
    cores = machine.flops(model.precision) / machine.device.flops(model.precision)
    return UPDATE_BYTES * count / (machine.device.memory_rate * cores)
