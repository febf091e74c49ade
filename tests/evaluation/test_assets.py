"""Whether what a benchmark asks comes from where it is pinned, whole and unchanged, or not at all."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Command
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation import assets
from zephyrctl.evaluation.assets import Assets, Pinned, Protocol, fetch, protocols

CONTENT = b'{"question_id": 1}\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ZEPHYRCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Pinned:
    """One published file of a benchmark of our own."""
    file = Pinned(
        url="https://example.invalid/org/repo/commit/q.jsonl",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        names=["q.jsonl", "other/q.jsonl"],
    )
    protocol = Protocol(source="s", licence="l", files={"questions": file}, questions=1, judge={}, judges=[])
    monkeypatch.setattr(assets, "protocols", lambda: {"ours-bench": protocol})
    return file


@contextmanager
def mirror(files: dict[str, bytes], status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that has these files by their path, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        """Serves the files."""

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """One file."""
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(status if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_every_published_file_is_pinned_to_a_commit_and_a_hash() -> None:
    files = [file for protocol in protocols().values() for file in protocol.files.values()]
    assert len(files) >= 6
    for file in files:
        assert len(file.sha256) == 64 and int(file.sha256, 16)
        commit = urlsplit(file.url).path.split("/")[3]
        assert len(commit) == 40 and int(commit, 16), "a branch moves, and a commit does not"


def test_a_file_is_fetched_once_and_then_found(cache: Path, pinned: Pinned) -> None:
    with mirror({"/org/repo/commit/q.jsonl": CONTENT}) as (url, asked):
        (first,) = fetch(["ours-bench"], url)
        (again,) = fetch(["ours-bench"], url)
    assert asked == ["/org/repo/commit/q.jsonl"]
    assert first == again and first.is_published
    assert Assets("ours-bench").get("questions").path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "problem"), [(b"another text", "is not the pinned file"), (CONTENT[:5], "is not the pinned file")]
)
def test_what_is_not_the_pinned_file_is_refused_and_not_kept(
    cache: Path, pinned: Pinned, content: bytes, problem: str
) -> None:
    with mirror({"/org/repo/commit/q.jsonl": content}) as (url, _), pytest.raises(ZephyrError, match=problem):
        fetch(["ours-bench"], url)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_server_that_has_it_not_and_one_that_is_not_there_are_told_apart(cache: Path, pinned: Pinned) -> None:
    with mirror({}) as (url, _), pytest.raises(ZephyrError, match="404"):
        fetch(["ours-bench"], url)
    with pytest.raises(ZephyrError, match="cannot be reached") as raised:
        fetch(["ours-bench"], "http://127.0.0.1:9")
    assert "--assets" in raised.value.remedy
    with pytest.raises(ZephyrError, match="is not an address"):
        fetch(["ours-bench"], "file:///etc")


def test_a_cached_file_that_was_changed_is_not_used(cache: Path, pinned: Pinned) -> None:
    with mirror({"/org/repo/commit/q.jsonl": CONTENT}) as (url, _):
        (found,) = fetch(["ours-bench"], url)
        found.path.write_bytes(b"changed")
        with pytest.raises(ZephyrError, match="has changed since it was fetched"):
            Assets("ours-bench").get("questions")
        fetch(["ours-bench"], url)
    assert Assets("ours-bench").get("questions").is_published


def test_a_folder_of_ones_own_may_hold_other_texts_and_says_so(tmp_path: Path, pinned: Pinned) -> None:
    (tmp_path / "ours_bench" / "other").mkdir(parents=True)
    path = tmp_path / "ours_bench" / "other" / "q.jsonl"
    path.write_bytes(CONTENT)
    assert Assets("ours-bench", tmp_path).get("questions").is_published
    path.write_bytes(b"mine")
    assert not Assets("ours-bench", tmp_path).get("questions").is_published


def test_nothing_fetched_names_the_command_that_fetches(cache: Path, pinned: Pinned) -> None:
    with pytest.raises(ZephyrError, match="not on this machine") as raised:
        Assets("ours-bench").path("questions")
    assert "zephyrctl eval fetch ours-bench" in raised.value.remedy


def test_fetch_says_what_it_would_do_and_knows_its_benchmarks(zephyrctl: Command, cache: Path) -> None:
    told = zephyrctl("eval", "fetch", "--dry-run", "--json")
    assert {row["benchmark"] for row in told.json["dry_run"]} == set(protocols())
    assert not cache.exists()
    typo = zephyrctl("eval", "fetch", "mt-bnech")
    assert typo.code == 2 and "did you mean 'mt-bench'?" in typo.err
    gone = zephyrctl("eval", "fetch", "mt-bench", "--mirror", "http://127.0.0.1:9")
    assert gone.code == 1 and "cannot be reached" in gone.err
