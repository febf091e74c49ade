"""Whether the conformance suite passes what is right, the built-in ones first, and fails what is wrong, by name."""

import asyncio
import inspect
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import Field

from tests.plugins.packages import FIRST_PARTY
from zephyrctl import builtin, plugins
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.builtin.binarizers import AllPairs, HighestLowest, RandomRejected, ZephyrV1
from zephyrctl.contracts import (
    GREEDY,
    Answers,
    Binarizer,
    Critique,
    ModelBase,
    NoPair,
    Picked,
    PluginOptions,
    Ratings,
    Reply,
    Sampling,
    Sizes,
    Teacher,
)
from zephyrctl.errors import ZephyrError
from zephyrctl.hooks import CONTRACT, hookimpl
from zephyrctl.records import Message, Rating
from zephyrctl.testing import (
    Breach,
    check_benchmark,
    check_binarizer,
    check_loss,
    check_model_base,
    check_plugin,
    check_row_format,
    check_teacher,
    end_of_turn,
    rated,
)
from zephyrctl.tiny.teacher import OfflineTeacher

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
NONE = PluginOptions()
BUILT_IN = {kind: plugins.load().offers_of_kind(kind) for kind in plugins.KINDS}


def test_the_built_in_plugin_passes() -> None:
    check_plugin(builtin)


@pytest.mark.parametrize("offered", [offer.offered for offer in BUILT_IN["binarizer"] if offer.origin == "built in"])
def test_built_in_binarizers_pass(offered: type[Binarizer]) -> None:
    """The published set's rule pairs ties, as it did."""
    check_binarizer(lambda: offered(offered.Options()), pairs_ties=offered is ZephyrV1)


def test_built_in_bases_pass() -> None:
    for name, options in (
        ("mistral-7b", {}),
        ("tiny-mistral", {}),
        ("huggingface", {"model": TinyMistral(NONE).location()}),
    ):
        check_model_base(lambda name=name, options=options: plugins.load().model_base(name, options))  # type: ignore[misc]
    assert end_of_turn(TinyMistral(NONE)) == "<EOS>"


def test_the_offline_teacher_passes() -> None:
    check_teacher(lambda: OfflineTeacher(OfflineTeacher.Options()))


def test_it_needs_no_test_framework_and_nothing_heavy() -> None:
    script = (
        "import sys, zephyrctl.testing; assert not {'pytest', 'unittest', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_answers_are_made_as_a_recipe_makes_them() -> None:
    """Those without a score are not shown; ties are settled in each of the three ways."""
    answers = rated(("a", 5), ("b", None), ("c", 5), ("d", 1))
    assert [(answer.place, answer.completion.text) for answer in answers.scored] == [(0, "a"), (2, "c"), (3, "d")]
    for ties, places in (("random", [0, 2]), ("first", [0]), ("drop", [])):
        given = rated(("a", 5), ("b", None), ("c", 5), ("d", 1), ties=ties)  # type: ignore[arg-type]
        assert [answer.place for answer in given.best] == places


class Strategy(HighestLowest):
    """A sound strategy, of which the wrong ones below are made."""

    name = "strategy"


class Unseeded(RandomRejected):
    """Draws from the process's own generator."""

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """As the parent, by another chance."""
        return super().pick(answers, random)  # type: ignore[arg-type]


class Counting(Strategy):
    """Goes by how many prompts it has seen."""

    seen = 0

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """Every second prompt."""
        self.seen += 1
        return super().pick(answers, rng) if self.seen % 2 else NoPair("the second")


class Sorting(Strategy):
    """Sorts the answers in place."""

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """As the parent."""
        answers.scored.sort(key=lambda answer: answer.score)  # type: ignore[attr-defined]
        return super().pick(answers, rng)


class Reversed(Strategy):
    """The worse answer is chosen."""

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """The parent's pair, the other way round."""
        picked = super().pick(answers, rng)
        return Picked(picked.rejected, picked.chosen) if isinstance(picked, Picked) else picked


class Scoreless(Strategy):
    """Pairs an answer that has no score."""

    def pick(self, answers: Answers, rng: Random) -> Picked | NoPair:
        """The first that is not scored is rejected."""
        places = {answer.place for answer in answers.scored}
        for place in range(len(answers.prompt.completions)):
            if place not in places:
                return Picked(answers.by_score()[0], answers.scored[0]._replace(place=place, score=0.0))
        return super().pick(answers, rng)


class Returning(Strategy):
    """Returns what it is made to."""

    returned: Any = None

    def pick(self, answers: Answers, rng: Random) -> Any:
        """The same for every prompt."""
        return self.returned


class Itself(Strategy):
    """Pairs an answer with itself."""

    def pick(self, answers: Answers, rng: Random) -> Picked:
        """The best twice."""
        return Picked(answers.by_score()[0], answers.by_score()[0])


class Twice(AllPairs):
    """Returns every pair twice."""

    def pick(self, answers: Answers, rng: Random) -> Sequence[Picked] | NoPair:
        """The parent's, doubled."""
        pairs = super().pick(answers, rng)
        return pairs if isinstance(pairs, NoPair) else [*pairs, *pairs]


class Silent(Strategy):
    """Has an option that nobody explains."""

    class Options(PluginOptions):
        """Options."""

        strength: int = 1


def returning(value: Any) -> type[Binarizer]:
    """A strategy that returns this."""
    return type("Returned", (Returning,), {"__doc__": "Wrong.", "returned": value})


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (Unseeded, "not deterministic"),
        (Counting, "not deterministic"),
        (Sorting, "changes the answers"),
        (Reversed, "is not above the rejected one"),
        (Scoreless, "the rejected answer is none of the scored answers"),
        (ZephyrV1, "is not above the rejected one"),
        (Itself, "paired with itself"),
        (Twice, "the same pair twice"),
        (Silent, "options of 'strategy' without a description: strength"),
        (returning([]), "an empty sequence"),
        (returning(NoPair(" ")), "no cause"),
        (returning(NoPair("never")), "makes no pair"),
        (returning(("chosen", "rejected")), "where a Picked is wanted"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_binarizer_fails(offered: type[Binarizer], reason: str) -> None:
    with pytest.raises(Breach, match=reason):
        check_binarizer(lambda: offered(offered.Options()))


ZEPHYR = TinyMistral(NONE).chat_template()
SHAPE = TinyMistral(NONE).sizes()


def base(template: str = ZEPHYR, shape: Sizes = SHAPE, **members: Any) -> Callable[[], ModelBase]:
    """What makes a base with this template and shape."""
    given = {
        "__doc__": "A base.",
        "name": "some",
        "location": lambda self: "some/base",
        "sizes": lambda self: shape,
        "chat_template": lambda self: template,
        **members,
    }
    return lambda: type("Some", (ModelBase,), given)(NONE)


def swapped(old: str, new: str) -> str:
    """Zephyr's template with another part in the place of one."""
    assert old in ZEPHYR
    return ZEPHYR.replace(old, new)


UNMARKED = swapped("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (base(UNMARKED), "does not mark each answer"),
        (
            base(swapped("{{- message['content'] + eos_token -}}\n{%- endgen", "{{- message['content'] -}}{%- endgen")),
            "stop",
        ),
        (
            base(swapped("{%- generation -%}\n", "{%- generation -%}{{- 'A: ' -}}")),
            "do not begin where the answer begins",
        ),
        (base("{% generation %}" + UNMARKED + "{% endgeneration %}"), "do not begin where the answer begins"),
        (base(swapped("'<|assistant|>\\n'", "'<|assistant|> '")), "generated after another text"),
        (base(swapped("{%- if add_generation_prompt -%}", "{%- if false -%}")), "generated after another text"),
        (base("{{- strftime_now('%d') -}}" + ZEPHYR), "needs what it is not given"),
        (base("{%- if -%}"), "is no template"),
        (
            base("{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}" + ZEPHYR),
            "is left out",
        ),
        (base(shape=SHAPE.model_copy(update={"layers": 10 * SHAPE.layers})), "million parameters"),
        (base(shape=SHAPE.model_copy(update={"parameters": 1})), "million parameters"),
        (base(shape=SHAPE.model_copy(update={"key_value_width": 3 * SHAPE.width})), "wider than"),
        (base(location=lambda self: ""), "its location is no text"),
        (base(location=lambda self: f"some/{id(self)}"), "another place each time"),
        (base(license=None), "its license is no text"),
        (base(__doc__=None), "no docstring"),
        (base(name="Some Base"), "not in small-letters-and-dashes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_base_fails(make: Callable[[], ModelBase], reason: str) -> None:
    with pytest.raises(Breach, match=reason):
        check_model_base(make)


def test_a_base_may_refuse_system_turns_and_be_a_mixture_of_experts() -> None:
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}" + ZEPHYR
    check_model_base(base(refusing))
    check_model_base(base(shape=SHAPE.model_copy(update={"parameters": 10**12})), is_dense=False)


class Model(Teacher):
    """A sound teacher that draws, of which the wrong ones below are made."""

    class Options(PluginOptions):
        """Options of `model`."""

        key_variable: str = Field(default="CONFORMANCE_KEY", description="where the key lies")

    name = "model"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """A number that is drawn by the seed."""
        drawn = Random(sampling.seed if sampling.temperature else 0).random()
        return Reply(f"{drawn} of {messages[-1].content}", "model-1", 3, min(2, sampling.max_tokens))


class Ignoring(Model):
    """Ignores the seed."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Always the first draw."""
        return await super().reply(messages, GREEDY)


class Restless(Model):
    """Draws anew each time."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """By nobody's seed."""
        return Reply(str(random.random()), "model-1")


class Changing(Model):
    """Adds a turn to the caller's messages."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """As the parent."""
        messages.insert(0, Message(role="system", content="Be kind."))  # type: ignore[attr-defined]
        return await super().reply(messages, sampling)


class Empty(Model):
    """Says nothing."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """An empty text."""
        return Reply("  ", "model-1")


class Long(Model):
    """Does not end where it should."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Nine tokens, whatever the limit."""
        return Reply("one two three four five six seven eight nine", "model-1", 1, 9)


class Nameless(Model):
    """Does not say which model answered."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """No model."""
        return Reply("Yes.", "")


class Telling(Model):
    """Has its key in its identity."""

    @property
    def identity(self) -> dict[str, Any]:
        """With the key."""
        return {"key": "sk-conformance"}


class Taking(Model):
    """Has a method of its own under a name that the contract uses itself."""

    def _ask(self, text: str) -> str:  # type: ignore[override]
        return text


class Leaving(Model):
    """Leaves a task behind."""

    async def close(self) -> None:
        """Begin something."""
        self.left = asyncio.create_task(asyncio.sleep(60))


class Starting(Model):
    """Leaves a process behind."""

    async def close(self) -> None:
        """Start something."""
        self.left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        STARTED.append(self.left)


class Short(Model):
    """Gives too few marks."""

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """One for all."""
        return Ratings([Rating(aspect=aspect, value=3)], model="model-1")


class Placed(Model):
    """Marks by place and not by answer."""

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """The first is the best."""
        return Ratings([Rating(aspect=aspect, value=5 - place) for place in range(len(answers))], model="model-1")


class Elsewhere(Model):
    """Rates another aspect."""

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """Honesty, always."""
        return Ratings([Rating(aspect="honesty", value=3) for _ in answers], model="model-1")


class Generous(Model):
    """Scores beyond the scale."""

    async def critique(self, messages: Sequence[Message], answer: str, sample: int = 0) -> Critique:
        """Eleven."""
        return Critique("Wonderful.", 11, "model-1")


class Decided(Model):
    """Compares by a margin."""

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float:
        """A difference."""
        return 2.5


STARTED: list["subprocess.Popen[bytes]"] = []


@pytest.fixture(autouse=True)
def _end_what_was_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def test_a_sound_teacher_passes() -> None:
    check_teacher(lambda: Model(Model.Options()))


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (Ignoring, "the seed is ignored"),
        (Restless, "the same seed gives another reply"),
        (Changing, "changes the messages"),
        (Empty, "a reply is empty"),
        (Long, "max_tokens is 2, and a reply has 9 tokens"),
        (Nameless, "which model answered"),
        (Telling, "holds its key"),
        (Taking, "_ask: the contract uses that name"),
        (Leaving, "leaves tasks behind"),
        (Starting, "leaves processes behind"),
        (Short, "1 marks for 3 answers"),
        (Placed, "in another order an answer gets another mark"),
        (Elsewhere, "another aspect"),
        (Generous, "not from 1 to 10"),
        (Decided, "not 1, 0, 0.5 or None"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_teacher_fails(offered: type[Teacher], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFORMANCE_KEY", "sk-conformance")
    with pytest.raises(Breach, match=reason):
        check_teacher(lambda: offered(offered.Options()))


def test_a_teacher_that_only_scores_must_refuse_to_reply() -> None:
    """With an error that a person can read."""
    with pytest.raises(Breach, match="raises no ZephyrError"):
        check_teacher(lambda: Model(Model.Options()), replies=False)

    class Scorer(Placed):
        """Refuses, and still marks by place."""

        async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
            """Never."""
            raise ZephyrError("it only scores", "choose another")

    with pytest.raises(Breach, match="in another order"):
        check_teacher(lambda: Scorer(Scorer.Options()), replies=False)


def test_a_plugin_without_hooks_or_classes_fails() -> None:
    module = types.ModuleType("plugin")
    with pytest.raises(Breach, match="it has no hook"):
        check_plugin(module)
    module.zephyrctl_teachers = hookimpl(lambda: [])  # type: ignore[attr-defined]  # noqa: PIE807  it takes no class
    with pytest.raises(Breach, match="return no class"):
        check_plugin(module)
    module.zephyrctl_contract = "0"  # type: ignore[attr-defined]
    with pytest.raises(Breach, match="wants version '0'"):
        check_plugin(module)


@pytest.mark.parametrize(
    "check",
    [
        check_plugin,
        check_teacher,
        check_binarizer,
        check_model_base,
        check_loss,
        check_row_format,
        check_benchmark,
    ],
)
def test_the_guide_states_every_check_as_it_is(check: Callable[..., None]) -> None:
    source = inspect.getsource(check).splitlines()[0]
    assert f"\n{source}\n" in GUIDE


def test_the_guide_names_this_version_and_every_package() -> None:
    assert f'It is "{CONTRACT}"' in GUIDE and f'zephyrctl_contract = "{CONTRACT}"' in GUIDE
    for package in FIRST_PARTY:
        assert f"| `{package.name}` |" in GUIDE
    assert GUIDE.count("| `zephyrctl-") == len(FIRST_PARTY) > 1
