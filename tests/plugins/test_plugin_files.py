"""Whether a plugin in one file works in an empty folder, is named by its content, and never comes from others."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import Command, shell
from tests.plugins.packages import install, python_path
from zephyrctl import plugin_files, plugins
from zephyrctl.contracts import Picked
from zephyrctl.data.process_pool import ProcessPool
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import loading
from zephyrctl.testing import rated

TEACHER = '''\
"""A teacher that shouts."""

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Teacher
from zephyrctl.hooks import hookimpl


class Shouting(Teacher):
    """Says the last message again, in capitals."""

    class Options(PluginOptions):
        """Options of `shouting`."""

        mark: str = "!"

    name = "shouting"

    async def reply(self, messages, sampling=GREEDY):
        """One reply."""
        return Reply(messages[-1].content.upper() + self.options.mark, "shouting-1")


@hookimpl
def zephyrctl_teachers():
    """`shouting`."""
    return [Shouting]
'''
BINARIZER = '''\
"""The best answer against the worst."""

from zephyrctl.contracts import Binarizer, NoPair, Picked
from zephyrctl.hooks import hookimpl


class Extremes(Binarizer):
    """The best answer against the worst; a tie makes no pair."""

    name = "extremes"

    def pick(self, answers, rng):
        """No draw is needed."""
        ranked = answers.by_score()
        if ranked[0].score == ranked[-1].score:
            return NoPair("all answers tied")
        return Picked(ranked[0], ranked[-1])


@hookimpl
def zephyrctl_binarizers():
    """`extremes`."""
    return [Extremes]
'''
RATED = [
    {
        "source": "test",
        "instruction": f"Question {number}?",
        "models": [],
        "completions": [
            {
                "model": f"model-{rating}",
                "response": f"{text} {number}",
                "annotations": {"helpfulness": {"Rating": rating}},
            }
            for text, rating in (("good", "5"), ("fair", "3"), ("poor", "1"))
        ],
    }
    for number in range(40)
]

BINARIZE = ("data", "binarize", "--strategy", "extremes", "--input", "rated.jsonl", "--run", "mine")


@pytest.fixture(autouse=True)
def no_files_in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a file in use for the next."""
    monkeypatch.delenv(plugin_files.VARIABLE, raising=False)
    yield
    os.environ.pop(plugin_files.VARIABLE, None)


def write(folder: Path, **texts: str) -> None:
    """Write files; `zephyrctl` is zephyrctl.yaml and every other one a Python file."""
    for name, text in texts.items():
        (folder / (f"{name}.yaml" if name == "zephyrctl" else f"{name}.py")).write_text(text)


def write_rated(folder: Path) -> None:
    """Rated prompts for `BINARIZE`."""
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RATED))


def version(text: str) -> str:
    """The version of a plugin file with this content."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def manifest(folder: Path, name: str) -> Any:
    """The manifest of an artifact of the run `mine`."""
    return json.loads((folder / "runs" / "mine" / name / "manifest.json").read_text())


def test_a_teacher_answers_in_a_stage(tmp_path: Path) -> None:
    """In the folder of a user, with a recipe of four lines; the manifest names the file by its content."""
    recipe = "extends: tiny\nplugins: [./my_teacher.py]\nbuild: {source: {dialogues: 2, prompts: 4}}\n"
    recipe += "feedback: {answers: 2, completers: [{name: shouting, options: {mark: '?!'}}, {name: offline}]}\n"
    write(tmp_path, zephyrctl=recipe, my_teacher=TEACHER)
    for stage in ("build", "feedback"):
        outcome = shell(["data", stage, "--run", "mine", "--json"], tmp_path)
        assert outcome.code == 0, outcome.err
    rows = [
        row
        for path in (tmp_path / outcome.json["path"]).rglob("rated/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert rows
    for row in rows:
        (shouted,) = [answer for answer in row["completions"] if answer["model"] == "shouting-1"]
        assert shouted["text"] == f"{row['messages'][-1]['content'].upper()}?!"
    assert manifest(tmp_path, "feedback")["plugins"]["my_teacher.py"] == version(TEACHER)
    assert manifest(tmp_path, "feedback")["plan"]["settings"]["plugins"] == {"my_teacher.py": version(TEACHER)}
    assert "plugins" not in manifest(tmp_path, "build")["plan"]["settings"]
    assert not (tmp_path / "__pycache__").exists()


def test_a_binarizer_is_used_and_an_edit_of_it_is_noticed(tmp_path: Path) -> None:
    """The same file is unchanged; an edited one makes another plan, and the line says which file."""
    write(tmp_path, extremes=BINARIZER)
    write_rated(tmp_path)
    command = [*BINARIZE, "--set", "plugins=./extremes.py"]
    outcome = shell([*command, "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.json["metrics"]["pairs"] == len(RATED)
    assert shell([*command, "--json"], tmp_path).json["unchanged"]
    assert manifest(tmp_path, "binarize")["plugins"]["extremes.py"] == version(BINARIZER)
    other = BINARIZER.replace("Picked(ranked[0], ranked[-1])", "Picked(ranked[0], ranked[1])")
    write(tmp_path, extremes=other)
    outcome = shell(command, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "plugins.extremes.py: sha256:" in outcome.err
    assert manifest(tmp_path, "binarize")["plugins"]["extremes.py"] == version(other)


def pick_in_this_process(number: int) -> tuple[int, int, int]:
    """The process, and the places that the binarizer of the plugin file pairs."""
    strategy = plugins.load().binarizer("extremes", {})
    picked = strategy.pick(rated((f"good {number}", 5), (f"poor {number}", 1)), Random(0))
    assert isinstance(picked, Picked)
    return os.getpid(), picked.chosen.place, picked.rejected.place


def test_processes_that_share_the_work_have_the_file_too(tmp_path: Path) -> None:
    write(tmp_path, extremes=BINARIZER)
    plugin_files.use([tmp_path / "extremes.py"])
    with ProcessPool(2) as pool:
        results = list(pool.map(pick_in_this_process, range(8)))
    assert [(chosen, rejected) for _, chosen, rejected in results] == [(0, 1)] * 8
    assert os.getpid() not in {process for process, _, _ in results}


def test_what_one_process_pickles_another_loads(tmp_path: Path) -> None:
    """By the name of its module, as soon as Python asks for it."""
    write(tmp_path, extremes=BINARIZER)
    plugin_files.use([tmp_path / "extremes.py"])
    strategy = plugins.load().binarizer("extremes", {})
    (tmp_path / "strategy.pickle").write_bytes(pickle.dumps(type(strategy)))
    script = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).name)"
    command = [sys.executable, "-c", script, "strategy.pickle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "extremes\n", done.stderr
    write(tmp_path, extremes=BINARIZER + "\n")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "changed while the command was running" in done.stderr


def test_paths_are_relative_to_the_recipe_that_lists_them(tmp_path: Path, zephyrctl: Command) -> None:
    """And those of `--set` to the working folder."""
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", extremes=BINARIZER, zephyrctl="extends: tiny\nplugins: [../other.py, extremes.py]\n")
    write(tmp_path, other=TEACHER)
    write_rated(tmp_path)
    listed = zephyrctl(*BINARIZE, "--recipe", "mine/zephyrctl.yaml")
    assert listed.code == 0, listed.err
    assert {file.path.name for file in plugin_files.in_use()} == {"other.py", "extremes.py"}
    assert zephyrctl(*BINARIZE, "--set", "plugins=mine/extremes.py").code == 0
    assert [file.path.name for file in plugin_files.in_use()] == ["extremes.py"]
    missing = zephyrctl(*BINARIZE)
    assert "there is no binarizer 'extremes'" in missing.err


def test_they_are_listed_like_others(tmp_path: Path, zephyrctl: Command) -> None:
    """Of the recipe in the working folder, with the file as their origin."""
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [my_teacher.py]\n", my_teacher=TEACHER)
    outcome = zephyrctl("plugins", "--json")
    assert outcome.code == 0, outcome.err
    (offer,) = [offer for offer in outcome.json["plugins"] if offer["name"] == "shouting"]
    assert (offer["kind"], offer["origin"]) == ("teacher", "my_teacher.py")
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [nowhere.py]\n")
    outcome = zephyrctl("plugins")
    assert outcome.code == 0
    assert "warning: cannot read the plugin file" in outcome.err and "offline" in outcome.out


BROKEN = {
    "missing import": (
        TEACHER.replace('"""A teacher that shouts."""', "import zephyrctl_nowhere"),
        1,
        "ModuleNotFoundError",
    ),
    "syntax": (TEACHER.replace("class Shouting(Teacher):", "class Shouting(Teacher)"), 7, "SyntaxError"),
    "raises in the hook": (TEACHER.replace("return [Shouting]", "return [1 / 0]"), 25, "ZeroDivisionError"),
    "no hook": (TEACHER.replace("@hookimpl\n", ""), 1, "it has no hook"),
    "another hook": (
        TEACHER.replace("zephyrctl_teachers", "zephyrctl_teacher"),
        22,
        "there is no hook 'zephyrctl_teacher'",
    ),
    "abstract": (TEACHER.replace("def reply", "def answer"), 7, "Shouting lacks what a Teacher must have: reply"),
    "another kind": (TEACHER.replace("zephyrctl_teachers", "zephyrctl_losses"), 22, "which is not a PreferenceLoss"),
    "exit": (
        TEACHER.replace('"""A teacher that shouts."""', "raise SystemExit('not today')"),
        1,
        "SystemExit: not today",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_stops_the_command_with_its_line(tmp_path: Path, zephyrctl: Command, fault: str) -> None:
    """The recipe names the file, so that a command without it would do something else than was asked for."""
    code, line, reason = BROKEN[fault]
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [my_teacher.py]\n", my_teacher=code)
    outcome = zephyrctl("data", "build", "--dry-run")
    assert outcome.code == 1
    assert f"error: {tmp_path / 'my_teacher.py'}:{line}: " in outcome.err
    assert reason in outcome.err
    assert "try: fix that line, or leave the file out of `plugins` in the recipe" in outcome.err


def test_a_missing_file_is_named(tmp_path: Path, zephyrctl: Command) -> None:
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [my_teacher.py]\n")
    outcome = zephyrctl("data", "build")
    assert outcome.code == 1
    assert "cannot read the plugin file my_teacher.py: No such file or directory" in outcome.err


MARKER = "from pathlib import Path\nPath('it-ran').touch()\n"


def test_a_recipe_that_is_extended_runs_no_code(tmp_path: Path, zephyrctl: Command) -> None:
    """Unless the user's own file, or `--set`, lists the file too."""
    package = tmp_path / "site-packages" / "somebody"
    package.mkdir(parents=True)
    write(package, zephyrctl="extends: tiny\nplugins: [extremes.py]\n", extremes=MARKER + BINARIZER)
    extending = "extends: site-packages/somebody/zephyrctl.yaml\n"
    write(tmp_path, zephyrctl=extending)
    write_rated(tmp_path)
    outcome = zephyrctl(*BINARIZE)
    assert outcome.code == 1
    assert "lists plugin files, and only your own recipe may do so: site-packages/somebody/extremes.py" in outcome.err
    assert "list them in zephyrctl.yaml too: plugins: [site-packages/somebody/extremes.py]" in outcome.err
    assert not (tmp_path / "it-ran").exists()
    write(tmp_path, zephyrctl=extending + "plugins: []\n")
    assert "there is no binarizer 'extremes'" in zephyrctl(*BINARIZE).err
    assert not (tmp_path / "it-ran").exists()
    assert zephyrctl(*BINARIZE, "--set", "plugins=site-packages/somebody/extremes.py").code == 0
    assert (tmp_path / "it-ran").exists()
    (tmp_path / "it-ran").unlink()
    write(tmp_path, zephyrctl=extending + "plugins: [site-packages/somebody/extremes.py, ]\n")
    write(package, extremes=MARKER + BINARIZER + "# edited\n")
    assert zephyrctl(*BINARIZE).code == 0
    assert (tmp_path / "it-ran").exists()


def test_to_read_a_recipe_runs_no_code(tmp_path: Path, zephyrctl: Command) -> None:
    """`recipe show` and completion show what is in it, and load nothing."""
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [extremes.py]\n", extremes=MARKER + BINARIZER)
    shown = zephyrctl("recipe", "show", "zephyrctl.yaml", "--json")
    assert shown.code == 0, shown.err
    assert "extremes.py" in shown.out
    assert loading.load(None, {}).plugin_files == [Path("extremes.py")]
    assert not (tmp_path / "it-ran").exists()


def test_a_name_that_a_package_has_too_is_an_error(tmp_path: Path) -> None:
    """As between two packages; only whoever uses it is stopped."""
    site = tmp_path / "site"
    install(site, "zephyrctl-extremes", BINARIZER)
    write(tmp_path, zephyrctl="extends: tiny\nplugins: [extremes.py]\n", extremes=BINARIZER)
    write_rated(tmp_path)
    outcome = shell(BINARIZE, tmp_path, PYTHONPATH=python_path(site))
    assert "two plugins offer the binarizer 'extremes': zephyrctl-extremes 1.0 and extremes.py" in outcome.err
    assert shell(["data", "build", "--dry-run"], tmp_path, PYTHONPATH=python_path(site)).code == 0


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two folders may each have a `mine.py`: modules, origins and versions differ."""
    (tmp_path / "other").mkdir()
    write(tmp_path, mine=TEACHER)
    write(tmp_path / "other", mine=BINARIZER)
    plugin_files.use([tmp_path / "mine.py", tmp_path / "other" / "mine.py"])
    found = plugins.load()
    assert found.find("teacher", "shouting").origin == "mine.py"
    assert found.find("binarizer", "extremes").origin == str(tmp_path / "other" / "mine.py")
    assert list(found.versions.values())[-2:] == [version(TEACHER), version(BINARIZER)]


def test_a_file_that_changes_between_reading_and_loading_is_refused(tmp_path: Path) -> None:
    write(tmp_path, mine=TEACHER)
    plugin_files.use([tmp_path / "mine.py"])
    write(tmp_path, mine=TEACHER + "# edited\n")
    with pytest.raises(ZephyrError, match="changed while the command was running"):
        plugins.load()
