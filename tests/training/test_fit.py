"""Whether a recipe that this machine cannot train is refused with the reason and the remedy, and no other."""

import os
from pathlib import Path

import pytest

from zephyrctl import launch
from zephyrctl.contracts import Sizes
from zephyrctl.errors import ZephyrError
from zephyrctl.layers import load
from zephyrctl.training.fit import _memory_gb, check_machine
from zephyrctl.training.train import model_base, step

LARGE = ("zephyr-7b-beta", "zephyr-7b-handbook", "notus-7b")


@pytest.mark.parametrize("name", LARGE)
def test_the_7b_recipes_refuse_a_machine_without_their_gpus(name: str) -> None:
    recipe = load(name, {}).recipe
    if launch.gpus() >= recipe.hardware.gpus:
        pytest.skip("this machine has the GPUs")
    with pytest.raises(ZephyrError) as caught:
        check_machine(recipe, model_base(recipe).sizes())
    for part in (name, "7.24 B parameters", "116 GB", f"{recipe.hardware.nodes} x 8 a100-80gb", "this machine has"):
        assert part in caught.value.problem
    assert "zephyrctl run --recipe tiny" in caught.value.remedy
    for checkpoint in recipe.checkpoints:
        with pytest.raises(ZephyrError):
            step(recipe, checkpoint).check()


@pytest.mark.parametrize("name", ["tiny", "ablation-tiny"])
def test_the_tiny_recipes_fit_everywhere(name: str) -> None:
    recipe = load(name, {}).recipe
    for checkpoint in recipe.checkpoints:
        step(recipe, checkpoint).check()


def test_a_base_whose_states_exceed_the_memory_is_refused_on_a_cpu() -> None:
    if launch.gpus():
        pytest.skip("this machine has a GPU")
    recipe = load("tiny", {}).recipe
    most = int(_memory_gb() * 1e9 / 16)
    check_machine(recipe, sizes(int(most * 0.99)))
    with pytest.raises(ZephyrError, match="for weights, gradients and optimizer") as caught:
        check_machine(recipe, sizes(int(most * 1.01)))
    assert "smaller base" in caught.value.remedy


@pytest.fixture
def eight_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose `nvidia-smi` lists eight GPUs."""
    listed = "".join(f"echo 'GPU {number}: NVIDIA A100-SXM4-80GB (UUID: GPU-{number})'\n" for number in range(8))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{listed}")
    (tmp_path / "nvidia-smi").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.gpus() == 8


@pytest.mark.usefixtures("eight_gpus")
def test_one_machine_of_two_refuses_the_processes_of_both_and_says_what_fits() -> None:
    recipe = load("zephyr-7b-beta", {}).recipe
    with pytest.raises(ZephyrError, match="starts 16 processes") as caught:
        check_machine(recipe, model_base(recipe).sizes())
    assignment = caught.value.remedy.partition(":")[0].removeprefix("--set ")
    mended = load("zephyr-7b-beta", {}, [assignment]).recipe
    check_machine(mended, model_base(mended).sizes())
    assert mended.sft.global_batch == recipe.sft.global_batch
    handbook = load("zephyr-7b-handbook", {}).recipe
    check_machine(handbook, model_base(handbook).sizes())


def sizes(parameters: int) -> Sizes:
    """A model of so many parameters."""
    return Sizes(parameters=parameters, width=1, layers=1, feed_forward=1, key_value_width=1, vocabulary=1)


def test_the_memory_is_that_of_this_machine() -> None:
    assert 0.1 < _memory_gb() < 1e5
