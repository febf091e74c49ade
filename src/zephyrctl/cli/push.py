"""`zephyrctl push`: publish a checkpoint with its card and the manifests behind it."""

import os
from typing import Annotated, Any

import typer

from zephyrctl.cli.session import Session, with_session
from zephyrctl.publishing.push import plan_push
from zephyrctl.publishing.push import push as upload_to_hub
from zephyrctl.recipe import Recipe
from zephyrctl.runs import Run
from zephyrctl.stages import COMMANDS
from zephyrctl.training.train import model_base

HUB = "https://huggingface.co"


@with_session
def push(
    session: Session,
    hub: Annotated[str, typer.Option("--hub", help="Repository to publish to: ORG/NAME.")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint to publish; else the recipe's push.checkpoint."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; private unless said so.")] = False,
) -> None:
    """Publish a checkpoint, its model card and its chain of manifests to the Hub (or to what HF_ENDPOINT names)."""
    loaded = session.load(push__checkpoint=checkpoint)
    folder = session.open(loaded)
    result = publish(session, folder, loaded.recipe, hub, public)
    files = result["files"]
    lines = [f"  {file['bytes']:>12,}  {file['path']}" for file in files] if session.dry_run else []
    verb = "would publish" if session.dry_run else "published"
    notes = [f"note: {note}" for note in result["notes"]]
    session.screen.show(
        result, *lines, f"{verb} {len(files)} files to {result['url']} ({result['visibility']})", *notes
    )


def publish(session: Session, folder: Run, recipe: Recipe, hub: str, public: bool) -> dict[str, Any]:
    """Plan the upload and, unless this is a dry run, do it."""
    name = recipe.push.checkpoint
    stage = recipe.checkpoints[name].stage if name in recipe.checkpoints else "dpo"
    artifact = folder.require(name, COMMANDS[stage])
    upload = plan_push(folder, artifact, recipe, model_base(recipe))
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    private = recipe.push.private and not public
    files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in upload.files]
    result: dict[str, Any] = {
        "dry_run": session.dry_run,
        "repo": hub,
        "url": f"{endpoint}/{hub}",
        "visibility": "private" if private else "public",
        "files": files,
        "notes": list(upload.notes),
    }
    if session.dry_run:
        return result
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
