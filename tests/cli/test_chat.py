"""Talking to real checkpoints: at a terminal, through a pipe, once; and who cannot be talked to."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command, Outcome, shell
from zephyrctl.chat.models import chat_models, choose
from zephyrctl.chat.session import ChatAnswer, ChatSampling, ChatSession, ModelWorkers
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.loading import load
from zephyrctl.runs.run import Run

SHORT = ("--max-new-tokens", "12")


class Typist:
    """A person at a terminal of its own: types, waits for words, and may press Ctrl-C."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mine, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zephyrctl", "chat", *arguments],
            cwd=folder,
            env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_at_its_terminal,
        )
        os.close(theirs)
        self._read = 0
        self.shown = ""

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._mine, f"{line}\n".encode())

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._mine, key)

    def press_until(self, key: bytes, words: str) -> None:
        """Press a key until these words come, as a person would: CPython misses a signal just before it waits."""
        for _ in range(9):
            self.press(key)
            with contextlib.suppress(AssertionError):
                self.wait(words, 10)
                return
        raise AssertionError(f"no {words!r} in {self.shown[self._read :]!r}")

    def wait(self, words: str, seconds: float = 90) -> str:
        """What was shown since the last wait, up to these words."""
        until = time.monotonic() + seconds
        while words not in self.shown[self._read :]:
            assert time.monotonic() < until, f"no {words!r} in {self.shown[self._read :]!r}"
            ready, _, _ = select.select([self._mine], [], [], 0.2)
            if ready:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._mine, 4096).decode()
        end = self.shown.index(words, self._read) + len(words)
        since, self._read = self.shown[self._read : end], end
        return since

    def end(self) -> int:
        """How it ended."""
        code = self._process.wait(30)
        os.close(self._mine)
        return code

    def kill(self) -> None:
        """End it where the test has failed."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


def _at_its_terminal() -> None:
    """The terminal's keys reach this process, whatever the tests were started from."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def chat_session(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatSession]:
    """A conversation with the last checkpoint of the small run."""
    monkeypatch.chdir(small_run)
    recipe, run = load(None, {}).recipe, Run(Path("runs/small"))
    known = chat_models(recipe, run)
    with ChatSession(
        choose(None, known, recipe, run), known, ModelWorkers(lambda name: None), ChatSampling(0.0, 1.0, 12)
    ) as opened:
        yield opened


def in_a_pipe(folder: Path, said: str, *arguments: str) -> Outcome:
    """The command with something on its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "zephyrctl", "chat", *arguments],
        cwd=folder,
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_pieces_make_the_answer_and_equal_the_batch_generator(chat_session: ChatSession) -> None:
    pieces: list[str] = []
    answer = chat_session.say("What is the capital of France?", pieces.append)
    assert "".join(pieces) == answer.text and len(pieces) > 1
    assert answer.finish_reason == "length" and answer.tokens == 12
    (worker,) = chat_session.workers._running.values()
    request = {"conversations": [chat_session.messages[:1]], **chat_session.sampling.request()}
    (whole,) = worker.ask(request)["answers"]
    assert whole["text"] == answer.text
    assert [turn["role"] for turn in chat_session.messages] == ["user", "assistant"]


@pytest.mark.slow
def test_others_answer_the_same_prompt_and_say_nothing_in_the_conversation(chat_session: ChatSession) -> None:
    chat_session.system = "Be brief."
    chat_session.say("Hello", lambda piece: None)
    before = list(chat_session.messages)
    chat_session.compare("base", lambda piece: None)
    assert set(chat_session.answers) == {"dpo", "base"} and chat_session.messages == before
    assert len(chat_session.workers._running) == 2
    alone = ChatSession(
        chat_session.known["base"], chat_session.known, chat_session.workers, chat_session.sampling, chat_session.system
    )
    assert alone.say("Hello", lambda piece: None) == chat_session.answers["base"]
    chat_session.undo()
    assert chat_session.messages == [{"role": "system", "content": "Be brief."}] and chat_session.answers == {}


@pytest.mark.slow
def test_a_refused_prompt_was_never_said(chat_session: ChatSession, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(str(chat_session.model.load["load"]), copied)
    contract = json.loads((copied / "token_contract.json").read_text())
    (copied / "token_contract.json").write_text(json.dumps(contract | {"vocabulary": 3}))
    outcome = in_a_pipe(tmp_path, "hi\n", str(copied))
    assert outcome.code == 1 and outcome.out == ""
    assert "different tokens: vocabulary differ" in outcome.err


@pytest.mark.slow
def test_a_model_whose_worker_died_is_loaded_anew(chat_session: ChatSession) -> None:
    chat_session.say("Hello", lambda piece: None)
    (worker,) = chat_session.workers._running.values()
    worker._process.kill()
    with pytest.raises(
        ZephyrError, match=r"dpo: the generation worker died: .*SIGKILL, most often for want of memory"
    ) as error:
        chat_session.say("And again", lambda piece: None)
    assert "loaded again" in error.value.remedy and str(worker.log) not in error.value.remedy
    assert len(chat_session.turns) == 2
    assert chat_session.say("And again", lambda piece: None).text
    assert len(chat_session.turns) == 4


@pytest.mark.slow
def test_a_pipe_is_a_conversation_of_its_lines(small_run: Path) -> None:
    outcome = in_a_pipe(small_run, "hi\n\nand again\n", "sft", *SHORT, "--temperature", "0")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) >= 2
    assert outcome.err.count("loading sft") == 1
    again = in_a_pipe(small_run, "hi\n", "runs/small/sft", *SHORT, "--temperature", "0")
    assert outcome.out.startswith(again.out) and again.out.strip()


@pytest.mark.slow
def test_one_prompt_is_answered_by_each_as_one_object(small_run: Path) -> None:
    outcome = shell(["chat", "base", "dpo", "--prompt", "Hi", "--json", *SHORT, "--seed", "3"], small_run)
    assert outcome.code == 0, outcome.err
    assert list(outcome.json["answers"]) == ["base", "dpo"]
    assert all(set(one) == set(ChatAnswer.__annotations__) for one in outcome.json["answers"].values())
    piped = in_a_pipe(small_run, "Hi\n", "dpo", "--json", *SHORT, "--seed", "3")
    assert json.loads(piped.out)["answers"]["dpo"] == outcome.json["answers"]["dpo"]


@pytest.mark.slow
def test_a_person_talks_compares_stops_an_answer_and_saves(small_run: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    typist = Typist(small_run, "sft", "--max-new-tokens", "4000", "--temperature", "0")
    try:
        typist.wait("sft> ")
        typist.type("/nonsense")
        typist.wait("error: there is no command '/nonsense'")
        typist.type("/dpo")
        typist.wait("there is no prompt yet")
        typist.type("Tell me about tables")
        typist.wait("loading sft")
        typist.wait(" ")
        typist.press(b"\x03")
        typist.wait("(stopped)")
        typist.wait("sft> ")
        typist.type(f"/save {saved}")
        typist.wait("saved to")
        typist.wait("sft> ")
        typist.press_until(b"\x03", "(Ctrl-D quits)")
        typist.wait("sft> ")
        typist.press(b"\x04")
        assert typist.end() == 0
    finally:
        typist.kill()
    (line,) = saved.read_text().splitlines()
    assert [turn["role"] for turn in json.loads(line)["messages"]] == ["user", "assistant"]
    assert "Traceback" not in typist.shown
    built = shell(["data", "build", "--input", str(saved), "--json"], tmp_path)
    assert built.code == 0, built.err
    assert built.json["metrics"]["dialogues"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem", "remedy"),
    [
        (["--prompt", "hi"], 1, "no finished checkpoint", "zephyrctl sft --run runs/tiny"),
        (["dpo", "--prompt", "hi"], 1, "no finished 'dpo'", "zephyrctl dpo --run runs/tiny"),
        (["dpoo", "--prompt", "hi"], 1, "no checkpoint and no folder 'dpoo'", "base"),
        (["base", "base", "--prompt", " "], 2, "no prompt", "--prompt TEXT"),
        (["--temperature", "9"], 2, "--temperature", "zephyrctl chat --help"),
    ],
)
def test_who_cannot_be_talked_to_is_one_error(
    zephyrctl: Command, arguments: list[str], code: int, problem: str, remedy: str
) -> None:
    outcome = zephyrctl("chat", *arguments)
    assert outcome.code == code
    first, second = outcome.err.strip().splitlines()[-2:]
    assert first.startswith("error: ") and problem in first
    assert remedy in second
