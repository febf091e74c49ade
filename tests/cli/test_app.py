"""The command line itself: exit codes, errors with a remedy, help."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import Command
from zephyrctl.cli.app import app


def test_no_arguments_show_the_help_and_no_error(zephyrctl: Command) -> None:
    outcome = zephyrctl()
    assert outcome.code == 2
    assert "Usage: zephyrctl" in outcome.out + outcome.err
    assert "error" not in outcome.err


def test_the_version_is_printed(zephyrctl: Command) -> None:
    outcome = zephyrctl("--version")
    assert (outcome.code, outcome.out.split()[0]) == (0, "zephyrctl")


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["dpo", "--bta", "1"], "--bta", "zephyrctl dpo --help"),
        (["frobnicate"], "frobnicate", "zephyrctl --help"),
        (["dpo", "--epochs", "many"], "--epochs", "zephyrctl dpo --help"),
        (["push"], "--hub", "zephyrctl push --help"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    zephyrctl: Command, arguments: list[str], problem: str, remedy: str
) -> None:
    outcome = zephyrctl(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    first, second = outcome.err.strip().splitlines()[-2:]
    assert first.startswith("error: ") and problem in first
    assert second.strip() == f"try: {remedy}"


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["run", "--recipe", "tiy"], "no recipe 'tiy'", "did you mean 'tiny'"),
        (["run", "--set", "dpo.bta=1"], "unknown key 'dpo.bta'", "did you mean 'dpo.beta'"),
        (["dpo", "--beta", "-1"], "option: dpo.beta = -1.0", "zephyrctl recipe schema"),
        (["run", "--set", "dpo.beta"], "is not an assignment", "--set dpo.beta=0.1"),
        (["data", "binarize", "--strategy", "randm-rejected", "--input", "rated.json"], "rated.json", "check the path"),
        (["dpo"], "no finished 'binarize'", "zephyrctl data binarize --run runs/tiny"),
        (["sft"], "no finished 'build'", "zephyrctl data build --run runs/tiny"),
        (["data", "feedback"], "no finished 'build'", "zephyrctl data build --run runs/tiny"),
        (["eval"], "no finished checkpoint", "zephyrctl sft --run runs/tiny"),
        (["eval", "--checkpoint", "spo"], "no checkpoint 'spo'", "one of: sft, dpo"),
        (["push", "--hub", "org/name"], "no finished 'dpo'", "zephyrctl dpo --run runs/tiny"),
        (["report"], "nothing to report", "zephyrctl run"),
        (["dpo", "--checkpoint", "x"], "no dpo checkpoint 'x'", "one of: dpo"),
        (["sft", "--recipe", "ablation-tiny"], "trains 2 sft checkpoints", "--checkpoint dsft-1 or dsft-2"),
        (
            ["eval", "--recipe", "ablation-tiny", "--checkpoint", "dsft-2"],
            "no finished 'build'",
            "zephyrctl data build --run runs/ablation-tiny",
        ),
        (["run", "--recipe", "zephyr-7b-beta"], "34 GB per GPU", "zephyrctl run --recipe tiny"),
        (["run", "--recipe", "zephyr-7b-handbook"], "1 x 8 a100-80gb", "zephyrctl run --recipe tiny"),
        (["run", "--recipe", "notus-7b"], "2 x 8 a100-80gb", "zephyrctl run --recipe tiny"),
    ],
)
def test_what_the_user_can_mend_is_one_error_with_its_remedy(
    zephyrctl: Command, no_cluster: None, tmp_path: Path, arguments: list[str], problem: str, remedy: str
) -> None:
    outcome = zephyrctl(*arguments)
    assert outcome.code == 1
    first, second = outcome.err.strip().splitlines()[-2:]
    assert first.startswith("error: ") and problem in first
    assert second.startswith("  try: ") and remedy in second
    assert not list(tmp_path.glob("runs/*/*/manifest.json"))


def test_an_unknown_strategy_names_the_nearest(zephyrctl: Command, tmp_path: Path) -> None:
    (tmp_path / "rated.json").write_text('[{"instruction": "hi", "completions": []}]')
    outcome = zephyrctl("data", "binarize", "--strategy", "randm-rejected", "--input", "rated.json")
    assert outcome.code == 1
    assert "did you mean 'random-rejected'?" in outcome.err


def test_a_file_where_the_run_should_be_is_named(zephyrctl: Command, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    outcome = zephyrctl("data", "build", "--set", "build.source.dialogues=2", "--set", "build.source.prompts=2")
    assert outcome.code == 1
    assert "runs" in outcome.err and "try: " in outcome.err


def test_a_dry_run_touches_nothing(zephyrctl: Command, tmp_path: Path) -> None:
    outcome = zephyrctl("run", "--dry-run", "--json")
    assert outcome.code == 0
    names = [step["name"] for step in outcome.json["dry_run"]]
    assert names == ["build", "feedback", "binarize", "sft", "dpo", "eval"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["zephyr-7b-beta", "zephyr-7b-handbook", "notus-7b"])
def test_a_dry_run_of_a_large_recipe_says_why_it_is_refused_here(
    zephyrctl: Command, no_cluster: None, recipe: str
) -> None:
    outcome = zephyrctl("run", "--recipe", recipe, "--dry-run", "--json")
    assert outcome.code == 0
    refused = {step["name"]: step["would_fail"] for step in outcome.json["dry_run"]}
    assert "no GPU" in refused["sft"] and "no GPU" in refused["dpo"]
    assert refused["build"] is None


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The words of every command, groups before what is in them."""
    yield list(path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from pages(inner, (*path, name))


HELP_PAGES = list(pages(typer.main.get_command(app)))


def test_the_help_pages_read_as_last_agreed(
    golden: Callable[[str, str], None], zephyrctl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = []
    for page in HELP_PAGES:
        outcome = zephyrctl(*page, "--help")
        assert outcome.code == 0, outcome.err
        lines = "\n".join(line.rstrip() for line in outcome.out.splitlines())
        shown.append(f"$ zephyrctl {' '.join([*page, '--help'])}\n{lines}\n")
    golden("help.txt", "\n".join(shown))
