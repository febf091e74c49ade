"""The generation worker: reads JSON requests from standard input, and writes JSON replies to standard output.

Requests and replies are one line each. The first request loads a model:

    {"load": folder or id, "revision": ..., "chat_template": text or null, "trusts_code": false, "engine": "auto"}
    {"token_contract": fingerprint}

The engine is "auto", "transformers" or "vllm". Then any number of requests are answered:

    {"conversations": [[{role, content}, ...], ...], "max_tokens", "temperature", "top_p", "top_k", "seed", "batch"}
    {"answers": [...]}

With `"stream": true` the only conversation of a request is answered in pieces: lines `{"delta": text}`, then the reply.
SIGINT ends such an answer early (its finish reason is `stopped`), and the model stays loaded.
"""

import importlib.util
import json
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NotRequired, Required, TextIO, TypedDict

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from zephyrctl import token_contract
from zephyrctl.errors import ZephyrError
from zephyrctl.token_contract import Turn
from zephyrctl.workers.tokens import contract, load_tokenizer, prompts_ids, refusing_code

STEP_TOKENS = 64
"""Prompt tokens that are read in the time of one decoding step over a batch; measured on a CPU, and more on a GPU."""


class GenerationRequest(TypedDict, total=False):
    """Conversations to answer, and how. What is missing has the default that its line names."""

    conversations: list[list[Turn]]
    max_tokens: Required[int]
    """Longest answer, in tokens."""
    temperature: float | None
    """0, None or missing: greedy."""
    top_p: float
    """1.0: all tokens."""
    top_k: int
    """0: all tokens."""
    seed: int
    """0"""
    batch: int
    """32: most conversations at once."""
    stream: bool
    """False"""


class GeneratedAnswer(TypedDict):
    """One answer, as `teachers` and `eval` store it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """The token that ends the answer is included."""
    finish_reason: Literal["stop", "length", "stopped"]


class SamplingArguments(TypedDict):
    """The arguments of transformers' `generate` that say how tokens are drawn."""

    do_sample: bool
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]


def batches(lengths: Sequence[int], most: int, overhead: int) -> list[slice]:
    """Cut prompts, sorted by length, into batches of at most `most`, so that the fewest tokens are read.

    Padding counts: a batch reads its longest prompt once for each of its prompts. Generating its answers costs as much
    as reading `overhead` tokens, whatever the size of the batch. In one batch, a prompt of 900 tokens and 39 of 90
    would read 36,000 tokens instead of 4,500.
    """
    # best[n] is the lowest cost of the first n prompts, and cut[n] where the last batch of that solution begins
    best = [0.0] + [float("inf")] * len(lengths)
    cut = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        for start in range(max(0, end - most), end):
            cost = best[start] + (end - start) * lengths[end - 1] + overhead
            if cost < best[end]:
                best[end], cut[end] = cost, start
    slices: list[slice] = []
    end = len(lengths)
    while end:
        slices.append(slice(cut[end], end))
        end = cut[end]
    return slices[::-1]


class Engine(ABC):
    """A loaded model that answers conversations. All engines get the same tokens, those of the contract."""

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
    def answer(self, conversations: Sequence[Sequence[Turn]], request: GenerationRequest) -> list[GeneratedAnswer]:
        """One answer per conversation, in order."""

    def stream(
        self, conversation: Sequence[Turn], request: GenerationRequest, send: Callable[[str], None]
    ) -> GeneratedAnswer:
        """An answer whose text is passed to `send` in pieces: here in one piece, when it is complete."""
        (answer,) = self.answer([conversation], request)
        send(answer["text"])
        return answer

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the blanks around it."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def reply(self, prompt: Sequence[int], new: Sequence[int]) -> GeneratedAnswer:
        """An answer from its tokens, up to the first that ends it."""
        # In a batch, rows that end early are filled with padding, which may be no end token: cut at the first end.
        end = next((index for index, token in enumerate(new) if token in self.ends), None)
        tokens = list(new[:end])
        return {
            "text": self.text(tokens),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens) + (end is not None),
            "finish_reason": "length" if end is None else "stop",
        }


class Generator(Engine):
    """A model of transformers, which answers conversations in batches of similar length."""

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
        # Llama 3 lists several end tokens in generation_config, of which the tokenizer knows one.
        own = self.model.generation_config.eos_token_id
        self.ends |= {end for end in (own if isinstance(own, list) else [own]) if end is not None}

    def answer(self, conversations: Sequence[Sequence[Turn]], request: GenerationRequest) -> list[GeneratedAnswer]:
        """One answer per conversation, in order."""
        prompts = prompts_ids(self.tokenizer, conversations) if conversations else []
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        lengths = [len(prompts[position]) for position in order]
        torch.manual_seed(int(request.get("seed", 0)))
        overhead = STEP_TOKENS * int(request["max_tokens"])
        answers: dict[int, GeneratedAnswer] = {}
        for cut in batches(lengths, int(request.get("batch", 32)), overhead):
            positions = order[cut]
            replies = self._generate_in_halves([prompts[position] for position in positions], request)
            answers |= zip(positions, replies, strict=True)
        return [answers[position] for position in range(len(prompts))]

    @torch.inference_mode()
    def stream(
        self, conversation: Sequence[Turn], request: GenerationRequest, send: Callable[[str], None]
    ) -> GeneratedAnswer:
        """An answer whose text is passed to `send` as tokens are drawn; it ends at the model's last position.

        Raises ZephyrError if the conversation leaves no room for an answer.
        """
        (prompt,) = prompts_ids(self.tokenizer, [conversation])
        if positions := getattr(self.model.config, "max_position_embeddings", None):
            if len(prompt) >= positions:
                raise ZephyrError(
                    f"this conversation has {len(prompt)} tokens, and the model reads {positions} with its answer",
                    "start again (/reset), or remove the last turn (/undo)",
                )
            request = {**request, "max_tokens": min(int(request["max_tokens"]), positions - len(prompt))}
        torch.manual_seed(int(request.get("seed", 0)))
        pieces = Pieces(self, send)
        ids = torch.tensor([prompt], device=self.device)
        is_stopped = False
        try:
            self._generate(ids, torch.ones_like(ids), request, pieces)
        except Stopped:
            is_stopped = True
        except torch.OutOfMemoryError:
            raise ValueError("this conversation does not fit the GPU's memory") from None
        answer = self.reply(prompt, pieces.tokens)
        pieces.finish(answer["text"])
        if is_stopped:
            answer["finish_reason"] = "stopped"
        return answer

    def _generate_in_halves(self, prompts: list[list[int]], request: GenerationRequest) -> list[GeneratedAnswer]:
        """The answers of a batch, which is cut in halves if the GPU has no room for all of it."""
        try:
            answers: list[GeneratedAnswer] = self._generate_batch(prompts, request)
            return answers
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise ValueError("one conversation alone does not fit the GPU's memory") from None
        # Outside of `except`: while it is handled, the error's traceback keeps the tensors of the failed batch alive.
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        first = self._generate_in_halves(prompts[:half], request)
        return first + self._generate_in_halves(prompts[half:], request)

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], request: GenerationRequest) -> list[GeneratedAnswer]:
        # Padding goes to the left, so that every prompt ends at `width` and new tokens [B, new] follow it directly.
        width = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        generated = self._generate(ids, mask, request)
        return [self.reply(prompt, new) for prompt, new in zip(prompts, generated[:, width:].tolist(), strict=True)]

    def _generate(
        self, ids: torch.Tensor, mask: torch.Tensor, request: GenerationRequest, streamer: BaseStreamer | None = None
    ) -> torch.Tensor:
        """Prompts `ids` [B, width] with the answers that follow them, [B, width + new]."""
        generated: torch.Tensor = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=int(request["max_tokens"]),
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(self.ends),
            streamer=streamer,
            **_sampling(request),
        )
        return generated


class Stopped(Exception):
    """The user stopped the answer that is being generated."""


class Pieces(BaseStreamer):
    """Collects the tokens of one answer as they are drawn, and sends their text on as it grows.

    A token may end within a character. Such an end decodes to U+FFFD and is held back until the next token.
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
        """Take the prompt, and then one token at a time. Raises Stopped after SIGINT."""
        if self._is_prompt:
            self._is_prompt = False
            return
        if Pieces.is_stopped:
            raise Stopped
        new = value.reshape(-1).tolist()
        self.tokens += new
        if not self._engine.ends.intersection(new):
            # All tokens are decoded each time: the text of a token depends on those before it (its leading blank).
            text = self._engine.text(self.tokens)
            if not text.endswith("\ufffd"):
                self.finish(text)

    def end(self) -> None:
        """Do nothing: the rest of the text is sent with the answer."""

    def finish(self, text: str) -> None:
        """Send the part of the text that was not sent before."""
        if text.startswith(self._sent) and len(text) > len(self._sent):
            self._send(text[len(self._sent) :])
            self._sent = text


class VllmGenerator(Engine):
    """A model in vLLM, which batches by itself. It gets our tokens, so its own chat template is not used."""

    def __init__(self, model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False) -> None:
        super().__init__(model, revision, chat_template, trusts_code)
        from vllm import LLM

        self.model = LLM(model=model, revision=revision, dtype="bfloat16", trust_remote_code=trusts_code)

    def answer(self, conversations: Sequence[Sequence[Turn]], request: GenerationRequest) -> list[GeneratedAnswer]:
        """One answer per conversation, in order."""
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
        outputs = self.model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [
            self.reply(prompt, output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)
        ]


def open_engine(
    model: str, revision: str | None, chat_template: str | None, trusts_code: bool = False, engine: str = "transformers"
) -> Engine:
    """The model in the named engine; `auto` is vLLM if it is installed and there is a GPU.

    Raises ZephyrError if vLLM is named and not installed.
    """
    is_installed = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not is_installed:
        raise ZephyrError(
            "vLLM is not installed here", "pip install 'zephyrctl[vllm]', or --set eval.engine=transformers"
        )
    uses_vllm = engine == "vllm" or (engine == "auto" and is_installed and has_cuda())
    engine_type = VllmGenerator if uses_vllm else Generator
    return engine_type(model, revision, chat_template, trusts_code)


def has_cuda() -> bool:
    """True if torch has a GPU to use."""
    return bool(torch.cuda.is_available())


def _sampling(request: GenerationRequest) -> SamplingArguments:
    temperature = request.get("temperature")
    if not temperature:
        return {"do_sample": False}
    # transformers' own default is top_k = 50, and a model's generation_config may have others: state all of them
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": request.get("top_p", 1.0),
        "top_k": request.get("top_k", 0),
    }


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends; the reply to a failed request is its problem and a remedy."""
    generator: Engine | None = None

    def send(reply: dict[str, object]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    for line in requests:
        request = json.loads(line)
        reply: dict[str, object]
        try:
            if "load" in request:
                generator = None  # free the memory of the last model before the next is loaded
                generator = open_engine(request.pop("load"), **request)
                reply = {"token_contract": generator.contract.fingerprint}
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
    generator: Engine, request: GenerationRequest, send: Callable[[dict[str, object]], None]
) -> list[GeneratedAnswer]:
    """The answers to a request. With `stream` its only conversation is answered in pieces."""
    if not request.get("stream"):
        return generator.answer(request["conversations"], request)
    (conversation,) = request["conversations"]
    return [generator.stream(conversation, request, lambda text: send({"delta": text}))]


def _stop(*_: object) -> None:
    Pieces.is_stopped = True


def main() -> None:
    """Answer requests on standard input until it ends."""
    signal.signal(signal.SIGINT, _stop)
    # Libraries may print: their output goes to standard error, and only replies to the real standard output.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)


if __name__ == "__main__":
    main()
