"""Start worker processes, draw their progress, and never leave one behind.

Only workers import torch. A training worker is told its work by a job file and appends events to a file that this
process follows; a generation worker answers lines on its standard input.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from zephyrctl.errors import Interrupted, ZephyrError
from zephyrctl.launching.warm_workers import ColdStart, WorkerProcess, die_with_parent, fork_worker, warm_process

Event = dict[str, Any]
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
SAVE_SECONDS = 1800.0
"""How long a worker may take to save the checkpoint that Ctrl-C asked for."""
LAST_WORDS = ("result", "error", "stopped")
"""The events of which a worker sends one before it ends."""
STOP = "stop"
"""The file beside a job that asks its training for a checkpoint and an end; every machine of a cluster sees it."""
FULL_BYTES = 2**20
"""A worker that fails with less free space than this failed for want of it: it could not even say so."""


def gpus() -> int:
    """How many NVIDIA GPUs this machine shows, without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def worker(name: str, job: Path) -> list[str]:
    """The command line of one worker process of this machine, as it is."""
    return [sys.executable, "-m", f"zephyrctl.workers.{name}", str(job)]


@dataclass
class Work:
    """A worker under way, told its work by a job file; `command` may start it through any launcher.

    `ending` is a command that ends what does not die with ours (a job of a cluster).
    """

    name: str
    command: Sequence[str]
    scratch: Path
    ending: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = field(default=lambda line: None)

    def do(self, follow: Callable[[Event], None]) -> None:
        """Run it to its end, handing every event to `follow`.

        Ctrl-C asks a worker that is training for a checkpoint first, and waits; the second one ends it at once. Raises
        ZephyrError where the worker fails, with its own words where it gave some, and Interrupted where somebody else
        stopped it.
        """
        for old in ("events.jsonl", STOP):
            (self.scratch / old).unlink(missing_ok=True)
        with self._log().open("ab") as output:
            process = _start(self.command, self.environment, output)
            try:
                last = self._follow(process, follow)
            finally:
                stop(process)
                if self.ending:
                    subprocess.run(self.ending, capture_output=True, check=False)
        self._check(last, process.wait())

    def _follow(self, process: WorkerProcess, follow: Callable[[Event], None]) -> Event:
        """Hand events on until the worker has ended; its last word, where that is an error or that it was stopped."""
        last: Event = {}
        is_training = False
        events = _events(self.scratch / "events.jsonl", process)
        try:
            for event in events:
                is_training = is_training or event["event"] == "step"
                if event["event"] in LAST_WORDS and last.get("event") != "error":
                    last = event
                if event["event"] not in ("error", "stopped"):
                    follow(event)
        except KeyboardInterrupt:
            if is_training and process.poll() is None:
                self.say("saving a checkpoint before it ends; Ctrl-C again leaves at once")
                (self.scratch / STOP).touch()
                process.wait(SAVE_SECONDS)
            raise
        return last

    def _check(self, last: Event, code: int) -> None:
        if last.get("event") == "error":
            raise ZephyrError(last["problem"], last["remedy"])
        if last.get("event") == "stopped":
            raise Interrupted(
                f"training was stopped after step {last['step']}, and a checkpoint is saved",
                "run the same command again: it resumes",
            )
        if code or last.get("event") != "result":  # DeepSpeed's launcher ends with 0 when a worker dies of a signal
            if shutil.disk_usage(self.scratch).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.scratch))
            raise ZephyrError(
                f"the {self.name} worker failed (exit {code}): {_last_words(self._log(), code)}",
                f"read {self._log()}, fix the cause, and run the same command again: it resumes",
            )

    def _log(self) -> Path:
        return self.scratch / "worker.log"


class WorkerDied(ZephyrError):
    """A worker ended without a reply, as one does that runs out of memory."""


class ConversationWorker:
    """A worker under way that generates, or another of that protocol: one request line out, one reply line back."""

    def __init__(self, log: Path, threads: int | None = None, module: str = "zephyrctl.workers.generate") -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            command = [sys.executable, "-m", module]
            self._process = _start(command, worker_environment(threads=threads), errors, has_pipes=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its reply. Raises ZephyrError where the worker reports or dies."""
        self._send(request)
        return self._reply()

    def stream(self, request: dict[str, Any], follow: Callable[[str], None]) -> dict[str, Any]:
        """Send a request of one conversation, hand its answer on in pieces as it is written, and return the reply.

        Ctrl-C ends the answer where it is, and the worker goes on; the second one is a KeyboardInterrupt as ever.
        """
        with self._forwarding_interrupts():
            self._send({**request, "stream": True})
            while "delta" in (reply := self._reply()):
                follow(reply["delta"])
            return reply

    @contextlib.contextmanager
    def _forwarding_interrupts(self) -> Iterator[None]:
        """The first Ctrl-C goes to the worker: one that broke into the reading of a line would lose part of it."""
        before = signal.getsignal(signal.SIGINT)

        def forward(*_: Any) -> None:
            signal.signal(signal.SIGINT, before)
            self._process.send_signal(signal.SIGINT)

        signal.signal(signal.SIGINT, forward)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the missing reply says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        """The next line of the worker. Raises ZephyrError where it reports or dies."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
            words = _last_words(self.log, self._process.returncode or 0)
            raise WorkerDied(f"the generation worker died: {words}", f"read {self.log}")
        reply: dict[str, Any] = json.loads(line)
        if "problem" in reply:
            raise ZephyrError(reply["problem"], reply["remedy"])
        return reply

    def close(self) -> None:
        """End the worker."""
        if self._process.stdin:
            self._process.stdin.close()
        stop(self._process)
        if self._process.stdout:
            self._process.stdout.close()


def stop(process: WorkerProcess) -> None:
    """End a worker and every process it started: politely, then not. Does nothing to one that has ended.

    Launchers start their workers in sessions of their own, where a signal to the group does not reach them.
    """
    import psutil  # 20 ms, and a plan stops nothing

    family: list[psutil.Process] = []
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


@contextlib.contextmanager
def warm_workers(names: Sequence[str], threads: int | None = None) -> Iterator[None]:
    """Import these workers in the background, in the order in which they are needed, and start them from there.

    Does nothing on machines with GPUs: a library that touches a driver at import would break it in every fork.
    """
    can_fork = bool(names) and not gpus()
    with warm_process(names, worker_environment(threads=threads)) if can_fork else contextlib.nullcontext():
        yield


def worker_environment(processes: int = 1, threads: int | None = None) -> dict[str, str]:
    """What a worker's environment holds beside ours: its share of the cores, no downloads of code, no chatter."""
    threads = threads or max(1, (os.cpu_count() or 1) // processes)
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait make two of them four times slower than one on a busy two-core machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        # These two libraries start threads as they are imported, after which a process must not fork.
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports every trainer that is made
        "TQDM_DISABLE": "1",
    }
    environment = {name: value for name, value in wanted.items() if name not in os.environ}
    if not gpus():
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def _start(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], has_pipes: bool = False
) -> WorkerProcess:
    """A worker in a session of its own, which writes to `log`; with pipes, its standard input and output are ours.

    It is forked from the warm process if there is one that can, and says in its log if that refused.
    """
    whole = {**os.environ, **environment}
    try:
        if forked := fork_worker(command, whole, log, has_pipes):
            return forked
    except ColdStart as reason:
        log.write(f"cold start: {reason}\n".encode())
        log.flush()
    return subprocess.Popen(
        command,
        env=whole,
        stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
        stdout=subprocess.PIPE if has_pipes else log,
        stderr=log if has_pipes else subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _events(path: Path, process: WorkerProcess) -> Iterator[Event]:
    """The events of a worker as they are written, until it has ended and the file is read to its end."""
    position = 0
    pending = b""
    while True:
        is_over = process.poll() is not None
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                pending += file.read()
                position = file.tell()
        *lines, pending = pending.split(b"\n")
        yield from (json.loads(line) for line in lines if line)
        if is_over:
            return
        time.sleep(POLL_SECONDS)


def _signal(process: WorkerProcess, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_words(log: Path, code: int = 0) -> str:
    """Why a worker ended: killed by a signal, else the last line that looks like an error; never local variables."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]  # they only say that it ended
    killed = [int(number) for line in lines for number in re.findall(r"exitcode\s*:\s*-(\d+)", line)]
    if code < 0 or killed:
        number = -code if code < 0 else killed[-1]
        cause = ", most often for want of memory" if number == signal.SIGKILL else ""
        return f"a process of it was ended by {signal.Signals(number).name}{cause}"
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["it wrote nothing"])[-1][:300]
