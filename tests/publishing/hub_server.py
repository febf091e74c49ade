"""A small Hub on 127.0.0.1 that keeps what is committed, and fails when it is told to.

It speaks what `HfApi` needs for a push of models and data sets (creation, look-up, preupload, LFS batch, upload and
verify, Xet xorbs and shards, commit), and for downloads of what is there.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

import yaml

from tests.publishing.xet_storage import XetStorage

TOKEN = "hf_" + "TestOnlyTokenOfTheLoopbackHub00"
XET_TOKEN = "short-lived"
LARGEST = 64 * 2**20
REPO = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
"""A data set's id has `datasets/` before it here, as in its address."""


@dataclass
class Repo:
    """A repo: its visibility and the files of every commit, newest last."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]]
    large: set[str] = field(default_factory=set)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1][1]

    @property
    def sha(self) -> str:
        """The newest commit."""
        return self.commits[-1][0]


@dataclass
class Failure:
    """What a route answers instead of its own answer, so often; status 0 cuts the connection half-way.

    200 is a page of HTML. A late failure comes after the route has done its work: the answer alone is lost.
    """

    status: int
    times: int
    message: str
    is_late: bool


class Hub:
    """The state behind the server, which tests read and steer."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.failures: dict[str, Failure] = {}
        self.requests: list[str] = []
        self.offers_xet = False
        self.xet = XetStorage()
        self.ignored: set[str] = set()
        self.lock = threading.Lock()

    def fail(
        self,
        route: str,
        status: int,
        times: int = 1000,
        message: str = "as the test asks",
        is_late: bool = False,
    ) -> None:
        """Let a route (create, info, preupload, batch, upload, commit, xet, xorb, shard) fail; 0 cuts the line."""
        self.failures[route] = Failure(status, times, message, is_late)

    def add_repo(self, repo_id: str, private: bool) -> Repo:
        """An empty repo, as the website makes one."""
        self.repos[repo_id] = Repo(private, [(_commit_id(repo_id, {}), {})])
        return self.repos[repo_id]

    def next_failure(self, route: str) -> Failure | None:
        """The failure that the route owes, counted down."""
        with self.lock:
            failure = self.failures.get(route)
            if failure is None or failure.times == 0:
                return None
            failure.times -= 1
            return failure


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 5
    disable_nagle_algorithm = True
    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Look-ups and downloads."""
        if not self._download():
            self._answer("GET")

    def do_HEAD(self) -> None:
        """What a download would bring."""
        if not self._download():
            self._send(404, {"error": "no such page"})

    def _download(self) -> bool:
        """Serve a file of a repo; False where the address is none of one."""
        match = re.fullmatch(f"/{REPO}/resolve/(\\w+)/(.+)", urlsplit(self.path).path)
        if not match:
            return False
        repo = self.hub.repos.get(match[1])
        commit = next((one for one in repo.commits if one[0] == match[2]), repo.commits[-1]) if repo else None
        content = commit[1].get(match[3]) if commit else None
        if content is None or commit is None:
            self._send(404, {"error": "Entry not found"})
            return True
        self.hub.requests.append(f"download {match[3]}" if self.command == "GET" else "head")
        self.send_response(200)
        self.send_header("ETag", f'"{_sha256(content)}"')
        self.send_header("X-Repo-Commit", commit[0])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return True

    def do_POST(self) -> None:
        """Everything that changes something, but for the upload itself."""
        self._answer("POST")

    def do_PUT(self) -> None:
        """An LFS object."""
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = urlsplit(self.path).path
        for verb, pattern, name, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                self.hub.requests.append(name)
                self._serve(name, action, match.groups())
                return
        self._read()
        self._send(404, {"error": "no such page"})

    def _serve(self, name: str, action: "Action", groups: tuple[str, ...]) -> None:
        failure = self.hub.next_failure(name)
        if failure and not failure.is_late:
            self._fail(failure)
            return
        status, answer = self._act(name, action, self._read(), groups)
        if failure:
            self._fail(failure)
        else:
            self._send(status, answer)

    def _act(self, name: str, action: "Action", body: bytes, groups: tuple[str, ...]) -> "Answer":
        is_signed = name == "upload"  # as on S3: the address carries the right
        token = XET_TOKEN if name in ("chunk", "xorb", "shard") else TOKEN
        if not is_signed and self.headers.get("Authorization") != f"Bearer {token}":
            return 401, {"error": "Invalid username or password."}
        return action(self.hub, body, *groups)

    def _fail(self, failure: Failure) -> None:
        if failure.status:
            if not failure.is_late:
                self._read()
            self._send(failure.status, {"error": failure.message})
            return
        if not failure.is_late:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        length = int(self.headers.get("Content-Length") or 0)
        assert length <= LARGEST
        return self.rfile.read(length)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            assert size <= LARGEST
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        is_page = status == 200 and "error" in answer
        content = b"<html>Welcome</html>" if is_page else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if answer.get("error") == "Repository not found":
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(content)


Answer = tuple[int, dict[str, Any]]
Action = Callable[..., Answer]
MISSING: Answer = (404, {"error": "Repository not found"})


def _whoami(hub: Hub, body: bytes) -> Answer:
    return 200, {"name": "tester", "type": "user"}


def _create(hub: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    kind = "datasets/" if asked.get("type") == "dataset" else ""
    repo_id = f"{kind}{asked['organization']}/{asked['name']}"
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        return 409, {"error": "You already created this model repo", "url": url}
    hub.add_repo(repo_id, private=asked.get("visibility") == "private")
    return 200, {"url": url, "name": repo_id}


def _info(hub: Hub, body: bytes, repo_id: str, revision: str | None = None) -> Answer:
    repo = hub.repos.get(repo_id)
    if repo is None:
        return MISSING
    sha, files = next((commit for commit in repo.commits if commit[0] == revision), repo.commits[-1])
    siblings = [_sibling(name, content, name in repo.large) for name, content in files.items()]
    id = repo_id.removeprefix("datasets/")
    return 200, {"id": id, "modelId": id, "sha": sha, "private": repo.private, "siblings": siblings}


def _sibling(name: str, content: bytes, is_large: bool) -> dict[str, Any]:
    lfs = {"sha256": _sha256(content), "size": len(content), "pointerSize": 130} if is_large else None
    return {"rfilename": name, "size": len(content), "blobId": _blob_id(content), "lfs": lfs}


def _validate(hub: Hub, body: bytes) -> Answer:
    match = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
    values = yaml.safe_load(match[1]) if match else None
    if not isinstance(values, dict) or "license" not in values:
        return 400, {"errors": [{"message": "the card has no license"}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


def _preupload(hub: Hub, body: bytes, repo_id: str) -> Answer:
    repo = hub.repos.get(repo_id)
    if repo is None:
        return MISSING
    return 200, {"files": [_mode(hub, repo, file["path"]) for file in json.loads(body)["files"]]}


def _mode(hub: Hub, repo: Repo, path: str) -> dict[str, Any]:
    is_large = path.endswith((".safetensors", ".model"))
    there = repo.files.get(path)
    oid = None if there is None else _sha256(there) if is_large else _blob_id(there)
    return {
        "path": path,
        "uploadMode": "lfs" if is_large else "regular",
        "shouldIgnore": path in hub.ignored,
        "oid": oid,
    }


def _batch(hub: Hub, body: bytes, repo_id: str) -> Answer:
    objects = [_object(hub, wanted) for wanted in json.loads(body)["objects"]]
    return 200, {"transfer": "basic", "objects": objects}


def _object(hub: Hub, wanted: dict[str, Any]) -> dict[str, Any]:
    here = {"oid": wanted["oid"], "size": wanted["size"]}
    if wanted["oid"] in hub.stored:
        return here
    upload = {"href": f"{hub.endpoint}/lfs/{wanted['oid']}?X-Amz-Signature=deadbeefdeadbeef"}
    return {**here, "actions": {"upload": upload, "verify": {"href": f"{hub.endpoint}/verify"}}}


def _upload(hub: Hub, body: bytes, oid: str) -> Answer:
    if _sha256(body) != oid:
        return 400, {"error": "these are other bytes"}
    hub.stored[oid] = body
    return 200, {}


def _verify(hub: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    is_there = len(hub.stored.get(asked["oid"], b"")) == asked["size"]
    return (200, {}) if is_there else (404, {"error": "not uploaded"})


def _commit(hub: Hub, body: bytes, repo_id: str) -> Answer:
    repo = hub.repos.get(repo_id)
    if repo is None:
        return MISSING
    files = dict(repo.files)
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            if value["oid"] not in hub.stored:
                return 400, {"error": f"{value['path']} was not uploaded"}
            files[value["path"]] = hub.stored[value["oid"]]
            repo.large.add(value["path"])
    repo.commits.append((_commit_id(repo_id + repo.sha, files), files))
    return 200, {"commitUrl": f"{hub.endpoint}/{repo_id}/commit/{repo.sha}", "commitOid": repo.sha}


def _xet(hub: Hub, body: bytes, repo_id: str) -> Answer:
    if not hub.offers_xet:
        return 404, {"error": "no such page"}
    return 200, {"casUrl": f"{hub.endpoint}/cas", "accessToken": XET_TOKEN, "exp": 4_000_000_000}


def _known_chunk(hub: Hub, body: bytes, name: str) -> Answer:
    return 404, {"error": "nobody has uploaded this chunk"}


def _xorb(hub: Hub, body: bytes, name: str) -> Answer:
    return 200, {"was_inserted": hub.xet.add_xorb(name, body)}


def _shard(hub: Hub, body: bytes) -> Answer:
    for content in hub.xet.add_shard(body):
        hub.stored[_sha256(content)] = content
    return 200, {"result": 1}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit_id(parent: str, files: dict[str, bytes]) -> str:
    tree = sorted((name, _sha256(content)) for name, content in files.items())
    return hashlib.sha1(repr((parent, tree)).encode()).hexdigest()


ROUTES: list[tuple[str, str, str, Action]] = [
    ("GET", "/api/whoami-v2", "whoami", _whoami),
    ("POST", "/api/repos/create", "create", _create),
    ("POST", "/api/validate-yaml", "validate", _validate),
    ("POST", f"/api/(?:models/)?{REPO}/preupload/main", "preupload", _preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", "batch", _batch),
    ("PUT", "/lfs/([0-9a-f]{64})", "upload", _upload),
    ("POST", "/verify", "verify", _verify),
    ("POST", f"/api/(?:models/)?{REPO}/commit/main", "commit", _commit),
    ("GET", f"/api/(?:models/)?{REPO}/xet-write-token/main", "xet", _xet),
    ("GET", f"/api/(?:models/)?{REPO}/revision/(\\w+)", "info", _info),
    ("GET", f"/api/(?:models/)?{REPO}", "info", _info),
    ("GET", "/cas/v1/chunks/[\\w-]+/([0-9a-f]{64})", "chunk", _known_chunk),
    ("POST", "/cas/v1/xorbs/default/([0-9a-f]{64})", "xorb", _xorb),
    ("POST", "/cas/v1/shards", "shard", _shard),
]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A running Hub on a free port; stopped on the way out."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join(5)
