"""Workers: what they are started with, how they end, and what is said when one fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zephyrctl import launch
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import Launch


def test_a_worker_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert launch.worker_environment(Launch(processes=2))["OMP_NUM_THREADS"] == "4"
    assert launch.worker_environment(Launch(processes=16))["OMP_NUM_THREADS"] == "1"
    assert launch.worker_environment(Launch(threads=3))["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.worker_environment(Launch(processes=2))["OMP_NUM_THREADS"] == "1"


def test_threads_of_a_worker_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert launch.worker_environment(Launch())["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_worker_reports_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    assert launch.worker_environment(Launch())["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_worker_that_fails_names_its_log_and_its_last_error(tmp_path: Path) -> None:
    """There is no such worker, so that Python itself fails to start it."""
    job = tmp_path / "job.json"
    job.write_text("{}")
    with pytest.raises(ZephyrError, match=r"the nonesuch worker failed \(exit 1\).*nonesuch") as raised:
        launch.train("nonesuch", job, Launch(), None, lambda event: None)
    assert "worker.log" in raised.value.remedy
    assert (tmp_path / "worker.log").read_text()


def test_stop_ends_the_whole_family(tmp_path: Path) -> None:
    """A process that ignores SIGTERM and has a child is gone afterwards, child and all."""
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text():
        assert process.poll() is None
    launch.GRACE_SECONDS, kept = 0.5, launch.GRACE_SECONDS
    try:
        launch.stop(process)
    finally:
        launch.GRACE_SECONDS = kept
    assert process.poll() is not None
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    until = time.monotonic() + 5
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(stat: Path) -> bool:
    """True for a process that is there and no zombie."""
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_events_are_read_as_they_come_and_a_cut_line_is_not_an_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({"event": "step", "step": 1}) + "\n" + '{"event": "st')
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert list(launch._events(path, process)) == [{"event": "step", "step": 1}]


def test_hidden_gpus_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.gpus() == 0
