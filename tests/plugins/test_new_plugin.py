"""Whether `plugins new` writes a package that installs and passes its own test, and refuses what cannot be one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Command, shell
from tests.plugins.packages import install, pip_install, python_path, run_tests
from tests.plugins.test_broken import GOOD, site
from zephyrctl.cli.plugins.new import KINDS

__all__ = ["site"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_a_package(zephyrctl: Command, tmp_path: Path, kind: str) -> None:
    """Of the files that it says, each of them clean to a linter, under names that follow from the plugin's."""
    outcome = zephyrctl("plugins", "new", kind, "two-words", "--json")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / outcome.json["folder"]
    assert folder.name == "zephyrctl-two-words"
    written = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(written) == outcome.json["files"]
    assert "class TwoWords(" in (folder / "src" / "zephyrctl_two_words" / "__init__.py").read_text()
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_people_are_told_what_comes_next(zephyrctl: Command) -> None:
    outcome = zephyrctl("plugins", "new", "binarizer", "mine")
    assert outcome.out.splitlines() == [
        "zephyrctl-mine is the binarizer 'mine'; next: pip install --editable ./zephyrctl-mine && pytest zephyrctl-mine"
    ]


def test_a_dry_run_writes_nothing(zephyrctl: Command, tmp_path: Path) -> None:
    outcome = zephyrctl("plugins", "new", "teacher", "mine", "--dry-run", "--json")
    assert outcome.json["dry_run"][0]["folder"] == "zephyrctl-mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "problem", "remedy"),
    [
        ("tacher", "mine", "there is no kind 'tacher' of plugin", "did you mean 'teacher'?"),
        ("zzz", "mine", "there is no kind 'zzz'", "one of: teacher, binarizer, base, benchmark, loss, row-format"),
        ("teacher", "9 My_Name", "is not a valid name: use small letters", "zephyrctl plugins new teacher my-name"),
        ("teacher", "Ünder", "is not a valid name: use small letters", "zephyrctl plugins new teacher under"),
        ("teacher", "class", "is not a valid name: use small letters", "zephyrctl plugins new teacher my-class"),
        ("teacher", "../up", "is not a valid name: use small letters", "zephyrctl plugins new teacher up"),
        ("teacher", "zephyrctl-mine", "is added to the name anyway", "zephyrctl plugins new teacher mine"),
        ("teacher", "offline", "the name 'offline' is taken (built in)", "give another"),
        ("row format", "mine", "there is no kind 'row format'", "did you mean 'row-format'?"),
        ("loss", "hinge", "the name 'hinge' is taken (built in)", "give another"),
        ("base", "mistral-7b", "the name 'mistral-7b' is taken (built in)", "give another"),
    ],
)
def test_what_it_refuses(zephyrctl: Command, tmp_path: Path, kind: str, name: str, problem: str, remedy: str) -> None:
    outcome = zephyrctl("plugins", "new", kind, name)
    assert outcome.code == 1
    assert problem in outcome.err and f"try: {remedy}" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_free(zephyrctl: Command) -> None:
    assert zephyrctl("plugins", "new", "base", "offline", "--dry-run").code == 0


def test_a_name_that_an_installed_package_has_is_taken(site: Path, zephyrctl: Command) -> None:
    """Whatever kind that one is of: two packages of one name cannot be installed."""
    install(site, "zephyrctl-parrot", GOOD)
    outcome = zephyrctl("plugins", "new", "binarizer", "parrot")
    assert "the name 'parrot' is taken (the installed module zephyrctl_parrot)" in outcome.err


def test_a_folder_that_is_there_is_left_alone(zephyrctl: Command, tmp_path: Path) -> None:
    (tmp_path / "zephyrctl-mine").mkdir()
    outcome = zephyrctl("plugins", "new", "teacher", "mine")
    assert outcome.code == 1
    assert "zephyrctl-mine already exists" in outcome.err
    assert list((tmp_path / "zephyrctl-mine").iterdir()) == []


def test_an_option_before_the_command_is_refused(zephyrctl: Command) -> None:
    outcome = zephyrctl("plugins", "--json", "new", "teacher", "mine")
    assert outcome.code == 2
    assert "put --json after 'new'" in outcome.err


@pytest.mark.slow
def test_what_it_writes_installs_is_found_and_passes_its_test(tmp_path: Path) -> None:
    """One of each kind, all installed together; two have the name of a class that their code imports."""
    names = {kind: f"my-{kind}" for kind in KINDS} | {"teacher": "teacher", "benchmark": "benchmark"}
    for kind, name in names.items():
        assert shell(["plugins", "new", kind, name], tmp_path).code == 0
    sources = [tmp_path / f"zephyrctl-{name}" for name in names.values()]
    installed = pip_install(sources, tmp_path / "site")
    listed = shell(["plugins", "--json"], tmp_path, PYTHONPATH=python_path(installed))
    assert set(names.values()) <= {offer["name"] for offer in listed.json["plugins"]}
    assert not listed.json["failures"]
    assert f"{3 * len(KINDS)} passed" in run_tests((source / "tests" for source in sources), installed, tmp_path)
    broken = installed / "zephyrctl_my_binarizer" / "__init__.py"
    broken.write_text(broken.read_text().replace("answers.by_score()", "answers.scored"))
    shutil.rmtree(broken.parent / "__pycache__", ignore_errors=True)
    with pytest.raises(AssertionError, match="1 failed"):
        run_tests([sources[1] / "tests"], installed, tmp_path)
