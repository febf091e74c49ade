"""The `transformers` teacher: a local checkpoint in a generation worker, as this process never imports torch."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.processes import ConversationWorker
from zephyrctl.records import Message

WaitingCall = tuple[list[dict[str, str]], "asyncio.Future[Reply]"]
"""A conversation and who waits for its answer."""
CHECKPOINT = "model"
"""The name of every checkpoint folder in a run, so it is no label."""


class TransformersTeacher(Teacher):
    """A folder or Hub id with a chat template; waiting calls with the same sampling are answered as one batch."""

    class Options(PluginOptions):
        """Options of `transformers`."""

        model: str = Field(description="folder or Hub id")
        revision: str | None = Field(default=None, description="Hub revision")
        batch: int = Field(default=32, ge=1, description="answers generated at the same time")

    name = "transformers"
    is_free = True
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._worker: ConversationWorker | None = None
        self._waiting: dict[Sampling, list[WaitingCall]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def label(self) -> str:
        """The folder's name (for a checkpoint of a run: run and stage) or the Hub id."""
        model = self.options.model
        if not Path(model).is_dir():
            return model
        parts = Path(model).absolute().parts
        return "/".join(parts[-3:-1]) if parts[-1] == CHECKPOINT else parts[-1]

    @property
    def identity(self) -> dict[str, object]:
        """Model and revision; for a folder also the sizes and times of its files, as it may be trained again."""
        folder = Path(self.options.model)
        files = {path.name: [path.stat().st_size, path.stat().st_mtime] for path in sorted(folder.glob("*"))}
        return {"model": self.options.model, "revision": self.options.revision, "files": files}

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Generate an answer. Raises ZephyrError if the checkpoint cannot be used."""
        if self._is_closed:
            raise RuntimeError(f"the teacher {self.label!r} is closed")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        kind = sampling.model_copy(update={"json_schema": None})  # schemas are not supported
        self._waiting.setdefault(kind, []).append(([message.model_dump() for message in messages], future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._answer_all())
        return await future

    async def close(self) -> None:
        """End the worker, even in the middle of an answer, and remove its folder."""
        self._is_closed = True
        for _, future in (call for calls in self._waiting.values() for call in calls):
            future.cancel()
        await self._end_worker()
        if self._pump:
            await asyncio.wait([self._pump])
        if self._scratch:
            self._scratch.cleanup()
            self._scratch = None

    async def _answer_all(self) -> None:
        """Answer batch after batch until no call waits. Its own task, so that a cancelled call cancels no other."""
        while self._waiting:
            sampling = next(iter(self._waiting))
            waiting = [call for call in self._waiting.pop(sampling) if not call[1].done()]
            if not waiting:
                continue
            try:
                replies = await self._answer([conversation for conversation, _ in waiting], sampling)
                answered = list(zip(waiting, replies, strict=True))
            except Exception as error:
                await self._end_worker()
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), reply in answered:
                if not future.done():
                    future.set_result(reply)

    async def _answer(self, conversations: Sequence[list[dict[str, str]]], sampling: Sampling) -> list[Reply]:
        if self._worker is None:
            await asyncio.to_thread(self._start)
        request = {
            "conversations": conversations,
            "batch": self.options.batch,
            **sampling.model_dump(exclude={"json_schema"}),
        }
        remedy = f"lower the teacher's option batch (now {self.options.batch}) if memory ran out, and run this again"
        answered = await asyncio.to_thread(self._request, request, remedy)
        return [Reply(model=self.label, **answer) for answer in answered["answers"]]

    def _start(self) -> None:
        """Start a worker that has loaded the checkpoint.

        A worker dies with the thread that started it; the threads of the event loop last as long as the loop.
        """
        self._check_folder()
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="zephyrctl-")
        self._worker = ConversationWorker(Path(self._scratch.name) / "generate.log")
        request = {"load": self.options.model, "revision": self.options.revision, "chat_template": None}
        self._request(request, "give a folder or Hub id with config.json, safetensors weights and a chat template")

    def _request(self, request: Mapping[str, object], remedy: str) -> dict[str, Any]:
        """The worker's answer. Its log is deleted with the teacher, so a remedy must not point to it."""
        worker = self._worker
        if worker is None or self._is_closed:
            raise RuntimeError(f"the teacher {self.label!r} is closed")
        try:
            return worker.ask(dict(request))
        except ZephyrError as error:
            raise ZephyrError(f"{self.label}: {error.problem}", remedy) from None

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            await asyncio.to_thread(worker.close)

    def _check_folder(self) -> None:
        """Raise ZephyrError if this cannot be a checkpoint: a Hub id has no leading dot and at most one slash."""
        model = self.options.model
        if Path(model).is_dir():
            if not (Path(model) / "config.json").is_file():
                raise ZephyrError(
                    f"{model} contains no model: it has no config.json", "give the folder of a checkpoint"
                )
        elif model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ZephyrError(f"there is no folder {model}", "check the teacher's option model")
