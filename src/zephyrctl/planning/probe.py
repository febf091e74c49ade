"""Measure speed and memory by 20 steps of real training on random rows."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.contracts import ModelBase
from zephyrctl.disk import write_whole
from zephyrctl.launching import launchers, processes
from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import Job, job_type
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.weights import loaded
from zephyrctl.planning import plan
from zephyrctl.planning.solver import Solution
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run
from zephyrctl.training.kinds import training_kind

STEPS = 20
WARM_UP = 10
"""Steps that are not counted: torch's allocator is still growing, and caches are cold."""
ACCUMULATION = 2
"""Most micro-batches per step: a step of 512 long rows on one GPU would take minutes."""
SPREAD = 0.37
"""Standard deviation of the logarithm of a random length, about that of UltraFeedback's sequences."""


class Probe(BaseModel):
    """What a probe measured for a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    layout: str = Field(description="the layout that was measured, as JSON; the figures are used for no other")
    mfu: float = Field(
        description="share of the peak that goes into the model's own operations (model FLOPs utilisation)"
    )
    tokens_per_second: float
    memory_gb: float = Field(description="peak of torch's allocator on the first GPU; on a CPU, resident memory")


def known(run: Run, stage: str, solution: Solution) -> Probe | None:
    """The run's measurement of this stage in the same layout on the same machine; None if there is none."""
    try:
        measurements = json.loads((run.path / plan.PROBE_FILE).read_text())
        probe = Probe.model_validate(measurements[stage])
    except (OSError, ValueError, KeyError, ValidationError):
        return None
    return probe if (probe.machine, probe.layout) == _identity(solution) else None


def measure(run: Run, recipe: Recipe, stage: str, base: ModelBase, progress: Progress) -> Probe:
    """Train 20 steps on random rows in the layout of the plan, and store the measurement in the run.

    Raises ZephyrError if this machine cannot train the stage, or if the worker fails.
    """
    plan.check_here(recipe, stage, base)
    solution = plan.solve(recipe, stage, base)
    with tempfile.TemporaryDirectory(prefix="zephyrctl-probe-") as folder:
        metrics = _train(make_job(recipe, stage, base, solution, Path(folder)), progress)
    machine, layout = _identity(solution)
    tokens_per_second = metrics["tokens_per_second"]
    mfu = tokens_per_second * solution.flops_per_token / (solution.peak_flops * solution.layout.world)
    probe = Probe(
        machine=machine,
        layout=layout,
        mfu=mfu,
        tokens_per_second=tokens_per_second,
        memory_gb=metrics["memory_gb"],
    )
    _store(run, stage, probe)
    return probe


def make_job(recipe: Recipe, stage: str, base: ModelBase, solution: Solution, folder: Path) -> Job:
    """A short job on random rows, in a folder."""
    layout = solution.layout
    accumulation = min(layout.accumulation, ACCUMULATION)
    layout = Layout.model_validate(
        layout.model_dump()
        | {"accumulation": accumulation, "global_batch": layout.micro_batch * accumulation * layout.world}
    )
    settings = plan.settings_of(recipe, stage).model_copy(
        update={"max_steps": STEPS, "log_every": WARM_UP, "global_batch": layout.global_batch}
    )
    write_rows(folder / "train.parquet", stage, solution, layout.global_batch * STEPS)
    kind = training_kind(stage)
    content = {
        "kind": stage,
        **loaded(base, None),
        "start_hash": "probe",
        "token_contract": None,
        "prepared": folder,
        "prepared_hash": "probe",
        "train": folder / "train.parquet",
        "test": None,
        "model_folder": folder / "model",
        "scratch": folder,
        "launch": recipe.launch.model_copy(update={"trackers": []}),
        "layout": layout,
        "deepspeed": deepspeed_config(settings, recipe.launch, layout),
        "steps": STEPS,
        "flops_a_token": solution.flops_per_token,
        "peak_flops": solution.peak_flops,
        "settings": settings,
        "is_probe": True,
        "seed": recipe.seed,
    }
    return job_type(kind).model_validate(content)


def write_rows(path: Path, stage: str, solution: Solution, count: int) -> None:
    """Write random rows whose lengths are distributed as those of the expected data; packed rows are full."""
    random = np.random.default_rng(0)
    workload = solution.workload
    row, longest = workload.average_row(solution.layout), workload.settings.max_length
    vocabulary = workload.sizes.vocabulary

    def ids(mean: float, most: int) -> list[list[int]]:
        # log-normal lengths: subtracting half the variance of the logarithm makes `mean` their mean
        drawn = random.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, count).astype(int)
        return [random.integers(vocabulary, size=length).tolist() for length in np.clip(drawn, 1, most)]

    form = training_kind(stage).rows
    if form == "pairs":
        prompt, answer = workload.pair_lengths()
        columns = {"prompt_ids": ids(prompt, longest // 2)}
        columns |= {f"{side}_ids": ids(answer, longest - longest // 2) for side in ("chosen", "rejected")}
    elif workload.packing == "none":
        columns = {"input_ids": ids(row.computed, longest)}
    else:
        columns = {"input_ids": [random.integers(vocabulary, size=longest).tolist() for _ in range(count)]}
    lengths = [sum(map(len, row)) for row in zip(*columns.values(), strict=True)]
    if form == "dialogues":
        columns |= {"labels": columns["input_ids"], "seq_lengths": [[length] for length in lengths]}
    table = {name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()}
    pq.write_table(pa.table({**table, "length": pa.array(lengths, pa.int32())}), path)


def _train(job: Job, progress: Progress) -> dict[str, float]:
    """Train the job, and return its last metrics: tokens per second and memory."""
    path = job.scratch / "job.json"
    path.write_text(job.model_dump_json())
    launch = launchers.launch_command(
        launchers.choose_launcher(job.launch, job.layout), training_kind(job.kind).worker, path, job.layout, job.launch
    )
    for name, text in launch.files.items():
        (job.scratch / name).write_text(text)
    last: dict[str, float] = {}

    def follow(event: processes.Event) -> None:
        if event["event"] == "step":
            progress.advance(event["step"], event["total"], "steps of the probe")
        elif event["event"] == "metrics" and "tokens_per_second" in event:
            last.update({key: event[key] for key in ("tokens_per_second", "memory_gb")})

    environment = processes.worker_environment(job.layout.processes, job.launch.threads)
    processes.Work(job.kind, launch.command, job.scratch, launch.cancel or (), environment, progress.say).do(follow)
    return last


def _identity(solution: Solution) -> tuple[str, str]:
    """The machine, and what the time of a token depends on: the micro-batch counts, but not the accumulation."""
    names = {"micro_batch", "world", "zero_stage", "offload", "gradient_checkpointing", "engine", "reference"}
    layout = {name: getattr(solution.layout, name) for name in sorted(names)}
    return str(solution.workload.machine), json.dumps({**layout, "precision": solution.workload.launch.precision})


def _store(run: Run, stage: str, probe: Probe) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    path = run.path / plan.PROBE_FILE
    try:
        measurements = json.loads(path.read_text())
    except (OSError, ValueError):
        measurements = {}
    write_whole(path, json.dumps({**measurements, stage: probe.model_dump()}, indent=2))
