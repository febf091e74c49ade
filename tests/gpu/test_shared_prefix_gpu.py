"""The prefix-shared forward pass on a CUDA GPU, by each of its attention kernels; elsewhere it is skipped."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.workers.pairs_made import losses, pair_job, pair_layout, random_pairs, trained
from tests.workers.test_shared_prefix import agree, gradients, gradients_agree, model_of, outputs_of
from zephyrctl.launching.processes import gpus
from zephyrctl.recipe.schema import Launch

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not gpus(), reason="no CUDA GPU on this machine")]
KERNELS = [
    "sdpa",
    "eager",
    "flex_attention",
    pytest.param(
        "flash_attention_2",
        marks=pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed"),
    ),
]


def on_the_gpu(name: str, attention: str, dtype: str) -> Any:
    """A random model there; its heads are as wide as flash and flex attention ask for."""
    import torch

    model = model_of(name, "eager", hidden_size=128, head_dim=32).to("cuda", getattr(torch, dtype))
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("name", ["mistral", "mistral with a window", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_in_fp32_log_probabilities_and_gradients_are_trls(name: str, attention: str) -> None:
    import torch

    from zephyrctl.workers import shared_prefix

    torch.backends.cuda.matmul.allow_tf32 = False
    model = on_the_gpu(name, "eager", "float32")
    pairs = random_pairs(12, longest=300)
    padded = outputs_of(model, pairs, False)
    expected = gradients(model, padded)
    model.set_attn_implementation(attention)
    shared_prefix.attach(model)
    shared = outputs_of(model, pairs, True)
    agree(shared, padded)
    gradients_agree(gradients(model, shared), expected)


@pytest.mark.parametrize("attention", KERNELS)
def test_in_bf16_it_is_as_near_to_fp32_as_trl_is(attention: str) -> None:
    import torch

    from zephyrctl.workers import shared_prefix

    pairs = random_pairs(12, longest=300)
    exact = outputs_of(on_the_gpu("mistral with a window", "eager", "float32"), pairs, False).log_probs
    model = on_the_gpu("mistral with a window", "sdpa", "bfloat16")
    padded = outputs_of(model, pairs, False).log_probs
    model.set_attn_implementation(attention)
    shared_prefix.attach(model)
    shared = outputs_of(model, pairs, True).log_probs
    assert shared.dtype == torch.float32
    assert (shared - exact).abs().mean() < 1.5 * (padded - exact).abs().mean()


@pytest.mark.parametrize("attention", KERNELS)
def test_ten_steps_in_bf16(tmp_path: Path, attention: str) -> None:
    """As near to TRL's losses in fp32 as TRL's own are in bf16, within three times."""
    pairs = random_pairs(80, vocabulary=200)
    runs = {
        "exact": ("trl", "fp32", "sdpa"),
        "trl": ("trl", "bf16", "sdpa"),
        "ours": ("prefix-shared", "bf16", attention),
    }
    found = {}
    for name, (engine, precision, kernel) in runs.items():
        launch = Launch.model_validate({"precision": precision, "attention": kernel})
        layout = pair_layout(engine, on_cpu=False)
        found[name] = losses(trained(pair_job(tmp_path / name, layout, copy.deepcopy(pairs), launch=launch)))
    apart = {
        name: max(abs(mine - theirs) for mine, theirs in zip(found[name], found["exact"], strict=True))
        for name in ("trl", "ours")
    }
    assert apart["ours"] < max(3 * apart["trl"], 0.02)
