"""GPUs, their driver, and whether torch and FlashAttention can use them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from zephyrctl.doctor.finding import Finding, note, ok, problem

SECONDS = 60.0
"""Time limit for importing torch. It takes 2 s from a warm disk, and tens of seconds from a cold shared one."""
AMPERE = (8, 0)
"""The lowest compute capability that supports FlashAttention 2 and bfloat16 training."""


class VisibleGpu(TypedDict):
    """A GPU that torch sees, and its compute capability: [major, minor]."""

    name: str
    capability: list[int]


class TorchReport(TypedDict):
    """What `zephyrctl.workers.inspect_torch` prints."""

    version: str
    cuda: str | None
    """The CUDA version that torch was built with; None for a CPU build."""
    sees_gpu: bool
    gpus: list[VisibleGpu]
    architectures: list[str]
    """The GPU code in this build: 'sm_90' is machine code, 'compute_90' is PTX, which later GPUs compile."""
    flash_attention: str | None
    """Why the package flash-attn cannot be used; None if it loads."""


@dataclass(frozen=True)
class Driver:
    """What `nvidia-smi` reports: the GPUs' names, the driver's version, and the newest CUDA version it supports."""

    gpus: tuple[str, ...] = ()
    version: str = ""
    cuda: tuple[int, int] | None = None
    failure: str = ""


def read_driver(environment: Mapping[str, str]) -> Driver:
    """The driver of this machine. `gpus` is empty if there are none, or if CUDA_VISIBLE_DEVICES hides them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False, env=dict(environment))
        banner = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return Driver()
    except subprocess.TimeoutExpired:
        return Driver(failure="nvidia-smi does not answer")
    if listed.returncode:
        return Driver(failure=(listed.stdout + listed.stderr).strip().splitlines()[0][:200])
    rows = [line.rpartition(",") for line in listed.stdout.splitlines() if "," in line]
    newest = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", banner.stdout)
    cuda = (int(newest[1]), int(newest[2])) if newest else None
    if environment.get("CUDA_VISIBLE_DEVICES") == "":
        rows = []
    return Driver(tuple(row[0].strip() for row in rows), rows[0][2].strip() if rows else "", cuda)


def ask_torch(seconds: float = SECONDS) -> TorchReport | str:
    """What torch reports in a process of its own, or the reason why it could not be imported."""
    command = [sys.executable, "-m", "zephyrctl.workers.inspect_torch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"torch was not imported within {seconds:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
    report: TorchReport = json.loads(done.stdout.splitlines()[-1])
    return report


def gpus(driver: Driver, torch: "TorchReport | str") -> Iterator[Finding]:
    """Findings about the driver, torch's CUDA build, and FlashAttention."""
    if driver.failure:
        yield problem("gpu driver", driver.failure, "fix the NVIDIA driver, or hide the GPUs: CUDA_VISIBLE_DEVICES=")
    elif driver.gpus:
        newest = f", supports CUDA up to {_dotted(driver.cuda)}" if driver.cuda else ""
        yield ok("gpu driver", f"{driver.version}{newest}; {_counted(driver.gpus)}")
    else:
        remedy = "plan for other hardware: zephyrctl plan --gpus 8 --gpu-type a100-80gb"
        yield note(
            "gpu driver", "no NVIDIA GPU: training runs on the CPU, which is enough for small models only", remedy
        )
    if isinstance(torch, str):
        yield problem(
            "torch", torch, "pip install -c constraints.txt torch, or look at the output of: python -c 'import torch'"
        )
        return
    yield build(driver, torch)
    yield flash_attention(driver, torch)


def build(driver: Driver, torch: TorchReport) -> Finding:
    """Whether torch's CUDA build fits the driver."""
    version, cuda = torch["version"], torch["cuda"]
    if not driver.gpus:
        return ok("torch", f"{version} works, on the CPU")
    if cuda is None:
        return problem(
            "torch", f"{version} is a CPU build, but there are GPUs", f"install the CUDA build: {_index(driver)}"
        )
    # Within one major version CUDA builds run on older drivers (minor version compatibility, since CUDA 11).
    wanted = tuple(int(part) for part in cuda.split(".")[:2])
    if driver.cuda and wanted[0] > driver.cuda[0]:
        what = f"{version} is built with CUDA {cuda}, but driver {driver.version} supports up to {_dotted(driver.cuda)}"
        return problem("torch", what, f"update the driver, or install an older build: {_index(driver)}")
    if not torch["sees_gpu"]:
        return problem(
            "torch",
            f"{version} (CUDA {cuda}) sees no GPU",
            "look at the output of: python -c 'import torch; torch.cuda.init()'",
        )
    unbuilt = [gpu["name"] for gpu in torch["gpus"] if not _covers(torch["architectures"], gpu["capability"])]
    if unbuilt:
        return problem(
            "torch", f"{version} was not built for {unbuilt[0]}", f"install a build that supports it: {_index(driver)}"
        )
    return ok("torch", f"{version}, CUDA {cuda}, sees {len(torch['gpus'])} of {len(driver.gpus)} GPUs")


def flash_attention(driver: Driver, torch: TorchReport) -> Finding:
    """Whether `launch.attention=flash_attention_2` works here, or why not. Without it, torch's own kernels are used."""
    part = "flash attention"
    if not driver.gpus:
        return note(part, "needs a GPU; torch's own attention is used", "nothing to do on a CPU")
    weak = [gpu["name"] for gpu in torch["gpus"] if tuple(gpu["capability"]) < AMPERE]
    if weak:
        return note(part, f"needs Ampere or newer, and {weak[0]} is older", "keep launch.attention at sdpa")
    if why := torch["flash_attention"]:
        return note(
            part,
            f"cannot be used: {why}",
            "pip install --no-build-isolation 'zephyrctl[gpu]', which builds it for this torch",
        )
    return ok(part, "usable: --set launch.attention=flash_attention_2")


def _covers(architectures: Sequence[str], capability: Sequence[int]) -> bool:
    """Whether a torch build runs on a GPU: it contains code for its major version, or PTX of an older version."""
    major, minor = capability
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if found and found[1] == "sm" and int(found[2]) == major and int(found[3]) <= minor:
            return True
        if found and found[1] == "compute" and (int(found[2]), int(found[3])) <= (major, minor):
            return True
    return not architectures


def _index(driver: Driver) -> str:
    newest = f" (CUDA {_dotted(driver.cuda)} or older)" if driver.cuda else ""
    return f"see pytorch.org/get-started for its index{newest}"


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version or ()))
