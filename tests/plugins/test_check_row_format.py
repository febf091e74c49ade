"""Whether `check_row_format` passes the built-in formats, and fails wrong ones with the reason."""

import re
from typing import Any, ClassVar

import pytest

from zephyrctl.contracts import PluginOptions
from zephyrctl.records import Prompt
from zephyrctl.rows.formats import DialogueFormat, PromptFormat, RatedFormat, Row, RowFormat, Turns
from zephyrctl.rows.published_rows import row_formats
from zephyrctl.testing import Breach, check_row_format

FORMATS = row_formats()


class Sound(DialogueFormat):
    """A sound format, from which the wrong ones below are made."""

    name = "sound"
    title = "`question` and `answer`"
    keys = frozenset({"question", "answer"})
    example: ClassVar[Row] = {"question": "Hi?", "answer": "Hello."}

    def matches(self, row: Row) -> bool:
        """True if there is a `question`."""
        return "question" in row

    def turns(self, row: Row) -> Turns:
        """Both texts."""
        return [("user", row["question"]), ("assistant", row["answer"])]


class Greedy(Sound):
    """Matches every row."""

    def matches(self, row: Row) -> bool:
        """True."""
        return True


class Stealing(Sound):
    """Matches the rows of another format."""

    def matches(self, row: Row) -> bool:
        """True for ShareGPT's rows too."""
        return "question" in row or "conversations" in row


class Changing(Sound):
    """Changes the row."""

    def turns(self, row: Row) -> Turns:
        """Both texts, after the row was changed."""
        row["question"] += "!"  # type: ignore[index]
        return super().turns(row)


class Failing(PromptFormat):
    """Lets an error of a broken row out."""

    name, title = "failing", "`ask`"
    keys, example = frozenset({"ask"}), {"ask": "Hi?"}

    def matches(self, row: Row) -> bool:
        """True if there is an `ask`."""
        return "ask" in row

    def read(self, row: Row, where: str, source: str) -> Prompt:
        """Strips what may be no text."""
        return next(form for form in FORMATS.prompts).read({"prompt": row["ask"].strip()}, where, source)


class Mistaken(RatedFormat):
    """Returns another record than its kind."""

    name, title = "mistaken", "`ask`"
    keys, example = frozenset({"ask"}), {"ask": "Hi?"}

    def matches(self, row: Row) -> bool:
        """True if there is an `ask`."""
        return "ask" in row

    def prompt_text(self, row: Row, where: str) -> str:
        """The text."""
        return str(row["ask"])

    def read(self, row: Row, where: str) -> Any:
        """A prompt, and not a rated one."""
        return FORMATS.prompts[0].read({"prompt": row["ask"]}, where, "test")


def variant(**members: object) -> type[Sound]:
    """The sound format with other members."""
    return type("Variant", (Sound,), {"__doc__": "A format.", **members})


def make(form: type[RowFormat]) -> RowFormat:
    """The format with default options."""
    return form(PluginOptions())


def test_a_sound_format_passes_though_it_is_not_installed() -> None:
    check_row_format(lambda: make(Sound))


@pytest.mark.parametrize("form", [type(form) for form in FORMATS], ids=lambda form: form.name)
def test_installed_formats_pass(form: type[RowFormat]) -> None:
    check_row_format(lambda: make(form))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Greedy, "matches a row without keys"),
        (Stealing, "the example of 'sharegpt' is read by 'sound'"),
        (Changing, "reading changes the row"),
        (Failing, "a broken row raises AttributeError"),
        (Mistaken, "read as Prompt, not as rated prompt"),
        (variant(keys=frozenset({"question"})), "missing in `keys`: answer"),
        (variant(example={"answer": "Hello."}), "does not match its own example"),
        (variant(title=" "), "no title"),
        (variant(name="Sound One"), "not in small-letters-and-dashes"),
        (variant(__doc__=None), "no docstring"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_format_fails(form: type[RowFormat], reason: str) -> None:
    with pytest.raises(Breach, match=re.escape(reason)):
        check_row_format(lambda: make(form))
