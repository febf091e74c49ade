"""Whether the configurations of a distributed job state every number, and state it exactly."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from zephyrctl.layers import load, shipped
from zephyrctl.recipe import Launch, Training
from zephyrctl.training.deepspeed import accelerate_config, accumulation, deepspeed_config, micro_batch

CPU = ["launch.processes=2"]


def values(config: Any) -> Iterator[Any]:
    """Every value of nested mappings and lists."""
    if isinstance(config, dict | list):
        for part in config.values() if isinstance(config, dict) else config:
            yield from values(part)
    else:
        yield config


def is_exact(settings: Training, launch: Launch) -> bool:
    """True where micro-batch x accumulation x processes is the global batch."""
    config = deepspeed_config(settings, launch)
    step = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * launch.processes
    return bool(step == config["train_batch_size"] == settings.global_batch)


@pytest.mark.parametrize("name", shipped())
def test_the_global_batch_of_every_shipped_recipe_is_exact(name: str) -> None:
    recipe = load(name, {}).recipe
    for settings in (recipe.sft, recipe.dpo):
        assert is_exact(settings, recipe.launch)
        assert micro_batch(settings, recipe.launch) <= settings.micro_batch


def test_the_global_batch_is_exact_for_every_number_of_processes() -> None:
    sft = load("tiny", {}).recipe.sft
    for processes in (1, 2, 3, 4, 6, 8, 16):
        for batch in (processes, 6 * processes, 7 * processes, 32 * processes):
            for micro in (1, 2, 5, 8, 64):
                settings = sft.model_copy(update={"global_batch": batch, "micro_batch": micro})
                launch = Launch(processes=processes)
                assert is_exact(settings, launch)
                assert 1 <= micro_batch(settings, launch) <= micro


def test_the_papers_batches_are_the_papers() -> None:
    """Facts section 1: 8 x 4 x 16 = 512 and 2 x 1 x 16 = 32."""
    recipe = load("zephyr-7b-beta", {}).recipe
    assert (micro_batch(recipe.sft, recipe.launch), accumulation(recipe.sft, recipe.launch)) == (8, 4)
    assert (micro_batch(recipe.dpo, recipe.launch), accumulation(recipe.dpo, recipe.launch)) == (2, 1)


@pytest.mark.parametrize("name", shipped())
def test_nothing_is_left_to_be_guessed(name: str) -> None:
    recipe = load(name, {}).recipe
    config = deepspeed_config(recipe.sft, recipe.launch)
    assert "auto" not in set(values(config))
    assert config["bf16"]["enabled"] is (recipe.launch.precision == "bf16")
    assert config["gradient_clipping"] == recipe.sft.max_grad_norm
    assert config["zero_optimization"]["stage"] == recipe.launch.zero_stage
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_are_gathered_at_load_only_under_zero_3(stage: int) -> None:
    launch = load("tiny", {}, [*CPU, f"launch.zero_stage={stage}"]).recipe.launch
    config = accelerate_config(Path("deepspeed.json"), launch, on_cpu=True)
    assert config["deepspeed_config"]["zero3_init_flag"] is (stage == 3)


def test_precision_is_stated_in_one_file_only() -> None:
    """Beside a DeepSpeed file accelerate refuses `mixed_precision`."""
    config = accelerate_config(Path("deepspeed.json"), load("tiny", {}, CPU).recipe.launch, on_cpu=True)
    assert "mixed_precision" not in config
    assert config["distributed_type"] == "DEEPSPEED"


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(("name", "recipe"), [("paper-16-gpus", "zephyr-7b-beta"), ("tiny-2-cpus", "tiny")])
def test_configurations_read_as_they_did(
    golden: Callable[[str, str], None], name: str, recipe: str, stage: str
) -> None:
    is_tiny = recipe == "tiny"
    loaded = load(recipe, {}, CPU if is_tiny else []).recipe
    settings = loaded.sft if stage == "sft" else loaded.dpo
    config = deepspeed_config(settings, loaded.launch)
    golden(f"deepspeed/{name}-{stage}.json", json.dumps(config, indent=2) + "\n")
    door = accelerate_config(Path("deepspeed.json"), loaded.launch, on_cpu=is_tiny)
    golden(f"deepspeed/{name}.yaml", yaml.safe_dump(door, sort_keys=False))
