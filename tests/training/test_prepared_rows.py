"""Tokenising and packing before any launch: every token kept or counted, documents told apart, kept by content."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.data.rows_made import prompt
from zephyrctl import token_contract
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.progress import Silence
from zephyrctl.recipe.loading import load
from zephyrctl.records import Dialogue, Message, PreferencePair
from zephyrctl.runs.parquet import write_parquet
from zephyrctl.runs.run import Run
from zephyrctl.training.prepared_rows import (
    FOLDER,
    Prepared,
    PrepareRequest,
    check_budget,
    check_contract,
    key_of,
    padding_share,
    prepare,
    read_prepared,
)
from zephyrctl.training.results import RowReport

pytestmark = pytest.mark.slow

BASE = TinyMistral(PluginOptions())
Rows = list[dict[str, Any]]


def dialogue(number: int, words: int, answer: str = "yes ") -> Dialogue:
    """A dialogue whose answer is so many words long."""
    asked = prompt(f"Is {number} a number?")
    return Dialogue(
        id=asked.id, messages=[*asked.messages, Message(role="assistant", content=answer * words)], source="made"
    )


def pair(number: int, chosen: str, rejected: str, asked: str = "Is it?") -> PreferencePair:
    """A pair."""
    made = prompt(f"{asked} {number}")
    return PreferencePair(
        id=made.id, messages=made.messages, chosen=chosen, rejected=rejected, score_chosen=5.0, score_rejected=1.0
    )


DIALOGUES = [dialogue(number, words) for number, words in enumerate([3, 10, 20, 40, 80, 160, 7, 90])]
PAIRS = [
    pair(1, "good", "bad"),
    pair(2, "good " * 60, "bad"),
    pair(3, "good", "bad", "Why? " * 80),
    pair(4, "same " * 80 + "here", "same " * 80 + "there"),
]


def request(path: Path, rows: list[Dialogue] | list[PreferencePair], **changed: Any) -> dict[str, Any]:
    """What is asked of the worker for these rows."""
    write_parquet(path, rows, type(rows[0]))
    asked: dict[str, Any] = {
        "kind": "sft" if isinstance(rows[0], Dialogue) else "dpo",
        "model": BASE.location(),
        "revision": None,
        "chat_template": BASE.chat_template(),
        "rows": {"train": path},
        "max_length": 64,
        "seed": 0,
    }
    return asked | changed


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Prepared]:
    """Do the worker's work in this process."""

    def make(rows: list[Dialogue] | list[PreferencePair], **changed: Any) -> Prepared:
        from zephyrctl.workers import prepare as worker

        folder = tmp_path / f"prepared {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        asked = PrepareRequest(folder=folder, **request(tmp_path / "rows.parquet", rows, **changed))
        (folder / "request.json").write_text(asked.model_dump_json())
        worker.work(folder / "request.json")
        return read_prepared(folder, folder.name)

    return make


def read(prepared: Prepared) -> Rows:
    """The rows that a worker reads."""
    path = prepared.rows("train")
    assert path
    rows: Rows = pq.read_table(path).to_pylist()
    return rows


def documents(rows: Rows) -> list[tuple[int, ...]]:
    """The pieces of all rows."""
    found = []
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            found.append(tuple(row["input_ids"][start : start + length]))
            start += length
        assert start == len(row["input_ids"]) == len(row["labels"]) == row["length"]
    return found


def test_packing_keeps_every_token_and_knows_where_documents_end(made: Callable[..., Prepared]) -> None:
    whole = {tuple(row["input_ids"]) for row in read(made(DIALOGUES, max_length=4096))}
    assert len(whole) == len(DIALOGUES)
    packed = made(DIALOGUES, packing="bfd_split")
    pieces = documents(read(packed))
    report = packed.reports["train"]
    assert sum(map(len, pieces)) == sum(map(len, whole)) == report.tokens_kept == report.tokens_in
    assert report.lost_rows == report.lost_tokens == {}
    assert (report.rows_in, report.rows_kept) == (len(DIALOGUES),) * 2
    assert report.cut == len(pieces) - len(DIALOGUES) > 0
    assert max(row["length"] for row in read(packed)) <= 64
    shorter = [document for document in whole if len(document) <= 32]
    assert shorter
    assert set(shorter) <= set(pieces)


def test_a_wrapped_stream_is_one_document_a_row(made: Callable[..., Prepared]) -> None:
    rows = read(made(DIALOGUES, packing="wrapped"))
    assert [row["length"] for row in rows[:-1]] == [64] * (len(rows) - 1)
    assert all(row["seq_lengths"] == [row["length"]] for row in rows)


def test_without_packing_what_is_too_long_is_cut_and_counted(made: Callable[..., Prepared]) -> None:
    report = made(DIALOGUES).reports["train"]
    whole = made(DIALOGUES, max_length=4096).reports["train"]
    lost = whole.tokens_kept - report.tokens_kept
    assert report.lost_tokens == {"tokens beyond max_length": lost}
    assert lost > 0
    with pytest.raises(GateError, match=r"training tokens would be dropped .*more than sft.loss_budget") as caught:
        check_budget({"train": report}, load("tiny", {}).recipe.sft, "sft")
    assert "sft.packing=bfd_split" in caught.value.remedy
    check_budget({"train": report}, load("tiny", {"sft.loss_budget": 0.9}).recipe.sft, "sft")
    check_budget({"train": whole}, load("tiny", {}).recipe.sft, "sft")


def test_dialogues_that_teach_nothing_are_counted_by_cause(made: Callable[..., Prepared]) -> None:
    asked = prompt("Why? " * 40)
    silent = Dialogue(id="1", messages=asked.messages, source="made")
    late = Dialogue(id="2", messages=[*asked.messages, Message(role="assistant", content="So.")], source="made")
    report = made([DIALOGUES[0], silent, late]).reports["train"]
    assert report.lost_rows == {
        "dialogues without an assistant turn": 1,
        "dialogues without an assistant token within max_length": 1,
    }
    assert report.tokens_in == report.tokens_kept + sum(report.lost_tokens.values())


def test_pairs_are_cut_to_the_limit_and_those_that_teach_nothing_are_counted(made: Callable[..., Prepared]) -> None:
    prepared = made(PAIRS)
    report, rows = prepared.reports["train"], read(prepared)
    assert (report.rows_in, report.rows_kept, len(rows)) == (4, 2, 2)
    assert report.lost_rows == {
        "pairs whose prompt fills max_length": 1,
        "pairs whose answers are the same within max_length": 1,
    }
    assert report.tokens_in == report.tokens_kept + sum(report.lost_tokens.values())
    parts = [row[f"{part}_ids"] for row in rows for part in ("prompt", "chosen", "rejected")]
    assert report.tokens_kept == sum(map(len, parts))
    for row in rows:
        longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        assert longest == row["length"] <= 64


def test_the_same_content_is_prepared_once(tmp_path: Path) -> None:
    run, path = Run(tmp_path / "run"), tmp_path / "rows.parquet"
    run.path.mkdir()
    first = prepare(run, "sft", request(path, DIALOGUES), Silence())
    stamp = (first.folder / "report.json").stat().st_mtime_ns
    again = prepare(run, "sft", request(path, DIALOGUES), Silence())
    assert (again.key, (again.folder / "report.json").stat().st_mtime_ns) == (first.key, stamp)
    other = prepare(run, "sft", request(path, DIALOGUES, max_length=65), Silence())
    assert other.key != first.key
    assert sorted((run.path / FOLDER).iterdir()) == sorted([first.folder, other.folder])
    assert {file.name for file in first.folder.iterdir()} == {"report.json", "token_contract.json", "train.parquet"}


@pytest.mark.parametrize(
    "changed", [{"packing": "wrapped"}, {"chat_template": "other"}, {"seed": 1}, {"assistant_only_loss": False}]
)
def test_other_settings_have_another_key(tmp_path: Path, changed: dict[str, Any]) -> None:
    asked = request(tmp_path / "rows.parquet", DIALOGUES)
    assert key_of(asked | changed) != key_of(asked) == key_of(dict(asked))


def test_other_rows_have_another_key(tmp_path: Path) -> None:
    asked = key_of(request(tmp_path / "rows.parquet", DIALOGUES))
    assert key_of(request(tmp_path / "rows.parquet", DIALOGUES[1:])) != asked


def test_a_template_that_never_ends_an_answer_is_refused(made: Callable[..., Prepared]) -> None:
    endless = BASE.chat_template().replace("{{- message['content'] + eos_token -}}", "{{- message['content'] -}}")
    with pytest.raises(ZephyrError, match="never learn to stop"):
        made(DIALOGUES, chat_template=endless)


def test_a_template_that_shows_another_prompt_before_an_answer_is_refused(made: Callable[..., Prepared]) -> None:
    other = "{%- if add_generation_prompt -%}Now: {% endif -%}" + BASE.chat_template()
    with pytest.raises(ZephyrError, match="a context that it never sees"):
        made(PAIRS, chat_template=other)


def test_a_start_that_was_trained_on_other_tokens_is_refused(made: Callable[..., Prepared], tmp_path: Path) -> None:
    ours, other = made(PAIRS), made(PAIRS, chat_template=BASE.chat_template().replace("|>", "|>>"))
    start = tmp_path / "model"
    start.mkdir()
    check_contract(ours, start, "dpo")
    ours.contract.write(start)
    check_contract(ours, start, "dpo")
    with pytest.raises(ZephyrError, match=r"chat template, rendered ids differ"):
        check_contract(other, start, "dpo")
    assert token_contract.read(start) == ours.contract


def test_padding_is_what_random_batches_pad(tmp_path: Path, made: Callable[..., Prepared]) -> None:
    path = made(DIALOGUES, max_length=4096).rows("train")
    assert path
    assert padding_share(path, "length", 1) == 0
    lengths = [row["length"] for row in pq.read_table(path).to_pylist()]
    assert padding_share(path, "length", 8) == pytest.approx(1 - sum(lengths) / (8 * max(lengths)))
    assert padding_share(path, "length", 100) == padding_share(path, "length", 8)


def test_shares_of_nothing_are_none() -> None:
    assert RowReport(rows_in=0).shares_lost() == {"rows": 0.0, "tokens": 0.0}
