"""Print what torch finds on this machine as one JSON line: CUDA build, GPUs, and whether FlashAttention loads.

Commands do not import torch: they start this process, with a time limit.
"""

import importlib
import importlib.util
import json

import torch


def describe() -> dict[str, object]:
    """Version, CUDA build, each GPU with its compute capability, and why FlashAttention cannot be used, or None."""
    gpus = [
        {"name": torch.cuda.get_device_name(index), "capability": list(torch.cuda.get_device_capability(index))}
        for index in range(torch.cuda.device_count())
    ]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "sees_gpu": torch.cuda.is_available(),
        "gpus": gpus,
        "architectures": torch.cuda.get_arch_list(),
        "flash_attention": flash_attention(),
    }


def flash_attention() -> str | None:
    """Why the package flash-attn cannot be used; None if it loads."""
    if importlib.util.find_spec("flash_attn") is None:
        return "not installed"
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:300]
    return None


if __name__ == "__main__":
    print(json.dumps(describe()))
