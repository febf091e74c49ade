"""Whether each built-in row format is described in full, reads its own example, and is listed where people look."""

from pathlib import Path

import pytest

from zephyrctl import builtin, plugins
from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, PreferencePair, Prompt, RatedPrompt
from zephyrctl.rows.formats import DialogueFormat, PairFormat, PromptFormat, RatedFormat, RowFormat
from zephyrctl.rows.published_rows import row_formats
from zephyrctl.testing import check_plugin

FORMATS = row_formats()
EACH = pytest.mark.parametrize("form", list(FORMATS), ids=lambda form: form.name)
GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
RECORDS = {"dialogue": Dialogue, "prompt": Prompt, "rated prompt": RatedPrompt, "preference pair": PreferencePair}


def test_the_built_in_formats_are_registered_like_those_of_a_plugin() -> None:
    offers = plugins.load().offers_of_kind("row format")
    assert {offer.name for offer in offers} == {form.name for form in FORMATS}
    assert len(offers) == 10
    check_plugin(builtin)


@EACH
def test_a_format_reads_its_own_example(form: RowFormat) -> None:
    assert form.matches(form.example)
    if isinstance(form, DialogueFormat | PromptFormat):
        record: object = form.read(form.example, "here", "test")
    else:
        assert isinstance(form, RatedFormat | PairFormat)
        record = form.read(form.example, "here")
    assert type(record) is RECORDS[form.kind]
    assert set(form.example) <= form.keys


@EACH
def test_the_first_format_that_matches_an_example_is_its_own(form: RowFormat) -> None:
    rivals = [other for other in FORMATS if other.kind == form.kind and other.matches(form.example)]
    assert rivals[0] is form


@EACH
def test_a_format_is_in_the_guide(form: RowFormat) -> None:
    assert f"| `{form.name}` |" in GUIDE


@pytest.mark.parametrize(
    ("read", "formats"),
    [
        (lambda row: FORMATS.dialogue(row, "here", "test"), FORMATS.dialogues),
        (lambda row: FORMATS.rated_prompt(row, "here"), FORMATS.rated),
        (lambda row: FORMATS.preference_pair(row, "here"), FORMATS.pairs),
    ],
    ids=["dialogue", "rated prompt", "preference pair"],
)
def test_a_row_of_no_known_format_is_told_them_all(read, formats) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRow) as caught:
        read({"question": "a", "answer": "b"})
    assert caught.value.cause == "no known form"
    assert "keys: question, answer" in caught.value.problem
    assert all(form.title in caught.value.remedy for form in formats)
