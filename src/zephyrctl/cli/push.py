"""`zephyrctl push`: publish a checkpoint with its card and manifests, or the data of a run."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.text import Text

from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import UsageError, did_you_mean
from zephyrctl.launching.weights import model_base
from zephyrctl.publishing.data_upload import plan_data
from zephyrctl.publishing.hub import HUB
from zephyrctl.publishing.model_upload import plan_push
from zephyrctl.publishing.publish_checks import NAMES
from zephyrctl.publishing.push import push as upload_to_hub
from zephyrctl.publishing.push import require_checks
from zephyrctl.publishing.uploads import FailedCheck, Upload
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run
from zephyrctl.stages import COMMANDS


@dataclass(frozen=True)
class PushResult:
    """What was or would be published."""

    dry_run: bool
    repo: str
    url: str
    visibility: str
    upload: Upload
    waived: tuple[str, ...]
    notes: tuple[str, ...]
    commit: str | None = None
    is_unchanged: bool | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """The result as `--json` prints it; `commit` and `unchanged` are missing in a dry run."""
        values: dict[str, JsonValue] = {
            "dry_run": self.dry_run,
            "repo": self.repo,
            "url": self.url,
            "visibility": self.visibility,
            "files": [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in self.upload.files],
            "notes": [*self.notes],
            "failed_checks": [asdict(check) | {"is_waived": self.waives(check)} for check in self.upload.failed_checks],
            "card": self.upload.card,
        }
        if self.commit is not None:
            values |= {"commit": self.commit, "unchanged": self.is_unchanged}
        return values

    def waives(self, check: FailedCheck) -> bool:
        """True if the check is waived by its name."""
        return check.name in self.waived


@with_session
def push(
    session: Session,
    hub: Annotated[str, typer.Option("--hub", help="Repository to publish to: ORG/NAME.")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint to publish. Default: push.checkpoint of the recipe."),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Publish the run's data instead, in the splits of the published sets.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Create a public repository. Default: private.")] = False,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            "--waive",
            metavar="NAME",
            help="Publish even if this check fails: contamination, gates, licence, secrets or pickle. Repeatable.",
        ),
    ] = None,
) -> None:
    """Publish a checkpoint, its model card and its manifests to the Hub (or to the server in HF_ENDPOINT).

    Exits with 3 if a check fails: training rows that contain benchmark questions, failed gates, an
    unknown licence, keys in a file, or pickled weights. --waive NAME publishes anyway, and the model
    card says so.
    """
    if unknown := [name for name in waive or [] if name not in NAMES]:
        remedy = did_you_mean(unknown[0], NAMES, f"one of: {', '.join(NAMES)}")
        raise UsageError(f"there is no check {unknown[0]!r} to waive", remedy)
    loaded = session.load(push__checkpoint=checkpoint)
    run = session.open(loaded)
    result = publish(session, run, loaded.recipe, hub, public, waive or [], data)
    session.screen.show(result.as_json(), *_lines(result))


def publish(
    session: Session,
    run: Run,
    recipe: Recipe,
    hub: str,
    public: bool,
    waived: Sequence[str] = (),
    data: bool = False,
) -> PushResult:
    """Plan the upload and, unless this is a dry run, send it. Raises GateError if a check fails."""
    with tempfile.TemporaryDirectory() as scratch:
        upload = plan_data(run, recipe, model_base(recipe), Path(scratch)) if data else _plan_model(run, recipe, waived)
        return _publish(session, upload, recipe.push.private and not public, hub, waived)


def _plan_model(run: Run, recipe: Recipe, waived: Sequence[str]) -> Upload:
    name = recipe.push.checkpoint
    checkpoint = recipe.checkpoints.get(name)
    artifact = run.require(name, COMMANDS[checkpoint.stage] if checkpoint else "zephyrctl run")
    return plan_push(run, artifact, recipe, model_base(recipe), waived)


def _publish(session: Session, upload: Upload, private: bool, hub: str, waived: Sequence[str]) -> PushResult:
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    result = PushResult(
        dry_run=session.dry_run,
        repo=hub,
        url=f"{endpoint}/{'datasets/' if upload.repo_type == 'dataset' else ''}{hub}",
        visibility="private" if private else "public",
        upload=upload,
        waived=tuple(waived),
        notes=upload.notes,
    )
    if session.dry_run:
        return result
    require_checks(upload, waived)
    pushed = upload_to_hub(upload, hub, private=private, token=_token(), endpoint=endpoint)
    return replace(
        result,
        url=pushed.url,
        commit=pushed.commit,
        visibility="private" if pushed.is_private else "public",
        is_unchanged=pushed.is_unchanged,
        notes=pushed.notes,
    )


def _lines(result: PushResult) -> Iterator[str | Text]:
    """In a dry run the files with their sizes and the card; then what was or would be published."""
    upload = result.upload
    if result.dry_run:
        yield from (f"  {file.bytes:>12,}  {file.path}" for file in upload.files)
        yield f"  {upload.bytes:>12,}  in total\n"
        yield Text(upload.card)
    verb = "would publish" if result.dry_run else "published"
    yield f"{verb} {len(upload.files)} files to {result.url} ({result.visibility})"
    yield from (f"note: {note}" for note in result.notes)
    for check in upload.failed_checks:
        effect = "waived" if result.waives(check) else "would stop a push"
        yield f"{effect}: {check.problem} ({check.name}; {check.remedy})"


def _token() -> str | None:
    """The token of HF_TOKEN or of `hf auth login`; it is passed on and never shown."""
    from huggingface_hub import get_token

    return get_token()
