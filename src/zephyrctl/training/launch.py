"""Start the worker of a training job and follow it to its end."""

import json
import shutil
from math import ceil
from pathlib import Path

from zephyrctl.errors import ZephyrError
from zephyrctl.launching import launchers, processes
from zephyrctl.launching.job import Job
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.preference_loss import loss_settings, preference_loss
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Dpo
from zephyrctl.runs.artifacts import COMPLETE, Draft
from zephyrctl.training.diagnostics import Interpreter, TrainingFacts
from zephyrctl.training.kinds import training_kind

KEPT_FILES = ("metrics.jsonl", "deepspeed.json")
"""What a worker writes beside its job that becomes part of the artifact."""


def launch(job: Job, draft: Draft, progress: Progress) -> None:
    """Write the job file, start the worker, and keep in the draft what it reports."""
    path = job.scratch / "job.json"
    check_same_layout(path, job)
    path.write_text(job.model_dump_json(indent=2))
    launcher = launchers.choose_launcher(job.launch, job.layout)
    worker = training_kind(job.kind).worker
    command = launchers.launch_command(launcher, worker, path, job.layout, job.launch)
    for name, text in command.files.items():
        (job.scratch / name).write_text(text)
    if command.instructions:
        progress.say(command.instructions)
    environment = processes.worker_environment(job.layout.processes, job.launch.threads)
    work = processes.Work(job.kind, command.command, job.scratch, command.cancel or (), environment, progress.say)
    work.do(Follower(job, draft, progress).follow)
    for name in KEPT_FILES:
        if (job.scratch / name).is_file():
            shutil.copyfile(job.scratch / name, draft.path / name)


class Follower:
    """Shows the events of a training worker, and keeps its results and diagnostics in the draft."""

    def __init__(self, job: Job, draft: Draft, progress: Progress) -> None:
        self._draft = draft
        self._progress = progress
        self._interpreter = Interpreter(training_facts(job))
        for line in read_metrics(job.scratch / "metrics.jsonl"):
            self._interpreter.read(line)  # after an interruption no diagnostic is repeated

    def follow(self, event: processes.Event) -> None:
        """Handle one event."""
        values = {key: value for key, value in event.items() if key != "event"}
        if event["event"] == "step":
            self._progress.advance(values["step"], values["total"], "steps")
        elif event["event"] == "references":
            self._progress.advance(values["done"], values["total"], "reference log-probabilities")
        elif event["event"] == "metrics":
            self._progress.measure(values)
            for diagnostic in self._interpreter.read(values):
                self._progress.say(diagnostic)
                self._draft.notes.append(diagnostic)
        elif event["event"] == "result":
            self._draft.metrics |= {key: value for key, value in values.items() if value is not None}


def training_facts(job: Job) -> TrainingFacts:
    """What diagnostics need to know of a job before its first step."""
    facts = TrainingFacts(
        kind=training_kind(job.kind),
        steps=job.steps,
        warmup_steps=ceil(job.settings.warmup_share * job.steps),
        rows_per_step=job.layout.global_batch,
    )
    if isinstance(job.settings, Dpo):
        return facts.with_loss(preference_loss(job.settings), loss_settings(job.settings))
    return facts


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; none before training has begun."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_same_layout(path: Path, job: Job) -> None:
    """Raise ZephyrError if the checkpoints beside a job file were written by other processes than would resume.

    What DeepSpeed saves is cut by the number of processes and the ZeRO stage.
    """
    if not path.is_file() or not any(job.scratch.glob(f"checkpoints/*/{COMPLETE}")):
        return
    old = Layout.model_validate(json.loads(path.read_bytes())["layout"])
    if (old.world, old.zero_stage, old.offload) != (job.layout.world, job.layout.zero_stage, job.layout.offload):
        raise ZephyrError(
            f"this was begun by {old}, and {job.layout} would resume it",
            "resume with the same processes and ZeRO stage, or start again: --fresh",
        )
