"""Keys and options by their old names: they still work, with a note that gives the new name."""

from pathlib import Path

import pytest

from tests.conftest import Command
from tests.launching.test_launchers import NOWHERE, PAPER
from zephyrctl.errors import ZephyrError
from zephyrctl.launching import launchers
from zephyrctl.recipe.loading import load
from zephyrctl.recipe.schema import Launch

DRY_RUN = ("--recipe", "tiny", "--dry-run", "--json")


def test_the_old_key_in_a_recipe_gives_the_same_recipe_and_a_note(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("extends: tiny\nlaunch: {door: torchrun}\n")
    new.write_text("extends: tiny\nlaunch: {launcher: torchrun}\n")
    assert load(str(old), {}).recipe == load(str(new), {}).recipe
    assert load(str(old), {}).notes == [
        f"{old}: launch.door is now called launch.launcher; the old name will go in the next version"
    ]
    assert not load(str(new), {}).notes
    assert load(str(old), {}).origins["launch.launcher"] == str(old)


def test_a_later_layer_wins_by_either_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: tiny\nlaunch: {door: torchrun}\n")
    assert load(str(recipe), {}, ["launch.launcher=single"]).recipe.launch.launcher == "single"
    recipe.write_text("extends: tiny\nlaunch: {launcher: torchrun}\n")
    loaded = load(str(recipe), {}, ["launch.door=single"])
    assert loaded.recipe.launch.launcher == "single"
    assert loaded.notes == [
        "--set: launch.door is now called launch.launcher; the old name will go in the next version"
    ]


def test_both_names_at_once_are_an_error(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: tiny\nlaunch: {door: torchrun, launcher: single}\n")
    with pytest.raises(ZephyrError, match=r"launch\.door is the old name of launch\.launcher, and both are given"):
        load(str(recipe), {})


def test_the_old_option_works_and_is_hidden(zephyrctl: Command) -> None:
    old, new = zephyrctl("sft", *DRY_RUN, "--door", "torchrun"), zephyrctl("sft", *DRY_RUN, "--launcher", "torchrun")
    assert (old.code, old.out) == (new.code, new.out)
    assert "note: --door is now called --launcher" in old.err
    assert "now called" not in new.err
    assert "--door" not in zephyrctl("sft", "--help").out
    wrong = zephyrctl("sft", *DRY_RUN, "--door", "taxi")
    assert wrong.code == 1
    assert "launch.launcher = 'taxi'" in wrong.err


def test_a_job_file_of_the_version_before_names_its_launcher() -> None:
    launch = Launch.model_validate_json('{"door": "single"}')
    assert launch == Launch(launcher="single")
    with pytest.raises(ZephyrError, match="it starts one process"):
        launchers.choose_launcher(launch, PAPER, NOWHERE)
