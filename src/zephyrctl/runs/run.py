"""A run: a folder with an artifact for each finished stage, and drafts of stages that are under way.

This package is the only reader and writer of run folders. An artifact appears whole or not at all: work happens in
`.<name>.unfinished/`, its files are hashed, `manifest.json` is written last, and the folder is renamed. A draft that was
interrupted is resumed if its settings and inputs are the same.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from zephyrctl.disk import lock, write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import MANIFEST, Manifest, Plan


class Run:
    """The folder of a run: finished artifacts by name, and drafts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def artifact(self, name: str) -> Artifact | None:
        """The finished artifact of that name, or None. Raises ZephyrError if its manifest is damaged."""
        self._recover(name)
        manifest = self.path / name / MANIFEST
        if not manifest.is_file():
            return None
        try:
            return Artifact(self.path / name, Manifest.model_validate_json(manifest.read_bytes()))
        except ValidationError:
            raise ZephyrError(
                f"{manifest} is damaged or of another version of zephyrctl",
                f"remove {self.path / name} and run it again",
            ) from None

    def require(self, name: str, command: str) -> Artifact:
        """The finished artifact. Raises ZephyrError that names the command which makes it, if it is missing."""
        if artifact := self.artifact(name):
            return artifact
        raise ZephyrError(f"{self.path} has no finished {name!r}", f"{command} --run {self.path}")

    def artifacts(self) -> list[Artifact]:
        """Every finished artifact, oldest first."""
        folders = {path.parent.name for path in self.path.glob(f"*/{MANIFEST}")}
        names = sorted(name for name in folders if not name.startswith("."))  # no drafts
        finished = [artifact for name in names if (artifact := self.artifact(name))]
        return sorted(finished, key=lambda artifact: artifact.manifest.finished_at)

    def unchanged(self, plan: Plan) -> Artifact | None:
        """The finished artifact if it was made by this very plan, or None."""
        artifact = self.artifact(plan.name)
        return artifact if artifact and artifact.manifest.plan == plan else None

    def draft(
        self,
        plan: Plan,
        input_paths: Mapping[str, Path | str],
        plugins: Mapping[str, str],
        fresh: bool = False,
    ) -> Draft:
        """A draft for the plan: the interrupted one if its plan is the same, or else a new one.

        Raises ZephyrError if there is an unfinished draft of another plan, unless `fresh` discards it.
        """
        draft = Draft(self, plan, input_paths, plugins)
        try:
            self._open(draft, fresh)
        except BaseException:
            draft.close()
            raise
        return draft

    def relative(self, path: Path | str) -> str:
        """A path as manifests state it: from the run's folder if it is inside, so that a run can be moved."""
        if isinstance(path, Path) and path.is_relative_to(self.path):
            return str(path.relative_to(self.path))
        return str(path)

    def _open(self, draft: Draft, fresh: bool) -> None:
        """Create the draft's folder, or keep the one to resume."""
        unfinished = draft.path / "plan.json"
        if draft.path.exists() and (fresh or not draft.has_work()):
            shutil.rmtree(draft.path)
        if unfinished.is_file():
            self._check_same(draft, Plan.model_validate_json(unfinished.read_bytes()))
            draft.is_resumed = True
        else:
            shutil.rmtree(draft.path, ignore_errors=True)
            draft.path.mkdir(parents=True)
            write_whole(unfinished, draft.plan.model_dump_json(indent=2))

    def _check_same(self, draft: Draft, old: Plan) -> None:
        if differences := draft.plan.changes(old):
            raise ZephyrError(
                f"{draft.path} was begun with other settings or inputs ({'; '.join(differences[:3])})",
                "give --fresh to discard what was begun, or restore the old settings to resume it",
            )

    def _recover(self, name: str) -> None:
        """Undo a replacement that was cut between its two renames."""
        replaced = self.path / f".{name}.replaced"
        if replaced.is_dir() and not (self.path / name).exists():
            # If another process has the lock, it is between the two renames right now, and needs no help.
            with (
                contextlib.suppress(ZephyrError, FileNotFoundError),
                lock(self.path / f".{name}.lock", f"is working on {name!r}"),
            ):
                replaced.rename(self.path / name)
