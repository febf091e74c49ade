"""The conversation with one model, and others that answer the same prompt; each model runs in a worker."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from zephyrctl.chat.models import ChatModel
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.processes import ConversationWorker, WorkerDied

Turn = dict[str, str]


@dataclass(frozen=True)
class ChatSampling:
    """How answers are sampled."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def request(self) -> dict[str, float]:
        """The fields of a request to the generation worker."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class ChatAnswer:
    """A model's answer, and why it ended: `stop`, `length`, or `stopped` (by Ctrl-C)."""

    text: str
    finish_reason: str
    tokens: int


class ModelWorkers:
    """One worker per model, started at the model's first prompt and kept until the end."""

    def __init__(self, loading: Callable[[str], None]) -> None:
        self._loading = loading
        self._running: dict[str, ConversationWorker] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="zephyrctl-chat-")

    def ask(self, model: ChatModel, request: Mapping[str, object], follow: Callable[[str], None]) -> dict[str, Any]:
        """A model's reply; its text is passed to `follow` while it is generated.

        Raises ZephyrError if the model cannot be loaded or its worker dies."""
        worker = self._running.get(model.name) or self._load(model)
        try:
            return worker.stream(dict(request), follow)
        except WorkerDied as error:
            self._end(model.name)
            raise _died(
                model, error, "send the prompt again: the model is loaded again, and the conversation is kept"
            ) from None

    def close(self) -> None:
        """Stop all workers."""
        for name in list(self._running):
            self._end(name)
        self._scratch.cleanup()

    def _load(self, model: ChatModel) -> ConversationWorker:
        self._loading(model.name)
        log = Path(self._scratch.name) / f"{len(self._running)}.log"
        worker = self._running[model.name] = ConversationWorker(log)
        try:
            worker.ask(dict(model.load))
        except WorkerDied as error:
            self._end(model.name)
            raise _died(model, error, "check that there is enough memory for the model: zephyrctl doctor") from None
        except BaseException:
            self._end(model.name)
            raise
        return worker

    def _end(self, name: str) -> None:
        self._running.pop(name).close()


def _died(model: ChatModel, error: WorkerDied, remedy: str) -> ZephyrError:
    """The error for a dead worker. It quotes the worker's last words, as its log is deleted with the chat."""
    return ZephyrError(f"{model.name}: {error.problem}", remedy)


@dataclass
class ChatSession:
    """The conversation so far. `model` answers; the others in `known` can answer the same prompt."""

    model: ChatModel
    known: Mapping[str, ChatModel]
    workers: ModelWorkers
    sampling: ChatSampling = field(default_factory=ChatSampling)
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    answers: dict[str, ChatAnswer] = field(default_factory=dict)
    """The answers to the last prompt, by model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()

    @property
    def messages(self) -> list[Turn]:
        """The conversation with its system message."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    @property
    def prompt(self) -> str | None:
        """The last prompt; None if there is none."""
        return next((turn["content"] for turn in reversed(self.turns) if turn["role"] == "user"), None)

    def say(self, text: str, follow: Callable[[str], None]) -> ChatAnswer:
        """Send a prompt and return the answer. If that fails, the conversation is unchanged."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer = self._ask(self.model, self.messages, follow)
        except BaseException:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": answer.text})
        self.answers = {self.model.name: answer}
        return answer

    def compare(self, name: str, follow: Callable[[str], None]) -> ChatAnswer:
        """Another model's answer to the last prompt, after the same turns. It does not become part of the conversation.

        A model that has already answered is not asked again. Raises ZephyrError if there is no prompt yet.
        """
        if self.prompt is None:
            raise ZephyrError(
                "there is no prompt yet", f"send a prompt first, or continue with that model: /use {name}"
            )
        if name not in self.answers:
            last = max(index for index, turn in enumerate(self.messages) if turn["role"] == "user")
            self.answers[name] = self._ask(self.known[name], self.messages[: last + 1], follow)
        return self.answers[name]

    def use(self, name: str) -> None:
        """Continue with another model."""
        self.model = self.known[name]

    def undo(self) -> None:
        """Remove the last prompt and its answer. Raises ZephyrError if there is none."""
        if not self.turns:
            raise ZephyrError("there is nothing to undo", "send a prompt first")
        del self.turns[-2:]
        self.answers = {}

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.turns.clear()
        self.answers = {}

    def set_temperature(self, temperature: float) -> None:
        """Use another temperature from now on."""
        self.sampling = replace(self.sampling, temperature=temperature)

    def save(self, path: Path) -> None:
        """Append the conversation to a JSONL file as one row of messages. Raises ZephyrError if it is empty."""
        if not self.turns:
            raise ZephyrError("there is nothing to save", "send a prompt first")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages, "model": self.model.name}, ensure_ascii=False) + "\n")

    def _ask(self, model: ChatModel, messages: list[Turn], follow: Callable[[str], None]) -> ChatAnswer:
        reply = self.workers.ask(model, {"conversations": [messages], **self.sampling.request()}, follow)
        (answer,) = reply["answers"]
        return ChatAnswer(answer["text"], answer["finish_reason"], answer["completion_tokens"])
