"""Whether each package of this repository installs, is found by its entry point, passes its tests and does its work."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import shell
from tests.plugins.packages import FIRST_PARTY, environment_with, pip_install, python_path, run_tests

pytestmark = pytest.mark.slow

OFFERS = {
    "zephyrctl-anthropic": {("teacher", "anthropic")},
    "zephyrctl-arena-hard": {("benchmark", "arena-hard")},
    "zephyrctl-example": {("teacher", "echo"), ("binarizer", "brevity"), ("model base", "smollm2-135m")},
    "zephyrctl-gemma": {("model base", "gemma-2-9b")},
    "zephyrctl-length-matched": {("binarizer", "length-matched")},
    "zephyrctl-llama3": {("model base", "llama-3.1-8b")},
    "zephyrctl-qwen": {("model base", "qwen2.5-7b")},
    "zephyrctl-reward": {("teacher", "reward")},
    "zephyrctl-simpo": {("loss", "simpo")},
    "zephyrctl-ultrainteract": {("binarizer", "ultrainteract")},
    "zephyrctl-vllm": {("teacher", "vllm")},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip built and installed them all, from copies that lie in a folder with a space."""
    return pip_install(FIRST_PARTY, tmp_path_factory.mktemp("first party"))


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


def test_every_package_has_what_a_package_needs() -> None:
    assert {path.name for path in FIRST_PARTY} == set(OFFERS)
    for path in FIRST_PARTY:
        module = path.name.replace("-", "_")
        assert (path / "tests" / f"test_{module}.py").is_file()
        assert (path / "src" / module / "py.typed").is_file()
        readme = (path / "README.md").read_text()
        assert f"pip install ./plugins/{path.name}" in readme.replace("'", "")
        assert all(f"`{name}`" in readme or name in readme for _, name in OFFERS[path.name])


@pytest.mark.parametrize("package", FIRST_PARTY, ids=lambda path: path.name)
def test_each_alone_in_a_fresh_environment_is_found_by_its_entry_point(package: Path, tmp_path: Path) -> None:
    python = environment_with(package, tmp_path)
    asked = [str(python), "-m", "zephyrctl", "plugins", "--json"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    offers = [offer for offer in json.loads(done.stdout)["plugins"] if offer["origin"] != "built in"]
    assert {(offer["kind"], offer["name"]) for offer in offers} == OFFERS[package.name]
    assert {offer["origin"] for offer in offers} == {f"{package.name} 0.1.0"}


def test_all_are_listed_with_origin_and_options(installed: Path, tmp_path: Path) -> None:
    """From the distributions that pip installed, beside each other."""
    outcome = shell(["plugins", "--json"], tmp_path, PYTHONPATH=python_path(installed))
    assert outcome.code == 0, outcome.err
    assert (outcome.json["failures"], outcome.err) == ({}, "")
    mine: dict[str, set[tuple[str, str]]] = {}
    for offer in outcome.json["plugins"]:
        if offer["origin"] != "built in":
            mine.setdefault(offer["origin"].removesuffix(" 0.1.0"), set()).add((offer["kind"], offer["name"]))
            assert offer["about"] and all(schema["description"] for schema in offer["options"].values())
    assert mine == OFFERS


def test_their_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    """As their READMEs say, once they are installed; only what needs a GPU may skip itself."""
    said = run_tests((path / "tests" for path in FIRST_PARTY), installed, tmp_path)
    assert "passed" in said
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert all("GPU" in line for line in skipped), skipped


@pytest.mark.parametrize(
    ("strategy", "pairs"),
    [
        ("length-matched", {("It scatters blue light.", "Because it is so."), ("Lugano", "Zurich")}),
        (
            "ultrainteract",
            {
                ("It scatters blue light.", "Because it is so."),
                ("It scatters blue light.", "It is painted."),
                ("It is painted.", "Because it is so."),
                ("Paris", "Paris is a very old city in the north of France."),
                ("Lugano", "Zurich"),
            },
        ),
        ("brevity", {("Paris", "Paris is a very old city in the north of France.")}),
    ],
)
def test_a_binarizer_works(installed: Path, tmp_path: Path, strategy: str, pairs: set[tuple[str, str]]) -> None:
    """A real file through a real command; what makes no pair is counted, and the manifest names the plugin."""
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["data", "binarize", "--strategy", strategy, "--input", "rated.jsonl", "--run", "mine", "--json"]
    outcome = shell(command, tmp_path, PYTHONPATH=python_path(installed))
    assert outcome.code == 0, outcome.err
    assert (outcome.json["metrics"]["prompts"], outcome.json["metrics"]["pairs"]) == (4, len(pairs))
    assert sum(outcome.json["dropped"].values()) == 4 - outcome.json["metrics"]["prompts_paired"]
    artifact = tmp_path / outcome.json["path"]
    made = [pair for path in artifact.rglob("*.parquet") for pair in pq.read_table(path).to_pylist()]
    assert {(pair["chosen"], pair["rejected"]) for pair in made} == pairs
    (origin,) = {package for package, offers in OFFERS.items() if ("binarizer", strategy) in offers}
    assert json.loads((artifact / "manifest.json").read_text())["plugins"][origin] == "0.1.0"


def test_options_come_from_the_recipe(installed: Path, tmp_path: Path) -> None:
    """An unknown one names the nearest."""
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["data", "binarize", "--strategy", "length-matched", "--input", "rated.jsonl", "--json"]
    wrong = shell([*command, "--set", "binarize.options.atmost=20"], tmp_path, PYTHONPATH=python_path(installed))
    assert wrong.code == 1
    assert "wrong options for the binarizer 'length-matched': atmost" in wrong.err
    assert "did you mean 'at_most'?" in wrong.err


def test_a_base_is_planned(installed: Path, tmp_path: Path) -> None:
    """Its shape reaches the solver: Llama's memory and Gemma's differ."""
    command = ["plan", "--recipe", "zephyr-7b-beta", "--json"]
    plans = {}
    for name in ("llama-3.1-8b", "gemma-2-9b"):
        outcome = shell([*command, "--set", f"base.name={name}"], tmp_path, PYTHONPATH=python_path(installed))
        assert outcome.code == 0, outcome.err
        plans[name] = outcome.out
    assert plans["llama-3.1-8b"] != plans["gemma-2-9b"]


def test_a_teacher_answers_in_a_stage(installed: Path, tmp_path: Path) -> None:
    """`echo` is one of two who answer; the rules rate what it said."""
    settings = ["build.source.dialogues=2", "build.source.prompts=4", "feedback.answers=2"]
    settings += ["feedback.completers=[{name: echo, options: {opening: 'You said: '}}, {name: offline}]"]
    changes = [word for setting in settings for word in ("--set", setting)]
    path = python_path(installed)
    for stage in ("build", "feedback"):
        outcome = shell(["data", stage, "--run", "mine", "--json", *changes], tmp_path, PYTHONPATH=path)
        assert outcome.code == 0, outcome.err
    artifact = tmp_path / outcome.json["path"]
    rated = [row for path in (artifact / "rated").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert rated
    for row in rated:
        (echoed,) = [answer for answer in row["completions"] if answer["model"] == "echo"]
        assert echoed["text"] == f"You said: {row['messages'][-1]['content']}"
        assert all(rating["value"] for rating in echoed["ratings"])
    assert json.loads((artifact / "manifest.json").read_text())["plugins"]["zephyrctl-example"] == "0.1.0"
