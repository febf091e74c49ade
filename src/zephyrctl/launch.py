"""Start worker processes, draw their progress, and never leave one behind.

Only workers import torch. A training worker is told its work by a job file and appends events to a file that this
process follows; a generation worker answers lines on its standard input.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import Launch

Event = dict[str, Any]
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
FULL_BYTES = 2**20
"""A worker that fails with less free space than this failed for want of it: it could not even say so."""
PR_SET_PDEATHSIG = 1


def gpus() -> int:
    """How many NVIDIA GPUs this machine shows, without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def train(
    worker: str, job: Path, launch: Launch, accelerate: dict[str, Any] | None, follow: Callable[[Event], None]
) -> None:
    """Run a training worker to its end, handing every event to `follow`.

    `accelerate` is the YAML of a DeepSpeed launch; None starts one plain process. Raises ZephyrError where the worker
    fails, with its own words where it gave some.
    """
    scratch = job.parent
    events = scratch / "events.jsonl"
    events.unlink(missing_ok=True)
    log = scratch / "worker.log"
    with log.open("ab") as output:
        process = _start(_training_command(worker, job, accelerate), launch, stdout=output, stderr=subprocess.STDOUT)
        failure: Event | None = None
        try:
            for event in _events(events, process):
                if event["event"] == "error":
                    failure = event
                else:
                    follow(event)
        finally:
            stop(process)
    if failure:
        raise ZephyrError(failure["problem"], failure["remedy"])
    if process.returncode:
        if shutil.disk_usage(scratch).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
        raise ZephyrError(
            f"the {worker} worker failed (exit {process.returncode}): {_last_line(log)}",
            f"read {log}, mend the cause, and run the same command again: it resumes",
        )


class Conversation:
    """A generation worker under way: one request line out, one reply line back."""

    def __init__(self, launch: Launch, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            command = [sys.executable, "-m", "zephyrctl.workers.generate"]
            self._process = _start(command, launch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its reply. Raises ZephyrError where the worker reports or dies."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise ZephyrError(f"the generation worker died: {_last_line(self.log)}", f"read {self.log}")
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


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a worker and every process it started: politely, then not. Does nothing to one that has ended."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    process.wait()


def worker_environment(launch: Launch) -> dict[str, str]:
    """The environment of a worker: its share of the cores, no downloads of code, no chatter."""
    environment = dict(os.environ)
    threads = launch.threads or max(1, (os.cpu_count() or 1) // launch.processes)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    # Threads that spin while they wait make two of them four times slower than one on a busy two-core machine.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made
    environment.setdefault("TQDM_DISABLE", "1")
    if not gpus():
        environment["DS_ACCELERATOR"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _training_command(worker: str, job: Path, accelerate: dict[str, Any] | None) -> list[str]:
    module = f"zephyrctl.workers.{worker}"
    if accelerate is None:
        return [sys.executable, "-m", module, str(job)]
    config = job.parent / "accelerate.yaml"
    config.write_text(yaml.safe_dump(accelerate, sort_keys=False))
    port = str(_free_port())
    door = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "--main_process_port",
        port,
    ]
    return [*door, "-m", module, str(job)]


def _start(command: Sequence[str], launch: Launch, **streams: Any) -> "subprocess.Popen[bytes]":
    streams.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(
        command,
        env=worker_environment(launch),
        start_new_session=True,
        preexec_fn=_die_with_parent,
        **streams,
    )


def _die_with_parent() -> None:
    """Ask Linux to end this process when the command that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _events(path: Path, process: "subprocess.Popen[bytes]") -> Iterator[Event]:
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


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    """The last line that looks like an error, else the last line; never local variables."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["it wrote nothing"])[-1][:300]
