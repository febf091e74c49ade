"""`zephyrctl verify`: compare the files of a published model with its manifests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from zephyrctl.cli.screen import Screen
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.publishing.hub import HUB, HubRepo, checked_endpoint, explained
from zephyrctl.publishing.push import check_repo_id
from zephyrctl.publishing.verify import Verification, as_json, open_folder
from zephyrctl.publishing.verify import verify as verify_model


def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="REPO|DIR", help="A published model (ORG/NAME or a folder), or a checkpoint of a run."),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Revision on the Hub. Default: the newest.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hash every file of a published model, compare it with the manifests, and list what cannot be reproduced.

    Exits with 3 if a file is not what its manifest says.
    """
    verification = verify_model(open_folder(Path(model))) if Path(model).is_dir() else _verify_repo(model, revision)
    screen = Screen(json, quiet=False)
    screen.show(as_json(verification), *_lines(verification))
    if not verification.is_whole:
        problems = verification.problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GateError(f"{verification.place}: {problems[0]}{more}", "do not use the model until you know why")


def _verify_repo(repo_id: str, revision: str | None) -> Verification:
    if repo_id.startswith((".", "/", "~")) or repo_id.count("/") != 1:
        raise ZephyrError(f"there is no folder {repo_id}", "give a folder, or a repository on the Hub: ORG/NAME")
    check_repo_id(repo_id)
    from huggingface_hub import get_token

    endpoint = checked_endpoint(os.environ.get("HF_ENDPOINT", HUB))
    with tempfile.TemporaryDirectory() as cache, explained(repo_id, endpoint) as secrets:
        token = get_token()
        secrets += [token] if token else []
        return verify_model(HubRepo(repo_id, endpoint, token, revision, Path(cache)))


def _lines(verification: Verification) -> Iterator[Text | str]:
    yield f"{verification.place}: {verification.checkpoint}, made by {' > '.join(verification.chain)}"
    for problem in verification.problems:
        yield Text(f"wrong: {problem}", "red")
    for reason in verification.unrepeatable:
        yield Text(f"cannot be reproduced: {reason}", "yellow")
    if verification.is_whole:
        yield Text(f"{verification.checked} files match their manifest", "green")
