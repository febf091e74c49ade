"""Read published rows into records, each by the first installed row format that matches it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zephyrctl import plugins
from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, PreferencePair, Prompt, RatedPrompt
from zephyrctl.rows.files import Raw, Read, opened
from zephyrctl.rows.formats import (
    DialogueFormat,
    PairFormat,
    PromptFormat,
    RatedFormat,
    Row,
    RowFormat,
    RowKind,
    list_titles,
)

Result = TypeVar("Result")
Format = TypeVar("Format", bound=RowFormat)


@dataclass(frozen=True)
class RowFormats:
    """The installed row formats by what they give, in the order in which they are asked."""

    dialogues: Sequence[DialogueFormat]
    prompts: Sequence[PromptFormat]
    rated: Sequence[RatedFormat]
    pairs: Sequence[PairFormat]

    def __iter__(self) -> Iterator[RowFormat]:
        yield from (*self.dialogues, *self.prompts, *self.rated, *self.pairs)

    def dialogue_format(self, row: Row, where: str) -> DialogueFormat:
        """The format that reads a row as a dialogue. Raises BadRow, which lists the known formats, if there is none."""
        return find_match(self.dialogues, row) or _refuse(self.dialogues, "dialogue", row, where)

    def dialogue(self, row: Row, where: str, source: str) -> Dialogue:
        """A row as a dialogue. Raises BadRow if it cannot be one."""
        return self.dialogue_format(row, where).read(row, where, source)

    def prompt(self, row: Row, where: str, source: str) -> Prompt:
        """A row as a prompt: its text, or the turns of a dialogue up to the last user turn. Raises BadRow."""
        if form := find_match(self.prompts, row):
            return form.read(row, where, source)
        return self.dialogue_format(row, where).read_prompt(row, where, source)

    def rated_prompt(self, row: Row, where: str) -> RatedPrompt:
        """A row as a rated prompt. Raises BadRow if it cannot be one."""
        form = find_match(self.rated, row) or _refuse(self.rated, "rated prompt", row, where)
        return form.read(row, where)

    def preference_pair(self, row: Row, where: str) -> PreferencePair:
        """A row as a pair. Raises BadRow if it cannot be one."""
        form = find_match(self.pairs, row) or _refuse(self.pairs, "preference pair", row, where)
        return form.read(row, where)


def row_formats() -> RowFormats:
    """Every installed row format: those of plugins first, so that one can read what a built-in one would misread."""
    loaded = plugins.load()
    added = {offer.name for offer in loaded.added}
    found = sorted(loaded.row_formats(), key=lambda form: form.name not in added)
    return RowFormats(
        dialogues=[form for form in found if isinstance(form, DialogueFormat)],
        prompts=[form for form in found if isinstance(form, PromptFormat)],
        rated=[form for form in found if isinstance(form, RatedFormat)],
        pairs=[form for form in found if isinstance(form, PairFormat)],
    )


def find_match(formats: Iterable[Format], row: Row) -> Format | None:
    """The first of some formats that a row has, or None."""
    for form in formats:
        if form.matches(row):
            return form
    return None


def read_each(
    rows: Iterable[tuple[str, Read]],
    read: Callable[[Raw, str], Result],
    skip_bad_rows: bool,
    drop: Callable[[str], None],
) -> Iterator[Result]:
    """Read every (where, row). A bad row raises BadRow; if bad rows are skipped, `drop` is called with its cause."""
    for where, row in rows:
        try:
            result = read(opened(row), where)
        except BadRow as error:
            if not skip_bad_rows:
                raise
            drop(error.cause)
        else:
            yield result


def _refuse(formats: Sequence[Format], kind: RowKind, row: Row, where: str) -> Format:
    """Raise BadRow for a row that no format matches."""
    details = f"no known form of {kind} (keys: {', '.join(row)})"
    raise BadRow(where, "no known form", details, remedy=f"give rows with {list_titles(formats)}")
