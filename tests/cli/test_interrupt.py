"""Ctrl-C and kill -9 in every stage: exit 130, finished artifacts intact, no half artifact, no orphan, and a resume."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import shell
from tests.evaluation.benchmarks_made import mt_bench_files
from zephyrctl.evaluation.judged_rows import AnswerRow
from zephyrctl.runs.run import Run

pytestmark = pytest.mark.slow

WAIT_SECONDS = 120


def start(arguments: list[str], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    """A command under way, marked so that its whole family can be found."""
    return subprocess.Popen(
        [sys.executable, "-m", "zephyrctl", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ZEPHYRCTL_TEST": str(folder), **environment},
    )


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until something is seen; fail where the command ends before."""
    until = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def orphans(folder: Path) -> list[int]:
    """The processes that carry this test's mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if f"ZEPHYRCTL_TEST={folder}".encode() in environment and state != "Z":
            found.append(int(entry.name))
    return found


def is_stepping(folder: Path, stage: str, at_least: int) -> Callable[[], bool]:
    """True once the worker has reported so many steps."""
    events = folder / "runs" / "small" / f".{stage}.unfinished" / ".scratch" / "events.jsonl"

    def seen() -> bool:
        lines = events.read_text().splitlines() if events.is_file() else []
        steps = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return any(event["event"] == "step" and event["step"] >= at_least for event in steps)

    return seen


def has_begun(folder: Path, stage: str, file: str = "plan.json") -> Callable[[], bool]:
    """True once a stage's draft holds something in a file."""
    path = folder / "runs" / "small" / f".{stage}.unfinished" / file
    return lambda: path.is_file() and path.stat().st_size > 0


MANY = ["--set", "build.source.dialogues=6000", "--set", "build.source.prompts=3000", "--set", "build.test_share=0.3"]


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished small run."""
    shutil.copytree(small_run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("arguments", "stage", "file"),
    [
        (["data", "build", *MANY], "build", "plan.json"),
        (["eval", "--set", "eval.max_new_tokens=64"], "eval", ".scratch/answers.journal"),
    ],
)
def test_ctrl_c_keeps_the_old_artifact_and_the_same_command_goes_on(
    folder: Path, arguments: list[str], stage: str, file: str
) -> None:
    """Answers of a checkpoint are kept; rules are asked again, which costs nothing."""
    finished = (folder / "runs" / "small" / stage / "manifest.json").read_bytes()
    process = start(arguments, folder)
    wait_for(has_begun(folder, stage, file), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "error: interrupted" in err and "try: run the same command again" in err
    assert (folder / "runs" / "small" / stage / "manifest.json").read_bytes() == finished
    assert orphans(folder) == []
    again = shell(arguments, folder)
    assert again.code == 0, again.err
    assert (f"resuming {stage}" in again.err) is (stage == "eval")
    assert not list((folder / "runs" / "small").glob(".*.unfinished"))


def test_ctrl_c_in_feedback_and_the_resumed_artifact_is_that_of_an_unbroken_run(folder: Path, tmp_path: Path) -> None:
    assert shell(["data", "build", *MANY], folder).code == 0
    shutil.copytree(folder, tmp_path / "unbroken")
    process = start(["data", "feedback", *MANY], folder)
    wait_for(has_begun(folder, "feedback", "rated/train.parquet"), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert shell(["data", "feedback", *MANY], folder).code == 0
    assert shell(["data", "feedback", *MANY], tmp_path / "unbroken").code == 0
    files = [
        json.loads((place / "runs" / "small" / "feedback" / "manifest.json").read_text())["files"]
        for place in (folder, tmp_path / "unbroken")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("stage", "stop", "code"),
    [("sft", signal.SIGINT, 130), ("sft", signal.SIGTERM, 130), ("dpo", signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_training_resumes_with_the_losses_of_an_unbroken_one(
    folder: Path, stage: str, stop: signal.Signals, code: int
) -> None:
    """Saved at every step and stopped after one, the later losses equal those of the run that was not stopped."""
    unbroken = losses(folder / "runs" / "small" / stage / "metrics.jsonl")
    shutil.rmtree(folder / "runs" / "small" / stage)
    arguments = [stage, "--set", f"{stage}.save_every=1"]
    process = start(arguments, folder)
    wait_for(is_stepping(folder, stage, at_least=2), process)
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == code
    until = time.monotonic() + 10
    while orphans(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert orphans(folder) == []
    assert not (folder / "runs" / "small" / stage).exists()
    again = shell(arguments, folder)
    assert again.code == 0, again.err
    assert losses(folder / "runs" / "small" / stage / "metrics.jsonl") == pytest.approx(unbroken, abs=1e-5)


def test_ctrl_c_while_binarize_reads_leaves_the_old_pairs(folder: Path) -> None:
    """The input is a pipe that nobody writes to, so that the command waits in the middle of its work."""
    finished = (folder / "runs" / "small" / "binarize" / "manifest.json").read_bytes()
    os.mkfifo(folder / "rated.jsonl")
    process = start(["data", "binarize", "--input", "rated.jsonl"], folder)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (folder / "runs" / "small" / "binarize" / "manifest.json").read_bytes() == finished


def test_ctrl_c_during_a_push_ends_it(folder: Path) -> None:
    """The Hub here accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.settimeout(WAIT_SECONDS)
        process = start(["push", "--hub", "an-org/a-model"], folder, HF_ENDPOINT=endpoint, HF_TOKEN="hf_unused")
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "hf_unused" not in err


def losses(path: Path) -> list[float]:
    """The training losses of a metrics file, step by step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_full_disk_is_one_clear_error_and_harms_nothing(folder: Path, small_disk: Callable[[str], Path]) -> None:
    """Training into a small file system that is really full."""
    disk = small_disk("12m")
    for name in ("build", "feedback", "binarize"):
        shutil.copytree(folder / "runs" / "small" / name, disk / "run" / name)
    outcome = shell(["sft", "--run", str(disk / "run")], folder)
    assert outcome.code == 1
    assert "No space left on device" in outcome.err and "try: free some space" in outcome.err
    assert not (disk / "run" / "sft").exists()
    assert (disk / "run" / "build" / "manifest.json").is_file()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_stopped_between_batches_goes_on_to_the_answers_of_an_unbroken_one(
    folder: Path, stop: signal.Signals
) -> None:
    mt_bench_files(folder / "files")
    command = [
        "eval",
        "mt-bench",
        "--assets",
        "files",
        "--set",
        "eval.batch=2",
        "--set",
        "eval.mt_bench.max_new_tokens=24",
    ]
    journal = folder / "runs/small/.mt-bench.unfinished/.scratch/answers.journal"
    process = start(command, folder)
    wait_for(lambda: journal.is_file() and journal.read_text().count("\n") >= 4, process)
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    until = time.monotonic() + 30
    while orphans(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not orphans(folder)
    assert not (folder / "runs/small/mt-bench").exists()
    kept = journal.read_text().splitlines()[:4]
    done = shell([*command, "--json"], folder)
    assert done.code == 0, done.err
    assert "resuming " in done.err
    whole = shell([*command, "--fresh", "--run", "whole", "--json"], copy_of(folder))
    assert whole.code == 0, whole.err
    assert done.json["metrics"]["models"] == whole.json["metrics"]["models"]
    resumed, unbroken = (
        [answer.model_copy(update={"answered_at": 0.0}) for answer in artifact.read("answers", "test", AnswerRow)]
        for artifact in (
            Run(folder / "runs/small").require("mt-bench", ""),
            Run(folder / "runs/whole").require("mt-bench", ""),
        )
    )
    assert resumed == unbroken
    times = {
        answer.answered_at
        for answer in Run(folder / "runs/small").require("mt-bench", "").read("answers", "test", AnswerRow)
    }
    assert {
        reply["at"] for line in kept[1:] if isinstance(row := json.loads(line)["row"], list) for reply in row
    } <= times


def copy_of(folder: Path) -> Path:
    """The folder itself, with a run of another name beside the first: the same artifacts, no evaluation."""
    shutil.copytree(folder / "runs/small", folder / "runs/whole", ignore=shutil.ignore_patterns("mt-bench", ".*"))
    return folder
