"""Whether work that is spread over processes comes back whole and in order, and no process outlives its command."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from zephyrctl.data.process_pool import ProcessPool
from zephyrctl.errors import BadRow, ZephyrError


def square(number: int) -> tuple[int, int]:
    """The square, and the process that made it; early numbers take longest."""
    time.sleep(0.05 if number == 0 else 0)
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    """The number, or an error of ours."""
    if number == 3:
        raise BadRow(f"rows.jsonl:{number}", "an empty prompt")
    if number > 4:
        raise ValueError("later")
    return number


def divide(number: int) -> float:
    """A bug at zero."""
    return 1 / number


def die(number: int) -> int:
    """Be killed, as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    """Two processes."""
    with ProcessPool(2) as two:
        yield two


def is_alive(process: int) -> bool:
    """True while the process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_results_are_in_the_order_of_the_tasks_and_of_more_than_one_process(pool: ProcessPool) -> None:
    for count in (40, 0, 1, 2):
        results = list(pool.map(square, range(count)))
        assert [result for result, _ in results] == [number * number for number in range(count)]
    processes = {process for _, process in pool.map(square, range(40))}
    assert len(processes) == 2 and os.getpid() not in processes


def test_one_process_is_this_one() -> None:
    with ProcessPool(1) as one:
        assert {process for _, process in one.map(square, range(3))} == {os.getpid()}


@pytest.mark.slow
def test_the_first_error_in_order_is_raised_as_it_was() -> None:
    with ProcessPool(2) as pool:
        results = pool.map(fail_at_three, range(10))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BadRow) as caught:
            next(results)
    assert caught.value.problem == "rows.jsonl:3: an empty prompt"
    assert caught.value.cause == "an empty prompt" and "--skip-bad-rows" in caught.value.remedy


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_a_kill_is_told() -> None:
    with ProcessPool(2) as pool, pytest.raises(RuntimeError, match=r"(?s)return 1 / number.*ZeroDivisionError"):
        list(pool.map(divide, [1, 0]))
    with ProcessPool(2) as pool, pytest.raises(ZephyrError, match="was killed"):
        list(pool.map(die, range(4)))


@pytest.mark.slow
def test_no_process_is_left_when_the_pool_is_closed_in_the_middle() -> None:
    with ProcessPool(2) as pool:
        results = pool.map(square, iter(range(1000)))
        processes = {process for _, process in (next(results) for _ in range(20))}
        assert all(map(is_alive, processes))
    assert not any(map(is_alive, processes))
