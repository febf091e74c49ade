"""Whether plugins are chosen by name with checked options, and whether the guide to writing one is true."""

import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.plugins.packages import install
from zephyrctl import contracts, hooks, plugins, verdicts
from zephyrctl.contracts import PluginOptions
from zephyrctl.errors import ZephyrError
from zephyrctl.training.losses import PreferenceLoss

GUIDE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
BENCHMARKS = ("mt-bench", "alpaca-eval", "open-llm", "arena", "ifeval")
BINARIZERS = ("random-rejected", "highest-lowest", "notus", "margin", "all-pairs", "zephyr-v1")
ROW_FORMATS = (
    *("messages", "sharegpt", "ultrachat", "alpaca", "prompt", "ultrafeedback"),
    *("pair-conversations", "pair-prompt-messages", "pair-messages", "pair-text"),
)
BENCHMARKS = ("mt-bench", "alpaca-eval", "open-llm", "arena", "ifeval")
LOSSES = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
)
"""Under TRL's names."""
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_what_is_built_in() -> None:
    """Registered through the hooks, each with a sentence and a description of every option."""
    offers = [offer for offer in plugins.load().offers if offer.origin == "built in"]
    assert [(offer.kind, offer.name) for offer in offers] == [
        *(("teacher", name) for name in ("offline", "openai", "transformers")),
        *(("binarizer", name) for name in BINARIZERS),
        *(("model base", name) for name in ("mistral-7b", "tiny-mistral", "huggingface")),
        *(("benchmark", name) for name in BENCHMARKS),
        *(("loss", name) for name in LOSSES),
        *(("row format", name) for name in ROW_FORMATS),
    ]
    for offer in offers:
        assert inspect.getdoc(offer.offered)
        assert all(schema.get("description") for schema in offer.options.values()), offer.name


@pytest.mark.parametrize(
    ("kind", "name", "remedy"),
    [
        ("teacher", "open-ai", "did you mean 'openai'?"),
        ("binarizer", "zzz", f"one of: {', '.join(sorted(BINARIZERS))}"),
        ("model base", "mistral-7B", "did you mean 'mistral-7b'?"),
        ("teacher", "notus", "one of: "),
    ],
)
def test_an_unknown_name_names_the_nearest(kind: str, name: str, remedy: str) -> None:
    """Of the same kind."""
    with pytest.raises(ZephyrError, match=f"there is no {kind} '{name}'") as caught:
        plugins.load().find(kind, name)
    assert caught.value.remedy.startswith(remedy)


def test_options_are_checked() -> None:
    """What is wrong with each is said, the nearest known one is named, and what was given is not repeated."""
    with pytest.raises(ZephyrError) as caught:
        plugins.load().teacher("openai", {"modle": "secret-words", "timeout_seconds": "secret-number"})
    assert caught.value.problem.startswith("wrong options for the teacher 'openai': ")
    for part in (
        "model: Field required",
        "modle: Extra inputs are not permitted",
        "timeout_seconds: Input should be a",
    ):
        assert part in caught.value.problem
    assert caught.value.remedy == "did you mean 'model'?"
    assert "secret" not in f"{caught.value.problem}{caught.value.remedy}"
    with pytest.raises(ZephyrError) as caught:
        plugins.load().binarizer("notus", {"x": 1})
    assert caught.value.remedy == "zephyrctl plugins lists the options of 'notus'"


def test_options_are_fixed_once_made() -> None:
    """A stage that is resumed must find the same ones."""
    options = PluginOptions()
    with pytest.raises(ValidationError):
        options.model_validate({"any": 1})
    assert PluginOptions.model_config["frozen"]


def signature(function: object) -> str:
    """The line that defines a function, as it stands in its source."""
    source = inspect.getsource(function)  # type: ignore[arg-type]
    return next(line for line in source.splitlines() if "def " in line).split("  #")[0].strip()


def test_the_guide_states_every_hook_as_it_is() -> None:
    """Name, arguments and result; and no hook that there is not."""
    specified = [
        function for name, function in inspect.getmembers(hooks, inspect.isfunction) if name.startswith("zephyrctl_")
    ]
    assert {function.__name__ for function in specified} == {kind.hook for kind in plugins.KINDS.values()}
    for function in specified:
        assert f"\n{signature(function)} ...\n" in GUIDE
        assert inspect.getdoc(function)
    assert set(re.findall(r"def (zephyrctl_\w+)", GUIDE)) == {kind.hook for kind in plugins.KINDS.values()}


@pytest.mark.parametrize("contract", [contracts.Teacher, contracts.Binarizer, contracts.ModelBase, PreferenceLoss])
def test_the_guide_states_every_method_as_it_is(contract: type) -> None:
    """All that a plugin may write, but `label`, which is only a name."""
    members = {name: value for name, value in vars(contract).items() if not name.startswith("_") and name != "label"}
    methods = [value.fget if isinstance(value, property) else value for value in members.values()]
    stated = [signature(method) for method in methods if inspect.isfunction(method)]
    assert stated
    for line in stated:
        assert f"\n{line}\n" in GUIDE, line


def test_the_guide_s_plugin_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code under its own entry point, as an installer would leave it."""
    code = next(text for language, text in BLOCKS if language == "python" and "hookimpl" in text)
    project = tomllib.loads(next(text for language, text in BLOCKS if language == "toml"))["project"]
    install(tmp_path, project["name"], code, project["version"], project["entry-points"]["zephyrctl"])
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.forget_loaded()
    try:
        found = plugins.load().find("binarizer", "shortest")
        assert found.origin == f"{project['name']} {project['version']}"
        assert not plugins.load().failures
    finally:
        plugins.forget_loaded()
        sys.modules.pop("zephyrctl_shortest", None)


def test_the_guide_s_table_of_a_judge_s_words() -> None:
    """Its examples are read as it says."""
    ratings, scores, preferences = (
        line.split("|")[2:4]
        for line in GUIDE.splitlines()
        if line.startswith(("| rating,", "| score,", "| preference:"))
    )
    quoted = re.compile("`([^`]+)`")

    def rating(text: str) -> float | None:
        return verdicts.read_ratings(f"Answer 1: {text}", 1, "honesty")[0][0].value

    assert [rating(text) for text in quoted.findall(ratings[0])] == [4, 4.5, 4, 4]
    assert [rating(text) for text in quoted.findall(ratings[1])] == [None] * 7
    assert [verdicts.parse_verdict(text).score for text in quoted.findall(scores[0])] == [7.5, 8, 8]
    *alone, footnote = quoted.findall(scores[1])
    assert [verdicts.parse_verdict(text).score for text in (*alone, f"as {footnote} says")] == [None] * 4
    assert "anything else" in preferences[1]
