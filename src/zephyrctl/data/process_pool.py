"""Share work between processes, with the results in the order of the tasks and no process left behind.

Each process has a pipe of its own, of which only this process has the other end. If this process is killed, the pipes
close and the others exit. `multiprocessing.Pool` shares its queues, and its workers outlive a parent that is killed.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, Self, TypeVar

import pyarrow as pa

from zephyrctl.errors import ZephyrError

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 3
"""Tasks for each process that may be running, or be done and wait for an earlier one."""


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Failure(NamedTuple):
    """An error of a worker process in parts that can be pickled: its class, its arguments and its attributes."""

    kind: type[Exception]
    arguments: tuple[object, ...]
    state: dict[str, object]


class ProcessPool:
    """Processes that start when the pool is entered. With one or none, the work is done in this process.

    `first` is a function that they will be given: they import it while they start, which takes most of a second.
    """

    def __init__(self, processes: int, first: Callable[..., object] | None = None) -> None:
        self.processes = processes
        self._first = first
        self._workers: list[_Worker] = []

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """The result of every task, in the order of the tasks.

        Raises the error of the first task that failed, or ZephyrError if a process was killed.
        """
        if self.processes <= 1:
            yield from map(work, tasks)
        else:
            yield from self._in_order(work, iter(tasks))

    def close(self) -> None:
        """Kill the processes, even in the middle of their work."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        if self.processes > 1:
            self._workers = _start(self.processes, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_order(self, work: Callable[[Task], Result], tasks: Iterator[Task]) -> Iterator[Result]:
        idle = deque(self._workers)
        running: dict[object, tuple[_Worker, int]] = {}  # by pipe: who works, and the number of the task
        done: dict[int, Result | Failure] = {}  # by number of the task, until all earlier ones are yielded
        given = taken = 0  # tasks given to workers, results yielded
        is_exhausted = False
        while not is_exhausted or running or done:
            # Without this bound one slow task would let all later results pile up in `done`. With it, at most 3 shards
            # per process are in memory, and a task may take three times as long as others before a process idles.
            while idle and not is_exhausted and given - taken < AHEAD * self.processes:
                try:
                    task = next(tasks)
                except StopIteration:
                    is_exhausted = True
                    break
                worker = idle.popleft()
                worker.give(work, task)
                running[worker.pipe] = worker, given
                given += 1
            if taken in done:
                yield _unpack(done.pop(taken))
                taken += 1
                continue
            pipes = [worker.pipe for worker, _ in running.values()]
            for pipe in wait(pipes) if pipes else ():  # with no pipe, `wait` would never return
                worker, number = running.pop(pipe)
                done[number] = worker.take()
                idle.append(worker)


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self, process: SpawnProcess, pipe: "Connection[object, Any]") -> None:
        self.process = process
        self.pipe = pipe

    def give(self, work: Callable[[Task], object], task: Task) -> None:
        try:
            # A function is pickled as its module and name, but a partial with all its arguments, for every task.
            self.pipe.send((work, task))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def take(self) -> Any:
        """What the given work returned, or its Failure."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()

    def _lost(self) -> ZephyrError:
        self.process.join(5)
        return ZephyrError(
            f"a worker process was killed (exit {self.process.exitcode})",
            "check whether memory ran out; --set build.processes=1 needs the least",
        )


def _start(count: int, first: Callable[..., object] | None) -> list[_Worker]:
    """Start processes: spawned, not forked, as this one may have threads; with one thread each, as each has a core."""
    context = multiprocessing.get_context("spawn")
    workers = []
    # A spawned process inherits the environment of its start. OpenMP, OpenBLAS and Arrow read these once, when they are
    # imported; by default each would start a thread per core, so that 16 processes on 16 cores run 256 threads.
    with _environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", ARROW_IO_THREADS="1"):
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # or a worker that dies would never be noticed: this process would keep its pipe open
            ours.send(first)
            workers.append(_Worker(process, ours))
    return workers


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: "Connection[object, Any]") -> None:
    """Do the work that comes through the pipe until it closes. Ctrl-C is ignored: the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    _leave_pandas_out()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.recv()  # `first`: unpickling it imports its module, before garbage collection starts
        gc.freeze()  # the objects of imported modules stay until the end, so no later collection has to look at them
        gc.enable()
        while True:
            work, task = pipe.recv()
            pipe.send(_reply(work, task))


def _leave_pandas_out() -> None:
    """Hide pandas from PyArrow, which imports it once, in 0.4 s, to check whether its first list is a Series."""

    class NoPandas(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pandas":
                raise ModuleNotFoundError(name)

    finder = NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


def _reply(work: Callable[[Task], Result], task: Task) -> Result | Failure:
    try:
        return work(task)
    except (ZephyrError, OSError) as error:
        return Failure(type(error), error.args, error.__dict__)
    except Exception:
        return Failure(RuntimeError, (f"a worker process failed:\n{traceback.format_exc()}",), {})


def _unpack(reply: Result | Failure) -> Result:
    """Return the result or raise the error. Our errors cannot be pickled: they take two arguments and keep one."""
    if not isinstance(reply, Failure):
        return reply
    error = reply.kind.__new__(reply.kind, *reply.arguments)
    error.args = reply.arguments
    error.__dict__.update(reply.state)
    raise error
