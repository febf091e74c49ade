"""Whether the configurations of a distributed job state every number, and state it exactly."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from zephyrctl.launching.deepspeed_config import accelerate_config, deepspeed_config
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.weights import model_base
from zephyrctl.planning import plan
from zephyrctl.recipe.loading import load, shipped
from zephyrctl.recipe.schema import Launch, Recipe

CPU = ["hardware.gpus=0", "launch.processes=2"]


def values(config: Any) -> Iterator[Any]:
    """Every value of nested mappings and lists."""
    if isinstance(config, dict | list):
        for part in config.values() if isinstance(config, dict) else config:
            yield from values(part)
    else:
        yield config


def layout_of(recipe: Recipe, stage: str) -> Layout:
    """The layout on the hardware that the recipe names."""
    return plan.solve(recipe, stage, model_base(recipe)).layout


def laid_out(**changed: Any) -> Layout:
    """A layout."""
    layout = {"nodes": 2, "processes": 8, "on_cpu": False, "global_batch": 512, "micro_batch": 16, "accumulation": 2}
    return Layout(**layout | {"zero_stage": 3, "gradient_checkpointing": True} | changed)


def config_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage on the hardware that the recipe names."""
    config = deepspeed_config(plan.settings_of(recipe, stage), recipe.launch, layout_of(recipe, stage))
    assert config
    return config


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("name", shipped())
def test_configurations_are_exact_and_leave_nothing_to_be_guessed(name: str, stage: str) -> None:
    assignments = CPU if load(name, {}).recipe.base.name == "tiny-mistral" else []
    recipe = load(name, {}, assignments).recipe
    settings, layout = plan.settings_of(recipe, stage), layout_of(recipe, stage)
    config = config_of(recipe, stage)
    rows = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * layout.world
    assert rows == config["train_batch_size"] == settings.global_batch
    assert "auto" not in set(values(config))
    assert config["bf16"]["enabled"] is (recipe.launch.precision == "bf16")
    assert config["gradient_clipping"] == settings.max_grad_norm
    assert config["zero_optimization"]["stage"] == layout.zero_stage
    assert json.loads(json.dumps(config)) == config


def test_plain_torch_has_no_deepspeed() -> None:
    layout = laid_out(nodes=1, processes=1, micro_batch=8, accumulation=64, zero_stage=None)
    assert deepspeed_config(load("tiny", {}).recipe.sft, Launch(), layout) is None
    config = accelerate_config(layout, "deepspeed.json")
    assert (config["distributed_type"], config["num_processes"]) == ("NO", 1)
    assert "deepspeed_config" not in config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_a_stage_knows_nothing_of_is_left_out(stage: int) -> None:
    layout = laid_out(zero_stage=stage)
    config: dict[str, Any] | None = deepspeed_config(load("tiny", {}).recipe.sft, Launch(), layout)
    assert config
    named = {key for key in config["zero_optimization"] if key.startswith("stage3")}
    assert bool(named) is (stage == 3)
    accelerate: dict[str, Any] = accelerate_config(layout, "x.json")
    assert accelerate["deepspeed_config"]["zero3_init_flag"] is (stage == 3)


def test_off_loading_puts_the_optimizer_into_the_machines_memory() -> None:
    config: dict[str, Any] | None = deepspeed_config(load("tiny", {}).recipe.sft, Launch(), laid_out(offload=True))
    assert config
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_precision_is_stated_in_one_file_only() -> None:
    """Beside a DeepSpeed file accelerate refuses `mixed_precision`."""
    config = accelerate_config(laid_out(), "deepspeed.json")
    assert "mixed_precision" not in config
    assert config["distributed_type"] == "DEEPSPEED"
    assert (config["num_machines"], config["num_processes"]) == (2, 16)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(("name", "recipe"), [("paper-16-gpus", "zephyr-7b-beta"), ("tiny-2-cpus", "tiny")])
def test_configurations_read_as_they_did(
    golden: Callable[[str, str], None], name: str, recipe: str, stage: str
) -> None:
    loaded = load(recipe, {}, CPU if recipe == "tiny" else []).recipe
    golden(f"deepspeed/{name}-{stage}.json", json.dumps(config_of(loaded, stage), indent=2) + "\n")
    config = accelerate_config(layout_of(loaded, stage), "deepspeed.json")
    golden(f"deepspeed/{name}.yaml", yaml.safe_dump(config, sort_keys=False))
