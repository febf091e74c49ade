"""A forward pass over preference pairs that computes the tokens which two answers have in common only once.

TRL pads a micro-batch of B pairs to 2B rows and runs every prompt twice. Here each pair is packed into one run of
tokens, [prompt | chosen | rejected], and the runs follow each other in one row without padding. Example: B = 2 pairs,
in the form of TRL's rows. P and Q are tokens of the prompts, c/d of the chosen and r/s of the rejected answers; `.` is
padding, and the answers of the second pair both begin with d0.

    TRL's input_ids [2B, L] = [4, 5]     gather_index [2B, L]: where each token is in the packed row
    row 0  chosen 0    P0 P1 c0 c1 c2    0  1  2  3  4
    row 1  chosen 1    Q0 d0 d1  .  .    7  8  9  .  .
    row 2  rejected 0  P0 P1 r0 r1  .    0  1  5  6  .
    row 3  rejected 1  Q0 d0 s1 s2 s3    7  8 10 11 12

    packed row [1, W] = [1, 13], W = 13 instead of 4 x 5 = 20 tokens
    place           0  1  2  3  4  5  6 |  7  8  9 10 11 12
    input_ids      P0 P1 c0 c1 c2 r0 r1 | Q0 d0 d1 s1 s2 s3
    position_ids    0  1  2  3  4  2  3 |  0  1  2  2  3  4    positions of both answers continue after the prompt
    segment_ids     0  0  1  1  1  2  2 |  3  3  4  5  5  5    3 x pair + (0 shared, 1 chosen, 2 rejected)
    pair_lengths   (2, 5, 4)            | (2, 3, 5)            tokens of (shared, whole chosen, whole rejected row)

A token attends to earlier tokens of its own segment and of the shared segment of its pair: r0 sees P0 P1 r0, and not
c0 c1 c2. The LM head is applied to the hidden states before completion tokens only. Its outputs are scattered back into
TRL's shape [2B, L - 1], so that metrics, callbacks and checkpoints stay TRL's.
"""

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypedDict

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

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx
    from torch.nn.attention.flex_attention import BlockMask
    from transformers.modeling_outputs import BaseModelOutputWithPast

    Mask: TypeAlias = torch.Tensor | BlockMask
    """A mask as an attention implementation takes it: a tensor that is added to scores, or flex attention's blocks."""

KEY = "shared_prefix"
"""The key of a batch, and the keyword of a forward pass, under which the packed pairs are."""
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""The outputs of TRL's fused head that have one number per completion token."""
OTHER_ENGINE = "train with TRL's own forward pass: --engine trl"
HEADS_THAT_SCALE = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Settings of models whose logits are more than a linear layer: TRL implements each of them."""
MOST_LOGITS = 2**26
"""Logits held at once, at most, before TRL's chunked head takes over: 256 MB in fp32."""
LOGITS_AT_ONCE = 2**22
"""Logits made by one call of the head: 16 MB in fp32. glibc returns blocks above 32 MB to the system after each use."""
ROWS_AT_ONCE = 64
"""Rows of logits whose entropy is summed while they are in the processor's cache."""
SHARING = {"sdpa": "shared_prefix_sdpa", "flash_attention_2": "shared_prefix_varlen"}
"""Our attention functions, which read the lengths of the pairs, by the implementation that each replaces."""
MASKED = ("eager", "flex_attention")
"""Implementations that get a mask instead."""
PairLengths = tuple[tuple[int, int, int], ...]
"""For each pair the tokens of its shared part, of its chosen row and of its rejected row, both rows with that part."""
PreferenceRow = Mapping[str, list[int]]
"""A prepared pair: `prompt_ids`, `chosen_ids` and `rejected_ids`."""


class PackedPairs(TypedDict):
    """The pairs of a micro-batch as runs of tokens; the module's docstring draws one. N rows of W tokens."""

    input_ids: torch.Tensor
    """[N, W], int64; N is 1, or B if each pair has a padded row of its own."""
    position_ids: torch.Tensor
    """[N, W]; the positions of both answers follow the shared part."""
    segment_ids: torch.Tensor
    """[N, W]; 3 x pair + (0 shared, 1 chosen, 2 rejected), -1 for padding."""
    gather_index: torch.Tensor
    """[2B, L]; for each token of TRL's rows its place in the packed rows, counted over all N of them; 0 for padding."""
    pair_lengths: PairLengths


class VarlenLengths(TypedDict):
    """The arguments of flash attention that cut rows of tokens into S sequences, of their queries and of their keys."""

    cu_seq_lens_q: torch.Tensor
    """[S + 1], int32: 0, and then the end of each sequence."""
    cu_seq_lens_k: torch.Tensor
    max_length_q: int
    max_length_k: int


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's padded batch, and beside it, under `shared_prefix`, the same pairs packed."""

    is_flat: bool = True

    def torch_call(self, examples: list[PreferenceRow]) -> dict[str, torch.Tensor | PackedPairs]:
        """Collate the pairs; `pack_pairs` says what is added."""
        batch: dict[str, torch.Tensor | PackedPairs] = super().torch_call(examples)
        batch[KEY] = pack_pairs(batch["input_ids"], batch["attention_mask"], self.is_flat)
        return batch


def pack_pairs(ids: torch.Tensor, attention_mask: torch.Tensor, is_flat: bool) -> PackedPairs:
    """The pairs of TRL's rows `ids` [2B, L], chosen rows first, with each pair as one run of tokens.

    The runs are in one row, or with `is_flat=False` in a padded row each. If both answers of a pair begin with the same
    tokens, these belong to its shared part, as its prompt does.
    """
    is_token = attention_mask.bool()
    pairs, width = ids.shape[0] // 2, ids.shape[1]
    position = torch.arange(width)  # [L]; right padding, so the place in a row is the position
    chosen, rejected = attention_mask.sum(1).chunk(2)  # [B] each: tokens of the two rows of a pair, prompt included
    shared = _common_prefix(ids, torch.minimum(chosen, rejected))  # [B]
    lengths = chosen + rejected - shared  # [B]: a run holds the shared tokens once
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths if is_flat else torch.arange(pairs) * longest  # [B]: first place of each run

    # [B, L]: True for tokens after the shared part. Those of a chosen row stay where they are relative to the start of
    # the run; those of a rejected row move right by the chosen answer's own tokens, which are between them.
    is_own = position >= shared[:, None]
    chosen_places = starts[:, None] + position
    rejected_places = chosen_places + is_own * (chosen - shared)[:, None]
    gather_index = torch.cat([chosen_places, rejected_places])  # [2B, L]
    segments = 3 * torch.arange(pairs)[:, None] + torch.cat([is_own * 1, is_own * 2]).view(2, pairs, width)
    total = int(lengths.sum()) if is_flat else pairs * longest

    def pack(values: torch.Tensor, filler: int) -> torch.Tensor:
        """Scatter values [2B, L] into the packed rows [N, W]; shared tokens are written twice, with equal values."""
        row = torch.full((total,), filler)
        row[gather_index[is_token]] = values[is_token]
        return row.view(1 if is_flat else pairs, -1)

    return PackedPairs(
        input_ids=pack(ids, 0),
        position_ids=pack(position.expand_as(ids), 0),
        segment_ids=pack(segments.reshape(ids.shape), -1),
        gather_index=gather_index * is_token,
        pair_lengths=tuple(zip(shared.tolist(), chosen.tolist(), rejected.tolist(), strict=True)),
    )


def _common_prefix(ids: torch.Tensor, shorter: torch.Tensor) -> torch.Tensor:
    """The tokens [B] that the two rows of each pair begin with in common; `shorter` [B] is the shorter row's length."""
    chosen, rejected = ids.chunk(2)
    is_beyond = torch.arange(ids.shape[1]) >= shorter[:, None]
    # a last column of ones: argmax finds the first difference, or the end if one row is the start of the other
    ends = torch.ones_like(shorter[:, None], dtype=torch.bool)
    return torch.cat([(chosen != rejected) | is_beyond, ends], dim=1).int().argmax(1)


def attach(model: PreTrainedModel, context: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
    """Let a model that has TRL's fused LM head take packed pairs as `shared_prefix`; without them it works as before.

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
        *args: torch.Tensor,
        shared_prefix: PackedPairs | None = None,
        fused_lm_head: bool = False,
        **kwargs: torch.Tensor,
    ) -> FusedCausalLMOutput:
        if shared_prefix is None or not fused_lm_head:
            return trl_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        with context():
            return _forward_packed(self, trl_forward, shared_prefix, kwargs["labels"][:, 1:])

    model.forward = types.MethodType(forward, model)


def is_flat(model: PreTrainedModel) -> bool:
    """True if all pairs of a micro-batch share one row; with plain masks its cost would grow with its square."""
    return bool(model.config._attn_implementation != "eager")


def _check(model: PreTrainedModel) -> None:
    """Raise ZephyrError if sharing would change what the model computes."""
    config = model.config.get_text_config()
    implementation = model.config._attn_implementation
    # another kernel would ignore our mask, and the rejected answer would read the chosen one
    if implementation not in (*SHARING, *MASKED):
        raise ZephyrError(
            f"pairs cannot share their prompts under launch.attention {implementation!r}",
            f"choose sdpa, or {OTHER_ENGINE}",
        )
    # state-space and hybrid layers carry a state from token to token, which neither masks nor positions stop
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


def _forward_packed(
    model: PreTrainedModel,
    trl_forward: Callable[..., FusedCausalLMOutput],
    packed: PackedPairs,
    labels: torch.Tensor,
) -> FusedCausalLMOutput:
    """The outputs of TRL's fused LM head [2B, L - 1] from one pass over packed pairs.

    `labels` [2B, L - 1] are TRL's, shifted by one: -100 for what is not a completion token.
    """
    is_scored = labels != -100  # [2B, L - 1], n of them True
    # The hidden state of a token predicts the next one, so the states to read are at the places one to the left in
    # TRL's rows. The state before a first answer token is the last one of the shared part, read once for each answer.
    source_places, targets = packed["gather_index"][:, :-1][is_scored], labels[is_scored]  # both [n]
    inputs = {
        "input_ids": packed["input_ids"],
        "position_ids": packed["position_ids"],
        "attention_mask": _attention_mask(model, packed),
        "use_cache": False,  # or the keys and values of every layer would be kept
    }
    if _has_plain_head(model, len(targets)):
        hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)  # [N x W, d]
        outputs = score(model.get_output_embeddings(), hidden.index_select(0, source_places), targets)
    else:
        with select_hidden_states(model.base_model, source_places):
            outputs = trl_forward(**inputs, shift_labels=targets[None], fused_lm_head=True)
    per_token = {name: outputs[name] for name in PER_TOKEN if outputs.get(name) is not None}  # [n] each
    # masked_scatter keeps the graph: even if no token is scored, the zeros depend on the parameters
    padded = {
        name: values.new_zeros(labels.shape).masked_scatter(is_scored, values) for name, values in per_token.items()
    }
    return FusedCausalLMOutput(**padded, label_mask=is_scored)


@contextmanager
def select_hidden_states(backbone: torch.nn.Module, places: torch.Tensor) -> Iterator[None]:
    """Let the backbone return only the hidden states at `places` [n], as one row [1, n, d]."""

    def select(
        _module: torch.nn.Module, _inputs: tuple[torch.Tensor, ...], outputs: "BaseModelOutputWithPast"
    ) -> "BaseModelOutputWithPast":
        hidden = outputs.last_hidden_state.flatten(0, 1).index_select(0, places)
        return type(outputs)(last_hidden_state=hidden[None])

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _has_plain_head(model: PreTrainedModel, tokens: int) -> bool:
    """True if logits are those of a linear layer, and few enough to be held: on a CPU that is three times as fast.

    TRL's head computes them again in the backward pass: for 2,600 tokens and a vocabulary of 4,096, both passes take
    1.14 s instead of 0.36 s. Parameters that ZeRO-3 has partitioned stay with TRL.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    is_linear = all(getattr(config, name, None) is None for name in HEADS_THAT_SCALE)
    is_here = head.weight.device.type == "cpu" and not hasattr(head.weight, "ds_id")
    return is_linear and is_here and tokens * head.weight.shape[0] <= MOST_LOGITS


def score(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The log-probability [n] of each target [n] after the hidden states [n, d], and what TRL logs of the distribution.

    The head is applied to so many rows at a time that its logits [rows, V] are `LOGITS_AT_ONCE`.
    """
    rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])  # 131 for a vocabulary of 32,000
    parts = [
        _TargetLogProbs.apply(head(hidden_part), target_part)
        for hidden_part, target_part in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    return {name: torch.cat(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}


class _TargetLogProbs(torch.autograd.Function):
    """Log-softmax at the targets, a few rows at a time, in place: logits become probabilities and then gradients.

    Nothing else needs the logits: the backward pass of a linear layer reads its input and its weights.
    """

    @staticmethod
    def forward(ctx: "FunctionCtx", logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = logits.detach().float()  # of fp32 logits a view: the softmax below overwrites them
        parts = zip(values.split(ROWS_AT_ONCE), targets[:, None].split(ROWS_AT_ONCE), strict=True)
        columns = zip(*(_softmax_in_place(part, target_part) for part, target_part in parts), strict=True)
        outputs = tuple(torch.cat(column) for column in columns)
        ctx.save_for_backward(values, targets)
        ctx.mark_non_differentiable(*outputs[1:])  # entropies, mean logits and hits are logged only
        ctx.dtype = logits.dtype
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: "FunctionCtx", of_log_probs: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        # d log p[target] / d logit[v] = (v == target) - p[v]
        probabilities, targets = ctx.saved_tensors
        gradients = probabilities.mul_(-of_log_probs[:, None])
        gradients.scatter_add_(1, targets[:, None], of_log_probs[:, None])
        return gradients.to(ctx.dtype), None


def _softmax_in_place(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Replace logits [rows, V] by their softmax.

    Returns, [rows] each: log-probabilities of the targets [rows, 1], entropies, mean logits, and whether the target
    has the highest logit.
    """
    mean, most, target_logits = logits.mean(-1), logits.amax(-1, keepdim=True), logits.gather(-1, targets)
    is_top = (target_logits == most).squeeze(-1)
    candidates = is_top.nonzero().squeeze(-1)
    is_top[candidates] = logits[candidates].argmax(-1) == targets[candidates, 0]  # of equal logits the first, as in TRL
    powers = logits.sub_(most).exp()  # `logits` now has z - max z, so that no power overflows
    total = powers.sum(-1, keepdim=True)
    # entropy = -sum p log p, with log p = z - log(total), is log(total) - sum(powers x z) / total
    entropy = total.log().squeeze(-1) - torch.linalg.vecdot(powers, logits) / total.squeeze(-1)
    torch.div(powers, total, out=logits)
    return (target_logits - most - total.log()).squeeze(-1), entropy, mean, is_top


def _attention_mask(model: PreTrainedModel, packed: PackedPairs) -> "Mask | dict[str, Mask]":
    """What the backbone takes as its attention mask.

    Our own attention functions take the pair lengths as an integer tensor [1, 1, B, 3]: transformers passes any tensor
    of four dimensions through to them. Other ones take a mask in their own form, one for each kind of layer.
    """
    implementation = model.config._attn_implementation
    if implementation in SHARING.values():
        lengths: torch.Tensor = torch.tensor(packed["pair_lengths"]).view(1, 1, -1, 3)
        return lengths
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types:
        return _mask(implementation, packed, window, model.dtype)
    # Gemma 2 alternates layers with a window and without: such models look their mask up in a dictionary by layer type.
    windows = {name: window if name == "sliding_attention" else None for name in layer_types}
    masks = {name: _mask(implementation, packed, limit, model.dtype) for name, limit in windows.items()}
    return masks if len(masks) > 1 else masks.popitem()[1]


def _mask(implementation: str, packed: PackedPairs, window: int | None, dtype: torch.dtype) -> "Mask":
    """The mask of an attention implementation, in its own form.

    A token attends to what is shared and to its own answer. A window is counted in positions: those of both answers
    follow the shared part directly.
    """
    segments, positions = packed["segment_ids"], packed["position_ids"]

    def mask_mod(batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        # Indices: transformers passes tensors that broadcast to [rows, 1, W, W], flex attention one index of each.
        query_segment, key_segment = segments[batch, query], segments[batch, key]
        shared_segment = query_segment - query_segment % 3  # the multiple of 3 below: that of the query's pair
        is_visible = (query >= key) & ((query_segment == key_segment) | (shared_segment == key_segment))
        if window is None:
            return is_visible
        return is_visible & (positions[batch, query] - positions[batch, key] < window)

    rows, width = segments.shape
    mask: Mask = ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=rows,
        q_length=width,
        kv_length=width,
        mask_function=mask_mod,
        dtype=dtype,
        device=segments.device,
        allow_is_causal_skip=False,  # without padding it would make none, and leave it to the kernel's causal flag
    )
    return mask


def _pairwise_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention over query [1, heads, W, head size], one row of a pair at a time.

    The chosen row (prompt and chosen answer, C tokens) is causal as it is. The rejected answer alone, its r tokens
    after P shared ones, is the query of a second call with the keys of its whole row. A mask over all tokens of a pair
    would cost (C + r)^2; this costs C^2, half of it if the kernel skips what is masked, and r (P + r).
    """
    pair_lengths = _pair_lengths(attention_mask)
    if pair_lengths is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    groups = query.shape[1] // key.shape[1]  # query heads per key-value head
    keys, values = (_both_rows(repeat_kv(states, groups), pair_lengths) for states in (key, value))
    query_lengths: list[int] = []
    for shared, chosen, rejected in pair_lengths:
        query_lengths += [chosen, rejected - shared]
    attended = []
    for row_query, row_key, row_value in zip(query.split(query_lengths, dim=2), keys, values, strict=True):
        if not row_query.shape[2]:  # the rejected answer is the start of the chosen one: nothing of its own is left
            continue
        mask = _row_mask(row_query, row_key.shape[2], sliding_window)
        output = functional.scaled_dot_product_attention(
            row_query, row_key, row_value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        attended.append(output.transpose(1, 2))
    return torch.cat(attended, dim=1), None  # [1, W, heads, head size], in the order of the packed row


def _both_rows(states: torch.Tensor, pair_lengths: list[list[int]]) -> Iterator[torch.Tensor]:
    """Keys or values [1, heads, W, head size] of each pair's chosen row and then of its rejected row.

    All pieces come from a single split: each cut by itself would cost a row of zeros in the backward pass.
    """
    lengths: list[int] = []
    for shared, chosen, rejected in pair_lengths:
        lengths += [shared, chosen - shared, rejected - shared]
    pieces = iter(states.split(lengths, dim=2))
    for prompt, chosen, rejected in zip(pieces, pieces, pieces, strict=True):
        yield torch.cat([prompt, chosen], dim=2)
        yield torch.cat([prompt, rejected], dim=2)


def _row_mask(query: torch.Tensor, keys: int, window: int | None) -> torch.Tensor | None:
    """What is added to the scores of the last tokens of a row; None if plain causal attention does the same."""
    queries, fits_window = query.shape[2], window is None or keys <= window
    if queries == keys and fits_window:
        return None
    return _lower_right(queries, keys, None if fits_window else window, query.dtype, query.device)


def _pair_lengths(attention_mask: "Mask | None") -> list[list[int]] | None:
    """The lengths of all pairs; None if what was passed through is a real mask and not lengths."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dtype != torch.int64:
        return None
    lengths: list[list[int]] = attention_mask[0, 0].tolist()
    return lengths


@functools.lru_cache(maxsize=32)
def _lower_right(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A causal mask [queries, keys] whose last query sees the last key; all layers of a pass need the same masks."""
    is_visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if window is not None:
        is_visible = is_visible.triu(keys - queries - window + 1)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill(~is_visible, float("-inf"))


def _varlen_flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Flash attention over two sequences per pair: the chosen row, and the rejected answer over its whole row.

    If a sequence has more keys than queries, flash attention aligns its causal mask to the last of both.
    """
    pair_lengths = _pair_lengths(attention_mask)
    if pair_lengths is None:
        return flash_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    # tuples can be cached: all layers of a pass need the same sequences
    lengths_key = tuple((shared, chosen, rejected) for shared, chosen, rejected in pair_lengths)
    key_index, lengths = _sequences(lengths_key, query.device)
    attended = _flash_attention_forward(
        query.transpose(1, 2),
        key.index_select(2, key_index).transpose(1, 2),
        value.index_select(2, key_index).transpose(1, 2),
        None,
        query_length=query.shape[2],
        is_causal=True,
        softmax_scale=scaling,
        **{name: kwargs[name] for name in ("dropout", "sliding_window", "softcap") if name in kwargs},
        **lengths,
    )
    return attended, None


@functools.lru_cache(maxsize=2)
def _sequences(pair_lengths: PairLengths, device: torch.device) -> tuple[torch.Tensor, VarlenLengths]:
    """The index of the keys of all sequences, one sequence after the other, and where queries and keys of each end.

    The queries need no gathering: in the packed row the chosen row is followed by the rejected answer's own tokens. The
    keys of the second sequence are the shared part again, which makes sum(chosen + rejected) keys in all. The lengths
    (2, 5, 4) of the first pair in the module's docstring give:

        sequence        0 (chosen row)   1 (rejected answer over its row)
        queries         0 1 2 3 4        5 6
        keys            0 1 2 3 4        0 1 5 6
        cu_seq_lens_q   0         5          7
        cu_seq_lens_k   0         5              9
    """
    key_parts: list[torch.Tensor] = []
    query_lengths, key_lengths = [0], [0]
    start = 0
    for shared, chosen, rejected in pair_lengths:
        own = rejected - shared
        key_parts += [torch.arange(start, start + chosen), torch.arange(start, start + shared)]
        key_parts += [torch.arange(start + chosen, start + chosen + own)]
        query_lengths += [chosen, own]
        key_lengths += [chosen, rejected]
        start += chosen + own
    lengths = VarlenLengths(
        cu_seq_lens_q=torch.tensor(query_lengths).cumsum(0).to(device, torch.int32),
        cu_seq_lens_k=torch.tensor(key_lengths).cumsum(0).to(device, torch.int32),
        max_length_q=max(query_lengths),
        max_length_k=max(key_lengths),
    )
    return torch.cat(key_parts).to(device), lengths


AttentionInterface.register(SHARING["sdpa"], _pairwise_sdpa)
AttentionInterface.register(SHARING["flash_attention_2"], _varlen_flash)
AttentionMaskInterface.register(SHARING["sdpa"], sdpa_mask)
AttentionMaskInterface.register(SHARING["flash_attention_2"], flash_attention_mask)
