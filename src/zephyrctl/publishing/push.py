"""How an upload gets to the Hub: one commit, made once, whatever fails on the way."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zephyrctl.errors import GateError, UsageError, ZephyrError
from zephyrctl.publishing.hub import (
    HUB,
    WAITS,
    RepoType,
    checked_endpoint,
    checked_token,
    explained,
    open_api,
    repeated,
    transfer_for,
)
from zephyrctl.publishing.uploads import WEIGHTS, Upload, UploadFile

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """Where a push ended up."""

    url: str
    commit: str
    files: tuple[str, ...]
    is_private: bool
    is_unchanged: bool
    notes: tuple[str, ...]


def refuse(upload: Upload, waived: Collection[str]) -> None:
    """Raise GateError where something speaks against publishing that was not waived by its name."""
    left = [one for one in upload.objections if one.name not in waived]
    if left:
        more = f" (and {len(left) - 1} more: --dry-run lists all)" if len(left) > 1 else ""
        raise GateError(f"{left[0].problem}{more}", f"{left[0].remedy}; or --waive {left[0].name}")


def push(
    upload: Upload,
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    endpoint: str = HUB,
    waits: Sequence[float] = WAITS,
) -> Pushed:
    """Send an upload to the Hub in one commit, creating the repo where there is none.

    Without a token it is HF_TOKEN's or the logged-in one. A repo that exists keeps its visibility. What is
    there already is not sent, and where nothing changed there is no commit. Raises UsageError for a bad repo
    id and ZephyrError for what the Hub or the way to it refuses; no message shows the token. Ctrl-C passes.
    """
    check_repo_id(repo_id)
    endpoint = checked_endpoint(endpoint)
    with explained(repo_id, endpoint) as secrets:
        token = checked_token(token)
        secrets.append(token)
        for file in upload.files:
            _refuse_token(file, token)
        return _push(open_api(endpoint, token), upload, repo_id, private, waits)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless it is an ORG/NAME that the Hub accepts."""
    if len(repo_id) > 96 or not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"{repo_id!r} is no repo id", "give it as ORG/NAME, for instance --hub my-org/my-model")


def _refuse_token(file: UploadFile, token: str) -> None:
    if isinstance(file.source, bytes) and token.encode() in file.source:
        raise ZephyrError(f"{file.path} holds the Hub token", "take it out of the recipe, revoke it, and run again")


def _push(api: "HfApi", upload: Upload, repo_id: str, private: bool, waits: Sequence[float]) -> Pushed:
    kind = upload.repo_type
    before = repeated(lambda: _look_up(api, repo_id, kind), waits)
    if before is None:
        repeated(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True), waits)
    commit = repeated(lambda: _commit(api, upload, repo_id), waits)
    after = repeated(lambda: api.repo_info(repo_id, repo_type=kind, revision=commit.oid, files_metadata=True), waits)
    _check_arrived(upload, after)
    is_private = bool(after.private)
    is_unchanged = before is not None and before.sha == commit.oid
    return Pushed(
        url=f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}",
        commit=commit.oid,
        files=tuple(file.path for file in upload.files),
        is_private=is_private,
        is_unchanged=is_unchanged,
        notes=tuple(_notes(upload, repo_id, before, after, private, is_unchanged)),
    )


def _look_up(api: "HfApi", repo_id: str, repo_type: RepoType) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return api.repo_info(repo_id, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _commit(api: "HfApi", upload: Upload, repo_id: str) -> "CommitInfo":
    """One commit with what is not there yet; safe to repeat, since what has arrived is not sent again."""
    additions = [_addition(file) for file in upload.files]
    with transfer_for(api, repo_id, upload.repo_type):
        said = f"Publish {upload.title}"
        return api.create_commit(repo_id, additions, repo_type=upload.repo_type, commit_message=said)


def _addition(file: UploadFile) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source)


def _notes(
    upload: Upload,
    repo_id: str,
    before: Any,
    after: Any,
    private: bool,
    is_unchanged: bool,
) -> Iterator[str]:
    now = "private" if after.private else "public"
    if before is not None and bool(after.private) != private:
        yield f"{repo_id} was there already and stays {now}; its settings on the Hub change that"
    elif before is not None:
        yield f"{repo_id} was there already and stays {now}"
    elif bool(after.private) != private:
        yield f"{repo_id} was made {now}, as the Hub or its organization decides"
    if is_unchanged:
        yield "every file was there already; no commit was made"
    sent = {file.path for file in upload.files}
    kept = [sibling.rfilename for sibling in after.siblings or []]
    if stale := [name for name in kept if name.endswith(WEIGHTS) and name not in sent]:
        yield f"{repo_id} also holds weights that are not of this checkpoint: {', '.join(stale)}"


def _check_arrived(upload: Upload, after: Any) -> None:
    """Raise ZephyrError where the commit lacks a file, as a repo's .gitignore may cause, or holds another."""
    there = {sibling.rfilename: sibling for sibling in after.siblings or []}
    for file in upload.files:
        sibling = there.get(file.path)
        size_is_right = sibling is not None and sibling.size in (None, file.bytes)
        hash_is_right = sibling is not None and (sibling.lfs is None or sibling.lfs.sha256 == file.sha256)
        if not (size_is_right and hash_is_right):
            raise ZephyrError(
                f"{file.path} did not arrive on the Hub as it is here",
                "see whether the repo's .gitignore names it or the file is changing, then try again",
            )
