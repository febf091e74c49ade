"""Start workers as forks of one warm process, whose imports run while the command still prepares the work.

Five workers of a run would each spend about 10 s on importing torch, transformers and TRL. Only workers of one process
on a machine without GPUs start warm; everything else starts cold, as does a job that the warm process refuses.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

PACKAGE = "zephyrctl.workers."
SOCKET = "ZEPHYRCTL_WARM_SOCKET"
"""The socket of a warm process that several commands share, as tests do."""
OFF = "ZEPHYRCTL_COLD_WORKERS"
"""If this variable is 1, every worker starts cold."""
START_SECONDS = 300.0
"""How long a job waits for the warm process to finish its imports before it starts cold."""
CONNECT_POLL_SECONDS = 0.02
MESSAGE_BYTES = 2**16
PR_SET_PDEATHSIG = 1


class WorkerProcess(Protocol):
    """What we use of `subprocess.Popen`, which a forked worker also has."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None before `poll` or `wait` has seen its end."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal if it still runs."""

    def kill(self) -> None:
        """Send it SIGKILL if it still runs."""


class ColdStart(Exception):
    """Why a worker cannot be forked from the warm process."""


class ForkedWorker:
    """A worker that the warm process forked for us. Its parent, the warm process, tells us when it ends."""

    def __init__(self, connection: socket.socket, pid: int, stdin: IO[bytes] | None, stdout: IO[bytes] | None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = stdin
        self.stdout = stdout
        self._connection = connection

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.returncode if self.returncode is not None else self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        code = self.returncode if self.returncode is not None else self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send it SIGKILL if it still runs."""
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if not select.select([self._connection], [], [], timeout)[0]:
            return None
        try:
            message = self._connection.recv(MESSAGE_BYTES)
        except OSError:
            message = b""
        # If the warm process was killed, Linux has sent SIGTERM to its children.
        self.returncode = json.loads(message)["code"] if message else -signal.SIGTERM
        self._connection.close()
        return self.returncode


class WarmProcess:
    """The warm process of this command; `close` ends it."""

    def __init__(self, workers: Sequence[str], environment: Mapping[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="zephyrctl-"))  # for this user only, as whoever connects runs jobs
        self.path = self._folder / "socket"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zephyrctl.workers.warm_server", str(self.path), *workers],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,  # its end tells the warm process that this command has ended
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def is_running(self) -> bool:
        """True until it ends."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process. Its jobs have ended, or get SIGTERM from Linux."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


_running: WarmProcess | None = None


@contextlib.contextmanager
def warm_process(workers: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Have a warm process import these workers, in this order, while this context lasts.

    `environment` is what the workers get beside ours. Does nothing if a warm process is running already.
    """
    global _running
    can_fork = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
    if not can_fork or is_off() or _running or SOCKET in os.environ:
        yield
        return
    _running = WarmProcess(workers, environment)
    try:
        yield
    finally:
        process, _running = _running, None
        process.close()


def is_off() -> bool:
    """True if the user wants cold starts."""
    return os.environ.get(OFF) == "1"


def worker_of(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """The worker and the arguments of a command line that starts one process of ours and nothing else."""
    if len(command) < 3 or list(command[:2]) != [sys.executable, "-m"] or not command[2].startswith(PACKAGE):
        return None
    return command[2].removeprefix(PACKAGE), list(command[3:])


def fork_worker(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], has_pipes: bool
) -> ForkedWorker | None:
    """The worker of a command line, forked from the warm process; None if there is no warm process for it.

    `environment` is the whole of it. The worker writes to `log`; with pipes, its standard input and output are ours.
    Raises ColdStart if the warm process refuses.
    """
    worker, path = worker_of(command), _socket_path()
    if worker is None or path is None:
        return None
    request = {"worker": worker[0], "arguments": worker[1], "environment": dict(environment), "folder": str(Path.cwd())}
    stdin = stdout = None
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as of_worker:
        connection = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        if has_pipes:
            input_end, our_input = os.pipe()
            of_worker.callback(os.close, input_end)
            stdin = on_failure.enter_context(os.fdopen(our_input, "wb"))
            our_output, output_end = os.pipe()
            of_worker.callback(os.close, output_end)
            stdout = on_failure.enter_context(os.fdopen(our_output, "rb"))
        else:
            input_end, output_end = os.open(os.devnull, os.O_RDONLY), log.fileno()
            of_worker.callback(os.close, input_end)
        _connect(connection, path)
        pid = _ask(connection, json.dumps(request).encode(), [input_end, output_end, log.fileno()])
        on_failure.pop_all()
    return ForkedWorker(connection, pid, stdin, stdout)


def _socket_path() -> str | None:
    if is_off():
        return None
    if _running is not None:
        return str(_running.path)
    return os.environ.get(SOCKET)


def _connect(connection: socket.socket, path: str) -> None:
    """Connect as soon as the warm process listens: it may have been started a moment ago."""
    connection.settimeout(START_SECONDS)
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            connection.connect(path)
            return
        except OSError as error:
            is_starting = _running is not None and _running.is_running() and time.monotonic() < until
            if not is_starting:
                raise ColdStart(f"the warm process cannot be reached ({error})") from error
        time.sleep(CONNECT_POLL_SECONDS)


def _ask(connection: socket.socket, request: bytes, streams: Sequence[int]) -> int:
    """The process id of the worker that was started."""
    try:
        socket.send_fds(connection, [request], streams)
        message = connection.recv(MESSAGE_BYTES)
        reply = json.loads(message) if message else {"refused": "the warm process has ended"}
    except OSError as error:
        raise ColdStart(f"the warm process does not answer ({error})") from error
    if "refused" in reply:
        raise ColdStart(reply["refused"])
    connection.settimeout(None)
    return int(reply["pid"])


def die_with_parent() -> None:
    """Ask Linux to end this process when the command that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
