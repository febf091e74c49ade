"""Memory follows the known formulas: states by ZeRO stage, activations per token, adapters, references."""

from typing import Any

import pytest

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning import memory
from zephyrctl.planning.hardware import Precision
from zephyrctl.planning.memory import MemoryEstimate, MicroBatchShape, TrainedModel, adapter_parameters, estimate_memory
from zephyrctl.recipe.schema import Adapter

MISTRAL = Sizes(
    parameters=7_241_732_096, width=4096, layers=32, feed_forward=14336, key_value_width=1024, vocabulary=32000
)
N = MISTRAL.parameters
ROW = MicroBatchShape(rows=1, length=2048)


def layout(world: int = 1, zero_stage: int | None = None, micro_batch: int = 1, **values: Any) -> Layout:
    """A layout of two micro-batches per step, with checkpointing, on GPUs of one machine."""
    accumulation = values.pop("accumulation", 2)
    return Layout.model_validate(
        {
            "nodes": 1,
            "processes": world,
            "on_cpu": False,
            "global_batch": world * micro_batch * accumulation,
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "zero_stage": zero_stage,
            "gradient_checkpointing": True,
            **values,
        }
    )


def states(world: int, zero_stage: int | None, precision: Precision = "bf16", **values: Any) -> float:
    """Bytes per parameter of weights, gradients and optimizer in the backward pass of a long row."""
    found = estimate_memory(
        TrainedModel(MISTRAL, precision), layout(world, zero_stage, **values), MicroBatchShape(16, 2048)
    )
    return sum(found.parts.get(part, 0) for part in ("weights", "gradients", "optimizer")) / N


@pytest.mark.parametrize("world", [2, 8, 16])
def test_states_are_those_of_the_formulas(world: int) -> None:
    """16 N in plain torch; 4 N + 12 N / W, 2 N + 14 N / W and 16 N / W under ZeRO-1 to 3 in bf16."""
    assert states(1, None) == 16
    assert states(world, 1) == pytest.approx(4 + 12 / world)
    assert states(world, 2) == pytest.approx(2 + 14 / world)
    assert states(world, 3) == pytest.approx(16 / world)


def test_fp32_under_deepspeed_has_masters_beside_its_weights() -> None:
    assert states(8, 3, "fp32") == pytest.approx((4 + 4 + 12) / 8)
    assert states(16, 2, "fp32") == pytest.approx(4 + 4 / 16 + 12 / 16)


def test_the_step_of_stage_0_holds_20_bytes_a_parameter() -> None:
    """Weights and gradients in bf16, masters, fp32 gradients and moments: more than plain torch's 16."""
    found = estimate_memory(TrainedModel(MISTRAL, "bf16"), layout(1, 0), ROW)
    assert found.peak - found.parts["overhead"] == pytest.approx(20 * N)


def test_zero_3_gathers_no_more_than_it_may_keep() -> None:
    model = TrainedModel(MISTRAL, "bf16")
    assert estimate_memory(model, layout(16, 3), ROW).parts["gathered"] == 2e9
    small = estimate_memory(model, layout(16, 3, max_live_parameters=10**8), ROW)
    assert small.parts["gathered"] == 2e8


def test_activations_of_a_token_are_those_of_the_formula() -> None:
    """Per layer 2 (6 d + 2 d_kv + 4 f) + 8 d bytes; with checkpointing 2 d L and twice one layer."""
    d, kv, f, layers = 4096, 1024, 14336, 32
    layer = 2 * (6 * d + 2 * kv + 4 * f) + 8 * d
    model = TrainedModel(MISTRAL, "bf16")
    shape = MicroBatchShape(4, 2048)
    checkpointed = estimate_memory(model, layout(8, 2), shape).parts["activations"] / shape.tokens
    assert checkpointed == pytest.approx(2 * d * layers + 2 * layer)
    kept = estimate_memory(model, layout(8, 2, gradient_checkpointing=False), MicroBatchShape(4, 2048)).parts[
        "activations"
    ] / (4 * 2048)
    assert kept == pytest.approx(layer * layers, rel=0.02)


@pytest.mark.parametrize("zero_stage", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_more_rows_at_once_take_no_less_memory(zero_stage: int | None, is_checkpointed: bool) -> None:
    world = 1 if zero_stage is None else 8
    peaks = [
        estimate_memory(
            TrainedModel(MISTRAL, "bf16"),
            layout(world, zero_stage, rows, gradient_checkpointing=is_checkpointed),
            MicroBatchShape(rows, 2048),
        ).peak
        for rows in (1, 2, 4, 8, 16, 32)
    ]
    assert peaks == sorted(peaks)
    assert peaks[-1] > peaks[0]


def test_higher_stages_and_more_processes_take_less() -> None:
    model = TrainedModel(MISTRAL, "bf16")
    by_stage = [estimate_memory(model, layout(8, stage), ROW).peak for stage in (0, 1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)
    by_world = [estimate_memory(model, layout(world, 3), ROW).peak for world in (2, 4, 8, 16, 64)]
    assert by_world == sorted(by_world, reverse=True)


def test_a_live_reference_is_a_second_set_of_weights() -> None:
    model = TrainedModel(MISTRAL, "bf16")

    def reference(world: int, stage: int | None) -> float:
        with_one = estimate_memory(model, layout(world, stage, reference="live"), ROW)
        without = estimate_memory(model, layout(world, stage, reference="precomputed"), ROW)
        assert with_one.peak - without.peak == pytest.approx(with_one.parts["reference"])
        return with_one.parts["reference"] / N

    assert reference(16, 3) == pytest.approx(2 / 16)
    assert reference(16, 2) == 2
    assert reference(1, None) == 4


def test_adapters_add_little_to_frozen_weights() -> None:
    lora, qlora = Adapter(rank=16), Adapter(rank=16, quantize=True)
    assert adapter_parameters(MISTRAL, lora) == 41_943_040
    assert adapter_parameters(MISTRAL, Adapter(rank=16, targets=["q_proj", "v_proj"])) == 16 * 32 * (2 * 4096 + 5120)
    whole = estimate_memory(TrainedModel(MISTRAL, "bf16", lora), layout(), ROW).parts
    assert whole["weights"] == 2 * N and whole["adapter"] == 16 * 41_943_040
    quantized = estimate_memory(TrainedModel(MISTRAL, "bf16", qlora), layout(), ROW).parts
    assert quantized["weights"] == pytest.approx(0.55 * N, rel=0.05)
    live = estimate_memory(TrainedModel(MISTRAL, "bf16", lora), layout(reference="live"), ROW).parts
    assert "reference" not in live  # adapters that are switched off are the reference


def test_off_loading_moves_the_optimizer_to_the_machine() -> None:
    model = TrainedModel(MISTRAL, "bf16")
    here, away = (estimate_memory(model, layout(4, 3, offload=offload), ROW) for offload in (False, True))
    assert away.host == pytest.approx(16 * N / 4) and here.host == 0
    assert here.peak - away.peak >= 12 * N / 4
    assert "optimizer" not in away.parts


def test_masks_and_kept_probabilities_grow_with_the_square_of_a_row() -> None:
    model, plain = TrainedModel(MISTRAL, "bf16"), layout()

    def extra(length: int, **values: Any) -> float:
        with_them, without = (
            estimate_memory(model, plain, MicroBatchShape(1, length, **values)),
            estimate_memory(model, plain, MicroBatchShape(1, length)),
        )
        return with_them.peak - without.peak

    assert extra(8192, has_mask=True) == pytest.approx(4 * extra(4096, has_mask=True))
    assert extra(8192, heads=32) == pytest.approx(4 * extra(4096, heads=32))


def test_logits_are_held_some_thousand_tokens_at_a_time() -> None:
    model = TrainedModel(MISTRAL, "bf16")
    few, many = (estimate_memory(model, layout(), MicroBatchShape(rows, 2048)).parts["logits"] for rows in (2, 32))
    assert few == many == 10 * 4096 * 32000
    whole = estimate_memory(model, layout(chunked_logits=False), MicroBatchShape(32, 2048)).parts["logits"]
    assert whole == 16 * few


def test_a_cpu_counts_its_process_and_gives_memory_back() -> None:
    model = TrainedModel(MISTRAL, "fp32")
    gpu: MemoryEstimate = estimate_memory(model, layout(2, 3), ROW)
    cpu: MemoryEstimate = estimate_memory(model, layout(2, 3, on_cpu=True), ROW)
    assert cpu.parts["overhead"] == memory.CPU_PROCESS + memory.CPU_TRAINING
    assert cpu.standing == gpu.standing
    assert "buckets" not in cpu.parts
