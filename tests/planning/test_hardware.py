"""Whether hardware is known by name, recognised where it is, and counted as a control group allows."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.planning.hardware import Machine, detect, device, machine, memory_bytes, recognise, table
from zephyrctl.recipe.schema import Hardware, Launch

MIB = 2**20
NAMES = ("a100-40gb", "a100-80gb", "h100-80gb", "h200", "l40s", "a10g", "rtx-4090", "cpu")


def test_the_table_has_the_rows_that_are_promised() -> None:
    assert tuple(table()) == NAMES
    for name, row in table().items():
        assert row.name == name
        assert row.is_cpu == (name == "cpu")
        assert bool(row.matches) != row.is_cpu
        assert 0.2 < row.utilisation < 0.7
    for row in table().values():
        if not row.is_cpu:
            assert row.bf16_flops > row.fp32_flops
            assert row.memory_rate > row.inside_rate > 0


@pytest.mark.parametrize(
    ("name", "near"),
    [("a100", "a100-40gb' or 'a100-80gb'?"), ("H100", "h100-80gb'?"), ("rtx4090", "rtx-4090'?"), ("a10", "a100-40gb'")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ZephyrError, match=name) as caught:
        device(name)
    assert f"did you mean '{near}" in caught.value.remedy
    for known in NAMES:
        assert known in caught.value.remedy


def test_names_may_be_written_in_capitals() -> None:
    assert device("H200") is table()["h200"]


@pytest.fixture
def shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `nvidia-smi` show some GPUs, as lines of its CSV."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def show(*lines: str, exit_code: int = 0) -> None:
        told = "".join(f"echo '{line}'\n" for line in lines)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{told}exit {exit_code}\n")
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return show


def test_what_the_driver_shows_is_recognised(shows: Callable[..., None]) -> None:
    shows(*["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 8)
    found = detect()
    assert (found.nodes, found.processes, found.device.name, found.on_cpu) == (1, 8, "a100-80gb", False)
    assert found.memory == 81920 * MIB
    assert found.host_memory == memory_bytes()
    assert str(found) == "1 x 8 a100-80gb"


@pytest.mark.parametrize(
    ("shown", "mib", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 40536, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80gb"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA A10G", 22731, "a10g"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
    ],
)
def test_every_row_is_found_by_what_drivers_call_it(shown: str, mib: int, name: str) -> None:
    assert recognise(shown, mib * MIB) == table()[name].model_copy(update={"memory": mib * MIB})


def test_a_gpu_that_the_table_lacks_is_a_row_of_its_own() -> None:
    hopper = recognise("NVIDIA H100 NVL", 95830 * MIB)
    assert (hopper.name, hopper.memory) == ("h100-nvl", 95830 * MIB)
    assert hopper.bf16_flops == table()["h100-80gb"].bf16_flops
    other = recognise("Tesla T4", 15360 * MIB)
    assert (other.name, other.memory) == ("tesla-t4", 15360 * MIB)
    assert other.bf16_flops == min(row.bf16_flops for row in table().values() if not row.is_cpu)


def test_of_several_kinds_the_weakest_counts(shows: Callable[..., None]) -> None:
    shows("NVIDIA H200, 143771 MiB", "NVIDIA A10G, 23028 MiB")
    assert (detect().processes, detect().device.name) == (2, "a10g")


def test_no_gpu_is_a_cpu(shows: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    shows("NVIDIA-SMI has failed", exit_code=9)
    found = detect(Launch(processes=2))
    assert found.on_cpu and found.processes == 2
    assert found.memory == memory_bytes() / 2
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    shows("NVIDIA H200, 143771 MiB")
    assert not detect().on_cpu
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().on_cpu


def test_a_recipe_may_name_what_is_not_here(shows: Callable[..., None]) -> None:
    shows("NVIDIA A10G, 23028 MiB")
    launch = Launch()
    named = machine(Hardware(nodes=2, gpus=8, gpu_type="a100-80gb"), launch)
    assert (named.world, named.device.name) == (16, "a100-80gb")
    assert named.host_memory == 8 * table()["a100-80gb"].host_memory
    assert machine(Hardware(gpus=0), launch).on_cpu
    assert machine(Hardware(gpus=0, gpu_type="a100-80gb"), launch).on_cpu
    assert machine(Hardware(gpu_type="h200"), launch).processes == 1
    four = machine(Hardware(gpus=4), launch)
    assert (four.processes, four.device.name) == (4, "a10g")


def test_gpus_of_no_name_are_refused_where_none_is_here(shows: Callable[..., None]) -> None:
    shows("no devices were found", exit_code=6)
    with pytest.raises(ZephyrError, match="gpu_type") as caught:
        machine(Hardware(gpus=4), Launch())
    assert "--gpu-type: a100-40gb" in caught.value.remedy


def test_cores_are_shared_by_processes() -> None:
    row = table()["cpu"]
    four = Machine(nodes=1, processes=2, device=row, host_memory=8e9, cores=4)
    assert four.flops("fp32") == 2 * row.fp32_flops
    assert four.memory == 4e9
    crowded = four.model_copy(update={"processes": 8})
    assert crowded.flops("fp32") == row.fp32_flops


def test_the_memory_is_that_of_this_machine() -> None:
    assert 1e8 < memory_bytes() < 1e14
