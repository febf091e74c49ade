"""The `transformers` teacher: a local checkpoint in a generation worker, as this process never imports torch."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.launch import Conversation
from zephyrctl.recipe import Launch
from zephyrctl.records import Message

Waiting = tuple[list[dict[str, str]], "asyncio.Future[Reply]"]


class TransformersTeacher(Teacher):
    """A folder or Hub id with a chat template; calls that wait at the same time are answered as one batch."""

    class Options(PluginOptions):
        """Options of `transformers`."""

        model: str = Field(description="folder or Hub id")
        revision: str | None = Field(default=None, description="Hub revision")
        batch: int = Field(default=32, ge=1, description="answers generated at once")

    name = "transformers"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._worker: Conversation | None = None
        self._waiting: dict[Sampling, list[Waiting]] = {}
        self._turn = asyncio.Lock()

    @property
    def label(self) -> str:
        """The folder's name or the Hub id."""
        model: str = self.options.model
        return Path(model).name if Path(model).is_dir() else model

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Generate an answer. Raises ZephyrError where the checkpoint cannot be used."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sampling, []).append(([message.model_dump() for message in messages], future))
        async with self._turn:
            if not future.done():
                await self._answer(sampling)
        return await future

    async def close(self) -> None:
        """End the worker."""
        if self._worker:
            self._worker.close()
            self._worker = None

    async def _answer(self, sampling: Sampling) -> None:
        """Answer everybody who waits with this sampling."""
        waiting = self._waiting.pop(sampling)
        request = {
            "conversations": [conversation for conversation, _ in waiting],
            "batch": self.options.batch,
            **sampling.model_dump(),
        }
        try:
            answers = (await asyncio.to_thread(self._generate, request))["answers"]
        except Exception as error:
            for _, future in waiting:
                future.set_exception(error)
            return
        for (_, future), answer in zip(waiting, answers, strict=True):
            future.set_result(Reply(model=self.label, **answer))

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            self._worker = Conversation(Launch(), Path(tempfile.mkdtemp(prefix="zephyrctl-")) / "generate.log")
            self._worker.ask({"load": self.options.model, "revision": self.options.revision, "chat_template": None})
        return self._worker.ask(request)
