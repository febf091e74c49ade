"""`sft` and `dpo`: from rows and a start to a checkpoint artifact, through a worker that this module launches."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zephyrctl import launch, plugins
from zephyrctl.contracts import ModelBase
from zephyrctl.data import shapes
from zephyrctl.data.binarize import TIED, unusable
from zephyrctl.data.files import rows_of
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe import Checkpoint, Recipe
from zephyrctl.records import Dialogue, Message, PreferencePair, Split
from zephyrctl.runs import SPLITS, Artifact, Draft, Run, hash_folder, write_parquet
from zephyrctl.stages import Inputs, Source, Step, sources
from zephyrctl.training import hits
from zephyrctl.training.deepspeed import accelerate_config, deepspeed_config, micro_batch
from zephyrctl.training.fit import check_machine
from zephyrctl.training.job import DpoJob, SftJob

MODEL = "model"
"""The folder of a checkpoint artifact that holds the model."""


def step(recipe: Recipe, name: str, pairs_file: Path | None = None) -> Step:
    """The step that trains one of the recipe's checkpoints; `pairs_file` replaces the pairs of `binarize`."""
    checkpoint = recipe.checkpoints[name]
    base = model_base(recipe)

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        rows = write_rows(recipe, checkpoint, inputs["rows"], draft)
        start = inputs.get("start")
        job = make_job(recipe, checkpoint, base, start if isinstance(start, Artifact) else None, rows, draft)
        _train(job, draft, progress)

    return Step(
        name=name,
        stage=checkpoint.stage,
        does=_describe(recipe, name),
        settings=_settings(recipe, checkpoint, base) | ({"skip_bad_rows": recipe.skip_bad_rows} if pairs_file else {}),
        reads=_reads(recipe, checkpoint, pairs_file) | sources("benchmark", recipe.decontaminate.against),
        work=work,
        check=lambda: check_machine(recipe, base.sizes()),
    )


def model_base(recipe: Recipe) -> ModelBase:
    """The recipe's base."""
    return plugins.load().model_base(recipe.base.name, recipe.base.options)


def data_of(checkpoint: Checkpoint) -> str:
    """What a checkpoint is trained on: 'dialogues', 'chosen' or 'pairs'."""
    return checkpoint.data or ("pairs" if checkpoint.stage == "dpo" else "dialogues")


def write_rows(recipe: Recipe, checkpoint: Checkpoint, source: "Artifact | Path", draft: Draft) -> dict[Split, Path]:
    """The Parquet rows that the worker reads; pairs that teach nothing are dropped and counted."""
    kind = data_of(checkpoint)
    if kind == "dialogues":
        assert isinstance(source, Artifact)
        hits.check_dialogues(source, recipe, draft)
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
            pairs = hits.pairs_without_hits(pairs, recipe, draft)
        path = draft.scratch / f"{split}.parquet"
        if kind == "pairs":
            count = write_parquet(path, pairs, PreferencePair)
        else:
            count = write_parquet(path, map(chosen_dialogue, pairs), Dialogue)
        if count:
            rows[split] = path
    if "train" not in rows:
        raise ZephyrError(f"no usable pair to train on ({draft.losses})", "binarize more prompts, or see data feedback")
    return rows


def usable(pairs: Iterable[PreferencePair], draft: Draft, ties: str = "drop") -> Iterator[PreferencePair]:
    """The pairs that show a preference; identical and empty texts, and ties unless kept, are counted by cause."""
    for pair in pairs:
        cause = unusable(pair.chosen, pair.rejected)
        if not cause and ties == "drop" and pair.score_chosen is not None and pair.score_chosen == pair.score_rejected:
            cause = TIED
        if cause:
            draft.lose(cause)
        else:
            yield pair


def chosen_dialogue(pair: PreferencePair) -> Dialogue:
    """The chosen answer as a dialogue to imitate (dSFT-2 of the paper's Table 3)."""
    answered = [*pair.messages, Message(role="assistant", content=pair.chosen)]
    return Dialogue(id=pair.id, messages=answered, source="chosen")


def make_job(
    recipe: Recipe,
    checkpoint: Checkpoint,
    base: ModelBase,
    start: Artifact | None,
    rows: dict[Split, Path],
    draft: Draft,
) -> SftJob | DpoJob:
    """The job file's content: the same for every door that it may be launched through."""
    shared: dict[str, Any] = {
        "model": str((start.path / MODEL).absolute()) if start else base.location(),
        "revision": None if start else base.revision,
        "start_hash": start.content_hash if start else base_hash(base),
        "chat_template": base.chat_template(),
        "train": rows["train"].absolute(),
        "test": rows["test"].absolute() if "test" in rows else None,
        "model_folder": (draft.path / MODEL).absolute(),
        "scratch": draft.scratch.absolute(),
        "launch": recipe.launch,
        "seed": recipe.seed,
    }
    if checkpoint.stage == "sft":
        return SftJob(settings=recipe.sft, **shared)
    return DpoJob(settings=recipe.dpo, **shared)


def base_hash(base: ModelBase) -> str:
    """The content of a base: of its folder's files, or its id and revision on the Hub."""
    folder = Path(base.location())
    return hash_folder(folder) if folder.is_dir() else f"{base.location()}@{base.revision}"


def checkpoint_folder(run: Run, name: str) -> Path | None:
    """The model folder of a finished checkpoint."""
    artifact = run.artifact(name)
    return artifact.path / MODEL if artifact else None


def _train(job: SftJob | DpoJob, draft: Draft, progress: Progress) -> None:
    """Write the job, launch the worker, follow it, and keep what it reports."""
    path = job.scratch / "job.json"
    path.write_text(job.model_dump_json(indent=2))
    accelerate = None
    if job.launch.processes > 1:
        config = job.scratch / "deepspeed.json"
        config.write_text(json.dumps(deepspeed_config(job.settings, job.launch), indent=2))
        accelerate = accelerate_config(config, job.launch, on_cpu=not launch.gpus())

    def follow(event: launch.Event) -> None:
        if event["event"] == "step":
            progress.advance(event["step"], event["total"], "steps")
        elif event["event"] == "data":
            draft.metrics["rows"] = event["rows"]
            for cause, rows in event["lost"].items():
                draft.lose(cause, rows)
        elif event["event"] == "result":
            draft.metrics |= {key: value for key, value in event.items() if key != "event" and value is not None}

    launch.train(job.kind, path, job.launch, accelerate, follow)
    for name in ("metrics.jsonl", "deepspeed.json"):
        if (job.scratch / name).is_file():
            shutil.copyfile(job.scratch / name, draft.path / name)


def _describe(recipe: Recipe, name: str) -> str:
    checkpoint = recipe.checkpoints[name]
    settings = recipe.sft if checkpoint.stage == "sft" else recipe.dpo
    how = "one process" if recipe.launch.processes == 1 else f"DeepSpeed ZeRO-{recipe.launch.zero_stage}"
    shares = f"{recipe.launch.processes} x {micro_batch(settings, recipe.launch)}"
    passes = f"{settings.max_steps} steps" if settings.max_steps else f"{settings.epochs:g} epochs"
    return (
        f"train {name} from {checkpoint.start} on {data_of(checkpoint)}: {passes} at {settings.learning_rate:g}, "
        f"{settings.global_batch} rows a step, {shares} ({how}, "
        f"{recipe.launch.precision})"
    )


def _settings(recipe: Recipe, checkpoint: Checkpoint, base: ModelBase) -> dict[str, Any]:
    training = recipe.sft if checkpoint.stage == "sft" else recipe.dpo
    start = {} if checkpoint.start != "base" else {"base": {"location": _base_name(base), "content": base_hash(base)}}
    return {
        "seed": recipe.seed,
        "start": checkpoint.start,
        "data": data_of(checkpoint),
        "chat_template": base.chat_template(),
        checkpoint.stage: training.model_dump(mode="json"),
        "launch": recipe.launch.model_dump(mode="json", exclude={"threads"}),
        **start,
        **hits.settings(recipe),
    }


def _base_name(base: ModelBase) -> str:
    """How manifests name the base: its Hub id, or the plugin's name for a folder of this machine."""
    return base.name if Path(base.location()).is_dir() else base.location()


def _reads(recipe: Recipe, checkpoint: Checkpoint, pairs_file: Path | None) -> dict[str, Source]:
    rows = Source(artifact="binarize", stage="binarize")
    if data_of(checkpoint) == "dialogues":
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
        yield from shapes.each(rows_of(source), shapes.preference_pair, recipe.skip_bad_rows, draft.lose)
