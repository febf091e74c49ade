"""What a command imports before it can answer, and what a shell completes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import ROOT, environment


def imported(*arguments: str) -> set[str]:
    """The full names of every module that a command line imports."""
    command = [sys.executable, "-X", "importtime", "-m", "zephyrctl", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def complete(line: str) -> list[str]:
    """What bash is offered for a line whose last word is not finished."""
    words = line.split(" ")
    asked = {"_ZEPHYRCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-m", "zephyrctl"]
    done = subprocess.run(command, env=environment() | asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_the_help_imports_no_command_and_no_model_of_data() -> None:
    names = imported("--help")
    own = {name for name in names if name.startswith("zephyrctl")}
    assert "zephyrctl.cli.app" in own
    assert own <= {
        "zephyrctl",
        "zephyrctl.cli",
        "zephyrctl.cli.app",
        "zephyrctl.cli.commands",
        "zephyrctl.cli.examples",
        "zephyrctl.errors",
    }
    assert not names & {"pydantic", "yaml", "numpy", "pyarrow", "jinja2", "huggingface_hub", "psutil"}


def test_a_plan_imports_no_stage_no_teacher_and_no_table() -> None:
    names = imported("plan")
    assert "zephyrctl.planning.solver" in names
    assert not names & {"numpy", "pyarrow", "jinja2", "psutil", "asyncio", "huggingface_hub", "zephyrctl.stages"}
    assert not {name for name in names if name.startswith("zephyrctl.evaluation")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("zephyrctl p", ["push", "plan", "plugins"]),
        ("zephyrctl eval mt", ["mt-bench"]),
        ("zephyrctl dpo --be", ["--beta"]),
        ("zephyrctl run --recipe notus", ["notus-7b"]),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.slow
def test_a_shell_completes_checkpoints_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert complete("zephyrctl chat d") == ["dpo"]
    assert complete("zephyrctl run --run m") == ["mine"]


def test_the_shell_gets_a_script(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zephyrctl", "--show-completion", "bash"]
    asked = environment() | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, env=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_ZEPHYRCTL_COMPLETE=complete_bash" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_committed_measurement_keeps_its_bounds() -> None:
    """Help takes at most 1.5 times a bare Typer program, and a plan at most a tenth of `accelerate launch --help`."""
    measured = json.loads((ROOT / "benchmarks" / "startup.json").read_text())
    assert measured["rounds"] >= 5
    assert all(measured["holds"].values())
