"""Whether the memory that plans predict is what real processes take, and real backward passes keep."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory as benchmark
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Precision
from zephyrctl.planning.memory import MicroBatchShape, TrainedModel, estimate_memory

pytestmark = pytest.mark.slow

SHAPE = benchmark.Shape(576, 1536, 6)
"""40 M parameters: with fewer, what libraries keep for themselves would count."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    return benchmark.make_base(SHAPE, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    "case",
    [
        benchmark.Case(0, "bf16", False, 64),
        benchmark.Case(1, "fp32", False, 64),
        benchmark.Case(2, "fp32", True, 64),
        benchmark.Case(3, "fp32", False, 256),
    ],
    ids=lambda case: f"zero-{case.zero_stage}",
)
def test_two_processes_take_what_was_predicted(case: benchmark.Case, base: Path) -> None:
    """States within 3 %, the peak within 10 %."""
    found = benchmark.measure(case, SHAPE, base)
    assert found["standing"]["measured_mb"] > 100
    assert abs(found["standing"]["error"]) < 0.03, found
    assert abs(found["peak"]["error"]) < 0.10, found


@pytest.mark.parametrize("kind", ["bf16", "fp32", "cast"])
def test_a_layer_keeps_what_was_predicted(kind: str) -> None:
    """Bytes a token that autograd saves in each layer, weights left out; `cast` is fp32 weights and bf16 arithmetic."""
    precision: Precision = "fp32" if kind == "fp32" else "bf16"
    stage = None if kind != "bf16" else 2
    for is_checkpointed in (False, True):
        predicted = kept(2, precision, stage, is_checkpointed) - kept(1, precision, stage, is_checkpointed)
        measured = (saved(3, kind, is_checkpointed) - saved(1, kind, is_checkpointed)) / 2
        assert measured == pytest.approx(predicted, rel=0.02)


SMALL = benchmark.Shape(768, 1536, 1)
TOKENS = 120


def kept(layers: int, precision: Precision, stage: int | None, is_checkpointed: bool) -> float:
    """Bytes that so many layers keep, by the plan: what a peak has of activations with and without them."""
    world = 1 if stage is None else 2
    values = {
        "nodes": 1,
        "processes": world,
        "on_cpu": False,
        "global_batch": world,
        "micro_batch": 1,
        "accumulation": 1,
        "zero_stage": stage,
        "gradient_checkpointing": is_checkpointed,
    }
    sizes = benchmark.Shape(SMALL.width, SMALL.feed_forward, layers).sizes
    found = estimate_memory(
        TrainedModel(sizes, precision), Layout.model_validate(values), MicroBatchShape(1000, TOKENS)
    )
    return found.parts["activations"] / 1000


def saved(layers: int, kind: str, is_checkpointed: bool) -> float:
    """Bytes that autograd saves for the backward pass of a real model of so many layers."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=512,
        hidden_size=SMALL.width,
        intermediate_size=SMALL.feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=SMALL.width // 64,
        num_key_value_heads=SMALL.width // 192,
        sliding_window=None,
    )
    model = MistralForCausalLM(config).to(torch.bfloat16 if kind == "bf16" else torch.float32).train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    matrices = {weight.numel() for weight in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        is_cast = tensor.dtype == torch.bfloat16 and tensor.numel() in matrices and kind == "cast"
        if storage.data_ptr() not in weights and not is_cast:
            storages[storage.data_ptr()] = storage
        return tensor

    casting = torch.autocast("cpu", torch.bfloat16) if kind == "cast" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casting:
        hidden = model.model(input_ids=torch.arange(TOKENS)[None] + 3, use_cache=False).last_hidden_state
    assert hidden.shape[1] == TOKENS
    return float(sum(storage.nbytes() for storage in storages.values()))
