"""A forward pass over preference pairs that computes what two answers have in common once.

TRL lays a micro-batch of B pairs out as 2B padded rows and runs every prompt twice. Here a pair is one run of tokens,
[prompt | chosen | rejected]: the positions of both answers continue after the prompt and neither sees the other. The
pairs of a micro-batch lie behind one another without padding, and only completion tokens go through the LM head. The
outputs are put back into TRL's shape, so that losses, metrics, callbacks and checkpoints stay TRL's.
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask, sdpa_mask
from transformers.modeling_flash_attention_utils import _flash_attention_forward
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from zephyrctl.errors import ZephyrError

KEY = "shared_prefix"
"""The key of a batch, and the keyword of a forward pass, that holds the layout."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
OTHER_ENGINE = "train with TRL's own forward pass: --engine trl"
HEADS_THAT_SCALE = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Settings of models whose logits are more than a linear layer: TRL knows what each of them means."""
MOST_LOGITS = 2**26
"""Logits held at once, at most, before TRL's chunked head takes over: 256 MB in fp32."""
LOGITS_AT_ONCE = 2**22
"""Logits made by one call of the head: 16 MB in fp32. glibc gives what is larger than 32 MB back after every use."""
ROWS_AT_ONCE = 64
"""Rows of logits whose entropy is summed while they lie in the processor's cache."""
SHARING = {"sdpa": "shared_prefix_sdpa", "flash_attention_2": "shared_prefix_varlen"}
"""The attention functions that know a layout by its spans, by the one that each stands for."""
MASKED = ("eager", "flex_attention")
"""Those that are told by a mask."""
Layout = dict[str, Any]


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's padded batch, and beside it under `shared_prefix` how the same pairs lie when they share their prompts."""

    is_flat: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate the pairs; see `lay_out` for what is added."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch[KEY] = lay_out(batch["input_ids"], batch["attention_mask"], self.is_flat)
        return batch


def lay_out(ids: torch.Tensor, attention_mask: torch.Tensor, is_flat: bool) -> Layout:
    """How the pairs of TRL's rows [2B, L], chosen ones first, lie when each is one run of tokens.

    The runs lie behind one another in one row, or with `is_flat=False` in a padded row each. What two rows of a pair
    have in common goes beyond the prompt where both answers begin with the same words. Keys:
    `input_ids`, `position_ids` [N, W]; `segments` [N, W], 3 x pair + (0 shared, 1 chosen, 2 rejected), -1 padding;
    `places` [2B, L], where each token of TRL's rows lies, counted over all N rows; `spans`, for each pair its shared,
    chosen and rejected tokens, where the first are counted in the others.
    """
    is_token = attention_mask.bool()
    pairs, width = ids.shape[0] // 2, ids.shape[1]
    position = torch.arange(width)
    chosen, rejected = attention_mask.sum(1).chunk(2)
    shared = _common(ids, torch.minimum(chosen, rejected))
    lengths = chosen + rejected - shared
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths if is_flat else torch.arange(pairs) * longest
    is_own = position >= shared[:, None]
    places = torch.cat([starts[:, None] + position, starts[:, None] + position + is_own * (chosen - shared)[:, None]])
    segments = 3 * torch.arange(pairs)[:, None] + torch.cat([is_own * 1, is_own * 2]).view(2, pairs, width)
    total = int(lengths.sum()) if is_flat else pairs * longest

    def put(values: torch.Tensor, filler: int) -> torch.Tensor:
        row = torch.full((total,), filler)
        row[places[is_token]] = values[is_token]
        return row.view(1 if is_flat else pairs, -1)

    return {
        "input_ids": put(ids, 0),
        "position_ids": put(position.expand_as(ids), 0),
        "segments": put(segments.reshape(ids.shape), -1),
        "places": places * is_token,
        "spans": tuple(zip(shared.tolist(), chosen.tolist(), rejected.tolist(), strict=True)),
    }


def _common(ids: torch.Tensor, shorter: torch.Tensor) -> torch.Tensor:
    """How many tokens the two rows of each pair begin with in common; `shorter` is the length of the shorter row."""
    chosen, rejected = ids.chunk(2)
    beyond = torch.arange(ids.shape[1]) >= shorter[:, None]
    ends = torch.ones_like(shorter[:, None], dtype=torch.bool)
    return torch.cat([(chosen != rejected) | beyond, ends], dim=1).int().argmax(1)


def attach(model: PreTrainedModel, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Let a model that has TRL's fused LM head take a `shared_prefix` layout; without one it works as before.

    `context` surrounds such passes: autocast, for a model that was prepared for evaluation before this.
    Raises ZephyrError for a model whose attention or loss cannot be split between two answers.
    """
    _check(model)
    implementation = model.config._attn_implementation
    model.set_attn_implementation(SHARING.get(implementation, implementation))
    trl_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        shared_prefix: Layout | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        if shared_prefix is None or not fused_lm_head:
            return trl_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        with context():
            return _run(self, trl_forward, shared_prefix, kwargs["labels"][:, 1:])

    model.forward = types.MethodType(forward, model)


def is_flat(model: PreTrainedModel) -> bool:
    """True where all pairs of a micro-batch lie in one row: plain masks over one row would grow with its square."""
    return bool(model.config._attn_implementation != "eager")


def _check(model: PreTrainedModel) -> None:
    """Raise ZephyrError where sharing would change what the model computes."""
    config = model.config.get_text_config()
    implementation = model.config._attn_implementation
    if implementation not in (*SHARING, *MASKED):
        raise ZephyrError(
            f"pairs cannot share their prompts under launch.attention {implementation!r}",
            f"choose sdpa, or {OTHER_ENGINE}",
        )
    if unknown := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise ZephyrError(
            f"{config.model_type} has layers that look at tokens in another way ({', '.join(sorted(unknown))}): "
            "its pairs cannot share their prompts",
            OTHER_ENGINE,
        )
    if getattr(config, "router_aux_loss_coef", 0) and hasattr(config, "output_router_logits"):
        raise ZephyrError(
            f"{config.model_type} balances its experts over every token, and a shared prompt would count once",
            OTHER_ENGINE,
        )


def _run(model: PreTrainedModel, trl_forward: Callable[..., Any], layout: Layout, labels: torch.Tensor) -> Any:
    """The outputs of TRL's fused LM head, [2B, L - 1], from one pass over the layout."""
    is_scored = labels != -100
    sources, targets = layout["places"][:, :-1][is_scored], labels[is_scored]
    inputs = {
        "input_ids": layout["input_ids"],
        "position_ids": layout["position_ids"],
        "attention_mask": _masks(model, layout),
        "use_cache": False,
    }
    if _has_plain_head(model, len(targets)):
        hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        outputs = score(model.get_output_embeddings(), hidden.index_select(0, sources), targets)
    else:
        with _only(model.base_model, sources):
            outputs = trl_forward(**inputs, shift_labels=targets[None], fused_lm_head=True)
    found = {name: outputs[name] for name in PER_TOKEN if outputs.get(name) is not None}
    # Also where no token is scored, the zeros hang on the parameters.
    rows = {name: values.new_zeros(labels.shape).masked_scatter(is_scored, values) for name, values in found.items()}
    return FusedCausalLMOutput(**rows, label_mask=is_scored)


@contextmanager
def _only(backbone: torch.nn.Module, sources: torch.Tensor) -> Iterator[None]:
    """Let the backbone hand on the hidden states at `sources` alone, as one row."""

    def select(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> Any:
        hidden = outputs.last_hidden_state.flatten(0, 1).index_select(0, sources)
        return type(outputs)(last_hidden_state=hidden[None])

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _has_plain_head(model: PreTrainedModel, tokens: int) -> bool:
    """True where logits are a linear layer's and few enough to be held: on a CPU that is three times as fast.

    TRL's head makes them again in the backward pass; 2,600 tokens, 4,096 words: 1.14 against 0.36 s in both passes.
    Parameters that ZeRO-3 has parted stay with TRL.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    is_linear = all(getattr(config, name, None) is None for name in HEADS_THAT_SCALE)
    is_here = head.weight.device.type == "cpu" and not hasattr(head.weight, "ds_id")
    return is_linear and is_here and tokens * head.weight.shape[0] <= MOST_LOGITS


def score(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-probability of each target [n] after the hidden states [n, d], and what TRL logs of the distribution."""
    rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    parts = [
        _Score.apply(head(states), wanted)
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    return {name: torch.cat(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}


class _Score(torch.autograd.Function):
    """Log-softmax at the targets, a few rows at a time: logits become probabilities and then gradients where they lie.

    Nobody else needs them: the backward pass of a linear layer asks for its input and its weights.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = logits.detach().float()
        rows = zip(values.split(ROWS_AT_ONCE), targets[:, None].split(ROWS_AT_ONCE), strict=True)
        found = tuple(
            torch.cat(columns) for columns in zip(*(_softmax(part, wanted) for part, wanted in rows), strict=True)
        )
        ctx.save_for_backward(values, targets)
        ctx.mark_non_differentiable(*found[1:])
        ctx.dtype = logits.dtype
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_probs: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        gradients = probabilities.mul_(-of_log_probs[:, None])
        gradients.scatter_add_(1, targets[:, None], of_log_probs[:, None])
        return gradients.to(ctx.dtype), None


def _softmax(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Put the softmax of the rows where they lie; log-probabilities [n] of targets [n, 1], entropies, means, hits."""
    mean, most, wanted = logits.mean(-1), logits.amax(-1, keepdim=True), logits.gather(-1, targets)
    is_top = (wanted == most).squeeze(-1)
    hits = is_top.nonzero().squeeze(-1)
    is_top[hits] = logits[hits].argmax(-1) == targets[hits, 0]  # of equal logits the first counts, as TRL has it
    powers = logits.sub_(most).exp()
    total = powers.sum(-1, keepdim=True)
    entropy = total.log().squeeze(-1) - torch.linalg.vecdot(powers, logits) / total.squeeze(-1)
    torch.div(powers, total, out=logits)
    return (wanted - most - total.log()).squeeze(-1), entropy, mean, is_top


def _masks(model: PreTrainedModel, layout: Layout) -> Any:
    """What the backbone takes as its attention mask.

    Our own attention functions take the spans as an integer tensor [1, 1, B, 3]: transformers hands any tensor of four
    dimensions through to them. Other ones take a mask in their own form, one a kind of layer where there are two.
    """
    implementation = model.config._attn_implementation
    if implementation in SHARING.values():
        return torch.tensor(layout["spans"]).view(1, 1, -1, 3)
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
    made = {kind: _mask(implementation, layout, limit, model.dtype) for kind, limit in windows.items()}
    if not made:
        return _mask(implementation, layout, window, model.dtype)
    return made if len(made) > 1 else made.popitem()[1]


def _mask(implementation: str, layout: Layout, window: int | None, dtype: torch.dtype) -> Any:
    """The mask of an attention implementation, in its own form: a token sees what is shared and its own answer.

    A window is counted in positions, in which both answers follow the prompt directly.
    """
    segments, positions = layout["segments"], layout["position_ids"]

    def sees(batch: Any, _head: Any, query: Any, key: Any) -> Any:
        mine, theirs = segments[batch, query], segments[batch, key]
        is_seen = (query >= key) & ((mine == theirs) | (mine - mine % 3 == theirs))
        if window is None:
            return is_seen
        return is_seen & (positions[batch, query] - positions[batch, key] < window)

    rows, width = segments.shape
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=rows,
        q_length=width,
        kv_length=width,
        mask_function=sees,
        dtype=dtype,
        device=segments.device,
        allow_is_causal_skip=False,
    )


def _pairwise_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention a row at a time: the chosen one is causal as it stands, and the rejected answer asks what it sees.

    A mask over all tokens of a pair would cost (P + C + R)^2; this is (P + C)^2, half of it where the kernel skips what
    is masked, and R (P + R).
    """
    spans = _spans(attention_mask)
    if spans is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    keys, values = (_rows(repeat_kv(states, groups), spans) for states in (key, value))
    queries = query.split(
        [length for shared, chosen, rejected in spans for length in (chosen, rejected - shared)], dim=2
    )
    attended = [
        functional.scaled_dot_product_attention(
            asks, known, said, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        ).transpose(1, 2)
        for asks, known, said in zip(queries, keys, values, strict=True)
        for mask in [_row_mask(asks, known.shape[2], sliding_window)]
        if asks.shape[2]
    ]
    return torch.cat(attended, dim=1), None


def _rows(states: torch.Tensor, spans: list[list[int]]) -> Iterator[torch.Tensor]:
    """Keys or values of every pair's two rows, in turn. Cut in one split, as each cut by itself costs a row of zeros
    in the backward pass."""
    lengths = [length for shared, chosen, rejected in spans for length in (shared, chosen - shared, rejected - shared)]
    pieces = iter(states.split(lengths, dim=2))
    for prompt, chosen, rejected in zip(pieces, pieces, pieces, strict=True):
        yield torch.cat([prompt, chosen], dim=2)
        yield torch.cat([prompt, rejected], dim=2)


def _row_mask(queries: torch.Tensor, keys: int, window: int | None) -> torch.Tensor | None:
    """What is added to the scores of the last tokens of a row; None where plain causal attention says the same."""
    asked, is_near = queries.shape[2], window is None or keys <= window
    if asked == keys and is_near:
        return None
    return _lower_right(asked, keys, None if is_near else window, queries.dtype, queries.device)


def _spans(attention_mask: Any) -> list[list[int]] | None:
    """The spans of all pairs, where it is them that were handed through and not a mask."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dtype != torch.int64:
        return None
    spans: list[list[int]] = attention_mask[0, 0].tolist()
    return spans


@functools.lru_cache(maxsize=32)
def _lower_right(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A causal mask aligned to the last of both; all layers of a pass ask for the same ones."""
    sees = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if window is not None:
        sees = sees.triu(keys - queries - window + 1)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill(~sees, float("-inf"))


def _varlen_flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Flash attention over two sequences a pair: the chosen row, and the rejected answer's tokens over its whole row.

    Where there are more keys than queries, flash attention's causal mask is aligned to the last of both.
    """
    spans = _spans(attention_mask)
    if spans is None:
        return flash_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    keys, lengths = _sequences(tuple((shared, chosen, rejected) for shared, chosen, rejected in spans), query.device)
    attended = _flash_attention_forward(
        query.transpose(1, 2),
        key.index_select(2, keys).transpose(1, 2),
        value.index_select(2, keys).transpose(1, 2),
        None,
        query_length=query.shape[2],
        is_causal=True,
        softmax_scale=scaling,
        **{name: kwargs[name] for name in ("dropout", "sliding_window", "softcap") if name in kwargs},
        **lengths,
    )
    return attended, None


@functools.lru_cache(maxsize=2)
def _sequences(spans: tuple[tuple[int, int, int], ...], device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    """Which keys the sequences of all pairs have, one after the other, and where queries and keys of each end."""
    keys: list[torch.Tensor] = []
    queries_of, keys_of = [0], [0]
    start = 0
    for shared, chosen, rejected in spans:
        tail = rejected - shared
        keys += [torch.arange(start, start + chosen), torch.arange(start, start + shared)]
        keys += [torch.arange(start + chosen, start + chosen + tail)]
        queries_of += [chosen, tail]
        keys_of += [chosen, rejected]
        start += chosen + tail
    ends = [torch.tensor(lengths).cumsum(0).to(device, torch.int32) for lengths in (queries_of, keys_of)]
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return torch.cat(keys).to(device), dict(zip(names, (*ends, max(queries_of), max(keys_of)), strict=True))


AttentionInterface.register(SHARING["sdpa"], _pairwise_sdpa)
AttentionInterface.register(SHARING["flash_attention_2"], _varlen_flash)
AttentionMaskInterface.register(SHARING["sdpa"], sdpa_mask)
AttentionMaskInterface.register(SHARING["flash_attention_2"], flash_attention_mask)
