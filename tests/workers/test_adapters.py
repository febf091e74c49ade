"""LoRA and QLoRA: adapters alone are trained, and merged into whole weights or kept apart, as the recipe says."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs_made import layout, losses, make_job
from zephyrctl.builtin.bases import sizes_of_folder
from zephyrctl.launching.job import SftJob
from zephyrctl.recipe.schema import Adapter

pytestmark = pytest.mark.slow


def trained(folder: Path, **adapter: Any) -> SftJob:
    """A job of one process that trains adapters, done in this process."""
    from zephyrctl.workers import sft

    path = make_job(folder, layout(processes=1, zero_stage=None))
    job = SftJob.model_validate_json(path.read_bytes())
    settings = job.settings.model_copy(update={"adapter": Adapter(rank=4, **adapter), "learning_rate": 1e-2})
    job = job.model_copy(update={"settings": settings})
    path.write_text(job.model_dump_json())
    sft.work(path)
    return job


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a model's folder."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_adapters_are_merged_into_whole_weights(tmp_path: Path) -> None:
    import torch

    job = trained(tmp_path)
    assert len(losses(tmp_path)) == 2
    assert sizes_of_folder(job.model_folder) == sizes_of_folder(Path(job.model))
    start, end = weights(Path(job.model)), weights(job.model_folder)
    assert set(start) == set(end)
    moved = {name for name in start if not torch.equal(start[name].float(), end[name].float())}
    assert moved
    assert all("proj" in name for name in moved)
    assert not (job.model_folder / "adapter_config.json").exists()
    assert (job.model_folder / "token_contract.json").exists()


def test_what_is_merged_says_what_the_adapters_said(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = trained(tmp_path)
    ids = torch.arange(10, 40)[None]
    start = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    apart = PeftModel.from_pretrained(start, str(job.scratch / "adapters")).eval()
    merged = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (apart(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max() < 1e-3


def test_adapters_are_kept_apart_where_the_recipe_says_so(tmp_path: Path) -> None:
    job = trained(tmp_path, merge=False)
    config = json.loads((job.model_folder / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, job.model)
    assert all("lora" in name for name in weights(job.model_folder))
    assert not list(job.model_folder.glob("*.bin"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_adapters_beside_weights_of_four_bits(tmp_path: Path) -> None:
    job = trained(tmp_path, quantize=True)
    assert sizes_of_folder(job.model_folder) == sizes_of_folder(Path(job.model))
    assert len(losses(tmp_path)) == 2
