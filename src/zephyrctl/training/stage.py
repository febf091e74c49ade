"""The stage that trains a checkpoint: prepare its rows, plan its layout, launch its worker, record what it reports."""

from collections.abc import Mapping
from pathlib import Path

from zephyrctl.contracts import ModelBase
from zephyrctl.data.decontaminate import training_rows
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import Job, job_type
from zephyrctl.launching.weights import MODEL, base_hash, loaded, model_base
from zephyrctl.planning import plan, workload
from zephyrctl.planning.solver import Solution
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Checkpoint, Launch, Recipe, Training
from zephyrctl.records import Split
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.stages import Inputs, Source, Stage, sources
from zephyrctl.training import prepared_rows
from zephyrctl.training.kinds import training_kind
from zephyrctl.training.launch import launch
from zephyrctl.training.prepared_rows import Prepared
from zephyrctl.training.results import PreparedRows
from zephyrctl.training.usable_rows import write_rows

NOT_IN_PLANS = {"loss_budget", "log_every", "save_every"}
"""Settings of a training that do not change its result."""
LAUNCH_NOT_IN_PLANS = {"threads", "launcher", "hostfile", "slurm", "trackers"}
"""The same of the launch. How a batch is cut over processes changes only the last digits of a result."""


class TrainStage(Stage):
    """Trains one of the recipe's checkpoints; `pairs_file` replaces the pairs of `binarize`."""

    def __init__(self, recipe: Recipe, name: str, pairs_file: Path | None = None) -> None:
        self.recipe = recipe.training(name)
        self.checkpoint = recipe.checkpoints[name]
        self.kind = training_kind(self.checkpoint.stage)
        self.section = self.recipe.training_section(self.kind.name)
        self.base = model_base(self.recipe)
        self.name = name
        self.stage = self.kind.name
        self.does = self._describe()
        self.settings = self._settings(pairs_file)
        self.reads = _reads(self.recipe, self.checkpoint, pairs_file)

    def check(self) -> None:
        """Raise ZephyrError if this machine cannot train it."""
        plan.check_here(self.recipe, self.kind.name, self.base)

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Train the checkpoint into the draft."""
        source = inputs.get("start")
        start = source if isinstance(source, Artifact) else None
        rows = write_rows(self.recipe, self.checkpoint, inputs["rows"], draft)
        prepared = self.prepare(rows, start, draft, progress)
        solution = plan.solve_with(self.recipe, self.kind.name, self.base, prepared.reports["train"])
        job = self.make_job(prepared, solution, start, draft)
        report = report_rows(prepared, job)
        progress.say(describe_rows(report))
        launch(job, draft, progress)
        self.record(job, solution, report, draft)

    def prepare(self, rows: Mapping[Split, Path], start: Artifact | None, draft: Draft, progress: Progress) -> Prepared:
        """Tokenised rows, with every dropped row and token counted in the draft.

        Raises GateError if more is dropped than the recipe allows, and ZephyrError if the start was trained on other
        tokens.
        """
        row_settings = self.section.model_dump(include=set(self.kind.row_settings))
        if row_settings.get("assistant_only_loss"):
            prepared_rows.check_template(self.base.chat_template(), self.kind.section)
        request = {
            "kind": self.kind.name,
            **loaded(self.base, start),
            "rows": rows,
            "max_length": self.section.max_length,
            "seed": self.recipe.seed,
            **row_settings,
        }
        prepared = prepared_rows.prepare(draft.run, self.name, request, progress)
        train = prepared.reports["train"]
        for cause, count in train.dropped().items():
            draft.drop(cause, count)
        prepared_rows.check_budget(prepared.reports, self.section, self.kind.section)
        if not train.rows:
            raise ZephyrError(
                f"no row is left to train on ({draft.dropped})",
                f"raise {self.kind.section}.max_length, or look at the causes above",
            )
        if start:
            prepared_rows.check_contract(prepared, start.path / MODEL, self.name)
        return prepared

    def make_job(self, prepared: Prepared, solution: Solution, start: Artifact | None, draft: Draft) -> Job:
        """The job file's content, the same for every launcher."""
        train = prepared.rows("train")
        assert train is not None
        content = {
            "kind": self.kind.name,
            "settings": self.section,
            **loaded(self.base, start),
            "start_hash": start.content_hash if start else base_hash(self.base),
            "token_contract": prepared.contract,
            "prepared": prepared.folder,
            "prepared_hash": prepared.key,
            "train": train,
            "test": prepared.rows("test"),
            "model_folder": (draft.path / MODEL).absolute(),
            "scratch": draft.scratch.absolute(),
            "launch": self.recipe.launch,
            "layout": solution.layout,
            "deepspeed": deepspeed_config(self.section, self.recipe.launch, solution.layout),
            "steps": workload.total_steps(prepared.reports["train"].rows, self.section),
            "flops_a_token": solution.flops_per_token,
            "peak_flops": solution.peak_flops,
            "seed": self.recipe.seed,
        }
        return job_type(self.kind).model_validate(content)

    def record(self, job: Job, solution: Solution, report: PreparedRows, draft: Draft) -> None:
        """Add to the worker's results what the command knows; `TrainingResult` reads both."""
        assert job.token_contract is not None
        draft.metrics |= {
            "hardware": str(solution.workload.machine),
            "rows": report.rows_kept,
            "prepared": report.model_dump(),
            "layout": job.layout.model_dump(mode="json", exclude_none=True),
            "token_contract": job.token_contract.fingerprint,
        }

    def _describe(self) -> str:
        section = self.section
        passes = f"{section.max_steps} steps" if section.max_steps else f"{section.epochs:g} epochs"
        layout = plan.describe(self.recipe, self.kind.name, self.base)
        return (
            f"train {self.name} from {self.checkpoint.start} on {self.checkpoint.trains_on}: {passes} at lr "
            f"{section.learning_rate:g}, {section.global_batch} rows per step, {layout}, {self.recipe.launch.precision}"
        )

    def _settings(self, pairs_file: Path | None) -> dict[str, object]:
        settings: dict[str, object] = {
            "seed": self.recipe.seed,
            "start": self.checkpoint.start,
            "data": self.checkpoint.trains_on,
            "chat_template": self.base.chat_template(),
            self.kind.section: _section_settings(self.section),
            "launch": _launch_settings(self.recipe.launch),
            **training_rows.settings(self.recipe.decontaminate),
        }
        if self.checkpoint.start == "base":
            settings["base"] = {"location": _base_name(self.base), "content": base_hash(self.base)}
        if pairs_file:
            settings["skip_bad_rows"] = self.recipe.skip_bad_rows
        return settings


def report_rows(prepared: Prepared, job: Job) -> PreparedRows:
    """What becomes of the training rows, for the manifest: kept, dropped by cause, padding, steps."""
    report = prepared.reports["train"]
    padding = 0.0
    if job.layout.engine != "prefix-shared":  # packed pairs have no padding
        padding = prepared_rows.padding_share(job.train, "length", job.layout.micro_batch)
    return PreparedRows(
        **report.model_dump(),
        padding_share=round(padding, 4),
        steps_an_epoch=workload.steps_per_epoch(report.rows, job.settings),
        steps=job.steps,
    )


def describe_rows(report: PreparedRows) -> str:
    """The same in one sentence, for the terminal."""
    dropped = "; ".join(f"{count:,} {cause}" for cause, count in report.dropped().items())
    return (
        f"{report.rows_kept:,} of {report.rows_in:,} rows and {report.tokens_kept:,} of {report.tokens_in:,} tokens "
        f"kept ({dropped or 'nothing dropped'}); {report.padding_share:.1%} padding; {report.steps_an_epoch:,} steps "
        f"per epoch, {report.steps:,} in total"
    )


def _section_settings(section: Training) -> dict[str, object]:
    """The settings that a result depends on.

    Empty loss options are left out, as the version before did not have them: what it has finished stays finished.
    """
    settings = section.model_dump(mode="json", exclude=NOT_IN_PLANS)
    return {key: value for key, value in settings.items() if key != "loss_options" or value}


def _launch_settings(launch: Launch) -> dict[str, object]:
    return launch.model_dump(mode="json", exclude=LAUNCH_NOT_IN_PLANS)


def _base_name(base: ModelBase) -> str:
    """How manifests name the base: its Hub id, or the plugin's name for a local folder."""
    return base.name if Path(base.location()).is_dir() else base.location()


def _reads(recipe: Recipe, checkpoint: Checkpoint, pairs_file: Path | None) -> dict[str, Source]:
    rows = Source(artifact="binarize", stage="binarize")
    if checkpoint.trains_on == "dialogues":
        rows = Source(artifact="build", stage="build")
    elif pairs_file:
        rows = Source(path=pairs_file)
    inputs = {"rows": rows}
    if checkpoint.start != "base":
        inputs["start"] = Source(artifact=checkpoint.start, stage=recipe.checkpoints[checkpoint.start].stage)
    return inputs | sources("benchmark", recipe.decontaminate.against)
