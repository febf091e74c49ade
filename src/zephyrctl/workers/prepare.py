"""The preparing worker: turns dialogues or pairs into tokenised, packed Parquet rows, and reports what it drops."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Packing
from zephyrctl.records import Split
from zephyrctl.token_contract import Turn
from zephyrctl.training import packing
from zephyrctl.training.kinds import RowForm, training_kind
from zephyrctl.training.packing import Piece
from zephyrctl.training.prepared_rows import PrepareRequest
from zephyrctl.training.results import RowReport
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import IGNORED, contract, dialogues_ids, load_tokenizer, prompts_ids

ROWS_AT_ONCE = 256
"""Rows that are tokenized in one call, so that a fast tokenizer uses all cores, and written as one row group."""
INTS = pa.list_(pa.int32())
"""Ids and labels: vocabularies are far below 2^31, and half the size of int64 matters for 200,000 dialogues."""
NO_ASSISTANT = "dialogues without an assistant turn"
CUT_AWAY = "dialogues without an assistant token within max_length"
TOO_LONG = "tokens beyond max_length"
OF_DROPPED = "tokens of dropped dialogues"
PROMPT_FILLS = "pairs whose prompt fills max_length"
SAME_WITHIN = "pairs whose answers are the same within max_length"
OF_DROPPED_PAIRS = "tokens of dropped pairs"
BEYOND = "completion tokens beyond max_length"

PreparedRow = dict[str, object]
"""A row of the Parquet file: lists or arrays of integers, and `length`."""
PairIds = tuple[list[int], list[int], list[int]]
"""The ids of a prompt, of its chosen and of its rejected answer."""
ReportRows = Callable[[int], None]
"""Takes the number of rows that were read."""


class PairColumns(TypedDict):
    """The columns of a preference pair that are read here."""

    id: str
    messages: list[Turn]
    chosen: str
    rejected: str


def work(path: Path) -> None:
    """Prepare every split of the request, and write the report last, so that its existence means it is complete."""
    request = PrepareRequest.model_validate_json(path.read_bytes())
    events = Events(request.folder)
    tokenizer = load_tokenizer(request.model, request.revision, request.chat_template, request.trusts_code)
    tokens = contract(tokenizer)
    if not tokens.ends_with_eos:
        raise ZephyrError(
            f"the chat template does not end the assistant's turn with {tokenizer.eos_token!r}: the model would never "
            "learn to stop",
            "end the assistant's turn with eos_token, inside the generation marks",
        )
    total = sum(pq.ParquetFile(rows).metadata.num_rows for rows in request.rows.values())
    done = Counter[str]()

    def report_rows(rows: int) -> None:
        done["rows"] += rows
        events.send("step", step=done["rows"], total=total)

    prepare_split = PREPARERS[training_kind(request.kind).rows]
    reports = {split: prepare_split(request, split, tokenizer, report_rows) for split in request.rows}
    tokens.write(request.folder)
    (request.folder / "report.json").write_text(
        json.dumps({split: report.model_dump() for split, report in reports.items()}, indent=2)
    )
    events.send("result")


def prepare_dialogues(
    request: PrepareRequest, split: Split, tokenizer: PreTrainedTokenizerBase, report_rows: ReportRows
) -> RowReport:
    """Write `split` as rows of `input_ids` and `labels` [length], `seq_lengths` (of its documents) and `length`.

    Held-out dialogues are never packed: their loss is that of whole dialogues.
    """
    report = RowReport(rows_in=0)
    packing_mode = request.packing if split == "train" else "none"
    with Documents(request.folder / f"{split}.tokens") as documents:
        for batch in _batches(request.rows[split], ["messages"], report, report_rows):
            turns: list[list[Turn]] = batch.column("messages").to_pylist()
            for ids, labels in dialogues_ids(tokenizer, turns, request.assistant_only_loss):
                _take_dialogue(ids, labels, request.max_length if packing_mode == "none" else None, report, documents)
        lengths = documents.lengths
        rows = _pieces_of_rows(lengths, packing_mode, request)
        report.rows = len(rows)
        report.cut = sum(map(len, rows)) - len(lengths)
        _write_rows(
            request.folder / f"{split}.parquet", (documents.row(row, packing_mode != "wrapped") for row in rows)
        )
    return report


def _pieces_of_rows(lengths: list[int], packing_mode: Packing, request: PrepareRequest) -> list[list[Piece]]:
    if packing_mode == "wrapped":
        return packing.wrap(lengths, request.max_length, request.seed)
    if packing_mode == "bfd_split":
        return packing.pack(lengths, request.max_length)
    return [[Piece(number, 0, length)] for number, length in enumerate(lengths)]


def _take_dialogue(
    ids: list[int], labels: list[int], limit: int | None, report: RowReport, documents: "Documents"
) -> None:
    """Add one dialogue to the documents, cut to `limit`, or count it as dropped if nothing of it would be learnt."""
    report.tokens_in += len(ids)
    kept_labels = labels[:limit]  # a slice to None keeps all: packing cuts nothing away
    # tokens in the loss; a dialogue may be cut before its first assistant turn
    learnt = sum(label != IGNORED for label in kept_labels)
    if not learnt:
        is_cut = any(label != IGNORED for label in labels)
        _count(report.lost_rows, CUT_AWAY if is_cut else NO_ASSISTANT, 1)
        _count(report.lost_tokens, OF_DROPPED, len(ids))
        return
    _count(report.lost_tokens, TOO_LONG, len(ids) - len(kept_labels))
    report.rows_kept += 1
    report.tokens_kept += len(kept_labels)
    report.learnt_tokens += learnt
    documents.add(ids[:limit], kept_labels)


def prepare_pairs(
    request: PrepareRequest, split: Split, tokenizer: PreTrainedTokenizerBase, report_rows: ReportRows
) -> RowReport:
    """Write `split` as rows of `prompt_ids`, `chosen_ids`, `rejected_ids`, cut to max_length, and `length`.

    `length` is that of the longer of the two sequences. Raises ZephyrError if the template renders a prompt differently
    before an answer and for generation.
    """
    report = RowReport(rows_in=0)

    def rows() -> Iterator[PreparedRow]:
        for batch in _batches(request.rows[split], list(PairColumns.__annotations__), report, report_rows):
            for pair in _pair_ids(tokenizer, batch.to_pylist()):
                if row := _take_pair(pair, request.max_length, report):
                    yield row

    _write_rows(request.folder / f"{split}.parquet", rows())
    report.rows = report.rows_kept
    return report


def _pair_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PairColumns]) -> Iterator[PairIds]:
    """Prompt, chosen and rejected ids of pairs, not cut to any length.

    Each answer is rendered with its prompt, and the prompt's own ids are then cut off its front: tokenised alone, the
    first token of an answer could differ (a template's newline and an answer's newline are one token in Qwen).
    """
    prompts = prompts_ids(tokenizer, [row["messages"] for row in rows])
    chosen_dialogues = [[*row["messages"], _answer(row["chosen"])] for row in rows]
    rejected_dialogues = [[*row["messages"], _answer(row["rejected"])] for row in rows]
    sides = [dialogues_ids(tokenizer, dialogues, False) for dialogues in (chosen_dialogues, rejected_dialogues)]
    for row, prompt, *answered in zip(rows, prompts, *sides, strict=True):
        if any(ids[: len(prompt)] != prompt for ids, _ in answered):
            raise ZephyrError(
                f"the chat template renders the prompt of pair {row['id'][:12]} differently before an answer and for "
                "generation: the model would be trained on a context that it never sees",
                "fix the template: with add_generation_prompt it must render the start of the answered conversation",
            )
        chosen, rejected = (ids[len(prompt) :] for ids, _ in answered)
        yield prompt, chosen, rejected


def _take_pair(ids: PairIds, limit: int, report: RowReport) -> PreparedRow | None:
    """The row of a pair, its answers cut so that each sequence fits into `limit`; None if it is dropped."""
    prompt, chosen, rejected = ids
    tokens = len(prompt) + len(chosen) + len(rejected)
    report.tokens_in += tokens
    room = limit - len(prompt)  # for an answer; TRL drops such pairs silently if there is none
    kept_chosen, kept_rejected = chosen[: max(0, room)], rejected[: max(0, room)]
    # answers that are equal up to the cut have the same log-probability: a margin of 0 and no gradient
    if room <= 0 or kept_chosen == kept_rejected:
        _count(report.lost_rows, PROMPT_FILLS if room <= 0 else SAME_WITHIN, 1)
        _count(report.lost_tokens, OF_DROPPED_PAIRS, tokens)
        return None
    answers = len(kept_chosen) + len(kept_rejected)
    _count(report.lost_tokens, BEYOND, tokens - len(prompt) - answers)
    report.rows_kept += 1
    report.tokens_kept += len(prompt) + answers
    report.learnt_tokens += answers
    longest = len(prompt) + max(len(kept_chosen), len(kept_rejected))
    return {"prompt_ids": prompt, "chosen_ids": kept_chosen, "rejected_ids": kept_rejected, "length": longest}


def _answer(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _batches(path: Path, columns: list[str], report: RowReport, report_rows: ReportRows) -> Iterator[pa.RecordBatch]:
    """Columns of a file in batches of rows, which are counted in the report when they are done."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
            yield batch
            report.rows_in += batch.num_rows
            report_rows(batch.num_rows)


def _write_rows(path: Path, rows: Iterator[PreparedRow]) -> None:
    """Write rows of integer lists and a `length`, in groups; no file if there are no rows."""
    writer: pq.ParquetWriter | None = None
    group: list[PreparedRow] = []

    def write() -> None:
        nonlocal writer
        names = group[0]
        columns = {
            name: pa.array([row[name] for row in group], pa.int32() if name == "length" else INTS) for name in names
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        group.clear()

    for row in rows:
        group.append(row)  # one group at a time is in memory
        if len(group) == ROWS_AT_ONCE:
            write()
    if group:
        write()
    if writer:
        writer.close()


def _count(dropped: dict[str, int], cause: str, number: int) -> None:
    if number:
        dropped[cause] = dropped.get(cause, 0) + number


class Documents:
    """Tokenised documents in a file, so that a large set need not fit in memory; the file is removed on exit.

    A document of n tokens takes 2n int32: its n ids, then its n labels. `_offsets` counts in int32.
    """

    def __init__(self, path: Path) -> None:
        self.lengths: list[int] = []
        self._path = path
        self._file = path.open("w+b")
        self._offsets = [0]
        self._tokens: np.ndarray | None = None

    def add(self, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Append one document."""
        np.array([ids, labels], dtype=np.int32).tofile(self._file)
        self.lengths.append(len(ids))
        self._offsets.append(self._offsets[-1] + 2 * len(ids))

    def row(self, pieces: Sequence[Piece], isolated: bool) -> PreparedRow:
        """Pieces as one row. Isolated ones get a length each, from which the collator restarts positions."""
        ids, labels = zip(*(self._piece(piece) for piece in pieces), strict=True)
        lengths = [piece.length for piece in pieces]
        total = sum(lengths)
        return {
            "input_ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "seq_lengths": lengths if isolated else [total],
            "length": total,
        }

    def _piece(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        if self._tokens is None:  # the first read: all documents are written
            self._file.flush()
            self._tokens = np.memmap(self._path, dtype=np.int32, mode="r")
        start, length = self._offsets[piece.document], self.lengths[piece.document]
        document = self._tokens[start : start + 2 * length].reshape(2, length)
        ids, labels = document[:, piece.start : piece.start + piece.length]
        return ids, labels

    def __enter__(self) -> "Documents":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()


PREPARERS: dict[RowForm, Callable[[PrepareRequest, Split, PreTrainedTokenizerBase, ReportRows], RowReport]] = {
    "dialogues": prepare_dialogues,
    "pairs": prepare_pairs,
}
"""The function that prepares each form of rows."""


def main() -> None:
    """Prepare the rows of the request named on the command line."""
    run(work)


if __name__ == "__main__":
    main()
