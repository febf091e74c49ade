"""A conversation with one checkpoint at a time, and others asked the same prompt; a worker for each model in use."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from zephyrctl.chat.speakers import Speaker
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.processes import Conversation, WorkerDied

Turn = dict[str, str]


@dataclass(frozen=True)
class Manner:
    """How answers are drawn."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def request(self) -> dict[str, Any]:
        """In the words of the generation worker."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Answer:
    """What a model said, and how it ended: stop, length, or stopped by Ctrl-C."""

    text: str
    finish_reason: str
    tokens: int


class Workers:
    """A worker for each model that was asked for, loaded at its first question and kept."""

    def __init__(self, loading: Callable[[str], None]) -> None:
        self._loading = loading
        self._running: dict[str, Conversation] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="zephyrctl-chat-")

    def ask(self, speaker: Speaker, request: dict[str, Any], follow: Callable[[str], None]) -> dict[str, Any]:
        """The reply of a model, its text handed on as it comes. Raises ZephyrError where it cannot load or dies."""
        worker = self._running.get(speaker.name) or self._load(speaker)
        try:
            return worker.stream(request, follow)
        except WorkerDied as error:
            self._end(speaker.name)
            raise _died(
                speaker, error, "say it again: the model is loaded anew, and nothing said before is lost"
            ) from None

    def close(self) -> None:
        """End all."""
        for name in list(self._running):
            self._end(name)
        self._scratch.cleanup()

    def _load(self, speaker: Speaker) -> Conversation:
        self._loading(speaker.name)
        log = Path(self._scratch.name) / f"{len(self._running)}.log"
        worker = self._running[speaker.name] = Conversation(log)
        try:
            worker.ask(dict(speaker.load))
        except WorkerDied as error:
            self._end(speaker.name)
            raise _died(speaker, error, "see that there is memory for the model: zephyrctl doctor") from None
        except BaseException:
            self._end(speaker.name)
            raise
        return worker

    def _end(self, name: str) -> None:
        self._running.pop(name).close()


def _died(speaker: Speaker, error: WorkerDied, remedy: str) -> ZephyrError:
    """The death of a model's worker, in its own last words: its log goes with the chat, so no remedy names it."""
    return ZephyrError(f"{speaker.name}: {error.problem}", remedy)


@dataclass
class Talk:
    """The conversation so far; `speaker` answers, and `known` may be asked the same."""

    speaker: Speaker
    known: Mapping[str, Speaker]
    workers: Workers
    manner: Manner = field(default_factory=Manner)
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    """What was answered to the last prompt, by speaker."""

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
        """What was asked last."""
        return next((turn["content"] for turn in reversed(self.turns) if turn["role"] == "user"), None)

    def say(self, text: str, follow: Callable[[str], None]) -> Answer:
        """Say something and have it answered; where that fails, nothing was said."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer = self._ask(self.speaker, self.messages, follow)
        except BaseException:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": answer.text})
        self.answers = {self.speaker.name: answer}
        return answer

    def compare(self, name: str, follow: Callable[[str], None]) -> Answer:
        """The answer of another checkpoint to the last prompt, after the same turns; it is no part of the conversation.

        One that has answered that prompt is not asked again. Raises ZephyrError where nothing was asked yet.
        """
        if self.prompt is None:
            raise ZephyrError("nothing was asked yet", f"ask something first, or go on with it: /use {name}")
        if name not in self.answers:
            last = max(place for place, turn in enumerate(self.messages) if turn["role"] == "user")
            self.answers[name] = self._ask(self.known[name], self.messages[: last + 1], follow)
        return self.answers[name]

    def use(self, name: str) -> None:
        """Go on with another checkpoint."""
        self.speaker = self.known[name]

    def undo(self) -> None:
        """Take back the last prompt and its answer. Raises ZephyrError where there is none."""
        if not self.turns:
            raise ZephyrError("there is nothing to take back", "say something")
        del self.turns[-2:]
        self.answers = {}

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.turns.clear()
        self.answers = {}

    def warm(self, temperature: float) -> None:
        """Draw from now on at another temperature; the last prompt is answered anew where it is asked again."""
        self.manner = replace(self.manner, temperature=temperature)

    def save(self, path: Path) -> None:
        """Add the conversation to a JSONL file, as a line of messages. Raises ZephyrError where there is none."""
        if not self.turns:
            raise ZephyrError("there is nothing to save", "say something")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages, "model": self.speaker.name}, ensure_ascii=False) + "\n")

    def _ask(self, speaker: Speaker, messages: list[Turn], follow: Callable[[str], None]) -> Answer:
        reply = self.workers.ask(speaker, {"conversations": [messages], **self.manner.request()}, follow)
        (answer,) = reply["answers"]
        return Answer(answer["text"], answer["finish_reason"], answer["completion_tokens"])
