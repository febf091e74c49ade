"""Which training rows of a share hold what eval asks; this is the search as every process does it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zephyrctl.data.decontaminate.search import BenchmarkPrompt, Hit, Search
from zephyrctl.data.duplicates import Flags
from zephyrctl.data.row_status import Fates
from zephyrctl.data.shards import ArrowFile, batches
from zephyrctl.data.word_hashes import Places
from zephyrctl.runs.parquet import arrow_schema

HELD_OUT = "held-out prompts"
HITS = arrow_schema(Hit)
HITS_SHOWN = 3


@dataclass(frozen=True)
class Task:
    """A sheet to search, which of its rows, and where the search and the hits lie."""

    rows: Path
    hits: Path
    is_searched: Flags
    search: Path


@dataclass
class Outcome:
    """Places of the rows that were hit, how many rows hit which benchmark in which way, and the first hits."""

    places: Places
    found: "Counter[str]" = field(default_factory=Counter)
    first: list[Hit] = field(default_factory=list)


def held_out(fates: Fates, most: int) -> Iterator[BenchmarkPrompt]:
    """The prompts of the test side; those that eval asks, `most` of the lowest ids, are looked for by words too.

    Of the others only the whole text is: among tens of thousands every common phrase has its eight words somewhere.
    """
    is_test = fates.is_kept & fates.keys.is_test
    asked_by_eval = np.unique(fates.keys.prompts[is_test])[:most]
    for sheet, part in fates.parts():
        by_words = np.isin(fates.keys.prompts[part], asked_by_eval)
        for _, batch in batches(sheet.beside("asked")):
            places = batch.column("place").to_numpy()
            for place, text in zip(places.tolist(), batch.column("text").to_pylist(), strict=True):
                if is_test[part][place]:
                    yield BenchmarkPrompt(HELD_OUT, text, bool(by_words[place]))


def search_share(task: Task) -> Outcome:
    """Search the user turns of one sheet; hits are written beside it, with both texts."""
    search = _load(task.search)
    places: dict[int, None] = {}
    outcome = Outcome(np.zeros(0, np.int64))
    counted: set[tuple[int, str]] = set()
    with ArrowFile(task.hits, HITS) as file:
        for inside, batch in batches(task.rows):
            rows, turns, texts = user_turns(batch, task.is_searched[inside])
            hits = []
            for number, match in search.find(texts):
                row = int(rows[number])
                places[inside.start + row] = None
                counted.add((inside.start + row, f"{match.benchmark}: {match.kind}"))
                hits.append(
                    Hit(
                        id=batch.column("id")[row].as_py(),
                        row=batch.column("origin")[row].as_py(),
                        turn=int(turns[number]),
                        text=texts[number],
                        **vars(match),
                    )
                )
            if hits:
                file.write(pa.RecordBatch.from_pylist([hit.model_dump() for hit in hits], HITS))
                outcome.first = [*outcome.first, *hits][:HITS_SHOWN]
    outcome.places = np.fromiter(places, np.int64, len(places))
    outcome.found.update(kind for _, kind in counted)
    return outcome


def user_turns(batch: pa.RecordBatch, is_wanted: Flags) -> tuple[Places, Places, list[str]]:
    """(rows, turns, texts) of what the user says in the rows that are wanted, without an object for any other."""
    messages = batch.column("messages")
    offsets = messages.offsets.to_numpy()
    rows = np.repeat(np.arange(len(messages)), np.diff(offsets))
    is_user = pc.equal(messages.values.field("role"), "user").to_numpy(zero_copy_only=False)
    places = np.flatnonzero(is_user & is_wanted[rows])
    texts = messages.values.field("content").take(pa.array(places)).to_pylist()
    return rows[places], places - offsets[rows[places]], texts


@lru_cache(maxsize=1)
def _load(folder: Path) -> Search:
    return Search.load(folder)
