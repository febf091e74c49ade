"""The DeepSpeed and accelerate configurations of a job: every number is stated, none is `auto`."""

from pydantic import JsonValue

from zephyrctl.launching.parallelism import Layout
from zephyrctl.recipe.schema import Launch, Training


def deepspeed_config(settings: Training, launch: Launch, layout: Layout) -> dict[str, JsonValue] | None:
    """The DeepSpeed JSON of a job; None if the layout is plain torch."""
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


def _zero(layout: Layout) -> dict[str, JsonValue]:
    zero: dict[str, JsonValue] = {
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


def accelerate_config(layout: Layout, deepspeed_file: str) -> dict[str, JsonValue]:
    """The accelerate YAML, with one process per rank; the command adds each machine's rank and address.

    It has no `mixed_precision`, because accelerate refuses that together with a DeepSpeed file.
    """
    config: dict[str, JsonValue] = {"compute_environment": "LOCAL_MACHINE"}
    if layout.zero_stage is None:
        config["distributed_type"] = "MULTI_GPU" if layout.world > 1 else "NO"
    else:
        config["distributed_type"] = "DEEPSPEED"
        config["deepspeed_config"] = {
            "deepspeed_config_file": deepspeed_file,
            "zero3_init_flag": layout.zero_stage == 3,  # ZeRO-3 partitions weights while the model is loaded
        }
    return config | {"num_machines": layout.nodes, "num_processes": layout.world, "use_cpu": layout.on_cpu}
