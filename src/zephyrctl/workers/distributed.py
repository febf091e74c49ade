"""Join a job: the same process group and DeepSpeed configuration, whichever launcher started the process."""

import json
import os
import sys
from datetime import timedelta

import torch
import torch.distributed

from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import Job

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
"""How long the first process waits for the others, and they for it."""
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long an operation over all processes may take: one of them may be writing a checkpoint of 100 GB."""
DEEPSPEED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_DEEPSPEED_ZERO3_INIT")


def join(job: Job) -> None:
    """Join the process group of a job; afterwards TRL finds it, and DeepSpeed's configuration.

    To be called before any training arguments are created. Raises ZephyrError if the job was planned for other
    processes than were started, if a process has no GPU of its own, or if the processes do not find each other.
    """
    # DeepSpeed's launcher adds the rank to the command line; RANK and LOCAL_RANK say the same
    sys.argv = [word for word in sys.argv if not word.startswith(("--local_rank", "--local-rank"))]
    _check_world(job)
    for name in DEEPSPEED:  # from a launcher or a shell: the job alone decides
        os.environ.pop(name, None)
    if job.deepspeed is not None:
        _configure_deepspeed(job)
    elif job.layout.world == 1:
        return
    _start_process_group(job)
    if job.deepspeed is not None:
        _start_deepspeed(job)


def leave() -> None:
    """End the process group: its threads may abort the process if they still run when the interpreter exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_world(job: Job) -> None:
    layout, started = job.layout, int(os.environ.get("WORLD_SIZE", "1"))
    if started != layout.world:
        raise ZephyrError(
            f"this job is planned for {layout.world} processes ({layout.nodes} x {layout.processes}), "
            f"and this one was started as one of {started}",
            "start as many processes as were planned, or plan for these: zephyrctl plan",
        )
    if layout.on_cpu:
        return
    visible, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= visible:
        raise ZephyrError(
            f"process {local_rank} of this machine has no GPU of its own: {visible} are visible, for "
            f"{layout.processes} processes",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or plan for fewer GPUs",
        )
    if layout.world == 1 and visible > 1 and job.deepspeed is None:  # the Trainer would use all of them
        raise ZephyrError(
            f"this job is for one GPU, and {visible} are visible", "set CUDA_VISIBLE_DEVICES to one of them"
        )


def _configure_deepspeed(job: Job) -> None:
    """Set the variables that accelerate's own launcher sets, with the configuration itself instead of a file name."""
    values = ("true", json.dumps(job.deepspeed), str(job.layout.zero_stage == 3).lower())
    os.environ |= dict(zip(DEEPSPEED, values, strict=True))
    if job.layout.on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if os.environ.get("RANK", "0") == "0":
        write_whole(job.scratch / "deepspeed.json", json.dumps(job.deepspeed, indent=2))


def _start_process_group(job: Job) -> None:
    """Start the process group: gloo on CPUs, NCCL on GPUs. A single process takes any free port."""
    if job.layout.world == 1:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ |= {name: value for name, value in alone.items() if name not in os.environ}
    if not job.layout.on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # or NCCL puts a context of every rank on GPU 0
    try:
        # not by init_process_group itself: it has one timeout, and waiting for peers should not take a day
        store, rank, world = next(torch.distributed.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    except torch.distributed.DistError as error:
        raise _rendezvous_error(error) from error
    backend = "gloo" if job.layout.on_cpu else "nccl"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)


def _rendezvous_error(error: Exception) -> ZephyrError:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in str(error):
        return ZephyrError(
            f"the processes cannot meet at {address}: another program listens on that port",
            "start it again, with another MASTER_PORT in the environment",
        )
    reason = str(error).splitlines()[0][:200]
    return ZephyrError(
        f"the processes did not meet at {address}: {reason}",
        "check that all were started, and that no firewall is between the machines",
    )


def _start_deepspeed(job: Job) -> None:
    """Let DeepSpeed take over the process group before its configuration is parsed, which needs the world size.

    On a CPU its shared-memory kernel is not used: compiling it takes 85 s and a C++ compiler, and gloo does the same.
    """
    import deepspeed

    if job.layout.on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if job.layout.on_cpu else "nccl"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT)
