"""Workers: what they are started with, how they end, and what is said when one fails."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from zephyrctl.errors import Interrupted, ZephyrError
from zephyrctl.launching import processes


def test_a_worker_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert processes.worker_environment(2)["OMP_NUM_THREADS"] == "4"
    assert processes.worker_environment(16)["OMP_NUM_THREADS"] == "1"
    assert processes.worker_environment(threads=3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" not in processes.worker_environment(2)


def test_threads_of_a_worker_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert processes.worker_environment()["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_worker_reports_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    assert processes.worker_environment()["HF_HUB_DISABLE_TELEMETRY"] == "1"


def work(script: str, folder: Path) -> processes.Work:
    """A worker that is a script."""
    return processes.Work("made", [sys.executable, "-c", script], folder)


def test_a_worker_that_fails_names_its_log_and_its_last_error(tmp_path: Path) -> None:
    """There is no such worker, so that Python itself fails to start it."""
    command = processes.worker("nonesuch", tmp_path / "job.json")
    with pytest.raises(ZephyrError, match=r"the nonesuch worker failed \(exit 1\).*nonesuch") as raised:
        processes.Work("nonesuch", command, tmp_path).do(lambda event: None)
    assert "worker.log" in raised.value.remedy
    assert (tmp_path / "worker.log").read_text()


def test_a_worker_that_was_killed_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError, match="ended by SIGKILL, most often for want of memory"):
        work("import os; os.kill(os.getpid(), 9)", tmp_path).do(lambda event: None)


def test_a_rank_that_was_killed_is_read_from_the_launchers_words(tmp_path: Path) -> None:
    script = "print('  exitcode  : -9 (pid: 12)'); print('ChildFailedError'); raise SystemExit(1)"
    with pytest.raises(ZephyrError, match="ended by SIGKILL"):
        work(script, tmp_path).do(lambda event: None)


def says(folder: Path, *events: Mapping[str, object]) -> str:
    """A script that sends events."""
    path = str(folder / "events.jsonl")
    return "".join(f"open({path!r}, 'a').write({json.dumps(event)!r} + chr(10)); " for event in events)


def test_a_worker_that_somebody_else_stopped_is_interrupted(tmp_path: Path) -> None:
    script = says(tmp_path, {"event": "step", "step": 7, "total": 9}, {"event": "stopped", "step": 7})
    seen: list[processes.Event] = []
    with pytest.raises(Interrupted, match="after step 7, and a checkpoint is saved"):
        work(script, tmp_path).do(seen.append)
    assert [event["event"] for event in seen] == ["step"]


def test_a_worker_that_ends_without_a_last_word_has_failed(tmp_path: Path) -> None:
    """As DeepSpeed's launcher does when a worker dies of a signal."""
    with pytest.raises(ZephyrError, match=r"the made worker failed \(exit 0\)"):
        work(says(tmp_path, {"event": "step", "step": 7, "total": 9}), tmp_path).do(lambda event: None)
    work(says(tmp_path, {"event": "result"}), tmp_path).do(lambda event: None)


def test_a_workers_own_words_come_before_its_exit_code(tmp_path: Path) -> None:
    error = {"event": "error", "problem": "no rows", "remedy": "build some"}
    with pytest.raises(ZephyrError, match="no rows"):
        work(says(tmp_path, error) + "raise SystemExit(1)", tmp_path).do(lambda event: None)


def test_ctrl_c_waits_for_the_checkpoint_of_a_worker_that_trains(tmp_path: Path) -> None:
    """The worker ends a second after it sees that it shall stop; whoever follows it is interrupted at once."""
    stop = str(tmp_path / processes.STOP)
    script = says(tmp_path, {"event": "step", "step": 1, "total": 9}) + (
        f"import os, time\nwhile not os.path.exists({stop!r}): time.sleep(0.05)\ntime.sleep(1)\n"
        f"open({str(tmp_path / 'saved')!r}, 'w').close()"
    )
    said: list[str] = []
    training = work(script, tmp_path)
    training.say = said.append

    def press(event: processes.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.do(press)
    assert (tmp_path / "saved").exists()
    assert "saving a checkpoint" in said[0]


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
    processes.GRACE_SECONDS, kept = 0.5, processes.GRACE_SECONDS
    try:
        processes.stop(process)
    finally:
        processes.GRACE_SECONDS = kept
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
    assert list(processes._events(path, process)) == [{"event": "step", "step": 1}]


def test_hidden_gpus_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes.gpus() == 0
