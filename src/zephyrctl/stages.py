"""A stage as a step: what it reads, what its result depends on, and its work; performed once for the same plan."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress, Silence
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import Plan, hash_file, hash_folder
from zephyrctl.runs.run import Run
from zephyrctl.training.kinds import KINDS

COMMANDS = {
    "build": "zephyrctl data build",
    "feedback": "zephyrctl data feedback",
    "binarize": "zephyrctl data binarize",
    **{name: kind.command for name, kind in KINDS.items()},
    "eval": "zephyrctl eval",
}
"""The command that makes an artifact, for remedies."""


@dataclass(frozen=True)
class Source:
    """Something that a step reads: an artifact of the run, or a file or folder outside it."""

    artifact: str | None = None
    stage: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        return self.artifact or str(self.path)


def sources(name: str, paths: Iterable[str | Path]) -> dict[str, Source]:
    """Several files that a step reads for one purpose, as `benchmark 1`, `benchmark 2` and so on."""
    return {f"{name} {number}": Source(path=Path(path)) for number, path in enumerate(paths, 1)}


Inputs = Mapping[str, "Artifact | Path"]


class Stage(ABC):
    """One artifact to be made. A subclass sets the attributes in its `__init__` and does the work in `work`."""

    name: str
    """The artifact's name in the run."""
    stage: str
    """Which stage makes it: a key of `COMMANDS`."""
    does: str
    """One line for people: what would happen."""
    settings: dict[str, Any]
    """What the result depends on. A finished artifact of the same settings and inputs is not made again."""
    reads: dict[str, Source]
    """Its inputs by name."""

    @abstractmethod
    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write the artifact into the draft."""

    def check(self) -> None:  # noqa: B027
        """Raise ZephyrError if this machine cannot do the work; called before anything starts."""

    def costs(self, run: Run, inputs: Inputs) -> dict[str, Any] | None:
        """What its calls to teachers would still cost; None if it makes none. No call is made to find out."""
        return None

    def helpers(self) -> AbstractContextManager[Any]:
        """Processes that share the work. If the work is sure to be done, they start while the inputs are hashed."""
        return nullcontext()


class Step(Stage):
    """A stage made of functions. Being replaced by subclasses of `Stage`."""

    def __init__(
        self,
        name: str,
        stage: str,
        does: str,
        settings: dict[str, Any],
        reads: dict[str, Source],
        work: Callable[[Draft, Inputs, Progress], None],
        check: Callable[[], None] = lambda: None,
        costs: Callable[[Run, Inputs], dict[str, Any]] | None = None,
        helpers: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.name, self.stage, self.does, self.settings, self.reads = name, stage, does, settings, reads
        self._work, self._check, self._costs, self._helpers = work, check, costs, helpers

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write the artifact into the draft."""
        self._work(draft, inputs, progress)

    def check(self) -> None:
        """Raise ZephyrError if this machine cannot do the work."""
        self._check()

    def costs(self, run: Run, inputs: Inputs) -> dict[str, Any] | None:
        """What its calls to teachers would still cost."""
        return self._costs(run, inputs) if self._costs else None

    def helpers(self) -> AbstractContextManager[Any]:
        """Processes that share the work."""
        return self._helpers or nullcontext()


@dataclass(frozen=True)
class Done:
    """An artifact, and whether it was there already."""

    artifact: Artifact
    is_new: bool


def perform(run: Run, step: Stage, progress: Progress | None = None, fresh: bool = False) -> Done:
    """The step's artifact: as it is where nothing changed, made now otherwise, resumed where a draft of it was begun.

    Raises ZephyrError where an input is missing or a draft of other settings lies in the way.
    """
    progress = progress or Silence()
    inputs = open_inputs(run, step)
    old = run.artifact(step.name)
    is_sure = fresh or not old
    with ExitStack() as helpers:
        if is_sure:
            helpers.enter_context(step.helpers())
        plan = make_plan(step, inputs)
        if not fresh and (artifact := run.unchanged(plan)):
            return Done(artifact, is_new=False)
        step.check()
        if old:
            progress.say(f"{step.name} is made again: {'; '.join(plan.changes(old.manifest.plan)[:3]) or 'as asked'}")
        if not is_sure:
            helpers.enter_context(step.helpers())
        return Done(_make(run, step, plan, inputs, progress, fresh), is_new=True)


def _make(run: Run, step: Stage, plan: Plan, inputs: Inputs, progress: Progress, fresh: bool) -> Artifact:
    paths = {name: value.path if isinstance(value, Artifact) else value for name, value in inputs.items()}
    with run.draft(plan, paths, plugins.load().versions, fresh) as draft:
        if draft.is_resumed:
            progress.say(f"{step.name} goes on from where it was interrupted")
        step.work(draft, inputs, progress)
        return draft.finish()


def open_inputs(run: Run, step: Stage) -> dict[str, "Artifact | Path"]:
    """What a step reads. Raises ZephyrError that names the command which makes what is missing."""
    return {name: _open(run, source) for name, source in step.reads.items()}


def make_plan(step: Stage, inputs: Inputs) -> Plan:
    """The plan of a step whose inputs are there."""
    hashes = {name: _hash(value) for name, value in inputs.items()}
    return Plan(name=step.name, stage=step.stage, settings=step.settings | _plugin_settings(step), inputs=hashes)


def _plugin_settings(step: Stage) -> dict[str, dict[str, str]]:
    """The hashes of the plugin files that a stage uses: an edited file makes another plan.

    Versions of installed packages are no part of a plan; manifests state them.
    """
    names = {step.name, *_strings(step.settings)}
    reads_rows = not step.reads or any(source.path for source in step.reads.values())
    versions = plugins.load().file_versions(names, reads_rows)
    return {"plugins": versions} if versions else {}


def _strings(settings: object) -> Iterator[str]:
    """Every text in nested settings, wherever the name of a plugin may be."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        for value in settings.values():
            yield from _strings(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _strings(value)


def forecast(run: Run, step: Stage, made_again: Collection[str] = ()) -> dict[str, Any]:
    """What `--dry-run` says of a step: it touches nothing, and its inputs need not be there yet.

    `made_again` names artifacts that earlier steps of the same command would make anew.
    """
    missing = [str(source) for source in step.reads.values() if not _is_there(run, source)]
    is_unchanged = False
    costs = None
    if not missing and not any(source.artifact in made_again for source in step.reads.values()):
        inputs = open_inputs(run, step)
        is_unchanged = run.unchanged(make_plan(step, inputs)) is not None
        costs = None if is_unchanged else step.costs(run, inputs)
    return {
        "name": step.name,
        "does": step.does,
        "reads": {name: str(source) for name, source in step.reads.items()},
        "missing": missing,
        "writes": str(run.path / step.name),
        "unchanged": is_unchanged,
        **({"costs": costs} if costs else {}),
    }


def _is_there(run: Run, source: Source) -> bool:
    return run.artifact(source.artifact) is not None if source.artifact else bool(source.path and source.path.exists())


def _open(run: Run, source: Source) -> "Artifact | Path":
    if source.artifact:
        command = COMMANDS.get(source.stage, "zephyrctl run")
        is_named = source.stage in KINDS and source.artifact != source.stage
        return run.require(source.artifact, f"{command} --checkpoint {source.artifact}" if is_named else command)
    assert source.path is not None
    if not source.path.exists():
        raise ZephyrError(f"there is no file {source.path}", "check the path; it is read from the working folder")
    return source.path


def _hash(value: "Artifact | Path") -> str:
    if isinstance(value, Artifact):
        return value.content_hash
    return hash_folder(value) if value.is_dir() else hash_file(value)
