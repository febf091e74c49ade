"""Whether the `transformers` teacher answers from a real checkpoint in a worker, and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from zephyrctl import plugins
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.builtin.transformers import TransformersTeacher
from zephyrctl.contracts import PluginOptions, Reply, Sampling
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message

BASE = Path(TinyMistral(PluginOptions()).location())
SHORT = Sampling(max_tokens=6)


@pytest.fixture
def base() -> str:
    """The embedded base."""
    if not (BASE / "config.json").is_file():
        pytest.skip("this checkout has no embedded base: zephyrctl.tiny.make_base writes it")
    return str(BASE)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def teacher(model: str | Path, **options: Any) -> TransformersTeacher:
    """The teacher as a recipe makes it."""
    made = plugins.load().teacher("transformers", {"model": str(model), **options})
    assert isinstance(made, TransformersTeacher)
    return made


def asked(text: str) -> list[Message]:
    """A conversation of one turn."""
    return [Message(role="user", content=text)]


def talk(made: TransformersTeacher, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do some asynchronous work and close the teacher after it."""

    async def do() -> Any:
        try:
            return await work()
        finally:
            await made.close()

    return asyncio.run(do())


def process(made: TransformersTeacher) -> Any:
    """The worker's process."""
    assert made._worker is not None
    return made._worker._process


async def until_it_works(made: TransformersTeacher) -> Any:
    """The worker's process, once there is one."""
    while made._worker is None:
        await asyncio.sleep(0.02)
    return process(made)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("runs/mine/sft/model", "there is no folder runs/mine/sft/model"),
        ("./model", "there is no folder ./model"),
        ("~/model", "there is no folder ~/model"),
        ("", "contains no model: it has no config.json"),
    ],
)
def test_what_can_be_no_checkpoint_starts_no_worker(tmp_path: Path, scratch: Path, model: str, problem: str) -> None:
    """A path that is not there is not looked for on the Hub."""
    made = teacher(model or tmp_path)
    with pytest.raises(ZephyrError) as caught:
        talk(made, lambda: made.reply(asked("Hello?")))
    assert problem in caught.value.problem
    assert made._worker is None
    assert not list(scratch.iterdir())


def test_the_label_tells_checkpoints_apart(tmp_path: Path) -> None:
    """Every checkpoint of a run lies in a folder `model`: the run and the stage name it."""
    for folder in ("mine/sft/model", "mine/dpo/model", "mistral"):
        (tmp_path / folder).mkdir(parents=True)
    assert teacher(tmp_path / "mine/sft/model").label == "mine/sft"
    assert teacher(tmp_path / "mine/dpo/model").label == "mine/dpo"
    assert teacher(tmp_path / "mistral").label == "mistral"
    assert teacher("org/model").label == "org/model"


def test_one_that_was_never_asked_is_closed() -> None:
    """And starts nothing, then or later."""
    made = teacher("org/model")
    asyncio.run(made.close())
    with pytest.raises(RuntimeError, match="'org/model' is closed"):
        asyncio.run(made.reply(asked("Hello?")))


@pytest.mark.slow
def test_it_answers_in_batches_and_leaves_nothing(base: str, scratch: Path) -> None:
    """Calls at once are answered as they are one by one; the same seed draws the same; close ends worker and folder."""
    made = teacher(base, batch=3)
    questions = [asked(f"Which is bigger, {number} or {number * number}?") for number in range(2, 7)]
    warm = [Sampling(temperature=1.0, max_tokens=8, seed=seed) for seed in (1, 2, 3)]

    async def work() -> tuple[list[Reply], list[Reply], list[Reply], list[Reply]]:
        alone = [await made.reply(question, SHORT) for question in questions]
        started = process(made).pid
        together = await asyncio.gather(*(made.reply(question, SHORT) for question in questions))
        drawn = await asyncio.gather(*(made.reply(questions[0], sampling) for sampling in warm))
        again = await asyncio.gather(*(made.reply(questions[0], sampling) for sampling in reversed(warm)))
        assert process(made).pid == started
        assert len(list(scratch.iterdir())) == 1
        worker.append(process(made))
        return alone, list(together), list(drawn), list(again)

    worker: list[Any] = []
    alone, together, drawn, again = talk(made, work)
    assert together == alone
    assert drawn == again[::-1]
    assert len({reply.text for reply in drawn}) > 1
    for reply in (*alone, *drawn):
        assert reply.model == made.label == "base"
        assert reply.prompt_tokens > 0
        assert 0 < reply.completion_tokens <= 8
        assert reply.finish_reason in ("stop", "length")
    assert worker[0].returncode is not None
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_a_cancelled_call_harms_no_other(base: str) -> None:
    """The first caller gives up while its batch is under way; those that wait with it and after it are answered."""
    made = teacher(base)

    async def work() -> None:
        calls = [asyncio.create_task(made.reply(asked("Hello?"), SHORT)) for _ in range(3)]
        later = asyncio.create_task(made.reply(asked("Who are you?"), Sampling(max_tokens=3)))
        await until_it_works(made)
        calls[0].cancel()
        later_too = asyncio.create_task(made.reply(asked("Who are you?"), Sampling(max_tokens=3)))
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        assert (await calls[1]) == (await calls[2])
        assert (await later) == (await later_too)

    talk(made, work)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["loading", "answering"])
def test_close_does_not_wait(base: str, scratch: Path, state: str) -> None:
    """Neither for a model that loads nor for a long answer, as an interrupted command must end."""
    made = teacher(base)

    async def work() -> None:
        if state == "answering":
            await made.reply(asked("Hello?"), SHORT)
        call = asyncio.create_task(made.reply(asked("Hello?"), Sampling(max_tokens=100_000)))
        later = asyncio.create_task(made.reply(asked("Who?"), SHORT))
        worker = await until_it_works(made)
        await asyncio.sleep(0.3)
        call.cancel()
        began = time.monotonic()
        await made.close()
        with pytest.raises(asyncio.CancelledError):
            await later
        assert time.monotonic() - began < 15
        assert worker.returncode is not None

    talk(made, work)
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_the_death_of_the_worker_is_told_and_survived(base: str) -> None:
    """Every call of the batch fails with what to try; the next one gets a new worker."""
    made = teacher(base)

    async def work() -> list[str]:
        first = await made.reply(asked("Hello?"), SHORT)
        calls = [made.reply(asked(word), Sampling(max_tokens=100_000)) for word in ("Who?", "What?")]
        gathered = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.3)
        os.kill(process(made).pid, signal.SIGKILL)
        told = []
        for error in await gathered:
            assert isinstance(error, ZephyrError)
            told.append(f"{error.problem} / {error.remedy}")
        assert await made.reply(asked("Hello?"), SHORT) == first
        return told

    told = talk(made, work)
    assert len(set(told)) == 1
    assert "base: the generation worker died" in told[0]
    assert "option batch (now 32)" in told[0]
    assert "generate.log" not in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["chat template", "weights"])
def test_a_folder_that_lacks_something(base: str, tmp_path: Path, scratch: Path, lacks: str) -> None:
    """Is named with what a checkpoint has; the worker that could not load is gone."""
    folder = tmp_path / "half"
    shutil.copytree(base, folder)
    for path in folder.iterdir():
        if lacks == "weights" and path.suffix == ".safetensors":
            path.unlink()
        if lacks == "chat template" and path.name == "chat_template.jinja":
            path.unlink()
    made = teacher(folder)
    with pytest.raises(ZephyrError) as caught:
        talk(made, lambda: made.reply(asked("Hello?")))
    assert caught.value.problem.startswith("half: the model cannot be used:")
    assert "safetensors weights and a chat template" in caught.value.remedy
    if lacks == "chat template":
        assert "has no chat template" in caught.value.problem
    assert made._worker is None
    assert not list(scratch.iterdir())
