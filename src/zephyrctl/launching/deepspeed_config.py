"""The DeepSpeed and accelerate configurations of a job: every number stated, none left to `auto`."""

from typing import Any

from zephyrctl.launching.parallelism import Layout
from zephyrctl.recipe.schema import Launch, Training


def deepspeed_config(settings: Training, launch: Launch, layout: Layout) -> dict[str, Any] | None:
    """The DeepSpeed JSON of a job; None where the layout is plain torch."""
    if layout.zero_stage is None:
        return None
    return {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": launch.precision == "bf16"},
        "zero_optimization": _zero(layout),
        "steps_per_print": 10**9,
    }


def _zero(layout: Layout) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "overlap_comm": not layout.on_cpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": layout.reduce_bucket,
        "allgather_bucket_size": layout.allgather_bucket,
    }
    if layout.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": layout.prefetch_bucket,
            "stage3_param_persistence_threshold": layout.persistence_threshold,
            "stage3_max_live_parameters": layout.max_live_parameters,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if layout.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero


def accelerate_config(layout: Layout, deepspeed_file: str) -> dict[str, Any]:
    """The accelerate YAML that starts one process a rank; rank and address of a machine come with its command.

    `mixed_precision` stays out: beside a DeepSpeed file accelerate refuses it.
    """
    is_plain = layout.zero_stage is None
    plain = "MULTI_GPU" if layout.world > 1 else "NO"
    deepspeed = {"deepspeed_config_file": deepspeed_file, "zero3_init_flag": layout.zero_stage == 3}
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": plain if is_plain else "DEEPSPEED",
        **({} if is_plain else {"deepspeed_config": deepspeed}),
        "num_machines": layout.nodes,
        "num_processes": layout.world,
        "use_cpu": layout.on_cpu,
    }
