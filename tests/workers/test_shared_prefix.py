"""The prefix-shared forward pass says what TRL's padded one says, in every architecture, layout and training."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.workers.pairs_made import Pair, losses, pair_job, pair_layout, random_pairs, trained
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Adapter

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
"""Weights so large that every token hangs on those that it sees: with the usual 0.02 the log-probabilities of a random
model are the same to three digits whatever it looks at."""
WINDOW = 9
"""Shorter than nearly all rows of `random_pairs`."""
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral with a window": ("MistralConfig", {"sliding_window": WINDOW}),
    "llama": ("LlamaConfig", {}),
    "llama with a bias on its head": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 with windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "cohere, which scales its logits": ("CohereConfig", {}),
}
CASES = [(name, attention) for name in MODELS for attention in ("sdpa", "eager")]
CASES.remove(("gemma2", "sdpa"))
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def model_of(name: str, attention: str = "sdpa", **sizes: int) -> Any:
    """A random model with TRL's fused head."""
    import torch
    import transformers
    from trl.trainer.utils import add_fused_lm_head

    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SIZES | settings | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if "bias" in name:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(config.vocab_size))
    add_fused_lm_head(model, outputs=OUTPUTS)
    return model


def outputs_of(model: Any, pairs: list[Pair], shares: bool) -> Any:
    """What a model says of pairs, in TRL's shape."""
    from accelerate.utils import send_to_device

    from zephyrctl.workers.shared_prefix import KEY, PairCollator, is_flat

    batch = send_to_device(PairCollator(pad_token_id=0, is_flat=is_flat(model))(pairs), model.device)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    layout = {KEY: batch[KEY]} if shares else {}
    return model(**inputs, **layout, use_cache=False, fused_lm_head=True)


def both(model: Any, pairs: list[Pair]) -> tuple[Any, Any]:
    """What a model says of pairs before and after it can share their prompts."""
    from zephyrctl.workers import shared_prefix

    padded = outputs_of(model, pairs, shares=False)
    shared_prefix.attach(model)
    return padded, outputs_of(model, pairs, shares=True)


def gradients(model: Any, outputs: Any) -> dict[str, Any]:
    """The gradients of a sum in which every row has a weight of its own, and some are negative, as in dDPO."""
    import torch

    rows = len(outputs.log_probs)
    model.zero_grad()
    weights = torch.linspace(-1, 1, rows, device=outputs.log_probs.device)
    (outputs.log_probs.sum(1) * weights).sum().backward()
    return {name: values.grad.clone() for name, values in model.named_parameters() if values.grad is not None}


def agree(mine: Any, theirs: Any) -> None:
    """Every token's and every answer's log-probability within 1e-4, and all else that TRL logs."""
    assert mine.log_probs.shape == theirs.log_probs.shape
    for name in OUTPUTS:
        assert (mine[name].float() - theirs[name].float()).abs().max() < 1e-4, name
    assert (mine.log_probs.sum(1) - theirs.log_probs.sum(1)).abs().max() < 1e-4
    assert (mine.label_mask == theirs.label_mask).all()


def gradients_agree(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Within 1e-3 of each parameter's norm."""
    assert set(mine) == set(theirs)
    for name, expected in theirs.items():
        assert (mine[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_log_probabilities_and_gradients_are_trls(name: str, attention: str) -> None:
    model = model_of(name, attention)
    padded, shared = both(model, random_pairs(6))
    agree(shared, padded)
    gradients_agree(gradients(model, shared), gradients(model, padded))


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = model_of(name, "eager" if name == "gemma2" else "sdpa")
    padded, _ = both(model, random_pairs(6))
    expected = gradients(model, padded)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    shared = outputs_of(model, random_pairs(6), shares=True)
    agree(shared, padded)
    gradients_agree(gradients(model, shared), expected)


def test_the_test_would_notice_a_window_that_is_left_out() -> None:
    apart = outputs_of(model_of("mistral"), random_pairs(6), False).log_probs
    near = outputs_of(model_of("mistral with a window"), random_pairs(6), False).log_probs
    assert (apart - near).abs().max() > 0.1


def test_under_autocast_it_is_as_near_as_bf16_allows() -> None:
    import torch

    model = model_of("mistral")
    exact = outputs_of(model, random_pairs(6), False).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        padded, shared = both(model, random_pairs(6))
    assert shared.log_probs.dtype == torch.float32
    error = (padded.log_probs - exact).abs().mean()
    assert error > 0
    assert (shared.log_probs - exact).abs().mean() < 1.5 * error


def test_answers_do_not_see_each_other_nor_other_pairs() -> None:
    import torch

    from zephyrctl.workers import shared_prefix

    model, pairs = model_of("mistral"), random_pairs(6)
    shared_prefix.attach(model)
    before = outputs_of(model, pairs, shares=True)
    changed = copy.deepcopy(pairs)
    changed[5]["rejected_ids"] = [9 + token % 50 for token in changed[5]["rejected_ids"]]
    rows = torch.arange(12) != 11
    after = outputs_of(model, changed, shares=True)
    assert (before.log_probs - after.log_probs)[rows].abs().max() < 1e-5
    assert (before.log_probs - after.log_probs)[11].abs().max() > 0.1
    changed[5]["prompt_ids"] = [9 + token % 50 for token in changed[5]["prompt_ids"]]
    assert (before.log_probs - outputs_of(model, changed, shares=True).log_probs)[5].abs().max() > 0.1


def test_a_model_with_adapters() -> None:
    import peft
    import torch

    from zephyrctl.workers import shared_prefix

    model = model_of("mistral")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    padded = outputs_of(adapted, random_pairs(6), False)
    shared_prefix.attach(adapted.get_base_model())
    shared = outputs_of(adapted, random_pairs(6), True)
    agree(shared, padded)
    gradients_agree(gradients(adapted, shared), gradients(adapted, padded))
    with adapted.disable_adapter(), torch.no_grad():
        assert (outputs_of(adapted, random_pairs(6), True).log_probs - shared.log_probs).abs().max() > 0.1


def test_without_a_layout_the_model_is_what_it_was() -> None:
    import torch

    from zephyrctl.workers import shared_prefix

    model = model_of("mistral with a window").eval()
    ids = torch.arange(10, 50).view(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0  # padded on the left, as prompts of a batch are for generation
    before, said = model(input_ids=ids, attention_mask=mask).logits, generated(model, ids, mask)
    shared_prefix.attach(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits[mask.bool()], before[mask.bool()])
    assert torch.equal(generated(model, ids, mask), said)


def generated(model: Any, ids: Any, mask: Any) -> Any:
    """The most likely continuation."""
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)


def test_a_saved_model_says_nothing_of_how_it_was_trained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from zephyrctl.workers import shared_prefix

    model = model_of("mistral")
    shared_prefix.attach(model)
    model.save_pretrained(tmp_path)
    assert "shared_prefix" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_the_example_in_the_docstring_is_what_is_packed() -> None:
    """The drawing of two pairs, P Q c d r s as numbers."""
    from zephyrctl.workers.shared_prefix import KEY, PairCollator

    pairs = [
        {"prompt_ids": [10, 11], "chosen_ids": [30, 31, 32], "rejected_ids": [50, 51]},
        {"prompt_ids": [20], "chosen_ids": [40, 41], "rejected_ids": [40, 61, 62, 63]},
    ]
    packed = PairCollator(pad_token_id=0)(pairs)[KEY]
    assert packed["input_ids"].tolist() == [[10, 11, 30, 31, 32, 50, 51, 20, 40, 41, 61, 62, 63]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 2, 3, 4]]
    assert packed["segment_ids"].tolist() == [[0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 5]]
    assert packed["pair_lengths"] == ((2, 5, 4), (2, 3, 5))
    assert packed["gather_index"].tolist() == [
        [0, 1, 2, 3, 4],
        [7, 8, 9, 0, 0],
        [0, 1, 5, 6, 0],
        [7, 8, 10, 11, 12],
    ]


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_layout_holds_every_token_once_where_it_belongs(is_flat: bool) -> None:
    import torch

    from zephyrctl.workers.shared_prefix import KEY, PairCollator

    pairs = random_pairs(8)
    batch = PairCollator(pad_token_id=0, is_flat=is_flat)(pairs)
    layout, is_token = batch[KEY], batch["attention_mask"].bool()
    places = layout["gather_index"][is_token]
    positions = torch.arange(is_token.shape[1]).expand_as(is_token)[is_token]
    assert torch.equal(layout["input_ids"].flatten()[places], batch["input_ids"][is_token])
    assert torch.equal(layout["position_ids"].flatten()[places], positions)
    assert len(places.unique()) == (layout["segment_ids"] >= 0).sum()
    tokens = sum(chosen + rejected - shared for shared, chosen, rejected in layout["pair_lengths"])
    assert tokens == len(places.unique())
    assert not is_flat or layout["input_ids"].shape == (1, tokens), "a flat layout has no padding"
    for pair, (shared, chosen, rejected) in zip(pairs, layout["pair_lengths"], strict=True):
        assert len(pair["prompt_ids"]) <= shared <= min(chosen, rejected)
        assert chosen == len(pair["prompt_ids"]) + len(pair["chosen_ids"])
        assert rejected == len(pair["prompt_ids"]) + len(pair["rejected_ids"])
    shared, chosen, _ = layout["pair_lengths"][0]
    assert shared == len(pairs[0]["prompt_ids"]) + 2, "the words that both answers begin with are shared too"


def test_both_heads_say_the_same() -> None:
    """Ours for logits that can be held, TRL's for those that cannot; ties count as TRL counts them."""
    import torch
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    from zephyrctl.workers import shared_prefix

    torch.manual_seed(0)
    hidden, targets = torch.randn(300, 16), torch.randint(50, (300,))
    head = torch.nn.Linear(16, 50)
    with torch.no_grad():
        head.weight[25:] = head.weight[:25]
        head.bias[25:] = head.bias[:25]
        targets[:100] = head(hidden[:100]).argmax(-1) + 25 * torch.randint(2, (100,))
    said = shared_prefix.score(head, hidden, targets)
    expected = ChunkedLogProbFunction.apply(hidden, head.weight, head.bias, targets, 1.0, 32768, None, 1.0, OUTPUTS)
    for name, values in zip(("log_probs", "entropy", None, "mean_logits", "is_top1"), expected, strict=True):
        if name:
            assert (said[name].float() - values.float()).abs().max() < 1e-5, name
    assert 0 < said["is_top1"].sum() < 100


def test_logits_that_cannot_be_held_go_through_trls_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyrctl.workers import shared_prefix

    model = model_of("llama with a bias on its head")
    padded, few = both(model, random_pairs(6))
    monkeypatch.setattr(shared_prefix, "MOST_LOGITS", 100)
    many = outputs_of(model, random_pairs(6), shares=True)
    agree(many, padded)
    agree(many, few)
    gradients_agree(gradients(model, many), gradients(model, few))
    assert many.log_probs.grad_fn is not few.log_probs.grad_fn


@pytest.mark.parametrize("name", ["mistral with a window", "gemma3"])
def test_flex_attention_takes_the_same_mask(name: str) -> None:
    """Uncompiled, and forward only: compiled for a CPU it takes a minute, and there it has no backward pass."""
    import torch

    model = model_of(name, "eager").eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        padded = outputs_of(model, random_pairs(6), False)
        model.set_attn_implementation("flex_attention")
        _, shared = both(model, random_pairs(6))
    agree(shared, padded)


def reference_varlen(
    query: Any,
    key: Any,
    value: Any,
    _mask: None,
    softmax_scale: float,
    cu_seq_lens_q: Any,
    cu_seq_lens_k: Any,
    max_length_q: int,
    max_length_k: int,
    sliding_window: int | None = None,
    **_: Any,
) -> Any:
    """What flash attention's kernel computes over sequences of unlike queries and keys, from its documentation."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    parts = []
    groups = query.shape[2] // key.shape[2]
    queries_of, keys_of = pairwise(cu_seq_lens_q.tolist()), pairwise(cu_seq_lens_k.tolist())
    for (first_query, last_query), (first_key, last_key) in zip(queries_of, keys_of, strict=True):
        queries, keys = last_query - first_query, last_key - first_key
        assert queries <= max_length_q and keys <= max_length_k
        back = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        sees = (back >= 0) & (back < (sliding_window or keys + 1))
        states = [query[:, first_query:last_query], key[:, first_key:last_key], value[:, first_key:last_key]]
        queries_, keys_, values_ = (part.transpose(1, 2) for part in states)
        keys_, values_ = (part.repeat_interleave(groups, 1) for part in (keys_, values_))
        attended = scaled_dot_product_attention(queries_, keys_, values_, attn_mask=sees, scale=softmax_scale)
        parts.append(attended.transpose(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", ["mistral", "mistral with a window"])
def test_flash_attention_is_given_the_sequences_that_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel runs on GPUs alone; what it documents of lengths, windows and alignment is computed here instead."""
    from zephyrctl.workers import shared_prefix

    monkeypatch.setattr(shared_prefix, "_flash_attention_forward", reference_varlen)
    model = model_of(name)
    padded = outputs_of(model, random_pairs(6), False)
    expected = gradients(model, padded)
    model.config._attn_implementation = "flash_attention_2"
    shared_prefix.attach(model)
    shared = outputs_of(model, random_pairs(6), True)
    agree(shared, padded)
    gradients_agree(gradients(model, shared), expected)


def test_what_cannot_be_shared_is_refused() -> None:
    import transformers

    from zephyrctl.workers import shared_prefix

    mixtral = transformers.MixtralConfig(**SIZES, num_local_experts=2, router_aux_loss_coef=0.1)
    with pytest.raises(ZephyrError, match="experts") as refused:
        shared_prefix.attach(transformers.AutoModelForCausalLM.from_config(mixtral))
    assert "--engine trl" in refused.value.remedy
    model = model_of("qwen2")
    model.config.layer_types[0] = "chunked_attention"
    with pytest.raises(ZephyrError, match="chunked_attention"):
        shared_prefix.attach(model)
    model = model_of("mistral")
    model.config._attn_implementation = "paged|eager"
    with pytest.raises(ZephyrError, match=r"launch\.attention 'paged"):
        shared_prefix.attach(model)


def test_a_model_that_looks_at_its_tokens_in_its_own_way_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a model would see the chosen answer from the rejected one; the first micro-batch is never trained on."""
    from zephyrctl.workers import shared_prefix

    honest = shared_prefix.pack_pairs

    def leaky(*given: Any) -> Any:
        layout = honest(*given)
        spans = layout["pair_lengths"]
        return layout | {
            "pair_lengths": ((0, sum(chosen + rejected - shared for shared, chosen, rejected in spans), 0),)
        }

    monkeypatch.setattr(shared_prefix, "pack_pairs", leaky)
    job = pair_job(tmp_path, pair_layout("prefix-shared"), random_pairs(8, vocabulary=200))
    with pytest.raises(ZephyrError, match="something else when pairs share"):
        trained(job)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("plain", {}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("live reference", {"reference": "live"}),
    ],
)
def test_ten_steps_losses_agree(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    """76 pairs: nine whole steps and one with a left-over micro-batch, at a rate that moves the loss."""
    pairs = random_pairs(76, vocabulary=200)
    ran = {
        engine: trained(pair_job(tmp_path / engine, pair_layout(engine, **changes), pairs))
        for engine in ("trl", "prefix-shared")
    }
    mine, theirs = losses(ran["prefix-shared"]), losses(ran["trl"])
    assert len(mine) == len(theirs) == 10
    assert mine[0] == pytest.approx(math.log(2), abs=1e-4)
    assert max(theirs) - min(theirs) > 0.3, "every step hangs on the ones before"
    assert mine == pytest.approx(theirs, rel=1e-4)
    for name in ("rewards/margins", "logps/chosen", "grad_norm", "num_tokens"):
        logged = [[line[name] for line in trainer.state.log_history if name in line] for trainer in ran.values()]
        assert logged[1] == pytest.approx(logged[0], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("reference", ["precomputed", "live"])
def test_ten_steps_with_adapters_agree(tmp_path: Path, reference: str) -> None:
    pairs, held_out = random_pairs(76, vocabulary=200), random_pairs(9, seed=1, vocabulary=200)
    ran = []
    for engine in ("trl", "prefix-shared"):
        layout = pair_layout(engine, reference=reference)
        job = pair_job(tmp_path / engine, layout, pairs, held_out, adapter=Adapter(rank=4), learning_rate=1e-2)
        ran.append(trained(job))
    assert max(losses(ran[0])) - min(losses(ran[0])) > 0.1
    assert losses(ran[1]) == pytest.approx(losses(ran[0]), rel=1e-4)
    margins = [trainer.margins() for trainer in ran]
    assert margins[0].abs().max() > 0.01, "the policy's adapters are at work"
    assert margins[1].tolist() == pytest.approx(margins[0].tolist(), abs=1e-3)


def test_held_out_margins_agree(tmp_path: Path) -> None:
    pairs, held_out = random_pairs(24, vocabulary=200), random_pairs(11, seed=1, vocabulary=200)
    margins = [
        trained(pair_job(tmp_path / f"{engine} {reference}", layout, pairs, held_out)).margins().tolist()
        for engine, reference in (("trl", "live"), ("prefix-shared", "precomputed"), ("prefix-shared", "live"))
        for layout in [pair_layout(engine, reference=reference)]
    ]
    assert len(margins[0]) == 11
    assert max(map(abs, margins[0])) > 0.01
    assert margins[1] == pytest.approx(margins[0], abs=1e-3)
    assert margins[2] == pytest.approx(margins[0], abs=1e-3)
