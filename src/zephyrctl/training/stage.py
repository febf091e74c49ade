"""`sft` and `dpo`: from rows and a start to a checkpoint artifact, through a worker that this module launches."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from zephyrctl.contracts import ModelBase
from zephyrctl.data.binarize import TIED, unusable
from zephyrctl.data.decontaminate import training_rows
from zephyrctl.errors import ZephyrError
from zephyrctl.launching import launchers, processes
from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import Job, job_type
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.weights import MODEL, base_hash, loaded, model_base
from zephyrctl.planning import plan, workload
from zephyrctl.planning.solver import Solution
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Checkpoint, Recipe
from zephyrctl.records import Dialogue, Message, PreferencePair, Split
from zephyrctl.rows.files import rows_of
from zephyrctl.rows.published_rows import read_each, row_formats
from zephyrctl.runs.artifacts import COMPLETE, SPLITS, Artifact, Draft
from zephyrctl.runs.parquet import write_parquet
from zephyrctl.stages import Inputs, Source, Step, sources
from zephyrctl.training import prepared_rows
from zephyrctl.training.diagnostics import Course, Interpreter
from zephyrctl.training.kinds import training_kind
from zephyrctl.training.prepared_rows import Prepared

NOT_IN_PLANS = {"loss_budget", "log_every", "save_every"}
"""Settings of a training that do not change its result."""


def step(recipe: Recipe, name: str, pairs_file: Path | None = None) -> Step:
    """The step that trains one of the recipe's checkpoints; `pairs_file` replaces the pairs of `binarize`."""
    recipe = recipe.training(name)
    checkpoint = recipe.checkpoints[name]
    base = model_base(recipe)

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        start = inputs.get("start")
        origin = start if isinstance(start, Artifact) else None
        rows = write_rows(recipe, checkpoint, inputs["rows"], draft)
        prepared = prepare_rows(recipe, name, base, origin, rows, draft, progress)
        solution = plan.solve_with(recipe, checkpoint.stage, base, prepared.reports["train"])
        job = make_job(recipe, checkpoint, base, origin, prepared, solution, draft)
        draft.metrics["hardware"] = str(solution.workload.machine)
        draft.metrics |= {"rows": prepared.reports["train"].rows_kept, "prepared": tell_rows(prepared, job, progress)}
        _train(job, draft, progress)

    return Step(
        name=name,
        stage=checkpoint.stage,
        does=_describe(recipe, name, base),
        settings=_settings(recipe, checkpoint, base) | ({"skip_bad_rows": recipe.skip_bad_rows} if pairs_file else {}),
        reads=_reads(recipe, checkpoint, pairs_file) | sources("benchmark", recipe.decontaminate.against),
        work=work,
        check=lambda: plan.check_here(recipe, checkpoint.stage, base),
    )


def write_rows(recipe: Recipe, checkpoint: Checkpoint, source: "Artifact | Path", draft: Draft) -> dict[Split, Path]:
    """The Parquet rows that the worker reads; pairs that teach nothing are dropped and counted."""
    data = checkpoint.trains_on
    if data == "dialogues":
        assert isinstance(source, Artifact)
        training_rows.check_dialogues(source, recipe, draft)
        tables = {split: source.table("dialogues", split) for split in SPLITS if source.count("dialogues", split)}
        if "train" not in tables:
            raise ZephyrError(
                "no dialogue to train on: all lie on the test side", "build more dialogues, or lower build.test_share"
            )
        return tables
    rows: dict[Split, Path] = {}
    for split in SPLITS:
        pairs = usable(_pairs(source, split, recipe, draft), draft, recipe.dpo.ties)
        if split == "train":
            pairs = training_rows.pairs_without_hits(pairs, recipe, draft)
        path = draft.scratch / f"{split}.parquet"
        if data == "pairs":
            count = write_parquet(path, pairs, PreferencePair)
        else:
            count = write_parquet(path, map(chosen_dialogue, pairs), Dialogue)
        if count:
            rows[split] = path
    if "train" not in rows:
        raise ZephyrError(
            f"no usable pair to train on ({draft.dropped})", "binarize more prompts, or see data feedback"
        )
    return rows


def usable(pairs: Iterable[PreferencePair], draft: Draft, ties: str = "drop") -> Iterator[PreferencePair]:
    """The pairs that show a preference; identical and empty texts, and ties unless kept, are counted by cause."""
    for pair in pairs:
        cause = unusable(pair.chosen, pair.rejected)
        if not cause and ties == "drop" and pair.score_chosen is not None and pair.score_chosen == pair.score_rejected:
            cause = TIED
        if cause:
            draft.drop(cause)
        else:
            yield pair


def chosen_dialogue(pair: PreferencePair) -> Dialogue:
    """The chosen answer as a dialogue to imitate (dSFT-2 of the paper's Table 3)."""
    answered = [*pair.messages, Message(role="assistant", content=pair.chosen)]
    return Dialogue(id=pair.id, messages=answered, source="chosen")


def prepare_rows(
    recipe: Recipe,
    name: str,
    base: ModelBase,
    start: Artifact | None,
    rows: Mapping[Split, Path],
    draft: Draft,
    progress: Progress,
) -> Prepared:
    """Rows as the worker reads them, with every loss counted in the draft.

    Raises GateError where more is lost than the recipe allows, ZephyrError where the start was trained on other tokens.
    """
    kind = training_kind(recipe.checkpoints[name].stage)
    settings = recipe.training_section(kind.name)
    request = {
        "kind": kind.name,
        **loaded(base, start),
        "rows": rows,
        "max_length": settings.max_length,
        "seed": recipe.seed,
    }
    request |= settings.model_dump(include=set(kind.row_settings))
    prepared_rows.check_template(request)
    prepared = prepared_rows.prepare(draft.run, name, request, progress)
    train = prepared.reports["train"]
    for cause, lost in {**train.lost_rows, **train.lost_tokens}.items():
        draft.drop(cause, lost)
    prepared_rows.check_budget(prepared.reports, settings, kind.section)
    if not train.rows:
        raise ZephyrError(
            f"no row is left to train on ({draft.dropped})",
            f"raise {kind.section}.max_length, or look at the losses above",
        )
    if start:
        prepared_rows.check_contract(prepared, start.path / MODEL, name)
    return prepared


def make_job(
    recipe: Recipe,
    checkpoint: Checkpoint,
    base: ModelBase,
    start: Artifact | None,
    prepared: Prepared,
    solution: Solution,
    draft: Draft,
) -> Job:
    """The job file's content: the same for every launcher."""
    kind = training_kind(checkpoint.stage)
    settings = recipe.training_section(kind.name)
    train = prepared.rows("train")
    assert train is not None
    content: dict[str, Any] = {
        "kind": kind.name,
        "settings": settings,
        **loaded(base, start),
        "start_hash": start.content_hash if start else base_hash(base),
        "token_contract": prepared.contract,
        "prepared": prepared.folder,
        "prepared_hash": prepared.key,
        "train": train,
        "test": prepared.rows("test"),
        "model_folder": (draft.path / MODEL).absolute(),
        "scratch": draft.scratch.absolute(),
        "launch": recipe.launch,
        "layout": solution.layout,
        "deepspeed": deepspeed_config(settings, recipe.launch, solution.layout),
        "steps": workload.total_steps(prepared.reports["train"].rows, settings),
        "flops_a_token": solution.flops_a_token,
        "peak_flops": solution.peak_flops,
        "seed": recipe.seed,
    }
    return job_type(kind).model_validate(content)


def tell_rows(prepared: Prepared, job: Job, progress: Progress) -> dict[str, Any]:
    """What becomes of the rows, said before the launch and kept: in, kept, lost by cause, padding, steps."""
    report = prepared.reports["train"]
    is_padded = job.layout.engine != "prefix-shared"
    padding = prepared_rows.padding_share(job.train, "length", job.layout.micro_batch) if is_padded else 0.0
    an_epoch = workload.steps_an_epoch(report.rows, job.settings)
    lost = [f"{count:,} {cause}" for cause, count in {**report.lost_rows, **report.lost_tokens}.items()]
    progress.say(
        f"{report.rows_kept:,} of {report.rows_in:,} rows and {report.tokens_kept:,} of {report.tokens_in:,} tokens "
        f"kept ({'; '.join(lost) or 'nothing lost'}); {padding:.1%} padding; {an_epoch:,} steps an epoch, "
        f"{job.steps:,} in all"
    )
    figures = {"padding_share": round(padding, 4), "steps_an_epoch": an_epoch, "steps": job.steps}
    return report.model_dump() | figures


def _train(job: Job, draft: Draft, progress: Progress) -> None:
    """Write the job, launch the worker, follow it, and keep what it reports."""
    path = job.scratch / "job.json"
    check_same_layout(path, job)
    path.write_text(job.model_dump_json(indent=2))
    launch = launchers.launch_command(
        launchers.choose_launcher(job.launch, job.layout), training_kind(job.kind).worker, path, job.layout, job.launch
    )
    for name, text in launch.files.items():
        (job.scratch / name).write_text(text)
    interpreter = Interpreter(_course(job))
    for line in read_metrics(job.scratch / "metrics.jsonl"):
        interpreter.read(line)  # what was said before an interruption is not said again

    def follow(event: processes.Event) -> None:
        if event["event"] == "step":
            progress.advance(event["step"], event["total"], "steps")
        elif event["event"] == "references":
            progress.advance(event["done"], event["total"], "reference log-probabilities")
        elif event["event"] == "metrics":
            line = {key: value for key, value in event.items() if key != "event"}
            progress.measure(line)
            for sentence in interpreter.read(line):
                progress.say(sentence)
                draft.notes.append(sentence)
        elif event["event"] == "result":
            draft.metrics |= {key: value for key, value in event.items() if key != "event" and value is not None}

    if launch.instructions:
        progress.say(launch.instructions)
    environment = processes.worker_environment(job.layout.processes, job.launch.threads)
    processes.Work(job.kind, launch.command, job.scratch, launch.cancel or (), environment, progress.say).do(follow)
    draft.metrics["layout"] = job.layout.model_dump(mode="json", exclude_none=True)
    assert job.token_contract is not None
    draft.metrics["token_contract"] = job.token_contract.fingerprint
    for name in ("metrics.jsonl", "deepspeed.json"):
        if (job.scratch / name).is_file():
            shutil.copyfile(job.scratch / name, draft.path / name)


def _course(job: Job) -> Course:
    return Course(
        kind=training_kind(job.kind),
        steps=job.steps,
        warmup_steps=ceil(job.settings.warmup_share * job.steps),
        rows_a_step=job.layout.global_batch,
        beta=getattr(job.settings, "beta", 1.0),
        loss=getattr(job.settings, "loss", ""),
    )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; none where training has not begun."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_same_layout(path: Path, job: Job) -> None:
    """Raise ZephyrError where checkpoints were begun by other processes than would go on with them.

    What DeepSpeed saves is cut by the number of processes and the ZeRO stage.
    """
    if not path.is_file() or not any(job.scratch.glob(f"checkpoints/*/{COMPLETE}")):
        return
    old = Layout.model_validate(json.loads(path.read_bytes())["layout"])
    if (old.world, old.zero_stage, old.offload) != (job.layout.world, job.layout.zero_stage, job.layout.offload):
        raise ZephyrError(
            f"this was begun by {old}, and would go on with {job.layout}",
            "go on with the same processes and ZeRO stage, or give --fresh to begin again",
        )


def _describe(recipe: Recipe, name: str, base: ModelBase) -> str:
    checkpoint = recipe.checkpoints[name]
    settings = recipe.training_section(checkpoint.stage)
    passes = f"{settings.max_steps} steps" if settings.max_steps else f"{settings.epochs:g} epochs"
    return (
        f"train {name} from {checkpoint.start} on {checkpoint.trains_on}: {passes} at {settings.learning_rate:g}, "
        f"{settings.global_batch} rows a step, {plan.describe(recipe, checkpoint.stage, base)}, "
        f"{recipe.launch.precision}"
    )


def _settings(recipe: Recipe, checkpoint: Checkpoint, base: ModelBase) -> dict[str, Any]:
    """What the result depends on. How a batch is cut over processes changes no more than its last digits."""
    kind = training_kind(checkpoint.stage)
    training = recipe.training_section(kind.name)
    start = {} if checkpoint.start != "base" else {"base": {"location": _base_name(base), "content": base_hash(base)}}
    return {
        "seed": recipe.seed,
        "start": checkpoint.start,
        "data": checkpoint.trains_on,
        "chat_template": base.chat_template(),
        kind.section: _without_empty_options(training.model_dump(mode="json", exclude=NOT_IN_PLANS)),
        "launch": recipe.launch.model_dump(
            mode="json", exclude={"threads", "launcher", "hostfile", "slurm", "trackers"}
        ),
        **start,
        **training_rows.settings(recipe),
    }


def _without_empty_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the version before knew them, so that what it finished stays finished: it had no loss options."""
    return {key: value for key, value in settings.items() if key != "loss_options" or value}


def _base_name(base: ModelBase) -> str:
    """How manifests name the base: its Hub id, or the plugin's name for a folder of this machine."""
    return base.name if Path(base.location()).is_dir() else base.location()


def _reads(recipe: Recipe, checkpoint: Checkpoint, pairs_file: Path | None) -> dict[str, Source]:
    rows = Source(artifact="binarize", stage="binarize")
    if checkpoint.trains_on == "dialogues":
        rows = Source(artifact="build", stage="build")
    elif pairs_file:
        rows = Source(path=pairs_file)
    if checkpoint.start == "base":
        return {"rows": rows}
    return {
        "rows": rows,
        "start": Source(artifact=checkpoint.start, stage=recipe.checkpoints[checkpoint.start].stage),
    }


def _pairs(source: "Artifact | Path", split: Split, recipe: Recipe, draft: Draft) -> Iterator[PreferencePair]:
    """The pairs of one side. A file of pairs is all training: its prompts were split by whoever published it."""
    if isinstance(source, Artifact):
        yield from source.read("pairs", split, PreferencePair)
    elif split == "train":
        yield from read_each(rows_of(source), row_formats().preference_pair, recipe.skip_bad_rows, draft.drop)
