"""The warm process: what it forks, what it refuses, and that it ends with its command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching.test_processes import is_running
from zephyrctl.launching import processes, warm_workers
from zephyrctl.launching.warm_workers import SOCKET, ColdStart, WarmProcess, fork_worker
from zephyrctl.workers.warm_server import environment_difference, fork_danger


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a warm process that imports nothing ahead, while it runs."""
    added = processes.worker_environment()
    whole = {**os.environ, **added}
    process = WarmProcess([], added)
    while not process.path.exists():
        assert process.is_running()
        time.sleep(0.01)
    monkeypatch.setenv(SOCKET, str(process.path))
    monkeypatch.delenv(warm_workers.OFF, raising=False)
    yield whole
    process.close()
    assert not process.path.parent.exists()


def test_a_variable_that_libraries_read_at_import_refuses_a_fork(environment: dict[str, str], tmp_path: Path) -> None:
    command = processes.worker("prepare", tmp_path / "job.json")
    with (tmp_path / "log").open("wb") as log, pytest.raises(ColdStart, match="OMP_NUM_THREADS differs"):
        fork_worker(command, {**environment, "OMP_NUM_THREADS": "7"}, log, has_pipes=False)
    assert environment_difference({"A": "1", "TOKENIZERS_PARALLELISM": "true"}, {"A": "1"}) is None
    assert environment_difference({"A": "1"}, {"A": "1", "B": "2"}) == "B"


def test_only_workers_of_ours_and_one_process_are_forked(environment: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        launched = [sys.executable, "-m", "torch.distributed.run", "-m", "zephyrctl.workers.sft", "job.json"]
        assert fork_worker(launched, environment, log, has_pipes=False) is None
        assert fork_worker(["env", "A=1", *launched], environment, log, has_pipes=False) is None
        with pytest.raises(ColdStart, match="no warm worker warm_server"):
            fork_worker(processes.worker("warm_server", tmp_path), environment, log, has_pipes=False)


def test_a_refused_worker_starts_cold_and_its_log_says_why(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with (tmp_path / "log").open("ab") as log:
        process = processes._start(processes.worker("inspect_torch", tmp_path), {}, log)
        processes.stop(process)
    assert "cold start: there is no warm worker inspect_torch" in (tmp_path / "log").read_text()


def test_a_thread_forbids_the_fork() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert "threads" in (fork_danger() or "")
    finally:
        done.set()
        other.join()


@pytest.mark.slow
def test_a_forked_worker_has_its_own_session_log_and_exit_code(environment: dict[str, str], tmp_path: Path) -> None:
    """Its job file is missing, which is a bug of the caller: a traceback in its log, and exit code 1."""
    with (tmp_path / "log").open("ab") as log:
        worker = fork_worker(processes.worker("prepare", tmp_path / "none.json"), environment, log, has_pipes=False)
    assert worker is not None
    assert os.getpgid(worker.pid) == worker.pid
    assert worker.wait(120) == worker.poll() == 1
    assert "FileNotFoundError" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_forked_worker_that_is_killed_reports_the_signal(environment: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        worker = fork_worker(processes.worker("generate", tmp_path)[:3], environment, log, has_pipes=True)
    assert worker is not None
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.1)
    worker.kill()
    assert worker.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_warm_process_ends_with_its_command(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import time\nfrom zephyrctl.launching import processes, warm_workers\n"
        "with processes.warm_workers(['prepare']):\n"
        "    print(warm_workers._running._process.pid, flush=True)\n    time.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != SOCKET} | {"CUDA_VISIBLE_DEVICES": ""}
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert command.stdout
    warm = Path("/proc") / command.stdout.readline().strip() / "stat"
    assert is_running(warm)
    command.send_signal(number)
    command.wait(30)
    command.stdout.close()
    until = time.monotonic() + 10
    while is_running(warm) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_running(warm)


def test_cold_starts_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOCKET, raising=False)
    monkeypatch.setenv(warm_workers.OFF, "1")
    with processes.warm_workers(["prepare"]):
        assert warm_workers._running is None
