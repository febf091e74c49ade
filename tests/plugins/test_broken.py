"""Whether a broken plugin is named, left out, and stops no command that does not need it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command, shell
from tests.plugins.packages import install, python_path
from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.plugins import Plugins

HEAD = """\
from zephyrctl.contracts import Binarizer, ModelBase, NoPair, PluginOptions, Reply, Teacher
from zephyrctl.hooks import hookimpl

class Parrot(Teacher):
    "Says it again."
    name = "parrot"
    async def reply(self, messages, sampling=None):
        return Reply(messages[-1].content, "parrot-1")
"""
GOOD = f"""{HEAD}
@hookimpl
def zephyrctl_teachers():
    return [Parrot]
"""

UNSTATABLE = """
class Secret: pass
class Options(PluginOptions, arbitrary_types_allowed=True):
    "An option that no recipe could state."
    secret: Secret
Parrot.Options = Options
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that this process sees for the time of a test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    plugins.forget_loaded()
    yield folder
    plugins.forget_loaded()
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def loaded() -> Plugins:
    """The plugins as a new command sees them."""
    plugins.forget_loaded()
    return plugins.load()


def names(found: Plugins) -> set[str]:
    """The names of all offers."""
    return {offer.name for offer in found.offers}


def test_a_plugin_in_an_archive_enters_too(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", install(tmp_path / "loose", "zephyr-parrot", GOOD))
    monkeypatch.syspath_prepend(packed)
    assert loaded().find("teacher", "parrot").origin == "zephyr-parrot 1.0"
    del sys.modules["zephyr_parrot"]


def test_a_sound_plugin_enters_by_the_same_hooks(site: Path) -> None:
    """With origin and version."""
    install(site, "zephyrctl-parrot", GOOD, version="2.3")
    found = loaded()
    assert found.find("teacher", "parrot").origin == "zephyrctl-parrot 2.3"
    assert found.versions == {"zephyrctl-parrot": "2.3"}
    assert not list(found.warnings())
    assert found.teacher("parrot", {}).label == "parrot"


OF_ANY_KIND = """\
from zephyrctl.hooks import hookimpl
from zephyrctl.plugins import KINDS

kind = KINDS[{kind!r}]
written = dict.fromkeys(kind.contract.__abstractmethods__, lambda self: None)
Mine = type("Mine", (kind.contract,), {{"__doc__": "One of mine.", "name": "mine", **written}})

@hookimpl
def {hook}():
    return [Mine]
"""


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_hook_adds_its_kind(site: Path, kind: str) -> None:
    """A class of the right kind is offered by its name; one of another kind is an error that names both."""
    install(site, "zephyrctl-mine", OF_ANY_KIND.format(kind=kind, hook=plugins.KINDS[kind].hook))
    found = loaded()
    assert not found.failures
    assert (found.find(kind, "mine").origin, found.find(kind, "mine").kind) == ("zephyrctl-mine 1.0", kind)
    assert found.names(kind)[-1] == "mine"
    assert not any("mine" in found.names(other) for other in plugins.KINDS if other != kind)
    other = next(other for name, other in plugins.KINDS.items() if name != kind)
    install(site, "zephyrctl-other", OF_ANY_KIND.format(kind=kind, hook=other.hook))
    assert f"which is not a {other.class_name}" in loaded().failures["zephyrctl-other"]


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_a_plugin_of_any_kind_is_created_by_name(site: Path, kind: str) -> None:
    """Benchmarks, losses and row formats too; an unknown name or option names the nearest."""
    install(site, "zephyrctl-mine", OF_ANY_KIND.format(kind=kind, hook=plugins.KINDS[kind].hook))
    found = loaded()
    create = {
        "teacher": found.teacher,
        "binarizer": found.binarizer,
        "model base": found.model_base,
        "benchmark": found.benchmark,
        "loss": found.loss,
    }
    if kind == "row format":
        assert [type(form).__name__ for form in found.row_formats() if form.name == "mine"] == ["Mine"]
        return
    made = create[kind]("mine", {})
    assert isinstance(made, plugins.KINDS[kind].contract)
    with pytest.raises(ZephyrError, match=f"there is no {kind} 'mien'") as caught:
        create[kind]("mien", {})
    assert caught.value.remedy == "did you mean 'mine'?"
    with pytest.raises(ZephyrError, match=f"wrong options for the {kind} 'mine': strength"):
        create[kind]("mine", {"strength": 1})


def test_only_the_kinds_that_are_wanted_are_imported(tmp_path: Path) -> None:
    """Whoever wants a model base imports no benchmark, no loss and no row format."""
    unwanted = ("zephyrctl.evaluation", "zephyrctl.training.losses", "zephyrctl.rows")
    script = (
        "import sys; from zephyrctl import plugins; plugins.load().model_base('tiny-mistral', {});"
        f"assert not [name for name in sys.modules if name.startswith({unwanted})]"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BROKEN = {
    "import": ("import zephyrctl_nowhere", "ModuleNotFoundError: No module named 'zephyrctl_nowhere'"),
    "syntax": ("def (", "SyntaxError"),
    "exit": ("import sys\nsys.exit('not today')", "SystemExit: not today"),
    "no hooks": (HEAD, "it has no hook: mark zephyrctl_teachers or"),
    "no marker": (GOOD.replace("@hookimpl\n", ""), "it has no hook: mark zephyrctl_teachers or"),
    "misspelled": (
        GOOD.replace("zephyrctl_teachers", "zephyrctl_teacher"),
        "there is no hook 'zephyrctl_teacher', did you mean 'zephyrctl_teachers'?",
    ),
    "one misspelled": (
        GOOD + "@hookimpl\ndef zephyrctl_bases():\n    return []\n",
        "there is no hook 'zephyrctl_bases'",
    ),
    "arguments": (GOOD.replace("teachers()", "teachers(settings)"), "PluginValidationError: Plugin 'zephyrctl-broken"),
    "raises": (GOOD.replace("return [Parrot]", "raise OSError('no disk\\nat all')"), "OSError: no disk"),
    "forgotten return": (GOOD.replace("return [Parrot]", "[Parrot]"), "zephyrctl_teachers returned None"),
    "a class": (GOOD.replace("[Parrot]", "Parrot"), "zephyrctl_teachers returned <class"),
    "an instance": (GOOD.replace("[Parrot]", "[Parrot(None)]"), "which is not a Teacher"),
    "another contract": (GOOD.replace("_teachers", "_binarizers"), "which is not a Binarizer"),
    "abstract": (
        GOOD.replace("async def reply", "async def replies"),
        "Parrot lacks what a Teacher must have: reply",
    ),
    "nameless": (GOOD.replace('    name = "parrot"\n', ""), "Parrot has no name"),
    "options": (GOOD.replace("[Parrot]", "[Parrot]\nParrot.Options = dict"), "Parrot.Options is not a PluginOptions"),
    "option type": (GOOD + UNSTATABLE, "PydanticInvalidForJsonSchema"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_left_out(site: Path, kind: str) -> None:
    """In one line, with its package and version; a sound one beside it, and the built-in ones, are there."""
    code, reason = BROKEN[kind]
    install(site, "zephyrctl-broken", code, version="0.9")
    install(site, "zephyrctl-sound", GOOD)
    found = loaded()
    assert {"parrot", "offline", "random-rejected", "mistral-7b"} <= names(found)
    assert found.find("teacher", "parrot").origin == "zephyrctl-sound 1.0"
    assert found.versions == {"zephyrctl-sound": "1.0"}
    (warning,) = found.warnings()
    assert warning.startswith("the plugin 'zephyrctl-broken' failed to load and is left out: zephyrctl-broken 0.9: ")
    assert reason in warning
    assert "\n" not in warning
    with pytest.raises(ZephyrError, match=r"zephyrctl plugins says why these failed to load: zephyrctl-broken"):
        found.find("teacher", "nobody")


def test_an_entry_point_that_names_nothing(site: Path) -> None:
    """Neither a module that is not there nor an attribute; both entries of one package are named."""
    install(site, "zephyrctl-broken", GOOD, entries={"a": "zephyrctl_gone", "b": "zephyrctl_broken:nothing"})
    found = loaded()
    assert found.failures["a"] == "zephyrctl-broken 1.0: ModuleNotFoundError: No module named 'zephyrctl_gone'"
    assert found.failures["b"].startswith("zephyrctl-broken 1.0: AttributeError")


def test_two_broken_plugins_under_one_entry_name(site: Path) -> None:
    """Are both named."""
    for name in ("zephyrctl-one", "zephyrctl-two"):
        install(site, name, "1 / 0", entries={"same": name.replace("-", "_")})
    assert {reason.split(":")[0] for reason in loaded().failures.values()} == {"zephyrctl-one 1.0", "zephyrctl-two 1.0"}


def test_a_broken_plugin_stops_no_command(site: Path, zephyrctl: Command) -> None:
    """`zephyrctl plugins` warns on standard error and lists the rest; a command that does not need it says nothing."""
    install(site, "zephyrctl-broken", "import zephyrctl_nowhere")
    listed = zephyrctl("plugins", "--json")
    assert listed.code == 0
    assert listed.json["failures"] == {
        "zephyrctl-broken": "zephyrctl-broken 1.0: ModuleNotFoundError: No module named 'zephyrctl_nowhere'"
    }
    assert "warning: the plugin 'zephyrctl-broken' failed to load" in listed.err
    assert len(listed.json["plugins"]) >= 9
    other = zephyrctl("recipe", "schema")
    assert (other.code, other.err) == (0, "")


def test_a_name_that_a_broken_plugin_may_have_brought(site: Path, zephyrctl: Command, tmp_path: Path) -> None:
    """Leads to the plugin that failed to load."""
    install(site, "zephyrctl-broken", "import zephyrctl_nowhere")
    (tmp_path / "rated.jsonl").write_text(json.dumps({"instruction": "Why?", "completions": []}) + "\n")
    outcome = zephyrctl("data", "binarize", "--strategy", "fanciest", "--input", "rated.jsonl")
    assert outcome.code == 1
    assert "there is no binarizer 'fanciest'" in outcome.err
    assert "zephyrctl-broken" in outcome.err


def test_two_plugins_of_one_name_stop_only_who_uses_it(site: Path) -> None:
    """Both are listed and warned of; whoever asks for the name gets an error that names both packages."""
    for name in ("zephyrctl-one", "zephyrctl-two"):
        install(site, name, GOOD)
    found = loaded()
    assert not found.failures
    assert sum(offer.name == "parrot" for offer in found.offers) == 2
    message = "two plugins offer the teacher 'parrot': zephyrctl-one 1.0 and zephyrctl-two 1.0"
    assert list(found.warnings()) == [message]
    with pytest.raises(ZephyrError) as caught:
        found.teacher("parrot", {})
    assert (caught.value.problem, caught.value.remedy) == (message, "uninstall or rename one of them")
    assert found.teacher("offline", {}).name == "offline"


def test_a_plugin_cannot_quietly_replace_a_built_in(site: Path) -> None:
    """Its name is taken, and the same name for another kind is not."""
    install(site, "zephyrctl-taker", GOOD.replace('"parrot"', '"offline"'))
    install(site, "zephyrctl-notus", GOOD.replace('"parrot"', '"notus"'))
    found = loaded()
    with pytest.raises(ZephyrError, match="'offline': built in and zephyrctl-taker 1"):
        found.teacher("offline", {})
    assert found.teacher("notus", {}).name == found.binarizer("notus", {}).name == "notus"


def test_it_is_the_same_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing in this is an effect of how tests load plugins."""
    install(tmp_path / "site", "zephyrctl-broken", "import zephyrctl_nowhere")
    install(tmp_path / "site", "zephyrctl-sound", GOOD)
    outcome = shell(["plugins", "--json"], tmp_path, PYTHONPATH=python_path(tmp_path / "site"))
    assert outcome.code == 0, outcome.err
    assert set(outcome.json["failures"]) == {"zephyrctl-broken"}
    assert "parrot" in {offer["name"] for offer in outcome.json["plugins"]}
