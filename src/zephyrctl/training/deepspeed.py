"""The DeepSpeed and accelerate configurations of a job: every number stated, none left to `auto`."""

from pathlib import Path
from typing import Any

from zephyrctl.recipe import Launch, Training


def deepspeed_config(settings: Training, launch: Launch) -> dict[str, Any]:
    """The DeepSpeed JSON of a job. micro-batch x accumulation x processes is the global batch exactly."""
    return {
        "train_batch_size": settings.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch(settings, launch),
        "gradient_accumulation_steps": accumulation(settings, launch),
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": launch.precision == "bf16"},
        "zero_optimization": {
            "stage": launch.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "steps_per_print": 10**9,
    }


def accelerate_config(deepspeed_file: Path, launch: Launch, on_cpu: bool) -> dict[str, Any]:
    """The accelerate YAML that starts one DeepSpeed process a rank on this machine.

    `mixed_precision` stays out: beside a DeepSpeed file accelerate refuses it.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(deepspeed_file),
            "zero3_init_flag": launch.zero_stage == 3,
        },
        "num_machines": 1,
        "num_processes": launch.processes,
        "use_cpu": on_cpu,
    }


def micro_batch(settings: Training, launch: Launch) -> int:
    """Rows a process works on at once: the largest divisor of its share of the global batch that the recipe allows."""
    share = settings.global_batch // launch.processes
    return max(size for size in range(1, min(share, settings.micro_batch) + 1) if share % size == 0)


def accumulation(settings: Training, launch: Launch) -> int:
    """Micro-batches a process adds up before an optimizer step."""
    return settings.global_batch // (micro_batch(settings, launch) * launch.processes)
