"""Whether the example plugin installs as a package, is found by its entry point, and works in a real command."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import shell
from tests.plugins.packages import python_path

SOURCE = Path(__file__).parents[2] / "plugins" / "zephyrctl-example"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip built and installed the package, from a copy that lies in a folder with a space."""
    pytest.importorskip("pip", reason="no pip in this environment to install with")
    folder = tmp_path_factory.mktemp("example plugin")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    done = subprocess.run(
        [*pip, *isolation, "--target", str(target), str(folder / "source")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode and not isolation and "hatchling" in done.stderr:
        pytest.skip("hatchling, which builds the package, is neither installed nor to be had from an index")
    assert done.returncode == 0, done.stderr
    return target


def row(instruction: str, *answers: tuple[str, str]) -> dict[str, Any]:
    """A row in UltraFeedback's form; ratings lie in objects and in one-element lists, as published."""
    completions = []
    for place, (response, rating) in enumerate(answers):
        helpful: Any = {"Type": ["1"], "Rationale": "", "Rating": rating, "Rationale For Rating": "so"}
        annotations = {
            "helpfulness": [helpful] if place % 2 else helpful,
            "honesty": {"Rating": "N/A", "Rationale": ""},
        }
        completions.append({"model": f"model-{place}", "response": response, "annotations": annotations})
    return {"source": "test", "instruction": instruction, "models": [], "completions": completions}


ROWS = [
    row("Why is the sky blue?", ("It scatters blue light.", "5"), ("It is painted.", "2"), ("Because it is so.", "1")),
    row("Name a city.", ("Paris", "4"), ("Paris is a very old city in the north of France.", "1")),
    row("Name a river.", ("Seine", "3"), ("Loire", "3")),
    row("Name a lake.", ("Geneva", "N/A"), ("Lugano", "5"), ("Zurich", "4")),
]


def test_it_is_listed_with_origin_and_options(installed: Path, tmp_path: Path) -> None:
    """Three offers, from the distribution that pip installed."""
    outcome = shell(["plugins", "--json"], tmp_path, PYTHONPATH=python_path(installed))
    assert outcome.code == 0, outcome.err
    mine = {
        (offer["kind"], offer["name"]): offer
        for offer in outcome.json["plugins"]
        if offer["origin"] == "zephyrctl-example 0.1.0"
    }
    assert set(mine) == {("teacher", "echo"), ("binarizer", "length-matched"), ("model base", "smollm2-135m")}
    assert set(mine["teacher", "echo"]["options"]) == {"opening"}
    assert mine["binarizer", "length-matched"]["options"]["at_most"]["default"] == 1.5
    assert all(offer["about"] for offer in mine.values())
    assert not outcome.json["failures"]


def test_it_binarizes(installed: Path, tmp_path: Path) -> None:
    """A real file through a real command; what makes no pair is counted, and the manifest names the plugin."""
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["data", "binarize", "--strategy", "length-matched", "--input", "rated.jsonl", "--run", "mine", "--json"]
    outcome = shell(command, tmp_path, PYTHONPATH=python_path(installed))
    assert outcome.code == 0, outcome.err
    assert (outcome.json["metrics"]["prompts"], outcome.json["metrics"]["pairs"]) == (4, 2)
    assert outcome.json["losses"]["no lower-rated answer of similar length"] == 1
    assert outcome.json["losses"]["no answer rated lower than the best"] == 1
    artifact = tmp_path / outcome.json["path"]
    pairs = [pair for path in artifact.rglob("*.parquet") for pair in pq.read_table(path).to_pylist()]
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {
        ("It scatters blue light.", "Because it is so."),
        ("Lugano", "Zurich"),
    }
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["plugins"] == {"zephyrctl-example": "0.1.0"}


def test_its_options_come_from_the_recipe(installed: Path, tmp_path: Path) -> None:
    """A wider match pairs the long answer too, and an unknown option names the nearest one."""
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["data", "binarize", "--strategy", "length-matched", "--input", "rated.jsonl", "--json"]
    path = python_path(installed)
    wide = shell([*command, "--set", "binarize.options.at_most=20"], tmp_path, PYTHONPATH=path)
    assert wide.json["metrics"]["pairs"] == 3
    wrong = shell([*command, "--set", "binarize.options.atmost=20"], tmp_path, PYTHONPATH=path)
    assert wrong.code == 1
    assert "the binarizer 'length-matched' refuses its options: atmost" in wrong.err
    assert "did you mean 'at_most'?" in wrong.err


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    """As its README says, once it is installed."""
    environment = {**os.environ, "PYTHONPATH": python_path(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [str(SOURCE / "tests"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *tests],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
