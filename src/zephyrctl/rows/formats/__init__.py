"""The contract of a row format: how rows in one published form are recognized and read.

A plugin returns classes of this kind from the hook `zephyrctl_row_formats`; the built-in ones are registered by the
same hook. A format subclasses one of `DialogueFormat`, `PromptFormat`, `RatedFormat` or `PairFormat`, by what its rows
give.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from zephyrctl.contracts import PluginOptions
from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, PreferencePair, Prompt, RatedPrompt, Role, first_user_turn, prompt_id
from zephyrctl.rows.turns import parse_turns, to_dialogue, to_messages, to_prompt

Row = Mapping[str, Any]
"""One row as it was read from JSON or Parquet: its keys and their values."""
Turns = Iterable[tuple[str, str]]
"""(role, text) of each turn. Roles are those of `turns.ROLES`: user or human, assistant or gpt, system."""
RowKind = Literal["dialogue", "prompt", "rated prompt", "preference pair"]


class RowFormat(ABC):
    """One form in which rows are published."""

    name: ClassVar[str]
    """Short and unique, in small-letters-and-dashes."""
    title: ClassVar[str]
    """What error messages call the form, with its keys: "ShareGPT's `conversations`"."""
    kind: ClassVar[RowKind]
    """What a row of this form gives. Set by the four subclasses below."""
    keys: ClassVar[frozenset[str]]
    """The keys that the form reads. A row may have other keys, which are ignored."""
    example: ClassVar[Row]
    """The smallest row of this form that can be read."""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    """A row format is made with the defaults of its options: a row alone decides how it is read."""

    def __init__(self, options: PluginOptions) -> None:
        self.options = options

    @abstractmethod
    def matches(self, row: Row) -> bool:
        """True if a row has this form, whether or not its content can be used.

        It is called for each row and should look at a few keys only. Formats are asked in the order in which their
        plugin lists them, those of plugins before the built-in ones; the first that matches reads the row.
        """


class DialogueFormat(RowFormat):
    """A form whose rows give dialogues, and prompts if the answers are left out. Only `turns` is to be written."""

    kind = "dialogue"
    may_end_on_user: ClassVar[bool] = False
    """True if `data build` cuts a last user turn without an answer, instead of rejecting the row."""

    @abstractmethod
    def turns(self, row: Row) -> Turns:
        """The turns of a row. A KeyError, IndexError, TypeError, ValueError or AttributeError means a bad row."""

    def conversation(self, row: Row, where: str) -> tuple[list[Role], list[str]]:
        """The roles and the texts of a row as lists, in whatever order they are. Raises BadRow if they are neither.

        No record is made: of millions of rows, making the records takes most of the time.
        """
        return parse_turns(lambda: self.turns(row), where)

    def read(self, row: Row, where: str, source: str) -> Dialogue:
        """The dialogue. Raises BadRow if roles are out of order, or a turn is empty or missing."""
        return to_dialogue(*self.conversation(row, where), where, source)

    def read_prompt(self, row: Row, where: str, source: str) -> Prompt:
        """The turns up to and including the last user turn. Raises BadRow as `read` does."""
        return to_prompt(*self.conversation(row, where), where, source)


class PromptFormat(RowFormat):
    """A form whose rows give a prompt without answers."""

    kind = "prompt"

    @abstractmethod
    def read(self, row: Row, where: str, source: str) -> Prompt:
        """The prompt. Raises BadRow if the row cannot be used."""


class RatedFormat(RowFormat):
    """A form whose rows give a prompt, several answers and their ratings."""

    kind = "rated prompt"

    @abstractmethod
    def read(self, row: Row, where: str) -> RatedPrompt:
        """The rated prompt. Raises BadRow if the row cannot be used."""

    def prompt_text(self, row: Row, where: str) -> str:
        """What the user says first, from which the prompt's id is made. Override it if that needs no whole read."""
        return first_user_turn(self.read(row, where).messages)


class PairFormat(RowFormat):
    """A form whose rows give a prompt with a chosen and a rejected answer."""

    kind = "preference pair"

    @abstractmethod
    def prompt_turns(self, row: Row) -> Turns:
        """The turns before the two answers, ending on the user. Errors as for `DialogueFormat.turns`, or BadRow."""

    @abstractmethod
    def answers(self, row: Row) -> tuple[object, object]:
        """The texts of the chosen and of the rejected answer."""

    def scores(self, row: Row) -> tuple[float | None, float | None]:
        """The scores of the chosen and of the rejected answer; None if the row states none."""
        return None, None

    def read(self, row: Row, where: str) -> PreferencePair:
        """The pair. Raises BadRow if the prompt does not end on the user, or an answer is not text."""
        roles, texts = parse_turns(lambda: self.prompt_turns(row), where)
        if roles[-1:] != ["user"]:
            raise BadRow(where, "the prompt does not end on the user")
        messages = to_messages(roles, texts)
        chosen, rejected = self.answers(row)
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise BadRow(where, "an answer that is not text")
        score_chosen, score_rejected = self.scores(row)
        try:
            return PreferencePair(
                id=prompt_id(first_user_turn(messages)),
                messages=messages,
                chosen=chosen,
                rejected=rejected,
                score_chosen=score_chosen,
                score_rejected=score_rejected,
            )
        except ValidationError:
            raise BadRow(where, "a pair that is not made of text") from None


def list_titles(formats: Sequence[RowFormat]) -> str:
    """The titles of some formats, as an error message lists them."""
    titles = [form.title for form in formats]
    return " or ".join(filter(None, [", ".join(titles[:-1]), *titles[-1:]]))
