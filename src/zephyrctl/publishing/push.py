"""Send an upload to the Hub in one commit, which a repeated push completes and never doubles."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from zephyrctl.errors import GateError, UsageError, ZephyrError
from zephyrctl.publishing.hub import (
    HUB,
    WAITS,
    RepoType,
    checked_endpoint,
    checked_token,
    explained,
    open_api,
    retry,
    transfer_for,
)
from zephyrctl.publishing.uploads import WEIGHTS, Upload, UploadFile

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import DatasetInfo, KernelInfo, ModelInfo, RepoSibling, SpaceInfo

    RepoInfo: TypeAlias = ModelInfo | DatasetInfo | SpaceInfo | KernelInfo

REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    commit: str
    files: tuple[str, ...]
    is_private: bool
    is_unchanged: bool
    notes: tuple[str, ...]


def require_checks(upload: Upload, waived: Collection[str]) -> None:
    """Raise GateError if a check failed that is not waived by its name."""
    left = [check for check in upload.failed_checks if check.name not in waived]
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
    """Send an upload to the Hub in one commit, and create the repository if it does not exist.

    Without `token`, that of HF_TOKEN or of `hf auth login` is used. An existing repository keeps its visibility.
    Files that are already there are not sent, and if nothing changed there is no commit. Raises UsageError for a bad
    repo id and ZephyrError for errors of the Hub and the network; no message shows the token. Ctrl-C passes through.
    """
    check_repo_id(repo_id)
    endpoint = checked_endpoint(endpoint)
    with explained(repo_id, endpoint) as secrets:
        token = checked_token(token)
        secrets.append(token)
        for file in upload.files:
            _check_for_token(file, token)
        return _push(open_api(endpoint, token), upload, repo_id, private, waits)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless it is an ORG/NAME that the Hub accepts."""
    if len(repo_id) > 96 or not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"{repo_id!r} is not a repo id", "give it as ORG/NAME, for instance --hub my-org/my-model")


def _check_for_token(file: UploadFile, token: str) -> None:
    if isinstance(file.source, bytes) and token.encode() in file.source:
        raise ZephyrError(f"{file.path} contains the Hub token", "remove it from the recipe, revoke it, and run again")


def _push(api: "HfApi", upload: Upload, repo_id: str, private: bool, waits: Sequence[float]) -> Pushed:
    kind = upload.repo_type
    before = retry(lambda: _look_up(api, repo_id, kind), waits)
    if before is None:
        retry(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True), waits)
    commit = retry(lambda: _commit(api, upload, repo_id), waits)
    after = retry(lambda: api.repo_info(repo_id, repo_type=kind, revision=commit.oid, files_metadata=True), waits)
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


def _look_up(api: "HfApi", repo_id: str, repo_type: RepoType) -> "RepoInfo | None":
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return api.repo_info(repo_id, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _commit(api: "HfApi", upload: Upload, repo_id: str) -> "CommitInfo":
    """One commit of the files that are missing there. Safe to repeat: files that arrived are not sent again."""
    additions = [_addition(file) for file in upload.files]
    with transfer_for(api, repo_id, upload.repo_type):
        message = f"Publish {upload.title}"
        return api.create_commit(repo_id, additions, repo_type=upload.repo_type, commit_message=message)


def _addition(file: UploadFile) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source)


def _notes(
    upload: Upload,
    repo_id: str,
    before: "RepoInfo | None",
    after: "RepoInfo",
    private: bool,
    is_unchanged: bool,
) -> Iterator[str]:
    now = "private" if after.private else "public"
    if before is not None and bool(after.private) != private:
        yield f"{repo_id} already exists and stays {now}; its settings on the Hub change that"
    elif before is not None:
        yield f"{repo_id} already exists and stays {now}"
    elif bool(after.private) != private:
        yield f"{repo_id} was created {now}, as the Hub or its organization decides"
    if is_unchanged:
        yield "every file was already there; no commit was made"
    sent = {file.path for file in upload.files}
    kept = [sibling.rfilename for sibling in _files(after)]
    if stale := [name for name in kept if name.endswith(WEIGHTS) and name not in sent]:
        yield f"{repo_id} also contains weights of another checkpoint: {', '.join(stale)}"


def _files(repo: "RepoInfo") -> "list[RepoSibling]":
    return list(getattr(repo, "siblings", None) or [])


def _check_arrived(upload: Upload, after: "RepoInfo") -> None:
    """Raise ZephyrError if the commit lacks a file, as a .gitignore may cause, or has other content for it."""
    arrived = {sibling.rfilename: sibling for sibling in _files(after)}
    for file in upload.files:
        sibling = arrived.get(file.path)
        size_is_right = sibling is not None and sibling.size in (None, file.bytes)
        hash_is_right = sibling is not None and (sibling.lfs is None or sibling.lfs.sha256 == file.sha256)
        if not (size_is_right and hash_is_right):
            raise ZephyrError(
                f"{file.path} did not arrive on the Hub as it is on this machine",
                "check whether the repository's .gitignore names it, or whether the file is changing; then try again",
            )
