"""`zephyrctl push`: publish a checkpoint with its card and the manifests behind it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import UsageError, did_you_mean
from zephyrctl.launching.weights import model_base
from zephyrctl.publishing.data_upload import plan_data
from zephyrctl.publishing.hub import HUB
from zephyrctl.publishing.model_upload import plan_push
from zephyrctl.publishing.publish_checks import NAMES
from zephyrctl.publishing.push import push as upload_to_hub
from zephyrctl.publishing.push import refuse
from zephyrctl.publishing.uploads import Upload
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run
from zephyrctl.stages import COMMANDS


@with_session
def push(
    session: Session,
    hub: Annotated[str, typer.Option("--hub", help="Repository to publish to: ORG/NAME.")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint to publish; else the recipe's push.checkpoint."),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Publish the run's data instead, with the published sets' splits.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; private unless said so.")] = False,
    waive: Annotated[
        list[str] | None,
        typer.Option(
            "--waive",
            metavar="NAME",
            help="Publish despite contamination, gates, licence, secrets or pickle; may be given again.",
        ),
    ] = None,
) -> None:
    """Publish a checkpoint, its model card and its chain of manifests to the Hub (or to what HF_ENDPOINT names).

    Exit 3 where something speaks against it: training rows that hold a benchmark's questions, failed gates, a licence
    that nobody knows, keys in a file, pickled weights. --waive NAME publishes all the same, and the card says so.
    """
    if unknown := [name for name in waive or [] if name not in NAMES]:
        remedy = did_you_mean(unknown[0], NAMES, f"one of: {', '.join(NAMES)}")
        raise UsageError(f"there is nothing called {unknown[0]!r} to waive", remedy)
    loaded = session.load(push__checkpoint=checkpoint)
    folder = session.open(loaded)
    result = publish(session, folder, loaded.recipe, hub, public, waive or [], data)
    session.screen.show(result, *_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str | Text]:
    """The tree with sizes and the card in a dry run, then what was or would be published."""
    files = result["files"]
    if result["dry_run"]:
        yield from (f"  {file['bytes']:>12,}  {file['path']}" for file in files)
        yield f"  {sum(file['bytes'] for file in files):>12,}  in all\n"
        yield Text(result["card"])
    verb = "would publish" if result["dry_run"] else "published"
    yield f"{verb} {len(files)} files to {result['url']} ({result['visibility']})"
    yield from (f"note: {note}" for note in result["notes"])
    for one in result["objections"]:
        said = "waived" if one["is_waived"] else "would be refused"
        yield f"{said}: {one['problem']} ({one['name']}; {one['remedy']})"


def publish(
    session: Session,
    folder: Run,
    recipe: Recipe,
    hub: str,
    public: bool,
    waived: Sequence[str] = (),
    data: bool = False,
) -> dict[str, Any]:
    """Plan the upload and, unless this is a dry run, do it. Raises GateError where something speaks against it."""
    with tempfile.TemporaryDirectory() as scratch:
        if data:
            upload = plan_data(folder, recipe, model_base(recipe), Path(scratch))
        else:
            upload = _plan_model(folder, recipe, waived)
        return _publish(session, upload, recipe, hub, public, waived)


def _plan_model(folder: Run, recipe: Recipe, waived: Sequence[str]) -> Upload:
    name = recipe.push.checkpoint
    stage = recipe.checkpoints[name].stage if name in recipe.checkpoints else "dpo"
    artifact = folder.require(name, COMMANDS[stage])
    return plan_push(folder, artifact, recipe, model_base(recipe), waived)


def _publish(
    session: Session, upload: Upload, recipe: Recipe, hub: str, public: bool, waived: Sequence[str]
) -> dict[str, Any]:
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    private = recipe.push.private and not public
    files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in upload.files]
    result: dict[str, Any] = {
        "dry_run": session.dry_run,
        "repo": hub,
        "url": f"{endpoint}/{'datasets/' if upload.repo_type == 'dataset' else ''}{hub}",
        "visibility": "private" if private else "public",
        "files": files,
        "notes": list(upload.notes),
        "objections": [{**vars(one), "is_waived": one.name in waived} for one in upload.objections],
        "card": upload.card,
    }
    if session.dry_run:
        return result
    refuse(upload, waived)
    pushed = upload_to_hub(upload, hub, private=private, token=_token(), endpoint=endpoint)
    visibility = "private" if pushed.is_private else "public"
    return result | {
        "url": pushed.url,
        "commit": pushed.commit,
        "visibility": visibility,
        "unchanged": pushed.is_unchanged,
        "notes": list(pushed.notes),
    }


def _token() -> str | None:
    """The token of HF_TOKEN or of `hf auth login`; it is handed on and never shown."""
    from huggingface_hub import get_token

    return get_token()
