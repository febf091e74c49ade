"""How much memory a layout takes on each GPU, part by part: what stands through the run and what a micro-batch adds.

Counted from what torch and DeepSpeed 0.19 allocate; `benchmarks/memory.py` compares it with real processes. In the
formulas N is the number of parameters, W the processes, d the width, b the bytes of an element: 2 in bf16, 4 in fp32.
"""

from dataclasses import dataclass

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Precision
from zephyrctl.recipe.schema import Adapter

PLANNED = 0.92
"""Share of a card that a plan may fill."""
GPU_ALONE = 1.0e9
"""Bytes for CUDA's context and for what its allocator loses."""
GPU_TOGETHER = 2.0e9
"""The same with NCCL's buffers."""
CPU_PROCESS = 0.6e9
"""Bytes of a worker before it has a model: Python, torch, transformers and TRL."""
CPU_TRAINING = 14e6
"""Bytes that the trainer, DeepSpeed and gloo keep for themselves once it trains."""
HEAD_TOKENS = 4096
"""Positions whose logits TRL 1.16 holds at a time."""
GPU_LOGIT = 10
"""Bytes a logit on a GPU, its gradient included."""
CPU_LOGIT = 29
"""Bytes a logit on a CPU beside the logit itself: without Triton each step of TRL's head makes a tensor of fp32."""
GPU_LAYERS = 2.0
"""Layers' worth of activations while one is computed again: with gradients 1.5, the rest the allocator loses."""
CPU_LAYERS = 1.5
"""The same where memory that is given up goes back at once."""
ALLREDUCE = 500_000_000
"""Elements that DeepSpeed's stage 0 copies for one all-reduce."""
SUB_GROUP = 1_000_000_000
"""Elements that DeepSpeed's stage 3 updates at a time."""
FOUR_BITS = 4.127 / 8
"""Bytes of a weight in NF4 with doubly quantized constants (arXiv 2305.14314, section 3)."""

Parts = dict[str, float]


@dataclass(frozen=True)
class Model:
    """What is trained, as far as memory goes."""

    sizes: Sizes
    precision: Precision
    adapter: Adapter | None = None

    @property
    def element(self) -> int:
        """Bytes of an element of the arithmetic."""
        return 2 if self.precision == "bf16" else 4

    @property
    def trained(self) -> int:
        """Parameters with gradients: all, or those of the adapters."""
        return adapter_parameters(self.sizes, self.adapter) if self.adapter else self.sizes.parameters


@dataclass(frozen=True)
class Load:
    """What a process works on at once, at most: `rows` sequences of `length` tokens each."""

    rows: int
    length: int
    has_mask: bool = False
    """True where attention is told by a mask over all pairs of positions of a row."""
    heads: int = 0
    """Attention heads whose probabilities are kept (eager attention); 0 where a kernel recomputes them."""

    @property
    def tokens(self) -> int:
        """Positions at once."""
        return self.rows * self.length


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak, by part."""

    parts: Parts
    standing: float
    """Bytes between two steps, without overhead: weights, the optimizer's states and what belongs to them."""
    host: float
    """Bytes in the machine's memory instead of the GPU's."""

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.parts.values())


def peak(model: Model, layout: Layout, load: Load) -> Memory:
    """Memory of one process: in the backward pass or in the optimizer's step, whichever takes more."""
    standing = _standing(model, layout)
    moments = [*_backward(model, layout, load), {"gradients": _step(model, layout)}]
    most = max((_without_zeros(standing | moment) for moment in moments), key=lambda parts: sum(parts.values()))
    overhead = CPU_PROCESS + CPU_TRAINING if layout.on_cpu else GPU_ALONE if layout.world == 1 else GPU_TOGETHER
    return Memory(most | {"overhead": overhead}, sum(standing.values()), _off_loaded(model, layout))


def linear_parameters(sizes: Sizes) -> int:
    """Weights of the matrices of all layers: attention's four and the feed-forward's three."""
    d, kv, f = sizes.width, sizes.key_value_width, sizes.feed_forward
    return sizes.layers * (2 * d * d + 2 * d * kv + 3 * d * f)


def adapter_parameters(sizes: Sizes, adapter: Adapter) -> int:
    """Weights of LoRA's matrices: rank x (inputs + outputs) of each layer that gets them."""
    d, kv, f = sizes.width, sizes.key_value_width, sizes.feed_forward
    sums = {
        "q_proj": 2 * d,
        "k_proj": d + kv,
        "v_proj": d + kv,
        "o_proj": 2 * d,
        "gate_proj": d + f,
        "up_proj": d + f,
        "down_proj": d + f,
    }
    names = list(sums) if adapter.targets == "all-linear" else adapter.targets
    return sizes.layers * adapter.rank * sum(sums.get(name, d + f) for name in names)


def _standing(model: Model, layout: Layout) -> Parts:
    states = _trained_states(model, layout) | {"reference": _reference(model, layout)}
    if model.adapter:
        trained = states["weights"] + states["optimizer"] + 4 * model.trained
        states |= {"weights": _frozen(model, layout), "optimizer": 0.0, "gradients": 0.0, "adapter": trained}
    return _without_zeros(states)


def _trained_states(model: Model, layout: Layout) -> dict[str, float]:
    """What stands of the parameters that are trained.

    Plain torch keeps fp32 weights; DeepSpeed keeps fp32 masters beside its weights, at stages 1 to 3 in fp32 too.
    """
    count, b, share = model.trained, model.element, 1 / layout.world
    if layout.zero_stage is None:
        return {"weights": 4 * count, "optimizer": 8 * count}
    if layout.zero_stage == 0:
        return {"weights": b * count, "optimizer": (12 if b == 2 else 8) * count}
    optimizer = 0 if layout.offload else 12 * count * share
    if layout.zero_stage == 3:
        return {"weights": b * count * share, "gradients": b * count * share, "optimizer": optimizer}
    return {"weights": b * count, "optimizer": optimizer}


def _frozen(model: Model, layout: Layout) -> float:
    count, b = model.sizes.parameters, model.element
    if model.adapter and model.adapter.quantize:
        linear = linear_parameters(model.sizes)
        return FOUR_BITS * linear + b * max(0, count - linear)
    return b * count / (layout.world if layout.zero_stage == 3 else 1)


def _reference(model: Model, layout: Layout) -> float:
    """A live reference is a second set of weights; adapters that are switched off are one for nothing."""
    if layout.reference != "live" or model.adapter:
        return 0.0
    if layout.zero_stage is None:
        return 4.0 * model.sizes.parameters
    return model.element * model.sizes.parameters / (layout.world if layout.zero_stage == 3 else 1)


def _backward(model: Model, layout: Layout, load: Load) -> list[Parts]:
    """What the moments of a backward pass add: at the head, in the last layer and in the first.

    A GPU's allocator rarely uses the head's memory again for layers, so the first two are one there.
    """
    kept, last, first = _activations(model, layout, load)
    gathered, buckets = _gathered(model, layout), _buckets(model, layout)
    before, after = _gradients(model, layout)
    logits = _logits(model, layout, load)
    shared = {"gathered": gathered, "buckets": buckets}
    left = gathered if layout.zero_stage == 3 else 0.0  # casts go with the layers that they were made for
    end = {"gathered": left, "buckets": buckets, "gradients": after, "activations": first}
    if not layout.on_cpu:
        return [shared | {"gradients": before, "activations": kept + last, "logits": logits}, end]
    top = load.tokens * model.sizes.width * (8 if model.element == 2 else 12)
    return [
        shared | {"gradients": before, "activations": kept + top, "logits": logits},
        shared | {"gradients": before, "activations": kept + last},
        end,
    ]


def _activations(model: Model, layout: Layout, load: Load) -> tuple[float, float, float]:
    """Bytes that the forward pass keeps, and that the last and the first layer add while they run backwards."""
    d, kv, f, b = model.sizes.width, model.sizes.key_value_width, model.sizes.feed_forward, model.element
    is_cast = layout.zero_stage is None and b == 2 and not model.adapter  # fp32 weights: so is what runs past layers
    a_token = 2 * (6 * d + 2 * kv + 4 * f) + 8 * d if b == 2 else 4 * (8 * d + 2 * kv + 4 * f)
    a_token += load.heads * load.length * (4 + b)
    if model.adapter and model.adapter.dropout:
        a_token += (6 * d + f) * (b + 1)
    layer = float(load.tokens * a_token)
    mask = load.rows * load.length**2 * (1 + b) if load.has_mask else 0
    if layout.gradient_checkpointing:
        between = d * (4 if is_cast else b) * model.sizes.layers * load.tokens
        working = (CPU_LAYERS if layout.on_cpu else GPU_LAYERS) * layer
        return between + mask, working, working + mask
    whole = (layer + (10 * d * load.tokens if is_cast else 0)) * model.sizes.layers
    return whole + mask, layer / 2, layer + mask


def _gradients(model: Model, layout: Layout) -> tuple[float, float]:
    """Gradients of earlier micro-batches when a backward pass begins, and all of them when it ends."""
    if model.adapter:
        return 0.0, 0.0  # few, and counted with the adapters
    count, b = model.trained, 4 if layout.zero_stage is None else model.element
    if layout.zero_stage == 3:
        return b * count / layout.world, b * count / layout.world
    whole = b * count / (layout.world if layout.zero_stage == 2 else 1)
    return (whole if layout.accumulation > 1 else 0.0), whole


def _step(model: Model, layout: Layout) -> float:
    """Gradients in the optimizer's step, with the copies that DeepSpeed makes of them."""
    if model.adapter:
        return 0.0
    count, b, share = model.trained, model.element, 1 / layout.world
    if layout.zero_stage is None:
        return 4.0 * count
    if layout.zero_stage == 0:
        return float((2 + 4) * count if b == 2 else 4 * count + 4 * min(count, ALLREDUCE))
    if layout.offload:  # each gradient goes to the machine's memory as it comes
        return b * count * share
    if layout.zero_stage == 3:
        return b * count * share + (6 if b == 2 else 4) * min(count * share, SUB_GROUP)
    gathering = b * count if layout.on_cpu else 0  # gloo gathers the new weights into a copy
    return max(8 * count * share, gathering)


def _gathered(model: Model, layout: Layout) -> float:
    """Weights that are there for a while: gathered by ZeRO-3, cast from fp32, or made whole out of 4 bits."""
    sizes, b = model.sizes, model.element
    if model.adapter and model.adapter.quantize:
        return 2.0 * 2 * sizes.feed_forward * sizes.width
    if layout.zero_stage == 3:
        return float(b * min(sizes.parameters, layout.max_live_parameters))
    is_cast = layout.zero_stage is None and b == 2 and not model.adapter
    if is_cast and not layout.gradient_checkpointing:
        return 2.0 * (linear_parameters(sizes) + sizes.vocabulary * sizes.width)
    return 0.0  # with checkpointing a layer's casts lie within what `_activations` allows for it


def _buckets(model: Model, layout: Layout) -> float:
    """What DeepSpeed sends gradients and fetches weights in; two of the first where they are sent meanwhile."""
    if not layout.zero_stage or layout.on_cpu:  # what a CPU does not touch takes no memory
        return 0.0
    return float(model.element * (2 * layout.reduce_bucket + (layout.prefetch_bucket if layout.zero_stage == 3 else 0)))


def _logits(model: Model, layout: Layout, load: Load) -> float:
    """Logits of some thousand positions with their gradients, and on a CPU the head's own gradient in fp32."""
    sizes, b = model.sizes, model.element
    at_once = min(load.tokens, HEAD_TOKENS) if layout.chunked_logits else load.tokens
    if not layout.on_cpu:
        return float(GPU_LOGIT * at_once * sizes.vocabulary)
    head = sizes.vocabulary * sizes.width * (4 + (2 if b == 2 else 0)) if not model.adapter else 0
    return float((CPU_LOGIT + b) * at_once * sizes.vocabulary + head)


def _off_loaded(model: Model, layout: Layout) -> float:
    """Masters, moments and fp32 gradients of a process in the machine's memory: DeepSpeed's CPU Adam works there."""
    return 16 * model.trained / layout.world if layout.offload else 0.0


def _without_zeros(parts: Parts) -> Parts:
    return {name: float(size) for name, size in parts.items() if size}
