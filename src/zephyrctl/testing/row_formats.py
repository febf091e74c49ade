"""Check that a row format keeps its contract."""

import json
from collections.abc import Callable, Iterator

from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, PreferencePair, Prompt, RatedPrompt, Record
from zephyrctl.rows.formats import DialogueFormat, PairFormat, PromptFormat, RatedFormat, Row, RowFormat
from zephyrctl.rows.published_rows import find_match, row_formats
from zephyrctl.testing.plugin_classes import Breach, check_class, require

RECORDS: dict[str, type[Record]] = {
    "dialogue": Dialogue,
    "prompt": Prompt,
    "rated prompt": RatedPrompt,
    "preference pair": PreferencePair,
}
"""Kind of format: the record that it reads."""
BROKEN_VALUES: tuple[object, ...] = (None, 7, "", [], {}, [None], [{}])
"""What each value of the example is replaced by, to see whether broken rows are reported as such."""


def check_row_format(make: Callable[[], RowFormat]) -> None:
    """Check that a format reads its example, takes no row of another format, and raises BadRow for broken rows."""
    form = make()
    check_class(type(form))
    require(form.kind in RECORDS, "it extends none of DialogueFormat, PromptFormat, RatedFormat and PairFormat")
    require(isinstance(form.title, str) and bool(form.title.strip()), "it has no title for error messages")
    unlisted = sorted(set(form.example) - form.keys)
    require(not unlisted, f"keys of its example are missing in `keys`: {', '.join(unlisted)}")
    require(not form.matches({}), "it matches a row without keys")
    require(form.matches(form.example), "it does not match its own example")
    before = json.dumps(form.example)
    record = _read(form, form.example)
    require(json.dumps(form.example) == before, "reading changes the row")
    require(type(record) is RECORDS[form.kind], f"its example is read as {type(record).__name__}, not as {form.kind}")
    _check_order(form)
    for row in _broken_rows(form.example):
        _check_broken_row(form, row)


def _check_order(form: RowFormat) -> None:
    """Check that each example of its kind is read by its own format: the first that matches a row reads it."""
    installed = [other for other in row_formats() if other.kind == form.kind]
    is_installed = any(other.name == form.name for other in installed)
    formats = installed if is_installed else [form, *installed]  # the formats of plugins are asked before built-in ones
    for other in formats:
        match = find_match(formats, other.example)
        owner = match.name if match else "none"
        require(
            owner == other.name or form.name not in (owner, other.name),
            f"the example of {other.name!r} is read by {owner!r}: make `matches` look at more keys",
        )


def _broken_rows(example: Row) -> Iterator[Row]:
    """The example without each key, and with other values in its place."""
    for key in example:
        yield {name: value for name, value in example.items() if name != key}
        for value in BROKEN_VALUES:
            yield {**example, key: value}


def _check_broken_row(form: RowFormat, row: Row) -> None:
    """Check that a row is not matched, or is read, or raises BadRow: any other error would stop the command."""
    try:
        if form.matches(row):
            _read(form, row)
    except BadRow:
        return
    except Exception as error:
        raise Breach(f"a broken row raises {error!r} instead of BadRow: {json.dumps(row)}") from error


def _read(form: RowFormat, row: Row) -> object:
    """The record of a row, and the prompt of a dialogue too, as every command reads them."""
    if isinstance(form, DialogueFormat):
        form.read_prompt(row, "the example", "conformance")
        return form.read(row, "the example", "conformance")
    if isinstance(form, PromptFormat):
        return form.read(row, "the example", "conformance")
    assert isinstance(form, RatedFormat | PairFormat)
    if isinstance(form, RatedFormat):
        form.prompt_text(row, "the example")
    return form.read(row, "the example")
