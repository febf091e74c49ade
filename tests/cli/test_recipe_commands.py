"""`zephyrctl recipe` and `zephyrctl plugins`."""

from pathlib import Path

from tests.conftest import Command
from zephyrctl import plugins


def test_init_writes_a_recipe_that_works_and_is_not_overwritten(zephyrctl: Command, tmp_path: Path) -> None:
    assert zephyrctl("recipe", "init", "tiny").code == 0
    assert zephyrctl("run", "--dry-run").code == 0
    before = (tmp_path / "zephyrctl.yaml").read_text()
    again = zephyrctl("recipe", "init", "ablation-tiny")
    assert again.code == 1 and "--force" in again.err
    assert (tmp_path / "zephyrctl.yaml").read_text() == before
    assert zephyrctl("recipe", "init", "ablation-tiny", "--force").code == 0
    assert "dsft-2" in zephyrctl("run", "--dry-run").out


def test_init_of_an_unknown_recipe_names_the_shipped_ones(zephyrctl: Command, tmp_path: Path) -> None:
    outcome = zephyrctl("recipe", "init", "tny")
    assert outcome.code == 1 and "zephyr-7b-beta" in outcome.err
    assert not (tmp_path / "zephyrctl.yaml").exists()


def test_show_says_where_each_value_came_from(zephyrctl: Command, tmp_path: Path) -> None:
    (tmp_path / "zephyrctl.yaml").write_text("extends: zephyr-7b-beta\nname: mine\ndpo: {epochs: 2}\n")
    origins = zephyrctl("recipe", "show", "--set", "dpo.beta=0.2", "--json").json["origins"]
    assert origins["dpo.learning_rate"] == "recipe zephyr-7b-beta (paper section 4.4)"
    assert origins["dpo.epochs"] == "zephyrctl.yaml"
    assert origins["dpo.beta"] == "--set"
    assert origins["dpo.max_grad_norm"] == "default"


def test_diff_shows_where_paper_and_handbook_part(zephyrctl: Command) -> None:
    found = zephyrctl("recipe", "diff", "zephyr-7b-beta", "zephyr-7b-handbook", "--json").json
    assert found["dpo.beta"] == [0.1, 0.01]
    assert found["dpo.schedule"] == ["linear", "cosine"]
    assert found["sft.global_batch"] == [512, 128]
    assert "sft.learning_rate" not in found


def test_schema_describes_every_section(zephyrctl: Command) -> None:
    properties = zephyrctl("recipe", "schema").json["properties"]
    assert {"base", "build", "feedback", "binarize", "sft", "dpo", "checkpoints", "eval", "push"} <= set(properties)


def test_plugins_lists_the_built_ins_with_their_options(zephyrctl: Command) -> None:
    listed = zephyrctl("plugins", "--json").json["plugins"]
    built_in = {(entry["kind"], entry["name"]) for entry in listed if entry["origin"] == "built in"}
    assert built_in == {(offer.kind, offer.name) for offer in plugins.load().offers if offer.origin == "built in"}
    assert {("teacher", "openai"), ("binarizer", "notus"), ("model base", "mistral-7b")} <= built_in
    assert all(entry["about"] for entry in listed)
    assert "base_url" in next(entry for entry in listed if entry["name"] == "openai")["options"]
