"""Search the columns of one shard for benchmark prompts, in whichever process this is called."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zephyrctl.data.decontaminate.search import BenchmarkPrompt, BenchmarkSearch, ContaminatedTurn
from zephyrctl.data.duplicates import Mask
from zephyrctl.data.row_status import RowStatus
from zephyrctl.data.shards import ArrowFile, read_batches
from zephyrctl.data.word_hashes import Positions
from zephyrctl.runs.parquet import arrow_schema

HELD_OUT = "held-out prompts"
"""What the run's own test prompts are called among the benchmarks."""
SCHEMA = arrow_schema(ContaminatedTurn)
TURNS_SHOWN = 3
"""Contaminated turns that an error quotes."""


@dataclass(frozen=True)
class SearchTask:
    """A shard to search."""

    rows: Path
    """The Arrow file of its rows."""
    ledger: Path
    """The Arrow file to write its contaminated turns to."""
    is_searched: Mask
    """Which of its rows are searched."""
    search: Path
    """The folder of the saved search."""


@dataclass
class SearchOutcome:
    """What the search of a shard found."""

    positions: Positions
    """The positions of the contaminated rows in the shard."""
    rows_by_match: "Counter[str]" = field(default_factory=Counter)
    """Contaminated rows by benchmark and kind of match."""
    first: list[ContaminatedTurn] = field(default_factory=list)


def held_out_prompts(status: RowStatus, eval_prompts: int) -> Iterator[BenchmarkPrompt]:
    """The prompts of the test side. Those that `eval` asks, the `eval_prompts` lowest ids, are found by n-grams too.

    The others are searched for as whole texts: among tens of thousands of prompts, every common phrase has its eight
    words somewhere.
    """
    is_test = status.is_kept & status.keys.is_test
    # `np.unique` sorts: these are the lowest ids, by which `eval` chooses its prompts too.
    asked_by_eval = np.unique(status.keys.prompts[is_test])[:eval_prompts]
    for shard, part in status.by_shard():
        by_words = np.isin(status.keys.prompts[part], asked_by_eval)
        for _, batch in read_batches(shard.beside("asked")):
            positions = batch.column("position").to_pylist()
            for position, text in zip(positions, batch.column("text").to_pylist(), strict=True):
                if is_test[part][position]:
                    yield BenchmarkPrompt(HELD_OUT, text, bool(by_words[position]))


def search_shard(task: SearchTask) -> SearchOutcome:
    """Search the user turns of one shard, and write the contaminated ones with both texts beside it."""
    search = _load(task.search)
    contaminated: dict[int, None] = {}  # an ordered set
    outcome = SearchOutcome(np.zeros(0, np.int64))
    counted: set[tuple[int, str]] = set()  # so that a row counts once for each benchmark and kind
    with ArrowFile(task.ledger, SCHEMA) as file:
        for inside, batch in read_batches(task.rows):
            rows, turns, texts = user_turns(batch, task.is_searched[inside])
            found = []
            for number, match in search.find(texts):
                row = int(rows[number])  # its position in the batch; with inside.start, that in the shard
                contaminated[inside.start + row] = None
                counted.add((inside.start + row, f"{match.benchmark}: {match.kind}"))
                found.append(
                    ContaminatedTurn(
                        id=batch.column("id")[row].as_py(),
                        row=batch.column("origin")[row].as_py(),
                        turn=int(turns[number]),
                        text=texts[number],
                        **vars(match),
                    )
                )
            if found:
                file.write(pa.RecordBatch.from_pylist([turn.model_dump() for turn in found], SCHEMA))
                outcome.first = [*outcome.first, *found][:TURNS_SHOWN]
    outcome.positions = np.fromiter(contaminated, np.int64, len(contaminated))
    outcome.rows_by_match.update(match for _, match in counted)
    return outcome


def user_turns(batch: pa.RecordBatch, is_wanted: Mask) -> tuple[Positions, Positions, list[str]]:
    """(row, turn, text) of each user turn in the wanted rows, as three columns; no other row becomes an object."""
    messages = batch.column("messages")
    offsets = messages.offsets.to_numpy()
    # offsets has rows + 1 entries: row r has the turns from offsets[r] to offsets[r + 1]. rows[i] is the row of turn i.
    rows = np.repeat(np.arange(len(messages)), np.diff(offsets))
    is_user = pc.equal(messages.values.field("role"), "user").to_numpy(zero_copy_only=False)
    positions = np.flatnonzero(is_user & is_wanted[rows])
    texts = messages.values.field("content").take(pa.array(positions)).to_pylist()
    return rows[positions], positions - offsets[rows[positions]], texts


# A process searches many shards of one build with the same search: it is mapped once.
@lru_cache(maxsize=1)
def _load(folder: Path) -> BenchmarkSearch:
    return BenchmarkSearch.load(folder)
