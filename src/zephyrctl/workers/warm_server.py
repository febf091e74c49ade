"""The warm process: import what workers need once, then fork a child for each job.

Forking is safe here because this process has one thread and has never touched a GPU. Imports start no thread pool:
`processes.worker_environment` keeps those of NumPy and Arrow off, and OpenMP and torch start theirs at first use,
which is in the child. `fork_danger` checks all of that before every fork; if it finds something, or if a variable that
libraries read at import differs, the job is refused and the command starts its worker cold.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from zephyrctl.launching.warm_workers import SOCKET, die_with_parent

LIBRARIES = {
    "prepare": ("numpy", "pyarrow.parquet", "torch", "transformers.tokenization_utils_base"),
    "generate": ("transformers.modeling_utils", "transformers.generation.utils"),
    "sft": ("datasets", "transformers.modeling_utils", "transformers.trainer", "trl.trainer.base_config"),
    "dpo": ("datasets", "transformers.modeling_utils", "transformers.trainer", "trl.trainer.base_config"),
    "lm_eval_harness": ("transformers.modeling_utils", "datasets"),
}
"""By worker, what is imported before it. A job that is ready to start waits for one of these at most."""
READ_LATE = frozenset({"TOKENIZERS_PARALLELISM", SOCKET, "PYTEST_CURRENT_TEST", "PWD", "OLDPWD", "SHLVL", "_"})
"""Variables that may differ between this process and a job, since libraries read them when they are used."""
MESSAGE_BYTES = 2**18
SEND_SECONDS = 5.0
"""How long a command may take to send its request after it has connected."""
STREAMS = 3
"""File descriptors that come with a request: standard input, output and error."""


class JobRequest(TypedDict):
    """What a command sends to have a worker started."""

    worker: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str


@dataclass
class Child:
    """A running job and the connection of the command that asked for it."""

    pid: int
    connection: socket.socket
    is_awaited: bool = True
    """False once the command has closed its end."""


def fork_danger() -> str | None:
    """Why a fork would not be safe now, or None if it is."""
    threads = max(threading.active_count(), len(list(Path("/proc/self/task").iterdir())))
    if threads > 1:
        return f"the warm process has {threads} threads"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return "the warm process has initialized CUDA"
    if any(name.startswith("/dev/nvidia") for name in _open_files()):
        return "the warm process has opened a GPU's driver"
    return None


def environment_difference(environment: dict[str, str], own: dict[str, str]) -> str | None:
    """The first variable that a job needs otherwise than it was at our imports, or None if there is none."""
    names = sorted((environment.keys() | own.keys()) - READ_LATE)
    return next((name for name in names if environment.get(name) != own.get(name)), None)


class Server:
    """Answers requests on a Unix socket until standard input ends: when the command that started it ends."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._environment = dict(os.environ)
        self._children: dict[int, Child] = {}
        """By the file descriptor that becomes readable when the child ends."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waiting: list[socket.socket] = []
        """Connections whose request has not been read: they came while the imports ran."""
        self._loaded: set[str] = set()
        self._is_loading = True

    def serve(self, workers: Sequence[str]) -> JobRequest:
        """Import the workers one after another, and fork jobs; returns in each child, with its request."""
        for is_last, name in _modules(workers):
            _import(name)
            if is_last:
                self._loaded.add(name.rpartition(".")[2])
                gc.collect()
            if request := self._answer_all(timeout=0):
                return request
        gc.freeze()  # children share these objects' pages as long as no collection writes to them
        self._is_loading = False
        while True:
            if request := self._answer_all(timeout=None):
                return request

    def _answer_all(self, timeout: float | None) -> JobRequest | None:
        """Handle what has happened. Returns a request in the child that was forked for it."""
        if request := self._fork_waiting():
            return request
        for key, _ in self._selector.select(timeout):
            if key.fd == 0:  # children get SIGTERM as this process ends
                sys.exit()
            if key.fileobj is self._listener:
                connection, _address = self._listener.accept()
                connection.settimeout(SEND_SECONDS)
                self._waiting.append(connection)
            elif key.fd in self._children:
                self._report_end(key.fd)
            else:
                self._forget_command(key.fd)
        return self._fork_waiting()

    def _fork_waiting(self) -> JobRequest | None:
        """Start the jobs whose worker is imported; a request for one that will not be is served when all are."""
        for connection in list(self._waiting):
            worker = _peek_worker(connection)
            if worker in self._loaded or not self._is_loading or not worker:
                self._waiting.remove(connection)
                if request := self._start(connection):
                    return request
        return None

    def _start(self, connection: socket.socket) -> JobRequest | None:
        try:
            message, streams, _flags, _address = socket.recv_fds(connection, MESSAGE_BYTES, STREAMS)
            request: JobRequest = json.loads(message)
        except (OSError, ValueError):  # the command ended before its job began
            connection.close()
            return None
        try:
            reason = self._refusal(request)
            if reason is not None:
                _send(connection, {"refused": reason})
                connection.close()
                return None
            pid = os.fork()
            if pid == 0:
                self._become_worker(connection, request, streams)
                return request
        finally:
            for stream in streams:
                os.close(stream)
        ended = os.pidfd_open(pid)
        self._children[ended] = Child(pid, connection)
        self._selector.register(ended, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ)
        return None

    def _refusal(self, request: JobRequest) -> str | None:
        if request["worker"] not in LIBRARIES:
            return f"there is no warm worker {request['worker']}"
        if name := environment_difference(request["environment"], self._environment):
            return f"the variable {name} differs from the warm process's"
        return fork_danger()

    def _become_worker(self, connection: socket.socket, request: JobRequest, streams: Sequence[int]) -> None:
        """In the child: a session, streams, environment and folder of its own, then tell the command."""
        server = os.getppid()
        os.setsid()
        die_with_parent()
        self._selector.close()
        self._listener.close()
        for ended, child in self._children.items():
            os.close(ended)
            child.connection.close()
        for waiting in self._waiting:
            waiting.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.path[0] = request["folder"]  # as `python -m` sets it
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        _send(connection, {"pid": os.getpid()})
        connection.close()
        if os.getppid() != server:
            os._exit(1)  # the server died before the signal was asked for

    def _report_end(self, ended: int) -> None:
        child = self._children.pop(ended)
        self._selector.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(child.pid, 0)
        if child.is_awaited:
            self._selector.unregister(child.connection)
            _send(child.connection, {"code": os.waitstatus_to_exitcode(status)})
            child.connection.close()

    def _forget_command(self, descriptor: int) -> None:
        """A command that closed its connection while its job runs has been killed: end the job as Linux would."""
        for child in self._children.values():
            if child.is_awaited and child.connection.fileno() == descriptor:
                self._selector.unregister(child.connection)
                child.connection.close()
                child.is_awaited = False
                os.kill(child.pid, signal.SIGTERM)


def _modules(workers: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """The modules to import, in order, and whether each is a worker: the last that its jobs wait for."""
    for worker in workers:
        yield from ((False, library) for library in LIBRARIES.get(worker, ()))
        yield True, f"zephyrctl.workers.{worker}"


def _import(name: str) -> None:
    """Import a module, or leave the error to the job, whose log shows it."""
    try:
        importlib.import_module(name)
    except Exception:
        return


def _peek_worker(connection: socket.socket) -> str:
    """The worker that a request asks for, which stays to be read; empty if the command has gone."""
    try:
        message = connection.recv(MESSAGE_BYTES, socket.MSG_PEEK)
        return str(json.loads(message)["worker"])
    except (OSError, ValueError):
        return ""


def _send(connection: socket.socket, reply: dict[str, object]) -> None:
    try:
        connection.send(json.dumps(reply).encode(), socket.MSG_NOSIGNAL)
    except OSError:
        return  # the command has gone


def _open_files() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the folder's own descriptor is closed by now
            yield str(descriptor.readlink())


def main() -> None:
    """Serve on the socket named first; the workers named after it are imported at once."""
    path = Path(sys.argv[1])
    try:
        request = Server(path).serve(sys.argv[2:])
    except SystemExit:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise
    module = importlib.import_module(f"zephyrctl.workers.{request['worker']}")
    sys.argv = [str(module.__file__), *request["arguments"]]
    module.main()


if __name__ == "__main__":
    main()
