"""How work is spread over processes: results in the order of the tasks, few of them under way, no process left behind.

Each process has a pipe of its own whose other end only this one holds: where this one is killed, the pipe ends and they
end with it. `multiprocessing.Pool` shares its queues, and its workers outlive a parent that is killed.
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
from typing import Any, Self, TypeVar

import pyarrow as pa

from zephyrctl.errors import ZephyrError

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 3
"""Tasks a process that may be under way or done and waiting for an earlier one."""


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessPool:
    """Some processes, started on entering it; with one, or none, the work is done in this process.

    `first` is work that they will be given: they import it while they start, which takes most of a second.
    """

    def __init__(self, processes: int, first: Callable[[Any], Any] | None = None) -> None:
        self.processes = processes
        self._first = first
        self._workers: list[_Worker] = []

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """The result of every task, in the order of the tasks, whichever process did it.

        Raises what the work raised, for the first task that failed; ZephyrError where a process was killed.
        """
        if self.processes <= 1:
            yield from map(work, tasks)
        else:
            yield from self._in_order(work, iter(tasks))

    def close(self) -> None:
        """End the processes, in the middle of their work where they are."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> Self:
        if self.processes > 1:
            self._workers = _start(self.processes, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_order(self, work: Callable[[Any], Result], tasks: Iterator[Any]) -> Iterator[Result]:
        idle = deque(self._workers)
        at_work: dict[Any, tuple[_Worker, int]] = {}
        done: dict[int, tuple[bool, Any]] = {}
        given = taken = 0
        is_over = False
        while not is_over or at_work or done:
            while idle and not is_over and given - taken < AHEAD * self.processes:
                try:
                    task = next(tasks)
                except StopIteration:
                    is_over = True
                    break
                worker = idle.popleft()
                worker.give(work, task)
                at_work[worker.pipe] = worker, given
                given += 1
            if taken in done:
                yield _unpack(*done.pop(taken))
                taken += 1
                continue
            for pipe in wait(list(at_work)) if at_work else ():  # without a pipe to wait for, it waits for ever
                worker, number = at_work.pop(pipe)
                done[number] = worker.take()
                idle.append(worker)


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self, process: Any, pipe: "Connection[Any, Any]") -> None:
        self.process = process
        self.pipe = pipe

    def give(self, work: Callable[[Any], Any], task: Any) -> None:
        try:
            self.pipe.send((work, task))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost() from None

    def take(self) -> tuple[bool, Any]:
        try:
            reply: tuple[bool, Any] = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()

    def _lost(self) -> ZephyrError:
        self.process.join(5)
        return ZephyrError(
            f"a process that shared the work was killed (exit {self.process.exitcode})",
            "see whether memory ran out; --set build.processes=1 needs the least",
        )


def _start(count: int, first: Callable[[Any], Any] | None) -> list[_Worker]:
    """Spawned, not forked: this process may hold threads. One thread each, as there is a process a core."""
    context = multiprocessing.get_context("spawn")
    workers = []
    with _environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", ARROW_IO_THREADS="1"):
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
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


def _serve(pipe: "Connection[Any, Any]") -> None:
    """Do what comes through the pipe until it ends; Ctrl-C is the parent's to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    _leave_pandas_out()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.recv()  # the first work: this imports it, which leaves no garbage
        gc.freeze()
        gc.enable()
        while True:
            work, task = pipe.recv()
            pipe.send(_reply(work, task))


def _leave_pandas_out() -> None:
    """PyArrow imports pandas, in 0.4 s, to ask whether the first list that it is given is a Series; it asks once."""

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


def _reply(work: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    try:
        return True, work(task)
    except (ZephyrError, OSError) as error:
        return False, (type(error), error.args, error.__dict__)
    except Exception:
        return False, (RuntimeError, (f"a process that shared the work failed:\n{traceback.format_exc()}",), {})


def _unpack(is_result: bool, reply: Any) -> Any:
    """The result, or what was raised: our errors take two arguments and keep one, and do not travel by themselves."""
    if is_result:
        return reply
    kind, arguments, state = reply
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    raise error
