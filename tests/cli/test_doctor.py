"""`zephyrctl doctor` on this machine, and on reports of other machines' drivers and torch builds."""

import http.server
import json
import os
import shutil
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import Command, shell
from zephyrctl.doctor import gpus, machine, network, software
from zephyrctl.doctor.finding import Finding
from zephyrctl.doctor.gpus import Driver, TorchReport

ROOT = Path(__file__).parents[2]
H100 = Driver(("NVIDIA H100 80GB HBM3",) * 2, "550.54.15", (12, 4))
SEEN: TorchReport = {
    "version": "2.13.0+cu124",
    "cuda": "12.4",
    "sees_gpu": True,
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0]}] * 2,
    "architectures": ["sm_80", "sm_90"],
    "flash_attention": None,
}
SECRET = "hf_abcdefghijklmnop"


def changed(change: dict[str, Any]) -> TorchReport:
    """SEEN with other values."""
    report: Any = {**SEEN, **change}
    torch: TorchReport = report
    return torch


def states(found: Iterator[Finding]) -> dict[str, str]:
    """The state of each part."""
    return {finding.part: finding.state for finding in found}


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A Hub on this machine that knows one token, with every request that it got."""
    asked: list[tuple[str, str]] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.path, self.headers.get("authorization", "")))
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("authorization", "")))
            known = self.headers.get("authorization") == f"Bearer {SECRET}"
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(b'{"name": "somebody"}' if known else b"{}")

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_tested_versions_are_those_of_the_package_and_its_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    table = software.table()
    stated = [Requirement(line) for line in project["dependencies"]]
    extras = {name: map(Requirement, project["optional-dependencies"][name]) for name in _extras(table)}
    assert table["python"] == project["requires-python"]
    assert table["required"] == {
        each.name: {"range": table["required"][each.name]["range"], "tested": pins[canonicalize_name(each.name)]}
        for each in stated
    }
    assert {each.name: each.specifier for each in stated} == {
        name: Requirement(f"{name}{entry['range']}").specifier for name, entry in table["required"].items()
    }
    assert {(extra, each.name, each.specifier) for extra, some in extras.items() for each in some} == {
        (entry["extra"], name, Requirement(f"{name}{entry['range']}").specifier)
        for name, entry in table["extras"].items()
    }
    for name, entry in table["extras"].items():
        assert entry["tested"] == pins.get(canonicalize_name(name))


def _extras(table: Mapping[str, Any]) -> set[str]:
    return {entry["extra"] for entry in table["extras"].values()}


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({}, "ok", "CUDA 12.4, sees 2 of 2"),
        ({"cuda": None, "version": "2.13.0+cpu"}, "problem", "CPU build"),
        ({"cuda": "13.0"}, "problem", "supports up to 12.4"),
        ({"cuda": "12.8"}, "ok", "CUDA 12.8"),
        ({"sees_gpu": False}, "problem", "sees no GPU"),
        ({"architectures": ["sm_100", "sm_120"]}, "problem", "not built for NVIDIA H100"),
        ({"architectures": ["compute_80"]}, "ok", "sees 2"),
    ],
)
def test_torch_is_held_against_the_driver(change: dict[str, Any], state: str, said: str) -> None:
    found = gpus.build(H100, changed(change))
    assert (found.state, found.part) == (state, "torch")
    assert said in found.what
    assert bool(found.remedy) == (state != "ok")


@pytest.mark.parametrize(
    ("driver", "change", "state", "said"),
    [
        (H100, {}, "ok", "usable"),
        (H100, {"flash_attention": "undefined symbol: _ZN3c10"}, "note", "undefined symbol"),
        (H100, {"gpus": [{"name": "Tesla V100", "capability": [7, 0]}]}, "note", "Tesla V100 is older"),
        (Driver(), {"flash_attention": "not installed"}, "note", "needs a GPU"),
    ],
)
def test_flash_attention_is_usable_or_it_says_why_not(
    driver: Driver, change: dict[str, Any], state: str, said: str
) -> None:
    found = gpus.flash_attention(driver, changed(change))
    assert found.state == state and said in found.what


def test_a_driver_is_read_from_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'if [ -n "$1" ]; then echo "NVIDIA A100-SXM4-80GB, 535.104.05"; exit 0; fi\n'
        'echo "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2     |"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.read_driver(os.environ) == Driver(("NVIDIA A100-SXM4-80GB",), "535.104.05", (12, 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.read_driver(os.environ).gpus == ()
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'; exit 9\n")
    failed = gpus.read_driver(os.environ)
    assert "has failed" in failed.failure
    assert states(gpus.gpus(failed, SEEN))["gpu driver"] == "problem"


def test_torch_that_cannot_be_asked_is_a_problem_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    assert "within" in str(gpus.ask_torch(0.01))
    found = list(gpus.gpus(Driver(), "OSError: libcudart.so.12: cannot open shared object file"))
    (torch,) = (finding for finding in found if finding.part == "torch")
    assert torch.state == "problem" and "libcudart" in torch.what


@pytest.mark.parametrize(
    ("versions", "state", "said"),
    [
        ({"trl": "1.16.0", "torch": "2.13.0+cu128"}, {"libraries": "ok"}, ""),
        ({"trl": "1.17.0"}, {"trl": "problem", "libraries": "ok"}, "pip install 'trl>=1.16,<1.17'"),
        ({"trl": None}, {"trl": "problem", "libraries": "ok"}, "pip install"),
        ({"torch": "2.12.1"}, {"libraries": "note"}, "constraints.txt"),
        ({"deepspeed": None}, {"deepspeed": "note", "libraries": "ok"}, "pip install"),
    ],
)
def test_versions_are_held_against_ranges_and_what_was_tested(
    versions: dict[str, str | None], state: dict[str, str], said: str
) -> None:
    found = list(software.libraries(versions, has_gpu=False))
    assert states(iter(found)) == state
    assert said in found[0].remedy


def test_an_old_python_is_a_problem() -> None:
    assert software.python("3.10.2").state == "problem"
    assert software.python("3.12.1").state == "ok"


@pytest.mark.parametrize(
    ("given", "state"), [(None, "ok"), ("2", "ok"), ("3", "note"), ("many", "note"), ("0", "note")]
)
def test_threads_are_held_against_cores(given: str | None, state: str) -> None:
    assert machine.threads(2, {} if given is None else {"OMP_NUM_THREADS": given}).state == state


def test_disks_and_memory_are_held_against_what_runs_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory(64e9, 1e9).state == "problem"
    assert machine.memory(1e9, 64e9).state == "problem"
    assert machine.memory(64e9, 60e9).state == "ok"
    usage = shutil.disk_usage(tmp_path)
    for free, state in ((5e8, "problem"), (5e10, "note"), (5e11, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=int(free)))
        assert machine.disk(tmp_path / "runs" / "mine").state == state
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64 * 2**20))
    assert machine.shared_memory(tmp_path).state == "note"
    (tmp_path / "runs").write_text("a file")
    assert machine.disk(tmp_path / "runs").state == "problem"
    assert (machine.open_files(256).state, machine.open_files(65536).state) == ("note", "ok")


def test_the_hub_says_whose_a_token_is_and_nobody_sees_it(hub: tuple[str, list[tuple[str, str]]]) -> None:
    url, asked = hub
    found = network.login(url, SECRET, {})
    assert (found.state, found.what) == ("ok", "logged in as 'somebody'")
    assert asked == [("/api/whoami-v2", f"Bearer {SECRET}")]
    refused = network.login(url, "hf_other", {})
    assert refused.state == "note" and "refuses" in refused.what and "hf_other" not in str(refused)
    assert network.login(url, None, {}).state == "note"


def test_offline_is_a_note_and_asks_nobody(hub: tuple[str, list[tuple[str, str]]]) -> None:
    url, asked = hub
    offline = {"HF_HUB_OFFLINE": "1"}
    assert network.the_hub(url, offline).state == "note"
    assert network.login(url, SECRET, offline).state == "ok"
    assert asked == []
    assert network.the_hub(url, {}).state == "ok"
    assert asked == [("/", "")]


def test_an_index_with_a_password_is_reached_without_it(hub: tuple[str, list[tuple[str, str]]]) -> None:
    url, asked = hub
    found = network.package_index(url.replace("//", "//user:hidden@") + "/simple/")
    assert (found.state, found.what) == ("ok", f"{url}/simple/ answers")
    assert asked == [("/simple/", "")]


def test_an_address_that_nobody_listens_on_is_a_note_without_its_password() -> None:
    found = network.package_index("http://user:hidden@127.0.0.1:9/simple/")
    assert found.state == "note" and "cannot be reached" in found.what
    assert "hidden" not in str(found)
    assert network.reach("no address") == "is not a valid address"


@pytest.mark.slow
def test_the_doctor_looks_at_this_machine(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    outcome = shell(["doctor", "--json"], tmp_path, HF_TOKEN=SECRET, HF_ENDPOINT=nowhere, PIP_INDEX_URL=nowhere)
    found = {finding["part"]: finding for finding in outcome.json["findings"]}
    assert outcome.json["problems"] == sum(finding["state"] == "problem" for finding in found.values())
    assert outcome.code == (1 if outcome.json["problems"] else 0)
    assert {"cores", "memory", "disk", "gpu driver", "torch", "flash attention", "python", "hub login"} <= set(found)
    assert found["hub"]["state"] == found["package index"]["state"] == "note"
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "ok")
    assert SECRET not in outcome.out + outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_exit_1_and_shown_with_its_remedy(
    zephyrctl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_ENDPOINT", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("zephyrctl.doctor.examine.ask_torch", lambda: "ImportError: \x1b[31mno torch")
    outcome = zephyrctl("doctor")
    assert outcome.code == 1
    assert "PROBLEM" in outcome.out and "\x1b[31m" not in outcome.out
    lines = outcome.out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if "no torch" in line)
    assert lines[place + 1].strip().startswith("try: pip install")
    assert json.loads(zephyrctl("doctor", "--json").out)["problems"] == 1
