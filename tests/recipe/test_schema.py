"""Whether every recipe loads, whether a wrong one is refused by name, and whether the paper's numbers stand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from zephyrctl import templates
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import loading
from zephyrctl.recipe.loading import Loaded, differences, flatten, known_keys, load, shipped
from zephyrctl.recipe.schema import Recipe, TeacherChoice

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe file into an empty working folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def make(text: str, name: str = "mine.yaml") -> str:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return make


def refused(name: str | None, *assignments: str) -> ZephyrError:
    """The error of a recipe that does not load."""
    with pytest.raises(ZephyrError) as caught:
        load(name, {}, assignments)
    return caught.value


def value(loaded: Loaded, key: str) -> Any:
    """One value by its dotted key."""
    return {name: found for name, found, _ in loaded.rows()}[key]


def origin(loaded: Loaded, key: str) -> str:
    """Where one value came from."""
    return {name: found for name, _, found in loaded.rows()}[key]


ALL = sorted((templates.folder() / "recipes").rglob("*.y*ml"))


def test_recipes_are_shipped() -> None:
    assert {"tiny", "ablation-tiny", "zephyr-7b-beta", "zephyr-7b-handbook", "notus-7b"} <= set(shipped())
    assert sorted(shipped().values()) == ALL


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_shipped_recipe_validates_under_its_own_name(path: Path) -> None:
    loaded = load(path.stem, {})
    assert loaded.recipe.name == path.stem
    assert loaded.recipe.description
    assert load(str(path), {}).recipe == loaded.recipe
    assert Recipe.model_validate(loaded.recipe.model_dump(mode="json")) == loaded.recipe
    assert loaded.recipe.push.checkpoint in loaded.recipe.checkpoints


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_value_of_a_shipped_recipe_has_an_origin(path: Path) -> None:
    loaded = load(path.stem, {})
    rows = loaded.rows()
    assert {key for key, _, _ in rows} == set(flatten(loaded.recipe.model_dump(exclude={"sources"})))
    assert {found.partition(" ")[0] for _, _, found in rows} <= {"recipe", "default"}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_published_source_is_given_for_a_value_that_exists(path: Path) -> None:
    recipe = load(path.stem, {}).recipe
    values = flatten(recipe.model_dump(mode="json", exclude={"sources"}))
    for key in recipe.sources:
        assert any(f"{name}.".startswith(f"{key}.") for name in values), f"{path.name}: no value {key!r} for its source"


def test_the_papers_numbers_stand_in_the_papers_recipe() -> None:
    """Facts section 1, from the paper's section 4."""
    recipe = load("zephyr-7b-beta", {}).recipe
    assert recipe.base.name == "mistral-7b"
    assert (recipe.hardware.nodes, recipe.hardware.gpus, recipe.hardware.gpu_type) == (2, 8, "a100-80gb")
    assert (recipe.launch.profile, recipe.launch.precision) == ("paper", "bf16")
    assert recipe.launch.attention == "flash_attention_2"
    sft, dpo = recipe.sft, recipe.dpo
    assert (sft.learning_rate, sft.schedule, sft.warmup_share, sft.weight_decay) == (2e-5, "cosine", 0.1, 0)
    assert (sft.global_batch, sft.max_length, sft.packing, sft.epochs) == (512, 2048, "wrapped", 1)
    assert (dpo.learning_rate, dpo.schedule, dpo.warmup_share, dpo.weight_decay) == (5e-7, "linear", 0.1, 0)
    assert (dpo.beta, dpo.global_batch, dpo.epochs, dpo.loss) == (0.1, 32, 3, "sigmoid")
    assert recipe.binarize.strategy == "random-rejected"
    assert recipe.checkpoints["dpo"].published == {"mt_bench": 7.34, "alpaca_eval": 90.60}
    assert [(point.stage, point.start) for point in recipe.checkpoints.values()] == [("sft", "base"), ("dpo", "sft")]


def test_the_ablation_carries_the_papers_table_3() -> None:
    points = load("ablation-tiny", {}).recipe.checkpoints.values()
    assert [(point.label, *point.published.values()) for point in points] == [
        ("dDPO without dSFT", 4.76, 30.76),
        ("dSFT-1", 6.64, 85.65),
        ("dSFT-2", 6.19, 78.54),
        ("dDPO + dSFT", 7.00, 86.07),
    ]
    assert [(point.stage, point.start, point.data) for point in points] == [
        ("dpo", "base", None),
        ("sft", "base", None),
        ("sft", "dsft-1", "chosen"),
        ("dpo", "dsft-1", None),
    ]


def test_the_handbook_differs_from_the_paper_where_facts_say() -> None:
    paper, handbook = load("zephyr-7b-beta", {}), load("zephyr-7b-handbook", {})
    found = {key: (mine, theirs) for key, mine, theirs in differences(paper, handbook)}
    assert found["dpo.beta"] == (0.1, 0.01)
    assert found["dpo.schedule"] == ("linear", "cosine")
    assert found["dpo.global_batch"] == (32, 128)
    assert found["dpo.epochs"] == (3, 1)
    assert found["sft.global_batch"] == (512, 128)
    assert found["sft.packing"] == ("wrapped", "none")
    assert found["hardware.nodes"] == (2, 1)
    same = {"sft.learning_rate", "sft.schedule", "sft.epochs", "dpo.learning_rate", "dpo.warmup_share", "base.name"}
    assert not same & set(found)


def test_a_recipe_does_not_differ_from_itself_and_notus_only_in_its_preferences() -> None:
    paper, notus = load("zephyr-7b-beta", {}), load("notus-7b", {})
    assert differences(paper, paper) == []
    found = {key for key, _, _ in differences(paper, notus)}
    assert {key for key in found if key.partition(".")[0] not in ("name", "description", "checkpoints")} == {
        "binarize.strategy"
    }


def test_differences_name_keys_that_only_one_side_has() -> None:
    found = {key: (mine, theirs) for key, mine, theirs in differences(load("tiny", {}), load("notus-7b", {}))}
    assert found["build.source.dialogues"] == (load("tiny", {}).recipe.build.source.model_dump()["dialogues"], None)
    assert found["build.source.dataset"] == (None, "HuggingFaceH4/ultrachat_200k")


def test_a_recipe_may_extend_one_that_extends_another(write: Write) -> None:
    write("extends: zephyr-7b-handbook\nname: upper\nseed: 7\n", "folder/upper.yaml")
    loaded = load(write("extends: folder/upper.yaml\nname: lower\ndpo: {beta: 0.3}\n"), {})
    handbook = load("zephyr-7b-handbook", {}).recipe
    assert loaded.recipe == handbook.model_copy(
        update={"name": "lower", "seed": 7, "dpo": handbook.dpo.model_copy(update={"beta": 0.3})}
    )
    assert origin(loaded, "dpo.beta") == "mine.yaml"
    assert origin(loaded, "seed") == "folder/upper.yaml"
    assert origin(loaded, "dpo.epochs").startswith("recipe zephyr-7b-handbook")
    assert origin(loaded, "dpo.learning_rate").startswith("recipe zephyr-7b-beta")


def test_a_file_is_extended_from_where_it_lies(write: Write) -> None:
    write("extends: tiny\nname: parent\nseed: 5\n", "folder/parent.yaml")
    write("extends: parent.yaml\nname: child\n", "folder/child.yaml")
    assert load("folder/child.yaml", {}).recipe.seed == 5


def test_the_working_folders_file_is_the_default_and_tiny_without_it(write: Write) -> None:
    assert load(None, {}).recipe.name == "tiny"
    write("extends: zephyr-7b-beta\nname: here\n", loading.WORKING_FILE)
    assert load(None, {}).recipe.name == "here"
    assert load("tiny", {}).recipe.name == "tiny"


def test_a_circle_is_refused(write: Write) -> None:
    write("extends: a.yaml\n", "b.yaml")
    error = refused(write("extends: ./b.yaml\n", "a.yaml"))
    assert "circle" in error.problem
    assert "circle" in refused(write("extends: self.yaml\n", "self.yaml")).problem


def test_an_unknown_recipe_names_the_nearest(write: Write) -> None:
    write("extends: tiny\n")
    assert refused("zephyr-7b-bet").remedy == "did you mean 'zephyr-7b-beta'?"
    assert "tiny" in refused("qqqq").remedy
    assert "there is no recipe 'gone.yaml'" in refused(write("extends: gone.yaml\n")).problem


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("dpo: {betta: 0.1}", "dpo.betta", "dpo.beta"),
        ("sft: {learning_rat: 0.1}", "sft.learning_rat", "sft.learning_rate"),
        ("build: {source: {dialogs: 3}}", "build.source.dialogs", "build.source.dialogues"),
        ("launch: {process: 3}", "launch.process", "launch.processes"),
        ("dpoo: {beta: 0.1}", "dpoo", "dpo"),
        ("checkpoints: {sft: {stage: sft, lable: x}}", "checkpoints.sft.lable", "checkpoints.sft.label"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known(write: Write, text: str, key: str, nearest: str) -> None:
    error = refused(write(f"extends: tiny\n{text}\n"))
    assert error.problem == f"mine.yaml: unknown key {key!r}"
    assert error.remedy == f"did you mean {nearest!r}?"


@pytest.mark.parametrize(
    ("assignment", "shown"),
    [
        ("dpo.beta=0", "dpo.beta = 0: "),
        ("dpo.beta=.inf", "dpo.beta = inf: "),
        ("dpo.beta=.nan", "dpo.beta = nan: "),
        ("dpo.beta=lots", "dpo.beta = 'lots': "),
        ("sft.max_length=7", "sft.max_length = 7: "),
        ("sft.max_length=", "sft.max_length = None: "),
        ("sft.epochs=101", "sft.epochs = 101: "),
        ("build.test_share=0.6", "build.test_share = 0.6: "),
        ("build.source.two_turn_share=-1", "build.source.two_turn_share = -1: "),
        ("launch.zero_stage=4", "launch.zero_stage = 4: "),
        ("sft.schedule=square", "sft.schedule = 'square': "),
        ("seed=-1", "seed = -1: "),
        ("seed=2147483648", "seed = 2147483648: "),
        ("name=../elsewhere", "name = '../elsewhere': "),
        ("name=..", "name = '..': "),
        ("base=tiny-mistral", "base = 'tiny-mistral': "),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_key_value_and_layer(assignment: str, shown: str) -> None:
    assert refused("tiny", assignment).problem.startswith(f"--set: {shown}")


def test_a_wrong_value_is_blamed_on_the_layer_that_gave_it(write: Write) -> None:
    write("extends: tiny\ndpo: {beta: -1}\n", "below.yaml")
    above = write("extends: below.yaml\nname: above\nsft: {epochs: 1}\n")
    assert refused(above).problem.startswith("below.yaml: dpo.beta = -1")
    assert refused(above, "dpo.beta=-2").problem.startswith("--set: dpo.beta = -2")
    assert refused(above, "dpo.beta=1", "sft.epoch=2").problem == "--set: unknown key 'sft.epoch'"


def test_a_missing_key_is_named(write: Write) -> None:
    error = refused(write("name: mine\n"))
    assert error.problem == "mine.yaml: 'base' is missing"
    assert "extends: tiny" in error.remedy


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: [1,\n", "mine.yaml:3: this is not YAML"),
        ("a: 1\n\tb: 2\n", "mine.yaml:2: this is not YAML"),
        ("a: 'open\n", "mine.yaml:2: this is not YAML"),
        ("", "mine.yaml contains no recipe"),
        ("- a\n", "mine.yaml contains no recipe"),
        ("just words", "mine.yaml contains no recipe"),
        ("a: \x00\n", "mine.yaml is not text"),
    ],
)
def test_broken_yaml_is_refused_with_file_and_line(write: Write, text: str, problem: str) -> None:
    assert refused(write(text)).problem.startswith(problem)


def test_a_file_that_is_not_text_is_refused(write: Write) -> None:
    name = write("")
    Path(name).write_bytes(b"\xff\xfe\x00")
    assert refused(name).problem == "mine.yaml is not text"


def test_layers_go_from_recipe_over_option_to_set(write: Write) -> None:
    name = write("extends: tiny\nname: mine\ndpo: {beta: 0.2, epochs: 2}\n")
    loaded = load(name, {"dpo.beta": 0.3, "dpo.epochs": None}, ["dpo.max_length=64"])
    keys = ("dpo.beta", "dpo.epochs", "dpo.max_length", "dpo.global_batch", "dpo.loss")
    assert [(value(loaded, key), origin(loaded, key).partition(" ")[0]) for key in keys] == [
        (0.3, "option"),
        (2, "mine.yaml"),
        (64, "--set"),
        (load("tiny", {}).recipe.dpo.global_batch, "recipe"),
        ("sigmoid", "default"),
    ]
    assert value(load(name, {"dpo.beta": 0.3}, ["dpo.beta=0.4", "dpo.beta=0.5"]), "dpo.beta") == 0.5


@pytest.mark.parametrize(
    ("assignment", "key", "expected"),
    [
        ("dpo.learning_rate=5e-7", "dpo.learning_rate", 5e-7),
        (" seed = 3", "seed", 3),
        ("description=a = b", "description", "a = b"),
        ("eval.base=false", "eval.base", False),
        ("eval.judge={name: openai, options: {model: m}}", "eval.judge.options.model", "m"),
        ("feedback.rater=null", "feedback.rater", None),
        ("feedback.completers=[{name: offline}]", "feedback.completers", [TeacherChoice(name="offline").model_dump()]),
    ],
)
def test_assignments_are_read_as_yaml(assignment: str, key: str, expected: Any) -> None:
    loaded = load("tiny", {}, [assignment])
    assert value(loaded, key) == expected
    assert origin(loaded, key) == "--set"


@pytest.mark.parametrize("text", ["dpo.beta", "=1", " =1", "dpo.beta=[1", "dpo.beta={"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    assert repr(text) in refused("tiny", text).problem


def test_a_choice_of_another_name_brings_none_of_the_old_options() -> None:
    loaded = load("tiny", {}, ["build.source.teacher={name: openai}"])
    source = loaded.recipe.build.source.model_dump()
    assert source["teacher"] == TeacherChoice(name="openai").model_dump()
    assert origin(loaded, "build.source.teacher.options") == "default"


def test_a_choice_of_the_same_name_keeps_its_options() -> None:
    loaded = load("tiny", {}, ["build.source.teacher.options.more=1", "build.source.teacher.name=offline"])
    assert value(loaded, "build.source.teacher.options.more") == 1
    assert value(loaded, "build.source.teacher.options.leaning") == "dialogues"


def test_a_source_of_another_kind_brings_none_of_the_old_values() -> None:
    loaded = load("tiny", {"build.source": {"kind": "files", "paths": ["a.jsonl"]}})
    assert loaded.recipe.build.source.model_dump() == {"kind": "files", "paths": ["a.jsonl"]}
    replaced = load("zephyr-7b-beta", {"build.source": {"kind": "files", "paths": ["a.jsonl"]}})
    assert replaced.recipe.build.source.model_dump() == {"kind": "files", "paths": ["a.jsonl"]}


def test_adapters_kept_apart_are_no_start_for_another_checkpoint() -> None:
    assert load("tiny", {}, ["dpo.adapter={rank: 4, merge: false}"]).recipe.dpo.adapter
    assert "sft.adapter.merge: dpo starts from sft" in refused("tiny", "sft.adapter={rank: 4, merge: false}").problem


CHAIN = "extends: tiny\nname: mine\ncheckpoints:\n  only: {stage: sft, label: alone}\npush: {checkpoint: only}\n"


def test_checkpoints_of_a_recipe_replace_those_below(write: Write) -> None:
    loaded = load(write(CHAIN), {})
    assert list(loaded.recipe.checkpoints) == ["only"]
    assert load("ablation-tiny", {}).recipe.checkpoints.keys().isdisjoint(load("tiny", {}).recipe.checkpoints)


def test_checkpoints_of_an_assignment_are_merged(write: Write) -> None:
    loaded = load(write(CHAIN), {}, ["checkpoints.only.label=renamed", "checkpoints.more={stage: dpo, start: only}"])
    points = loaded.recipe.checkpoints
    assert list(points) == ["only", "more"]
    assert (points["only"].label, points["only"].stage) == ("renamed", "sft")


def test_an_origin_of_a_checkpoint_that_was_replaced_is_gone(write: Write) -> None:
    text = "extends: zephyr-7b-beta\nname: mine\ncheckpoints: {dpo: {stage: dpo}}\n"
    loaded = load(write(text), {})
    assert origin(loaded, "checkpoints.dpo.label") == "default"
    assert origin(loaded, "checkpoints.dpo.stage") == "mine.yaml"


@pytest.mark.parametrize(
    ("checkpoints", "problem"),
    [
        ("{dpo: {stage: dpo, start: sft}}", "checkpoints.dpo.start: 'sft' is none of base"),
        ("{dpo: {stage: dpo, start: sft}, sft: {stage: sft}}", "checkpoints.dpo.start: 'sft' is none of base"),
        ("{sft: {stage: sft, start: sft}}", "checkpoints.sft.start: 'sft' is none of base"),
        ("{base: {stage: sft}}", "checkpoints.base: this name is taken"),
        ("{eval: {stage: sft}}", "checkpoints.eval: this name is taken"),
        ("{a/b: {stage: sft}}", "checkpoints.a/b: a name is made of"),
        ("{'a:b': {stage: sft}}", "checkpoints.a:b: a name is made of"),
        ("{..: {stage: sft}}", "checkpoints...: a name is made of"),
        ("{../out: {stage: sft}}", "checkpoints.../out: a name is made of"),
        ("{a b: {stage: sft}}", "checkpoints.a b: a name is made of"),
        ("{a.b: {stage: sft}}", "checkpoints.a.b: a name is made of"),
        ("{'': {stage: sft}}", "checkpoints.: a name is made of"),
        ("{x: {stage: dpo, data: dialogues}}", "checkpoints.x.data: dpo does not train on 'dialogues'"),
        ("{x: {stage: sft, data: pairs}}", "checkpoints.x.data: sft does not train on 'pairs'"),
        ("{}", "checkpoints"),
    ],
)
def test_a_chain_of_checkpoints_that_cannot_be_is_refused(write: Write, checkpoints: str, problem: str) -> None:
    error = refused(write(f"extends: tiny\nname: mine\ncheckpoints: {checkpoints}\n"))
    assert error.problem.startswith(f"mine.yaml: {problem}")


def test_a_published_source_is_told_beside_the_recipes_own_values_only() -> None:
    loaded = load("zephyr-7b-beta", {}, ["dpo.beta=0.2"])
    assert origin(loaded, "dpo.beta") == "--set"
    assert origin(loaded, "dpo.epochs") == "recipe zephyr-7b-beta (paper section 4.4)"
    assert "not stated in the paper" in origin(loaded, "dpo.max_length")


def test_the_schema_is_json_and_knows_every_section() -> None:
    schema = json.loads(json.dumps(loading.schema()))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    undescribed = [
        f"{name}.{key}"
        for name, part in schema["$defs"].items()
        for key, entry in part["properties"].items()
        if key != "kind" and not entry.get("description")
    ]
    assert undescribed == []


def test_known_keys_hold_every_key_of_every_shipped_recipe() -> None:
    known = set(known_keys())
    assert {"dpo.beta", "build.source.dataset", "build.source.paths", "feedback.rater.options"} <= known
    for name in shipped():
        for key in flatten(load(name, {}).recipe.model_dump()):
            assert any(f"{key}.".startswith(f"{prefix}.") for prefix in known), key


def test_flatten_keeps_lists_and_empty_mappings_as_values() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_a_checkpoint_may_state_its_own_epochs(zephyrctl: Command) -> None:
    recipe = load("epochs-tiny", {}).recipe
    assert [recipe.training(name).dpo.epochs for name in ("dpo-1", "dpo-4")] == [1, 4]
    assert recipe.training("sft") is recipe
    refused = zephyrctl("dpo", "--recipe", "epochs-tiny", "--checkpoint", "dpo-2", "--epochs", "3", "--dry-run")
    assert refused.code == 2 and "--set checkpoints.dpo-2.epochs=3" in refused.err
    told = zephyrctl("dpo", "--recipe", "epochs-tiny", "--checkpoint", "dpo-2", "--dry-run", "--json").json
    assert "2 epochs" in told["dry_run"][0]["does"]
