"""The generation worker: one JSON request a line on standard input, one JSON reply a line on standard output.

Requests: `{"load": folder or id, "revision": ..., "chat_template": ... or null, "trusts_code": ... or false}`, answered
by `{"token_contract": fingerprint}`; then any number of
`{"conversations": [[{role, content}, ...], ...], "max_tokens", "temperature", "top_p", "seed", "batch"}`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from zephyrctl import token_contract
from zephyrctl.errors import ZephyrError
from zephyrctl.token_contract import Turn
from zephyrctl.workers.tokens import contract, load_tokenizer, prompts_ids, refusing_code


class Generator:
    """A loaded model that answers conversations."""

    def __init__(self, model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False) -> None:
        with refusing_code(model):
            own = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trusts_code).chat_template
        template = chat_template or own
        if not template:
            raise ValueError(f"{model} has no chat template")
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model, revision, template, trusts_code)
        self.contract = contract(self.tokenizer)
        if trained := token_contract.read(Path(model)):
            self.contract.check(
                trained, "the template in use", f"what {model} was trained on", "use the template it was trained with"
            )
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if has_gpu else "cpu")
        with refusing_code(model):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                model,
                revision=revision,
                dtype=torch.bfloat16 if has_gpu else torch.float32,
                trust_remote_code=trusts_code,
                use_safetensors=True,
            )
        self.model.to(self.device).eval()

    def answer(self, conversations: Sequence[Sequence[Turn]], request: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer a conversation, in order; batches are made of prompts of similar length."""
        prompts = prompts_ids(self.tokenizer, conversations) if conversations else []
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        answers: list[dict[str, Any]] = [{}] * len(prompts)
        size = int(request.get("batch", 32))
        set_seed(int(request.get("seed", 0)))
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            for position, answer in zip(positions, self._batch([prompts[p] for p in positions], request), strict=True):
                answers[position] = answer
        return answers

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], request: dict[str, Any]) -> list[dict[str, Any]]:
        width = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        generated = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=int(request["max_tokens"]),
            pad_token_id=padding,
            eos_token_id=self.tokenizer.eos_token_id,
            **_sampling(request),
        )
        return [self._reply(prompt, new) for prompt, new in zip(prompts, generated[:, width:].tolist(), strict=True)]

    def _reply(self, prompt: list[int], new: list[int]) -> dict[str, Any]:
        end = self.tokenizer.eos_token_id
        is_finished = end in new
        tokens = new[: new.index(end)] if is_finished else new
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        return {
            "text": text,
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens) + is_finished,
            "finish_reason": "stop" if is_finished else "length",
        }


def _sampling(request: dict[str, Any]) -> dict[str, Any]:
    if not request.get("temperature"):
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": request["temperature"],
        "top_p": request.get("top_p", 1.0),
        "top_k": 0,
    }


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends; a failed request is answered with its problem."""
    generator: Generator | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if "load" in request:
                generator = Generator(request.pop("load"), **request)
                reply: dict[str, Any] = {"token_contract": generator.contract.fingerprint}
            else:
                assert generator is not None, "load a model first"
                reply = {"answers": generator.answer(request["conversations"], request)}
        except ZephyrError as error:
            reply = {"problem": error.problem, "remedy": error.remedy}
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reply = {
                "problem": f"the model cannot be used: {reason}",
                "remedy": "give a folder with safetensors weights",
            }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    # Libraries may print: what they print goes to standard error, and replies alone to the real standard output.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
