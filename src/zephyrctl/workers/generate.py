"""The generation worker: one JSON request a line on standard input, one JSON reply a line on standard output.

Requests: `{"load": folder or id, "revision": ..., "chat_template": ... or null, "trusts_code": ... or false, "engine":
"auto", "transformers" or "vllm"}`, answered by `{"token_contract": fingerprint}`; then any number of
`{"conversations": [[{role, content}, ...], ...], "max_tokens", "temperature", "top_p", "top_k", "seed", "batch"}`.
With `"stream": true` one conversation is answered as it is written: lines `{"delta": text}`, then the reply as ever;
SIGINT ends such an answer where it is (finish reason `stopped`), and the model stays loaded.
"""

import importlib.util
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from zephyrctl import token_contract
from zephyrctl.errors import ZephyrError
from zephyrctl.token_contract import Turn
from zephyrctl.workers.tokens import contract, load_tokenizer, prompts_ids, refusing_code

STEP_TOKENS = 64
"""Tokens of a prompt that are read in the time of one step over a batch; measured on a CPU, and more on a GPU."""


def batches(lengths: Sequence[int], most: int, overhead: int) -> list[slice]:
    """Where to cut prompts in the order of their lengths, so that the least is read: padding and all.

    A batch reads its longest prompt once for each of its prompts, and its answers cost as much as `overhead` tokens
    whatever its size. One of 900 tokens beside 39 of 90 would have 36,000 read and not 4,500.
    """
    best = [0.0] + [float("inf")] * len(lengths)
    cut = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        for start in range(max(0, end - most), end):
            cost = best[start] + (end - start) * lengths[end - 1] + overhead
            if cost < best[end]:
                best[end], cut[end] = cost, start
    found: list[slice] = []
    end = len(lengths)
    while end:
        found.append(slice(cut[end], end))
        end = cut[end]
    return found[::-1]


class Engine(ABC):
    """A loaded model that answers conversations; its tokens are those of the contract, whatever draws them."""

    def __init__(self, model: str, revision: str | None, chat_template: str | None, trusts_code: bool) -> None:
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
        self.ends = {self.tokenizer.eos_token_id}
        """The tokens at which an answer ends."""

    @abstractmethod
    def answer(self, conversations: Sequence[Sequence[Turn]], request: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer a conversation, in order."""

    def stream(
        self, conversation: Sequence[Turn], request: dict[str, Any], send: Callable[[str], None]
    ) -> dict[str, Any]:
        """An answer, its text handed to `send` in pieces; here in one, where an engine shows nothing on the way."""
        (answer,) = self.answer([conversation], request)
        send(answer["text"])
        return answer

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without the blanks around it."""
        said: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said.strip()

    def reply(self, prompt: Sequence[int], new: Sequence[int]) -> dict[str, Any]:
        """An answer from its tokens, up to the first that ends it."""
        place = next((place for place, token in enumerate(new) if token in self.ends), None)
        tokens = list(new[:place])
        return {
            "text": self.text(tokens),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens) + (place is not None),
            "finish_reason": "length" if place is None else "stop",
        }


class Generator(Engine):
    """A model of transformers; conversations are answered in batches of similar length."""

    def __init__(self, model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False) -> None:
        super().__init__(model, revision, chat_template, trusts_code)
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
        own = self.model.generation_config.eos_token_id
        self.ends |= {end for end in (own if isinstance(own, list) else [own]) if end is not None}

    def answer(self, conversations: Sequence[Sequence[Turn]], request: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer a conversation, in order."""
        prompts = prompts_ids(self.tokenizer, conversations) if conversations else []
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        answers: list[dict[str, Any]] = [{}] * len(prompts)
        torch.manual_seed(int(request.get("seed", 0)))
        overhead = STEP_TOKENS * int(request["max_tokens"])
        for cut in batches([len(prompts[place]) for place in order], int(request.get("batch", 32)), overhead):
            positions = order[cut]
            replies = self._fitting([prompts[place] for place in positions], request)
            for position, answer in zip(positions, replies, strict=True):
                answers[position] = answer
        return answers

    @torch.inference_mode()
    def stream(
        self, conversation: Sequence[Turn], request: dict[str, Any], send: Callable[[str], None]
    ) -> dict[str, Any]:
        """An answer, its text handed to `send` as tokens come; it is cut where the model's positions end.

        Raises ZephyrError for a conversation that leaves no room for an answer.
        """
        (prompt,) = prompts_ids(self.tokenizer, [conversation])
        if positions := getattr(self.model.config, "max_position_embeddings", None):
            if len(prompt) >= positions:
                raise ZephyrError(
                    f"this conversation has {len(prompt)} tokens, and the model reads {positions} with its answer",
                    "begin anew (/reset), or take back the last turn (/undo)",
                )
            request = {**request, "max_tokens": min(int(request["max_tokens"]), positions - len(prompt))}
        torch.manual_seed(int(request.get("seed", 0)))
        pieces = Pieces(self, send)
        ids = torch.tensor([prompt], device=self.device)
        is_stopped = False
        try:
            self._generate(ids, torch.ones_like(ids), request, streamer=pieces)
        except Stopped:
            is_stopped = True
        except torch.OutOfMemoryError:
            raise ValueError("this conversation does not fit the GPU's memory") from None
        answer = self.reply(prompt, pieces.tokens)
        pieces.finish(answer["text"])
        return answer | ({"finish_reason": "stopped"} if is_stopped else {})

    def _fitting(self, prompts: list[list[int]], request: dict[str, Any]) -> list[dict[str, Any]]:
        """A batch; in halves where the GPU has no room for the whole of it."""
        try:
            answers: list[dict[str, Any]] = self._batch(prompts, request)
            return answers
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise ValueError("one conversation alone does not fit the GPU's memory") from None
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        return self._fitting(prompts[:half], request) + self._fitting(prompts[half:], request)

    @torch.inference_mode()
    def _batch(self, prompts: list[list[int]], request: dict[str, Any]) -> list[dict[str, Any]]:
        width = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        generated = self._generate(ids, mask, request)
        return [self.reply(prompt, new) for prompt, new in zip(prompts, generated[:, width:].tolist(), strict=True)]

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, request: dict[str, Any], **more: Any) -> torch.Tensor:
        made: torch.Tensor = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=int(request["max_tokens"]),
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(self.ends),
            **_sampling(request),
            **more,
        )
        return made


class Stopped(Exception):
    """The answer under way is not wanted further."""


class Pieces(BaseStreamer):
    """The tokens of one answer as they come, and the text that they make so far, sent on as it grows.

    A token may end within a character: such an end decodes to U+FFFD and waits for the next one.
    """

    is_stopped = False
    """Set by SIGINT."""

    def __init__(self, engine: Engine, send: Callable[[str], None]) -> None:
        self.tokens: list[int] = []
        self._engine = engine
        self._send = send
        self._sent = ""
        self._is_prompt = True
        Pieces.is_stopped = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then a token at a time. Raises Stopped where the answer is not wanted further."""
        if self._is_prompt:
            self._is_prompt = False
            return
        if Pieces.is_stopped:
            raise Stopped
        new = value.reshape(-1).tolist()
        self.tokens += new
        if not self._engine.ends.intersection(new):
            text = self._engine.text(self.tokens)
            if not text.endswith("\ufffd"):
                self.finish(text)

    def end(self) -> None:
        """Nothing: what is left is sent with the answer."""

    def finish(self, text: str) -> None:
        """Send what the text has beyond what was sent."""
        if text.startswith(self._sent) and len(text) > len(self._sent):
            self._send(text[len(self._sent) :])
            self._sent = text


class VllmGenerator(Engine):
    """A model in vLLM, which makes its own batches; it is given our tokens and templates nothing itself."""

    def __init__(self, model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False) -> None:
        super().__init__(model, revision, chat_template, trusts_code)
        from vllm import LLM

        self.model = LLM(model=model, revision=revision, dtype="bfloat16", trust_remote_code=trusts_code)

    def answer(self, conversations: Sequence[Sequence[Turn]], request: dict[str, Any]) -> list[dict[str, Any]]:
        """One answer a conversation, in order."""
        from vllm import SamplingParams

        prompts = prompts_ids(self.tokenizer, conversations) if conversations else []
        sampling = SamplingParams(
            temperature=float(request.get("temperature") or 0.0),
            top_p=float(request.get("top_p", 1.0)),
            top_k=int(request.get("top_k", 0)),
            max_tokens=int(request["max_tokens"]),
            seed=int(request.get("seed", 0)),
            stop_token_ids=sorted(self.ends),
        )
        made = self.model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [self.reply(prompt, one.outputs[0].token_ids) for prompt, one in zip(prompts, made, strict=True)]


def open_engine(
    model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False, engine: str = "transformers"
) -> Engine:
    """The model in the engine that is named; `auto` is vLLM where it is installed and there is a GPU."""
    is_there = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not is_there:
        raise ZephyrError(
            "vLLM is not installed here", "pip install 'zephyrctl[vllm]', or --set eval.engine=transformers"
        )
    chosen = VllmGenerator if engine == "vllm" or (engine == "auto" and is_there and has_cuda()) else Generator
    return chosen(model, revision, chat_template, trusts_code)


def has_cuda() -> bool:
    """True where torch has a GPU to work on."""
    return bool(torch.cuda.is_available())


def _sampling(request: dict[str, Any]) -> dict[str, Any]:
    if not request.get("temperature"):
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": request["temperature"],
        "top_p": request.get("top_p", 1.0),
        "top_k": request.get("top_k", 0),
    }


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends; a failed request is answered with its problem."""
    generator: Engine | None = None

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    for line in requests:
        request = json.loads(line)
        try:
            if "load" in request:
                generator = None  # the memory of the last one, before the next is loaded
                generator = open_engine(request.pop("load"), **request)
                reply: dict[str, Any] = {"token_contract": generator.contract.fingerprint}
            else:
                assert generator is not None, "load a model first"
                reply = {"answers": _answers(generator, request, send)}
        except ZephyrError as error:
            reply = {"problem": error.problem, "remedy": error.remedy}
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reply = {
                "problem": f"the model cannot be used: {reason}",
                "remedy": "give a folder with safetensors weights",
            }
        send(reply)


def _answers(
    generator: Engine, request: dict[str, Any], send: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """The answers to a request, one of them streamed where that is asked for."""
    if not request.get("stream"):
        return generator.answer(request["conversations"], request)
    (conversation,) = request["conversations"]
    return [generator.stream(conversation, request, lambda text: send({"delta": text}))]


def _stop(*_: Any) -> None:
    Pieces.is_stopped = True


def main() -> None:
    """Answer requests on standard input until it ends."""
    signal.signal(signal.SIGINT, _stop)
    # Libraries may print: what they print goes to standard error, and replies alone to the real standard output.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)


if __name__ == "__main__":
    main()
