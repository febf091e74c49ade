"""What all tests share: golden files, the command as a person runs it, and small real runs."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from zephyrctl.cli.app import main
from zephyrctl.launching.processes import gpus, worker_environment
from zephyrctl.launching.warm_workers import SOCKET, WarmProcess

REAL = Path(__file__).parents[2] / "shared" / "data"
"""Real files beside the checkout; tests that read them skip where they are absent."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Two threads a process, and several processes on two cores: each waits for the other, many times as long."""

for _name in ("NO_PROXY", "no_proxy"):
    # Servers of the tests listen on loopback, which a proxy for the package index does not know.
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost")))


ALLOWED_SKIPS = (
    "no real files at",  # ../shared/data is no part of the repository
    "the paper's text does not lie beside the data",
    "no right to ",  # containers may forbid mounts and network namespaces, whatever is installed
    "this machine has no IPv6",
    "root may write everywhere",
    "this is no git checkout",
)
"""Beginnings of the reasons for which a test outside tests/gpu may be skipped under ZEPHYRCTL_NO_SKIPS=1."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ZEPHYRCTL_NO_SKIPS=1, fail a test that is skipped because a tool is missing."""
    report = yield
    if os.environ.get("ZEPHYRCTL_NO_SKIPS") == "1" and report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        is_gpu = (Path(__file__).parent / "gpu") in item.path.parents
        if not is_gpu and not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} must not be skipped here: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that two processes end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


warm: list[WarmProcess] = []
"""The warm process of this pytest process, if it has run a slow test."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests start their workers from one warm process, also those of commands in processes of their own."""
    if warm or not item.get_closest_marker("slow") or gpus() or sys.platform != "linux":
        return
    process = WarmProcess(["prepare", "sft", "dpo", "generate"], worker_environment())
    warm.append(process)
    while not process.path.exists() and process.is_running():
        time.sleep(0.01)
    os.environ[SOCKET] = str(process.path)


def pytest_sessionfinish() -> None:
    """End the warm process."""
    for process in warm:
        process.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes golden files instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the golden file of that name, or write it under `--update-golden`."""
    folder = Path(__file__).parent / "golden"

    def check(name: str, text: str) -> None:
        path = folder / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {path}: run `make golden`"
        assert text == path.read_text(), f"{name} changed: run `make golden` and read the diff"

    return check


@pytest.fixture
def real_data() -> Path:
    """The folder of real files."""
    if not REAL.is_dir():
        pytest.skip(f"no real files at {REAL.name}")
    return REAL


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a file system of a size, in mount's words ("64k"); skips where this machine gives no right to."""
    with contextlib.ExitStack() as mounted:

        def make(size: str) -> Path:
            disk = tmp_path / "disk"
            disk.mkdir()
            try:
                command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
                is_refused = subprocess.run(command, capture_output=True, check=False).returncode
            except OSError:
                is_refused = 1
            if is_refused:
                pytest.skip("no right to mount a small file system")
            mounted.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
            return disk

        yield make


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON object that it must be."""
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def zephyrctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in an empty folder, through `main`, so that errors print as they do for people."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on this machine starts others, whatever is installed here."""
    monkeypatch.setattr("zephyrctl.launching.slurm.is_available", lambda environment: False)


def shell(arguments: Sequence[str | Path], folder: Path, timeout: float = 300, **environment: str) -> Outcome:
    """Run a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "zephyrctl", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


SMALL = """\
extends: tiny
name: small
build: {source: {dialogues: 160, prompts: 120}}
sft: {max_steps: 4, log_every: 1}
dpo: {max_steps: 3, log_every: 1}
eval: {prompts: 12, max_new_tokens: 16}
"""
"""The recipe `tiny` cut down to seconds: every stage is real, and no score means anything."""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `zephyrctl.yaml` and a whole finished run of it; read it, copy it, do not change it.

    Processes of one pytest make it once: the folder above theirs is the session's.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small run"
    with FileLock(f"{folder}.lock"):
        if not (folder / "outcome.json").is_file():
            folder.mkdir()
            (folder / "zephyrctl.yaml").write_text(SMALL)
            outcome = shell(["run", "--json"], folder)
            assert outcome.code == 0, outcome.err
            (folder / "outcome.json").write_text(outcome.out)
    return folder
