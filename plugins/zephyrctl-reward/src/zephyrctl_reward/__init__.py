"""The teacher `reward`: a sequence classifier with one logit that rates, judges and compares, and never speaks."""

import asyncio
import tempfile
import threading
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

from pydantic import Field

from zephyrctl.contracts import GREEDY, Critique, PluginOptions, Ratings, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.hooks import hookimpl
from zephyrctl.launching.processes import ConversationWorker
from zephyrctl.records import Message, Rating
from zephyrctl.verdicts import Verdict

zephyrctl_contract = "1"

Key = tuple[tuple[Message, ...], str]
KEPT = 4096
"""Scores that are remembered: the four aspects of a prompt ask for the same ones."""


class Reward(Teacher):
    """A reward model: its score becomes a rating from 1 to 5, and a judge's score from 1 to 10, by a logistic curve."""

    class Options(PluginOptions):
        """Options of `reward`."""

        model: str = Field(description="folder or Hub id of a sequence classifier with one logit")
        revision: str | None = Field(default=None, description="Hub revision")
        middle: float = Field(default=0.0, description="score that becomes the middle of a scale: a rating of 3")
        spread: float = Field(default=2.0, gt=0, description="points above the middle that become a rating of 3.92")
        max_tokens: int = Field(default=2048, ge=8, description="longest conversation; of longer ones the end is read")

    name = "reward"
    is_free = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._worker: ConversationWorker | None = None
        self._turn = threading.Lock()
        self._known: dict[Key, float] = {}

    @property
    def label(self) -> str:
        """The folder's name, or the Hub id."""
        return Path(self.options.model).name if Path(self.options.model).is_dir() else str(self.options.model)

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Raise ZephyrError: it has no words."""
        raise ZephyrError(
            f"the teacher 'reward' ({self.label}) only scores: it can neither answer nor write",
            "name it as a rater or a judge, and another teacher for answers",
        )

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """The same rating for every aspect, as it knows none: between 1 and 5, and never equal for other scores."""
        scores = await self._scores(messages, answers)
        marks = [
            Rating(aspect=aspect, value=self.on_scale(score, 5), rationale=f"score {score:g}", rater=self.label)
            for score in scores
        ]
        return Ratings(marks, model=self.label)

    async def critique(self, messages: Sequence[Message], answer: str, sample: int = 0) -> Critique:
        """No words but the score, which is also the overall one from 1 to 10."""
        (score,) = await self._scores(messages, [answer])
        return Critique(f"score {score:g}", self.on_scale(score, 10), self.label)

    async def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """Its score on the scale from 1 to 10."""
        (score,) = await self._scores(messages, [answer])
        return Verdict(self.on_scale(score, 10), f"score {score:g}", self.label)

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float:
        """Whichever scores higher."""
        one, other = await self._scores(messages, [first, second])
        return 0.5 if one == other else float(one > other)

    async def close(self) -> None:
        """End the worker and remove its folder."""
        await asyncio.to_thread(self._end)

    def on_scale(self, score: float, highest: int) -> float:
        """1 + (highest - 1) / (1 + exp(-(score - middle) / spread)): the chance of beating an answer of the middle."""
        steepness = (score - self.options.middle) / self.options.spread
        return 1 + (highest - 1) / (1 + exp(-max(-30.0, min(30.0, steepness))))

    async def _scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The scores of answers to one conversation."""
        return await asyncio.to_thread(self._score, [(tuple(messages), answer) for answer in answers])

    def _score(self, keys: Sequence[Key]) -> list[float]:
        """The scores that are known, and the worker's for all others at once; one thread at a time speaks to it."""
        with self._turn:
            if new := [key for key in dict.fromkeys(keys) if key not in self._known]:
                talks = [
                    [*(message.model_dump() for message in messages), {"role": "assistant", "content": answer}]
                    for messages, answer in new
                ]
                self._worker = self._worker or self._start()
                told = self._say(self._worker, {"conversations": talks, "max_tokens": self.options.max_tokens})
                self._known |= zip(new, told["scores"], strict=True)
            scores = [self._known[key] for key in keys]
            while len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
            return scores

    def _start(self) -> ConversationWorker:
        """A worker that has loaded the model. It dies with this thread, which lasts as long as the event loop."""
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="zephyrctl-")
        worker = ConversationWorker(Path(self._scratch.name) / "reward.log", module="zephyrctl_reward.worker")
        try:
            self._say(worker, {"load": self.options.model, "revision": self.options.revision})
        except ZephyrError:
            worker.close()
            raise
        return worker

    def _say(self, worker: ConversationWorker, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer. Its log goes with the teacher, so a remedy must not point there."""
        try:
            return worker.ask(request)
        except ZephyrError as error:
            remedy = "give a folder or Hub id of a sequence classifier with one logit, in safetensors"
            raise ZephyrError(f"{self.label}: {error.problem}", remedy) from None

    def _end(self) -> None:
        with self._turn:
            if self._worker:
                self._worker.close()
                self._worker = None
            if self._scratch:
                self._scratch.cleanup()
                self._scratch = None


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`reward`."""
    return [Reward]
