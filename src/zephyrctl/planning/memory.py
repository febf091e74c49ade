"""Estimate the memory of one training process, part by part.

The formulas count the tensors that torch 2.13, transformers 5.23 and DeepSpeed 0.19 allocate. `benchmarks/memory.py`
and `tests/planning/test_memory_measured.py` compare them with real processes. All sizes are in bytes. Symbols:

    N  parameters      W  processes      L  layers           V  vocabulary
    d  width           kv width of keys and of values        f  width of the feed-forward
    b  bytes of one element of the arithmetic: 2 in bf16, 4 in fp32

Sources: ZeRO (arXiv 1910.02054, section 3) for weights, gradients and optimizer states; Korthikanti et al.
(arXiv 2205.05198, sections 4 and 5) for activations and checkpointing.
"""

from dataclasses import dataclass

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Precision
from zephyrctl.recipe.schema import Adapter

PLANNED = 0.92
"""Share of a GPU's memory that a plan may fill."""
GPU_ALONE = 1.0e9
"""Bytes of CUDA's context, and of fragmentation in torch's allocator."""
GPU_TOGETHER = 2.0e9
"""The same for several processes: NCCL has buffers too."""
CPU_PROCESS = 0.6e9
"""Bytes of a worker on a CPU before it has a model: Python, torch, transformers and TRL."""
CPU_TRAINING = 14e6
"""Bytes that the trainer, DeepSpeed and gloo allocate for themselves once it trains on a CPU."""
HEAD_TOKENS = 4096
"""Positions whose logits TRL 1.16 computes at a time."""
GPU_LOGIT = 10
"""Bytes of one logit on a GPU, with its fp32 copy and its gradient."""
CPU_LOGIT = 29
"""Bytes of one logit on a CPU besides the logit itself: without Triton every step of TRL's head is an fp32 tensor."""
GPU_LAYERS = 2.0
"""Layers of activations in memory while one is recomputed: 1.5 with its gradients, 0.5 lost by torch's allocator."""
CPU_LAYERS = 1.5
"""The same on a CPU, where freed memory is returned at once."""
ALLREDUCE = 500_000_000
"""Elements that DeepSpeed's stage 0 copies for one all-reduce."""
SUB_GROUP = 1_000_000_000
"""Elements that DeepSpeed's stage 3 updates at a time (its `sub_group_size`)."""
FOUR_BITS = 4.127 / 8
"""Bytes of one weight in NF4 with doubly quantized constants (arXiv 2305.14314, section 3)."""

Parts = dict[str, float]
"""Bytes by the name that a plan shows."""


@dataclass(frozen=True)
class TrainedModel:
    """What the memory of a model depends on."""

    sizes: Sizes
    precision: Precision
    adapter: Adapter | None = None

    @property
    def element(self) -> int:
        """Bytes of one element of the arithmetic."""
        return 2 if self.precision == "bf16" else 4

    @property
    def trained(self) -> int:
        """Parameters with gradients: all, or those of the adapters."""
        return adapter_parameters(self.sizes, self.adapter) if self.adapter else self.sizes.parameters


@dataclass(frozen=True)
class MicroBatchShape:
    """The largest micro-batch of a process: `rows` sequences of `length` tokens each."""

    rows: int
    length: int
    has_mask: bool = False
    """True if attention reads a mask of length x length for each row."""
    heads: int = 0
    """Attention heads whose probabilities are stored (eager attention); 0 if the kernel recomputes them."""

    @property
    def tokens(self) -> int:
        """Tokens in the micro-batch."""
        return self.rows * self.length


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process at its peak, by part."""

    parts: Parts
    standing: float
    """Bytes between two steps, without overhead: weights, optimizer states and what belongs to them."""
    host: float
    """Bytes in the machine's memory instead of the GPU's."""

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.parts.values())


def estimate_memory(model: TrainedModel, layout: Layout, shape: MicroBatchShape) -> MemoryEstimate:
    """The memory of one process at its peak.

    The peak is in the backward pass or in the optimizer's step, whichever needs more.
    """
    standing = _standing(model, layout)
    moments = [*_backward_moments(model, layout, shape), {"gradients": _gradients_in_step(model, layout)}]
    largest = max((_without_zeros(standing | moment) for moment in moments), key=lambda parts: sum(parts.values()))
    return MemoryEstimate(
        parts=largest | {"overhead": _overhead(layout)},
        standing=sum(standing.values()),
        host=_host_states(model, layout),
    )


def linear_parameters(sizes: Sizes) -> int:
    """Weights of the matrices of all layers: query, key, value, output; gate, up, down."""
    d, kv, f = sizes.width, sizes.key_value_width, sizes.feed_forward
    # query and output are d x d, key and value d x kv, the three of the feed-forward d x f
    return sizes.layers * (2 * d * d + 2 * d * kv + 3 * d * f)


def adapter_parameters(sizes: Sizes, adapter: Adapter) -> int:
    """Weights of LoRA's matrices: rank x (inputs + outputs) of each matrix that has an adapter (arXiv 2106.09685)."""
    d, kv, f = sizes.width, sizes.key_value_width, sizes.feed_forward
    inputs_and_outputs = {
        "q_proj": 2 * d,
        "k_proj": d + kv,
        "v_proj": d + kv,
        "o_proj": 2 * d,
        "gate_proj": d + f,
        "up_proj": d + f,
        "down_proj": d + f,
    }
    names = list(inputs_and_outputs) if adapter.targets == "all-linear" else adapter.targets
    return sizes.layers * adapter.rank * sum(inputs_and_outputs.get(name, d + f) for name in names)


def _overhead(layout: Layout) -> float:
    if layout.on_cpu:
        return CPU_PROCESS + CPU_TRAINING
    return GPU_ALONE if layout.world == 1 else GPU_TOGETHER


def _standing(model: TrainedModel, layout: Layout) -> Parts:
    states = _trained_states(model, layout) | {"reference": _reference(model, layout)}
    if model.adapter:
        # the base is frozen: it has weights only; an adapter has its states and fp32 gradients (4 bytes)
        adapter = states["weights"] + states["optimizer"] + 4 * model.trained
        states |= {"weights": _frozen_weights(model, layout), "optimizer": 0.0, "gradients": 0.0, "adapter": adapter}
    return _without_zeros(states)


def _trained_states(model: TrainedModel, layout: Layout) -> dict[str, float]:
    """Weights and optimizer states of the trained parameters, between two steps (ZeRO paper, section 3.1).

    `optimizer` is AdamW's two fp32 moments, 8 N, and with DeepSpeed the fp32 master weights, 4 N: K = 12 in the paper.
    """
    count, b, share = model.trained, model.element, 1 / layout.world
    if layout.zero_stage is None:
        # plain torch: fp32 weights (4 N), which autocast casts to bf16 for each product; no master weights beside them
        return {"weights": 4 * count, "optimizer": 8 * count}
    if layout.zero_stage == 0:
        # weights (b N); in bf16 fp32 masters and moments (12 N), in fp32 the weights are their own masters (8 N)
        return {"weights": b * count, "optimizer": (12 if b == 2 else 8) * count}
    # stages 1 to 3: 12 N / W; DeepSpeed makes fp32 masters even if the weights are fp32
    optimizer = 0 if layout.offload else 12 * count * share
    if layout.zero_stage == 3:
        # weights and gradients are partitioned too: b N / W each
        return {"weights": b * count * share, "gradients": b * count * share, "optimizer": optimizer}
    return {"weights": b * count, "optimizer": optimizer}


def _frozen_weights(model: TrainedModel, layout: Layout) -> float:
    """Weights of the base below its adapters."""
    count, b = model.sizes.parameters, model.element
    if model.adapter and model.adapter.quantize:
        # matrices of the layers in 4 bits (about 0.52 bytes); embeddings, head and norms stay in b bytes
        linear = linear_parameters(model.sizes)
        return FOUR_BITS * linear + b * max(0, count - linear)
    return b * count / (layout.world if layout.zero_stage == 3 else 1)


def _reference(model: TrainedModel, layout: Layout) -> float:
    """Weights of a live reference model; with adapters it is the base with its adapters switched off, at no cost."""
    if layout.reference != "live" or model.adapter:
        return 0.0
    if layout.zero_stage is None:
        return 4.0 * model.sizes.parameters  # a second model in fp32
    return model.element * model.sizes.parameters / (layout.world if layout.zero_stage == 3 else 1)


def _backward_moments(model: TrainedModel, layout: Layout, shape: MicroBatchShape) -> list[Parts]:
    """What three moments of a backward pass add to the standing memory: at the head, in the last and the first layer.

    A GPU's allocator rarely reuses the head's memory for layers, so on a GPU the first two moments are one.
    """
    stored, last_layer, first_layer = _activations(model, layout, shape)
    gathered, buckets = _gathered_weights(model, layout), _buckets(model, layout)
    before, after = _gradients(model, layout)
    logits = _logits(model, layout, shape)
    shared = {"gathered": gathered, "buckets": buckets}
    # in the first layer ZeRO-3 still has gathered weights; autocast's copies were freed with the layers above
    remaining = gathered if layout.zero_stage == 3 else 0.0
    in_first_layer = {"gathered": remaining, "buckets": buckets, "gradients": after, "activations": first_layer}
    if not layout.on_cpu:
        activations = stored + last_layer
        return [shared | {"gradients": before, "activations": activations, "logits": logits}, in_first_layer]
    # at the head: output of the last layer, its norm and a gradient, of d elements per token: in bf16 the norm is
    # computed in fp32 (2 + 4 + 2 = 8 bytes), in fp32 each is 4 bytes
    head_input = shape.tokens * model.sizes.width * (8 if model.element == 2 else 12)
    return [
        shared | {"gradients": before, "activations": stored + head_input, "logits": logits},
        shared | {"gradients": before, "activations": stored + last_layer},
        in_first_layer,
    ]


def _activations(model: TrainedModel, layout: Layout, shape: MicroBatchShape) -> tuple[float, float, float]:
    """Bytes that the forward pass stores, and that the last and the first layer add while they run backward.

    Per layer and token autograd saves, in a Llama-like layer with a fused attention kernel:

        6 d   of b bytes: the two normalised inputs, the two norms' outputs, query, attention output
        2 kv  of b bytes: key, value
        4 f   of b bytes: gate, silu(gate), up, their product
        2 d   of 4 bytes: the inputs of the two norms, which compute in fp32

    A real layer is within 2 % of it (`test_a_layer_keeps_what_was_predicted`).
    """
    d, kv, f, b = model.sizes.width, model.sizes.key_value_width, model.sizes.feed_forward, model.element
    # autocast over fp32 weights keeps the residual stream between layers in fp32
    is_cast = layout.zero_stage is None and b == 2 and not model.adapter
    per_token = b * (6 * d + 2 * kv + 4 * f) + 4 * 2 * d
    # eager attention stores probabilities: heads x length per token, in fp32 for the softmax and in b bytes after it
    per_token += shape.heads * shape.length * (4 + b)
    if model.adapter and model.adapter.dropout:
        # inputs of the seven matrices after LoRA's dropout (b bytes) and the dropout masks (1 byte)
        per_token += (6 * d + f) * (b + 1)
    layer = float(shape.tokens * per_token)
    # length x length per row: the boolean mask (1 byte) and its copy in the type of the arithmetic (b)
    mask = shape.rows * shape.length**2 * (1 + b) if shape.has_mask else 0
    if layout.gradient_checkpointing:
        # only each layer's input is stored, d elements per token: 2 s b h L bytes in Korthikanti et al., section 5
        inputs = d * (4 if is_cast else b) * model.sizes.layers * shape.tokens
        recomputed = (CPU_LAYERS if layout.on_cpu else GPU_LAYERS) * layer
        return inputs + mask, recomputed, recomputed + mask
    # an fp32 residual stream adds 10 d bytes per token and layer to the sum above (measured)
    stored = (layer + (10 * d * shape.tokens if is_cast else 0)) * model.sizes.layers
    return stored + mask, layer / 2, layer + mask


def _gradients(model: TrainedModel, layout: Layout) -> tuple[float, float]:
    """Gradients when the last backward pass of a step begins, from earlier micro-batches, and when it ends."""
    if model.adapter:
        return 0.0, 0.0  # small, and counted with the adapters
    count, b = model.trained, 4 if layout.zero_stage is None else model.element
    if layout.zero_stage == 3:
        return b * count / layout.world, b * count / layout.world
    # ZeRO-2 partitions them, b N / W; plain torch, ZeRO-0 and ZeRO-1 keep all, b N
    whole = b * count / (layout.world if layout.zero_stage == 2 else 1)
    return (whole if layout.accumulation > 1 else 0.0), whole


def _gradients_in_step(model: TrainedModel, layout: Layout) -> float:
    """Gradients during the optimizer's step, with the copies that DeepSpeed makes of them."""
    if model.adapter:
        return 0.0
    count, b, share = model.trained, model.element, 1 / layout.world
    if layout.zero_stage is None:
        return 4.0 * count  # AdamW updates in place
    if layout.zero_stage == 0:
        if b == 2:
            return float((2 + 4) * count)  # gradients in bf16 and their fp32 copy for the masters
        return float(4 * count + 4 * min(count, ALLREDUCE))  # gradients and the flat copy that is all-reduced
    if layout.offload:
        return b * count * share  # each gradient goes to the machine's memory as soon as it is there
    if layout.zero_stage == 3:
        # the partition (b N / W); of one sub-group its flat copy, and in bf16 that copy in fp32
        return b * count * share + (6 if b == 2 else 4) * min(count * share, SUB_GROUP)
    # stages 1 and 2: averaged gradients of the partition, flat copy, fp32 copy: 2 + 2 + 4 bytes, or 4 + 4 in fp32
    copies = 8 * count * share
    gathered = b * count if layout.on_cpu else 0  # gloo gathers the updated weights into a second copy
    return max(copies, gathered)


def _gathered_weights(model: TrainedModel, layout: Layout) -> float:
    """Weights that exist for a while: gathered by ZeRO-3, cast from fp32, or dequantized from 4 bits."""
    sizes, b = model.sizes, model.element
    if model.adapter and model.adapter.quantize:
        return 2.0 * 2 * sizes.feed_forward * sizes.width  # two dequantized f x d matrices in bf16
    if layout.zero_stage == 3:
        return float(b * min(sizes.parameters, layout.max_live_parameters))
    is_cast = layout.zero_stage is None and b == 2 and not model.adapter
    if is_cast and not layout.gradient_checkpointing:
        # autocast caches the bf16 copy (2 bytes) of every matrix, head included, until the backward pass is over
        return 2.0 * (linear_parameters(sizes) + sizes.vocabulary * sizes.width)
    return 0.0  # with checkpointing the copies of one layer are within what `_activations` allows for it


def _buckets(model: TrainedModel, layout: Layout) -> float:
    """DeepSpeed's communication buffers: two for gradients, since one is sent while the next fills; and prefetching."""
    if not layout.zero_stage or layout.on_cpu:  # on a CPU, pages that are never written take no memory
        return 0.0
    prefetched = layout.prefetch_bucket if layout.zero_stage == 3 else 0
    return float(model.element * (2 * layout.reduce_bucket + prefetched))


def _logits(model: TrainedModel, layout: Layout, shape: MicroBatchShape) -> float:
    """Logits of the positions that are computed together, with gradients; on a CPU also the gradient of the head."""
    sizes, b = model.sizes, model.element
    positions = min(shape.tokens, HEAD_TOKENS) if layout.chunked_logits else shape.tokens
    if not layout.on_cpu:
        return float(GPU_LOGIT * positions * sizes.vocabulary)
    # gradient of the V x d head: fp32 in TRL's chunked head (4 bytes), and its bf16 copy (2)
    per_weight = 4 + (2 if b == 2 else 0)
    head = 0 if model.adapter else sizes.vocabulary * sizes.width * per_weight
    return float((CPU_LOGIT + b) * positions * sizes.vocabulary + head)


def _host_states(model: TrainedModel, layout: Layout) -> float:
    """Off-loaded states of a process: fp32 masters (4), two moments (8) and fp32 gradients (4) of N / W parameters."""
    return 16 * model.trained / layout.world if layout.offload else 0.0


def _without_zeros(parts: Parts) -> Parts:
    return {name: float(size) for name, size in parts.items() if size}
