"""`zephyrctl verify`: hash a published model again, and say what of it nobody could make again."""

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
from zephyrctl.publishing.verify import Verdict, as_json, in_folder
from zephyrctl.publishing.verify import verify as verify_place


def verify(
    place: Annotated[
        str, typer.Argument(metavar="REPO|DIR", help="A published model: ORG/NAME, or a folder; or a run's.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Its revision on the Hub; else the newest.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Hash every file of a published model again, compare it with its manifests, and say what cannot be reproduced.

    Exit 3 where a file is not what its manifest says.
    """
    verdict = verify_place(in_folder(Path(place))) if Path(place).is_dir() else _of_repo(place, revision)
    screen = Screen(json, quiet=False)
    screen.show(as_json(verdict), *_lines(verdict))
    if not verdict.is_whole:
        more = f" (and {len(verdict.problems) - 1} more)" if len(verdict.problems) > 1 else ""
        raise GateError(f"{verdict.place}: {verdict.problems[0]}{more}", "do not use it before you know why")


def _of_repo(repo_id: str, revision: str | None) -> Verdict:
    if repo_id.startswith((".", "/", "~")) or repo_id.count("/") != 1:
        raise ZephyrError(f"there is no folder {repo_id}", "give a folder, or a repository on the Hub: ORG/NAME")
    check_repo_id(repo_id)
    from huggingface_hub import get_token

    endpoint = checked_endpoint(os.environ.get("HF_ENDPOINT", HUB))
    with tempfile.TemporaryDirectory() as cache, explained(repo_id, endpoint) as secrets:
        token = get_token()
        secrets += [token] if token else []
        return verify_place(HubRepo(repo_id, endpoint, token, revision, Path(cache)))


def _lines(verdict: Verdict) -> Iterator[Text | str]:
    yield f"{verdict.place}: {verdict.checkpoint}, made by {' > '.join(verdict.chain)}"
    for problem in verdict.problems:
        yield Text(f"wrong: {problem}", "red")
    for reason in verdict.unrepeatable:
        yield Text(f"cannot be repeated: {reason}", "yellow")
    if verdict.is_whole:
        yield Text(f"{verdict.checked} files are what their manifest says", "green")
