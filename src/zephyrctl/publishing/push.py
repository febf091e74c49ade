"""What a push sends and how it gets there: a checkpoint, its manifests and its card, in one commit."""

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import yaml

from zephyrctl import __version__, token_contract
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.publishing.card import render_card
from zephyrctl.recipe import Recipe
from zephyrctl.runs import Artifact, Run, hash_file

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelInfo

MODEL = "model/"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
WEIGHTS = (".safetensors", ".safetensors.index.json", *PICKLED)
WAITS = (1.0, 4.0, 15.0)
"""Seconds between attempts where the Hub fails with 5xx and huggingface_hub does not try again by itself."""

REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", re.ASCII)
SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)
SECRET_KEY = re.compile(r"(api_?key|password|secret|(access|auth|hf|bearer)_token)$", re.IGNORECASE)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class UploadFile:
    """One file that goes to the Hub: where to, from which file or which bytes, and what it weighs."""

    path: str
    source: Path | bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Upload:
    """Everything that a push would send, and what its reader should know."""

    title: str
    files: tuple[UploadFile, ...]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    def rows(self) -> list[dict[str, Any]]:
        """The files as JSON holds them: path, bytes, sha256 and local source (None where rendered)."""
        return [{**vars(file), "source": _origin(file)} for file in self.files]


@dataclass(frozen=True)
class Pushed:
    """Where a push ended up."""

    url: str
    commit: str
    files: tuple[str, ...]
    is_private: bool
    is_unchanged: bool
    notes: tuple[str, ...]


def plan_push(run: Run, checkpoint: Artifact, recipe: Recipe, base: ModelBase) -> Upload:
    """Everything that publishing the checkpoint would send; reads and hashes its files, reaches no network.

    Raises ZephyrError for pickled weights, for a checkpoint without safetensors, for files that are not
    those of its manifest any more, and for a secret in what would be published.
    """
    weights, strays = _model_files(run, checkpoint)
    chain, left = chain_behind(run, checkpoint)
    evaluations, outdated = _evaluations(run, checkpoint)
    texts = {_manifest_path(part): _text(part.path / "manifest.json") for part in [*chain, *evaluations]}
    texts["zephyrctl/recipe.yaml"] = _recipe_text(recipe)
    template = _text(checkpoint.path / MODEL / "chat_template.jinja") or base.chat_template()
    _check_contract(checkpoint, template)
    texts["README.md"] = render_card(
        recipe.name,
        [part.manifest for part in chain],
        [part.manifest for part in evaluations],
        base,
        template,
        _end_of_turn(checkpoint.path / MODEL / "tokenizer_config.json"),
    )
    for name, text in texts.items():
        _refuse_secrets(name, text)
    rendered = [_rendered(name, text) for name, text in texts.items()]
    files = tuple(sorted([*weights, *rendered], key=lambda file: file.path))
    return Upload(f"{recipe.name}-{checkpoint.manifest.plan.name}", files, (*strays, *left, *outdated))


def _check_contract(checkpoint: Artifact, template: str) -> None:
    """Raise ZephyrError where the template that would be published is not the one that the model was trained with."""
    contract = token_contract.read(checkpoint.path / MODEL)
    if contract is None:
        return
    said = checkpoint.manifest.metrics.get("token_contract")
    if said != contract.fingerprint or not contract.renders(template):
        raise ZephyrError(
            f"the template and tokens in {checkpoint.path / MODEL} are not those that the model was trained with",
            f"train it again: zephyrctl {checkpoint.manifest.plan.stage} --fresh",
        )


def push(
    upload: Upload,
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    endpoint: str = "https://huggingface.co",
    waits: Sequence[float] = WAITS,
) -> Pushed:
    """Send an upload to the Hub in one commit, creating the repo where there is none.

    Without a token it is HF_TOKEN's or the logged-in one. A repo that exists keeps its visibility. What is
    there already is not sent, and where nothing changed there is no commit. Raises UsageError for a bad repo
    id and ZephyrError for what the Hub or the way to it refuses; no message shows the token. Ctrl-C passes.
    """
    check_repo_id(repo_id)
    endpoint = _checked_endpoint(endpoint)
    with _explained(repo_id, endpoint) as secrets:
        token = _checked_token(token)
        secrets.append(token)
        for file in upload.files:
            _refuse_token(file, token)
        return _push(_api(endpoint, token), upload, repo_id, private, waits)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless it is an ORG/NAME that the Hub accepts."""
    if len(repo_id) > 96 or not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"{repo_id!r} is no repo id", "give it as ORG/NAME, for instance --hub my-org/my-model")


def chain_behind(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The artifacts behind the checkpoint, earliest first and itself last, and why any is left out."""
    chain: dict[str, Artifact] = {}
    notes: list[str] = []

    def visit(artifact: Artifact) -> None:
        manifest = artifact.manifest
        for name, place in manifest.input_paths.items():
            source = run.artifact(place) if re.fullmatch(r"[\w-][\w.-]*", place) else None
            if source is None or place in chain:
                continue
            if source.content_hash == manifest.plan.inputs.get(name):
                visit(source)
            else:
                again = f"{place!r} was made again after {manifest.plan.name!r} had read it"
                notes.append(f"{again}; its manifest is left out")
        chain[manifest.plan.name] = artifact

    visit(checkpoint)
    return list(chain.values()), list(dict.fromkeys(notes))


def _model_files(run: Run, checkpoint: Artifact) -> tuple[list[UploadFile], list[str]]:
    """The files that the manifest lists under `model/`, checked against it, and notes on the others."""
    folder = checkpoint.path / MODEL
    entries = checkpoint.manifest.files.items()
    listed = {name.removeprefix(MODEL): entry for name, entry in entries if name.startswith(MODEL)}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    again = f"{_command(checkpoint)} --fresh --run {run.path}"
    if pickled := sorted(name for name in {*listed, *found} if name.lower().endswith(PICKLED)):
        raise ZephyrError(
            f"{folder / pickled[0]} is a pickle, which runs code when it is loaded; none is published",
            "remove it, or save the model as safetensors",
        )
    if not any(name.endswith(".safetensors") for name in listed):
        raise ZephyrError(f"{checkpoint.path} holds no safetensors weights to publish", again)
    files = []
    for name, entry in listed.items():
        path = folder / name
        if name not in found or path.stat().st_size != entry.bytes or hash_file(path) != entry.sha256:
            raise ZephyrError(f"{path} is not the file that its manifest describes", again)
        files.append(UploadFile(name, path, entry.bytes, entry.sha256))
    strays = [f"{folder / name} is not in the manifest and stays here" for name in sorted(found - set(listed))]
    return [file for file in files if file.path != "README.md"], strays


def _evaluations(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The evaluations of this very checkpoint, and notes on those of an earlier one of its name."""
    name = checkpoint.manifest.plan.name
    of_it, notes = [], []
    for artifact in run.artifacts():
        manifest = artifact.manifest
        if manifest.plan.stage != "eval":
            continue
        if checkpoint.content_hash in manifest.plan.inputs.values():
            of_it.append(artifact)
        elif name in manifest.input_paths.values():
            notes.append(f"{manifest.plan.name!r} judged an earlier {name!r}; its scores are left out")
    return of_it, notes


def _command(checkpoint: Artifact) -> str:
    plan = checkpoint.manifest.plan
    return f"zephyrctl {plan.stage}" if plan.stage == plan.name else "zephyrctl run"


def _manifest_path(artifact: Artifact) -> str:
    return f"zephyrctl/{artifact.manifest.plan.name}/manifest.json"


def _recipe_text(recipe: Recipe) -> str:
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# The recipe as it stood at publication; what a step really used is in its manifest.\n{text}"


def _rendered(path: str, text: str) -> UploadFile:
    content = text.encode()
    return UploadFile(path, content, len(content), hashlib.sha256(content).hexdigest())


def _origin(file: UploadFile) -> str | None:
    return str(file.source) if isinstance(file.source, Path) else None


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _end_of_turn(tokenizer_config: Path) -> str | None:
    """The end token's text, which tokenizers store bare or in an object."""
    token = json.loads(_text(tokenizer_config) or "{}").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _refuse_secrets(name: str, text: str) -> None:
    """Raise ZephyrError, which names the place and not the value, where a published text holds a key."""
    if SECRET.search(text):
        raise ZephyrError(f"{name} holds what looks like a key or a password", _TAKE_OUT)
    if name == "README.md":
        return
    for key, value in _leaves(json.loads(text) if name.endswith(".json") else yaml.safe_load(text)):
        if SECRET_KEY.search(key) and isinstance(value, str) and value and not value.startswith("$"):
            raise ZephyrError(f"{name} has a value under {key!r}", "name an environment variable there, and run again")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value


def _refuse_token(file: UploadFile, token: str) -> None:
    if isinstance(file.source, bytes) and token.encode() in file.source:
        raise ZephyrError(f"{file.path} holds the Hub token", _TAKE_OUT)


def _checked_endpoint(endpoint: str) -> str:
    """An http(s) address without a name and password, which would be sent in the token's stead."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
            return endpoint.rstrip("/")
    shown = endpoint.rpartition("@")[2]
    raise ZephyrError(f"{shown!r} is no address of a Hub", "set HF_ENDPOINT to an https:// address, or unset it")


def _checked_token(token: str | None) -> str:
    """A token that fits in a header; a bad one would be quoted in the HTTP library's error."""
    from huggingface_hub import get_token

    found = (token or get_token() or "").strip()
    if not found:
        raise ZephyrError("there is no Hub token", _LOG_IN)
    if not re.fullmatch(r"[!-~]+", found):
        raise ZephyrError("the Hub token has blanks or signs that no token has", _LOG_IN)
    return found


def _api(endpoint: str, token: str) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="zephyrctl", library_version=__version__)


def _push(api: "HfApi", upload: Upload, repo_id: str, private: bool, waits: Sequence[float]) -> Pushed:
    before = _repeated(lambda: _look_up(api, repo_id), waits)
    if before is None:
        _repeated(lambda: api.create_repo(repo_id, private=private, exist_ok=True), waits)
    commit = _repeated(lambda: _commit(api, upload, repo_id), waits)
    after = _repeated(lambda: api.model_info(repo_id, revision=commit.oid, files_metadata=True), waits)
    _check_arrived(upload, after)
    is_private = bool(after.private)
    is_unchanged = before is not None and before.sha == commit.oid
    return Pushed(
        url=f"{api.endpoint}/{repo_id}",
        commit=commit.oid,
        files=tuple(file.path for file in upload.files),
        is_private=is_private,
        is_unchanged=is_unchanged,
        notes=tuple(_notes(upload, repo_id, before, after, private, is_unchanged)),
    )


def _look_up(api: "HfApi", repo_id: str) -> "ModelInfo | None":
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return api.model_info(repo_id)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _commit(api: "HfApi", upload: Upload, repo_id: str) -> "CommitInfo":
    """One commit with what is not there yet; safe to repeat, since what has arrived is not sent again."""
    additions = [_addition(file) for file in upload.files]
    with _transfer_for(api, repo_id):
        return api.create_commit(repo_id, additions, commit_message=f"Publish {upload.title}")


def _addition(file: UploadFile) -> "CommitOperationAdd":
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.source)


def _notes(
    upload: Upload,
    repo_id: str,
    before: "ModelInfo | None",
    after: "ModelInfo",
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


def _check_arrived(upload: Upload, after: "ModelInfo") -> None:
    """Raise ZephyrError where the commit lacks a file, as a repo's .gitignore may cause, or holds another."""
    there = {sibling.rfilename: sibling for sibling in after.siblings or []}
    for file in upload.files:
        sibling = there.get(file.path)
        size_is_right = sibling is not None and sibling.size in (None, file.bytes)
        hash_is_right = sibling is not None and (sibling.lfs is None or sibling.lfs.sha256 == file.sha256)
        if not (size_is_right and hash_is_right):
            raise ZephyrError(
                f"{file.path} did not arrive on the Hub as it is here",
                "see whether the repo's .gitignore names it or the file is changing, then push again",
            )


@contextlib.contextmanager
def _transfer_for(api: "HfApi", repo_id: str) -> Iterator[None]:
    """Xet where the server offers it, else LFS over plain HTTP.

    huggingface_hub 2.4 asks no server: with hf_xet installed every large file takes Xet, which a server
    without it cannot follow. So the server is asked for a Xet token, and where it has none Xet is turned off.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or _offers_xet(api, repo_id):
        yield
        return
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = False


def _offers_xet(api: "HfApi", repo_id: str) -> bool:
    from huggingface_hub import get_session, hf_raise_for_status

    url = f"{api.endpoint}/api/models/{repo_id}/xet-write-token/main"
    response = get_session().get(url, headers={"authorization": f"Bearer {api.token}"})
    if response.status_code in (401, 403) or response.status_code >= 500:
        hf_raise_for_status(response)
    return response.status_code == 200 and "casUrl" in response.text


def _repeated(call: Callable[[], Answer], waits: Sequence[float]) -> Answer:
    """The call's answer, after further attempts where the Hub or the way to it failed for a moment."""
    import httpx2

    for wait in waits:
        try:
            return call()
        except httpx2.HTTPError as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return call()


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help; huggingface_hub has repeated the uploads' own requests already."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        path = error.response.request.url.path
        return error.response.status_code >= 500 and "/preupload/" not in path and "/info/lfs/" not in path
    return isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)


_TAKE_OUT = "take it out of the recipe, revoke it, and run again"
_AGAIN = "push again; what arrived is not sent twice"
_LOG_IN = "log in: hf auth login, or set HF_TOKEN"
_REMEDIES = {
    401: ("does not accept the token", _LOG_IN),
    402: (
        "asks for payment before it takes this",
        "see the billing page of the account, or push without --public",
    ),
    403: (
        "refuses: the token may not write to {repo}",
        "use a token with write access to {org}, or push to another --hub",
    ),
    404: (
        "does not know {repo}, or hides it from this token",
        "check --hub, that {org} exists, and HF_ENDPOINT",
    ),
    409: ("is at work on {repo} for somebody else", "wait a moment and push again"),
    412: ("is at work on {repo} for somebody else", "wait a moment and push again"),
    413: ("says that this is too large", "see the storage limits of the account"),
    429: ("has had too many requests", "wait some minutes and push again; what arrived is not sent twice"),
}


@contextlib.contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[list[str]]:
    """The Hub's and the network's failures as ZephyrErrors; secrets put in the list are never shown."""
    import httpx2

    secrets: list[str] = []
    try:
        with _discreet(secrets):
            yield secrets
    except ZephyrError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explanation(error, repo_id, endpoint, secrets) from None


def _explanation(error: BaseException, repo_id: str, endpoint: str, secrets: list[str]) -> ZephyrError:
    """The error that a user can act on; the first of its causes that came over HTTP says most."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = urlsplit(endpoint).netloc
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, repo_id, hub, secrets)
        if isinstance(cause, OfflineModeIsEnabled):
            return ZephyrError("the Hub is switched off here", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
        if isinstance(cause, httpx2.ConnectError):
            return ZephyrError(f"no connection to {hub}", "check the network and HF_ENDPOINT, then push again")
        if isinstance(cause, httpx2.HTTPError):
            return ZephyrError(f"the connection to {hub} was cut", _AGAIN)
        if isinstance(cause, json.JSONDecodeError):
            return ZephyrError(f"{hub} does not answer as a Hub does", "check HF_ENDPOINT")
    said = _discreetly(" ".join(str(error).split())[:300], secrets)
    return ZephyrError(f"the upload to {hub} failed: {said or type(error).__name__}", _AGAIN)


def _refusal(error: Any, repo_id: str, hub: str, secrets: list[str]) -> ZephyrError:
    status = error.response.status_code
    if status >= 500:
        problem, remedy = f"fails with {status}, again and again", "push again later"
    else:
        problem, remedy = _REMEDIES.get(status, (f"refuses with {status}", "see what it says, then push again"))
    names = {"repo": repo_id, "org": repo_id.partition("/")[0]}
    said = _discreetly(" ".join((error.server_message or "").split())[:300], secrets)
    return ZephyrError(f"{hub} {problem.format(**names)}" + (f" ({said})" if said else ""), remedy.format(**names))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _discreet(secrets: list[str]) -> Iterator[None]:
    """Keep tokens and the signatures of upload addresses out of what huggingface_hub logs."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _discreetly(record.getMessage(), secrets), None
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _discreetly(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return SECRET.sub("***", re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", text))
