"""Whether vLLM gives the answers that transformers gives; skipped where there is no GPU or no vLLM, with the reason."""

import importlib.util
from pathlib import Path

import pytest

from zephyrctl.launching.processes import gpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not gpus(), reason="no CUDA GPU on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_both_engines_answer_alike_from_the_same_tokens(small_run: Path) -> None:
    from zephyrctl.workers.generate import GenerationRequest, open_engine

    model = str(small_run / "runs" / "small" / "dpo" / "model")
    conversations = [[{"role": "user", "content": text}] for text in ("Name a colour.", "What is two plus two?")]
    request: GenerationRequest = {"conversations": conversations, "max_tokens": 16, "temperature": 0.0, "batch": 2}
    answers = {
        name: open_engine(model, None, None, engine=name).answer(conversations, request)
        for name in ("transformers", "vllm")
    }
    assert [one["prompt_tokens"] for one in answers["vllm"]] == [
        one["prompt_tokens"] for one in answers["transformers"]
    ]
    same = sum(
        mine["text"][:8] == theirs["text"][:8]
        for mine, theirs in zip(answers["vllm"], answers["transformers"], strict=True)
    )
    assert same == len(conversations), "bf16 kernels differ in the last digits, and greedy answers begin alike"
