"""Twenty steps of real training on made-up rows: how fast this machine is, and how much memory it takes, measured."""

import json
import tempfile
from pathlib import Path
from typing import Any

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
"""Steps that are not counted: memory is still being found, and caches are cold."""
ACCUMULATION = 2
"""Micro-batches a step, at most: a step of 512 long rows on one GPU would take minutes."""
SPREAD = 0.37
"""Deviation of the logarithm of a made-up length, about that of UltraFeedback's sequences."""


class Probe(BaseModel):
    """What a probe has measured of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    layout: str = Field(description="what the figures are of; another layout is not replaced by them")
    mfu: float = Field(description="share of the peak that goes into the model's own operations")
    tokens_per_second: float
    memory_gb: float = Field(description="most that torch has allocated on the first GPU; of a CPU, resident")


def known(run: Run, stage: str, solution: Solution) -> Probe | None:
    """What was measured of this stage in the same layout on the same machine, where it was."""
    try:
        kept = json.loads((run.path / plan.PROBED).read_text())
        probe = Probe.model_validate(kept[stage])
    except (OSError, ValueError, KeyError, ValidationError):
        return None
    return probe if (probe.machine, probe.layout) == _of(solution) else None


def measure(run: Run, recipe: Recipe, stage: str, base: ModelBase, progress: Progress) -> Probe:
    """Train 20 steps on made-up rows in the layout of the plan, and keep what they took in the run.

    Raises ZephyrError where this machine cannot do it, or the worker fails.
    """
    plan.check_here(recipe, stage, base)
    solution = plan.solve(recipe, stage, base)
    with tempfile.TemporaryDirectory(prefix="zephyrctl-probe-") as folder:
        line = _train(make_job(recipe, stage, base, solution, Path(folder)), progress)
    machine, layout = _of(solution)
    rate = line["tokens_per_second"]
    mfu = rate * solution.flops_a_token / (solution.peak_flops * solution.layout.world)
    probe = Probe(machine=machine, layout=layout, mfu=mfu, tokens_per_second=rate, memory_gb=line["memory_gb"])
    _keep(run, stage, probe)
    return probe


def make_job(recipe: Recipe, stage: str, base: ModelBase, solution: Solution, folder: Path) -> Job:
    """A job of made-up rows in a folder."""
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
    content: dict[str, Any] = {
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
        "flops_a_token": solution.flops_a_token,
        "peak_flops": solution.peak_flops,
        "settings": settings,
        "is_probe": True,
        "seed": recipe.seed,
    }
    return job_type(kind).model_validate(content)


def write_rows(path: Path, stage: str, solution: Solution, count: int) -> None:
    """Random rows as long as the data is expected to be; what is packed is full."""
    random = np.random.default_rng(0)
    workload = solution.workload
    rows, longest = workload.rows(solution.layout), workload.settings.max_length
    vocabulary = workload.sizes.vocabulary

    def ids(mean: float, most: int) -> list[list[int]]:
        drawn = random.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, count).astype(int)
        return [random.integers(vocabulary, size=length).tolist() for length in np.clip(drawn, 1, most)]

    form = training_kind(stage).rows
    if form == "pairs":
        prompt, answer = workload.pair()
        columns = {"prompt_ids": ids(prompt, longest // 2)}
        columns |= {f"{side}_ids": ids(answer, longest - longest // 2) for side in ("chosen", "rejected")}
    elif workload.packing == "none":
        columns = {"input_ids": ids(rows.tokens, longest)}
    else:
        columns = {"input_ids": [random.integers(vocabulary, size=longest).tolist() for _ in range(count)]}
    lengths = [sum(map(len, row)) for row in zip(*columns.values(), strict=True)]
    if form == "dialogues":
        columns |= {"labels": columns["input_ids"], "seq_lengths": [[length] for length in lengths]}
    table = {name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()}
    pq.write_table(pa.table({**table, "length": pa.array(lengths, pa.int32())}), path)


def _train(job: Job, progress: Progress) -> dict[str, float]:
    """Train the job, and return the last line of its metrics."""
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
            progress.advance(event["step"], event["total"], "steps of a probe")
        elif event["event"] == "metrics" and "tokens_per_second" in event:
            last.update({key: event[key] for key in ("tokens_per_second", "memory_gb")})

    environment = processes.worker_environment(job.layout.processes, job.launch.threads)
    processes.Work(job.kind, launch.command, job.scratch, launch.cancel or (), environment, progress.say).do(follow)
    return last


def _of(solution: Solution) -> tuple[str, str]:
    """The machine and the kind of layout: the micro-batch, not the accumulation, decides how fast a token is."""
    layout = solution.layout
    kind = {"micro_batch", "world", "zero_stage", "offload", "gradient_checkpointing", "engine", "reference"}
    told = {name: getattr(layout, name) for name in sorted(kind)}
    return str(solution.workload.machine), json.dumps({**told, "precision": solution.workload.launch.precision})


def _keep(run: Run, stage: str, probe: Probe) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    path = run.path / plan.PROBED
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    write_whole(path, json.dumps({**kept, stage: probe.model_dump()}, indent=2))
