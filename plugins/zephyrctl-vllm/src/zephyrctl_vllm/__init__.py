"""The teacher `vllm`: a local checkpoint in vLLM's offline batch engine, in a worker process of its own on a GPU."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import Field

from zephyrctl.builtin.transformers import TransformersTeacher
from zephyrctl.contracts import PluginOptions, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.hooks import hookimpl
from zephyrctl.launching.processes import gpus

zephyrctl_contract = "1"

FITS = "free the GPU's memory or choose a smaller model, and give a folder or Hub id with a chat template"


class Vllm(TransformersTeacher):
    """A folder or Hub id in vLLM, without a server; all calls that wait with the same sampling are one batch of it."""

    class Options(PluginOptions):
        """Options of `vllm`."""

        model: str = Field(description="folder or Hub id, with a chat template")
        revision: str | None = Field(default=None, description="Hub revision")
        batch: ClassVar[int] = 1
        """Asked for by the `transformers` teacher; vLLM makes its own batches."""

    name = "vllm"

    def _start(self) -> None:
        """Start the worker. Raises ZephyrError at the first call where there is no vLLM, or no GPU for it."""
        others = "choose the teacher 'transformers', or 'openai' at a machine that serves the model"
        if find_spec("vllm") is None:
            raise ZephyrError("the teacher 'vllm' needs vLLM, which is not installed here", f"install it, or {others}")
        if not gpus():
            raise ZephyrError("the teacher 'vllm' needs an NVIDIA GPU, and this machine shows none", others)
        super()._start()

    def _request(self, request: Mapping[str, object], remedy: str) -> dict[str, Any]:
        """The generation worker's answer; it is told which engine to load."""
        engine = {"engine": "vllm"} if "load" in request else {}
        return super()._request({**request, **engine}, FITS)


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`vllm`."""
    return [Vllm]
