"""Whether the `vllm` teacher answers where there is vLLM and a GPU, and says what is missing elsewhere."""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zephyrctl_vllm
from zephyrctl_vllm import Vllm

from zephyrctl import plugins
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions, Reply, Sampling
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.processes import gpus
from zephyrctl.records import Message
from zephyrctl.testing import check_plugin, check_teacher

MODEL = TinyMistral(PluginOptions()).location()
ASKED = [Message(role="user", content="Name a colour.")]
IS_HERE = bool(find_spec("vllm") and gpus())


def teacher(model: str = MODEL) -> Any:
    """The teacher as a recipe makes it."""
    return plugins.load().teacher("vllm", {"model": model})


def ask(made: Vllm) -> Reply:
    """One reply, with the worker ended after it."""

    async def talk() -> Reply:
        try:
            return await made.reply(ASKED, Sampling(max_tokens=4))
        finally:
            await made.close()

    return asyncio.run(talk())


def test_it_is_a_sound_plugin_and_found() -> None:
    check_plugin(zephyrctl_vllm)
    assert plugins.load().find("teacher", "vllm").origin.startswith("zephyrctl-vllm ")


@pytest.mark.skipif(IS_HERE, reason="vLLM and a GPU are here")
def test_it_says_at_the_first_call_what_is_missing() -> None:
    """And nothing is left of a worker that was never started."""
    made = teacher()
    with pytest.raises(ZephyrError, match="the teacher 'vllm' needs") as caught:
        ask(made)
    assert "'transformers'" in caught.value.remedy
    assert made._worker is None and made._scratch is None


@pytest.mark.skipif(bool(gpus()), reason="a GPU is here")
def test_without_a_gpu_vllm_alone_does_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never imported to find that out."""
    (tmp_path / "vllm.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZephyrError, match="needs an NVIDIA GPU, and this machine shows none"):
        ask(teacher())


def test_nothing_of_vllm_or_torch_is_imported_here() -> None:
    taken = {value.__name__ for value in vars(zephyrctl_vllm).values() if isinstance(value, ModuleType)}
    assert not taken & {"vllm", "torch"}


@pytest.mark.gpu
@pytest.mark.skipif(not IS_HERE, reason="no vLLM, or no CUDA GPU on this machine")
def test_it_keeps_the_contract_on_a_gpu() -> None:
    check_teacher(teacher)


@pytest.mark.gpu
@pytest.mark.skipif(not IS_HERE, reason="no vLLM, or no CUDA GPU on this machine")
def test_it_answers_as_transformers_does() -> None:
    """Greedy answers begin alike: bf16 kernels differ in the last digits."""
    other = plugins.load().teacher("transformers", {"model": MODEL})
    mine, theirs = ask(teacher()), ask(other)  # type: ignore[arg-type]
    assert mine.prompt_tokens == theirs.prompt_tokens
    assert mine.text[:4] == theirs.text[:4]
