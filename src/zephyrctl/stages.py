"""Stages: what each one reads, what its result depends on, and its work; the same plan is performed only once."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import Plan, hash_file, hash_folder
from zephyrctl.runs.run import Run
from zephyrctl.training.kinds import KINDS

COMMANDS: dict[str, str] = {
    "build": "zephyrctl data build",
    "feedback": "zephyrctl data feedback",
    "binarize": "zephyrctl data binarize",
    **{name: kind.command for name, kind in KINDS.items()},
    "eval": "zephyrctl eval",
}
"""The command that makes an artifact, for remedies."""


@dataclass(frozen=True)
class Source:
    """Something that a stage reads: an artifact of the run, or a file or folder outside it."""

    artifact: str | None = None
    stage: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        return self.artifact or str(self.path)


def sources(name: str, paths: Iterable[str | Path]) -> dict[str, Source]:
    """Several files that a stage reads for one purpose, named `benchmark 1`, `benchmark 2` and so on."""
    return {f"{name} {number}": Source(path=Path(path)) for number, path in enumerate(paths, 1)}


Inputs = Mapping[str, Artifact | Path]


class Stage(ABC):
    """A stage of a run, which makes one artifact. A subclass sets the attributes in `__init__` and defines `work`."""

    name: str
    """The artifact's name in the run."""
    stage: str
    """What kind of stage it is: a key of `COMMANDS`."""
    does: str
    """One line for people: what it does, as `--dry-run` shows it."""
    settings: dict[str, Any]
    """What the result depends on. If an artifact has the same settings and inputs, it is not rebuilt."""
    reads: dict[str, Source]
    """Its inputs by name."""

    @abstractmethod
    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write the artifact into the draft."""

    def check(self) -> None:  # noqa: B027
        """Raise ZephyrError if this machine cannot do the work; called before anything starts."""

    def costs(self, run: Run, inputs: Inputs) -> dict[str, object] | None:
        """What its calls to teachers would still cost; None if it makes none. No call is made to find out."""
        return None

    def helpers(self) -> AbstractContextManager[object]:
        """Processes that share the work. If the work is sure to be done, they start while the inputs are hashed."""
        return nullcontext()


@dataclass(frozen=True)
class Done:
    """The artifact of a stage, and whether this command made it."""

    artifact: Artifact
    is_new: bool


class StageForecast(TypedDict):
    """What `--dry-run` says of a stage."""

    name: str
    does: str
    reads: dict[str, str]
    missing: list[str]
    """Inputs that do not exist yet."""
    writes: str
    unchanged: bool
    """True if the artifact exists and would not be rebuilt."""
    costs: NotRequired[dict[str, Any]]
    would_fail: NotRequired[str | None]
    """Why this machine could not do the work; None if it could."""


def perform(run: Run, stage: Stage, progress: Progress | None = None, fresh: bool = False) -> Done:
    """The stage's artifact: the finished one if nothing changed, or else a new one; an unfinished draft is resumed.

    Raises ZephyrError if an input is missing, or if there is an unfinished draft of other settings.
    """
    progress = progress or Silence()
    inputs = open_inputs(run, stage)
    old = run.artifact(stage.name)
    is_sure = fresh or not old
    with ExitStack() as helpers:
        if is_sure:
            helpers.enter_context(stage.helpers())
        plan = make_plan(stage, inputs)
        if not fresh and (artifact := run.unchanged(plan)):
            return Done(artifact, is_new=False)
        stage.check()
        if old:
            changes = "; ".join(plan.changes(old.manifest.plan)[:3])
            progress.say(f"rebuilding {stage.name}: {changes or '--fresh'}")
        if not is_sure:
            helpers.enter_context(stage.helpers())
        return Done(_build(run, stage, plan, inputs, progress, fresh), is_new=True)


def _build(run: Run, stage: Stage, plan: Plan, inputs: Inputs, progress: Progress, fresh: bool) -> Artifact:
    paths = {name: value.path if isinstance(value, Artifact) else value for name, value in inputs.items()}
    with run.draft(plan, paths, plugins.load().versions, fresh) as draft:
        if draft.is_resumed:
            progress.say(f"resuming {stage.name}")
        stage.work(draft, inputs, progress)
        return draft.finish()


def open_inputs(run: Run, stage: Stage) -> dict[str, Artifact | Path]:
    """What a stage reads. Raises ZephyrError that names the command which makes a missing artifact."""
    return {name: _open(run, source) for name, source in stage.reads.items()}


def make_plan(stage: Stage, inputs: Inputs) -> Plan:
    """The plan of a stage with these inputs."""
    hashes = {name: _hash(value) for name, value in inputs.items()}
    settings = {**stage.settings, **_plugin_settings(stage)}
    return Plan(name=stage.name, stage=stage.stage, settings=settings, inputs=hashes)


def _plugin_settings(stage: Stage) -> dict[str, dict[str, str]]:
    """The hashes of the plugin files that a stage uses: an edited file makes another plan.

    The versions of installed packages are not part of a plan, but manifests state them.
    """
    names = {stage.name, *_strings(stage.settings)}
    reads_rows = not stage.reads or any(source.path for source in stage.reads.values())
    versions = plugins.load().file_versions(names, reads_rows)
    return {"plugins": versions} if versions else {}


def _strings(settings: object) -> Iterator[str]:
    """Every text in nested settings: each may be the name of a plugin."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        for value in settings.values():
            yield from _strings(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _strings(value)


def forecast(run: Run, stage: Stage, rebuilt: Collection[str] = ()) -> StageForecast:
    """What `--dry-run` says of a stage. Nothing is written, and inputs may be missing.

    `rebuilt` names the artifacts that earlier stages of the same command would rebuild.
    """
    missing = [str(source) for source in stage.reads.values() if not _exists(run, source)]
    is_unchanged = False
    costs = None
    if not missing and not any(source.artifact in rebuilt for source in stage.reads.values()):
        inputs = open_inputs(run, stage)
        is_unchanged = run.unchanged(make_plan(stage, inputs)) is not None
        costs = None if is_unchanged else stage.costs(run, inputs)
    stated: StageForecast = {
        "name": stage.name,
        "does": stage.does,
        "reads": {name: str(source) for name, source in stage.reads.items()},
        "missing": missing,
        "writes": str(run.path / stage.name),
        "unchanged": is_unchanged,
    }
    if costs:
        stated["costs"] = costs
    return stated


def _exists(run: Run, source: Source) -> bool:
    if source.artifact:
        return run.artifact(source.artifact) is not None
    return bool(source.path and source.path.exists())


def _open(run: Run, source: Source) -> Artifact | Path:
    if source.artifact:
        command = COMMANDS.get(source.stage, "zephyrctl run")
        is_named = source.stage in KINDS and source.artifact != source.stage
        return run.require(source.artifact, f"{command} --checkpoint {source.artifact}" if is_named else command)
    assert source.path is not None
    if not source.path.exists():
        raise ZephyrError(f"there is no file {source.path}", "check the path; it is relative to the working folder")
    return source.path


def _hash(value: Artifact | Path) -> str:
    if isinstance(value, Artifact):
        return value.content_hash
    return hash_folder(value) if value.is_dir() else hash_file(value)
