"""A dSFT job of two steps, small enough to be trained by every launcher in turn."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import SftJob
from zephyrctl.launching.launchers import LaunchCommand, Launcher, launch_command
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.weights import base_hash, model_base
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Launch, Sft

STEPS = 2
ENDLESS = 100_000
"""Steps of a job that does not end by itself while a test lasts."""
ROWS = 16
WAIT_SECONDS = 240
"""Long enough for a busy machine; nothing here takes more than half a minute of a free one."""
IDS = (10, 200)
"""The range of the ids that the rows are made of; all are of the tiny base's vocabulary."""


def layout(nodes: int = 1, processes: int = 2, zero_stage: int | None = 2) -> Layout:
    """CPU processes that take eight rows a step together."""
    return Layout.model_validate(
        {
            "nodes": nodes,
            "processes": processes,
            "on_cpu": True,
            "global_batch": 8,
            "micro_batch": 4 // (nodes * processes),
            "accumulation": 2,
            "zero_stage": zero_stage,
            "gradient_checkpointing": False,
        }
    )


def settings() -> Sft:
    """The recipe `tiny`'s, cut down."""
    recipe = loading.load("tiny", {}).recipe
    return recipe.sft.model_copy(update={"global_batch": 8, "max_steps": STEPS, "log_every": 1})


def make_job(folder: Path, place: Layout, launch: Launch | None = None, steps: int = STEPS) -> Path:
    """Write the rows and the job file into a folder; return the job file's path."""
    from zephyrctl.workers.tokens import contract, load_tokenizer

    base = model_base(loading.load("tiny", {}).recipe)
    launch = launch or Launch(precision="fp32", threads=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.parquet")
    tokenizer = load_tokenizer(base.location(), None, base.chat_template())
    job = SftJob(
        model=base.location(),
        revision=None,
        start_hash=base_hash(base),
        chat_template=base.chat_template(),
        token_contract=contract(tokenizer),
        prepared=folder,
        prepared_hash="rows made for a test",
        train=folder / "train.parquet",
        test=None,
        model_folder=folder / "model",
        scratch=folder,
        launch=launch,
        layout=place,
        deepspeed=deepspeed_config(settings(), launch, place),
        steps=steps,
        seed=0,
        settings=settings().model_copy(update={"max_steps": steps}),
    )
    path = folder / "job.json"
    path.write_text(job.model_dump_json(indent=2))
    return path


def write_rows(path: Path) -> None:
    """Random dialogues of eight to forty tokens, all of them learnt."""
    random = np.random.default_rng(0)
    rows = [random.integers(*IDS, size=random.integers(8, 40)).tolist() for _ in range(ROWS)]
    lengths = [len(row) for row in rows]
    columns = {"input_ids": rows, "labels": rows, "seq_lengths": [[length] for length in lengths]}
    pq.write_table(pa.table({**columns, "length": pa.array(lengths, pa.int32())}), path)


def prepare_launch(launcher: Launcher, job: Path, environment: Mapping[str, str] | None = None) -> LaunchCommand:
    """The command that starts a job, with the launcher's files written beside the job file."""
    content = SftJob.model_validate_json(job.read_bytes())
    launch = launch_command(launcher, "sft", job, content.layout, content.launch, environment)
    for name, text in launch.files.items():
        (job.parent / name).write_text(text)
    return launch


def environment(**more: str) -> dict[str, str]:
    """That of a launch on CPUs: quiet, one thread a process, and `python` is the one that runs the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    here = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PATH": path}
    return {**os.environ, **quiet, **here, **more}


@contextlib.contextmanager
def started(command: Sequence[str], job: Path, environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A launch under way, its words in worker.log; afterwards no process of the job is left."""
    with (job.parent / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for left in processes(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


def finish(process: "subprocess.Popen[bytes]", job: Path) -> None:
    """Wait for the end of a launch that succeeds."""
    code = process.wait(WAIT_SECONDS)
    assert code == 0, f"exit {code}:\n{(job.parent / 'worker.log').read_text(errors='replace')[-4000:]}"


@cache
def losses_alone() -> tuple[float, ...]:
    """The losses of the job in one process, without DeepSpeed."""
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), layout(processes=1, zero_stage=None))
        with started(prepare_launch("single", job).command, job, environment()) as process:
            finish(process, job)
        return tuple(losses(job.parent))


def until(is_so: Callable[[], object], folder: Path, what: str) -> None:
    """Wait until something is so; fail with the last words of the workers where it does not come."""
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        log = folder / "worker.log"
        words = log.read_text(errors="replace")[-4000:] if log.is_file() else "no worker.log"
        assert time.monotonic() < end, f"{what} did not come:\n{words}"
        time.sleep(0.2)


def processes(job: Path) -> list[int]:
    """The processes of this machine that were started on a job file."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(job).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def losses(folder: Path) -> list[float]:
    """The training losses that a job wrote, step by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def events(folder: Path) -> list[dict[str, object]]:
    """What a job told the command."""
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
