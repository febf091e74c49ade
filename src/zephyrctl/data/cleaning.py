"""Clean the rows of a source, drop duplicates and benchmark prompts, and write each row to its split.

There are four passes:

1. Processes read the input in chunks, clean it and write it as columns. Some 80 bytes of keys for each row come back.
2. Duplicates are found from the keys.
3. Processes search the remaining training rows for benchmark prompts.
4. The columns are filtered into the tables, in the order of the input. The number of processes changes no byte.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from zephyrctl.data import cleaning_rules, duplicates
from zephyrctl.data.artifact_tables import ArtifactTables, cut_to_first_turn, filter_rows
from zephyrctl.data.chunks import RawChunk, RecordChunk, number_chunks
from zephyrctl.data.cleaning_rules import Kind
from zephyrctl.data.decontaminate.search import BenchmarkSearch, ContaminatedTurn, read_benchmarks
from zephyrctl.data.decontaminate.shard_search import (
    TURNS_SHOWN,
    SearchOutcome,
    SearchTask,
    held_out_prompts,
    search_shard,
)
from zephyrctl.data.duplicates import Mask
from zephyrctl.data.process_pool import ProcessPool
from zephyrctl.data.row_status import NO_ROW, RULES, RowStatus, read_shingles
from zephyrctl.data.shards import NOTES, CleaningSettings, Shard, clean_chunk, read_batches, row_json
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Build, Decontaminate, Recipe
from zephyrctl.records import Split
from zephyrctl.rows.files import Raw
from zephyrctl.runs.artifacts import SPLITS, Draft

KINDS: tuple[Kind, ...] = ("dialogues", "prompts")


@dataclass(frozen=True)
class CleaningPlan:
    """What the recipe says about cleaning."""

    build: Build
    decontaminate: Decontaminate
    eval_prompts: int
    """How many of the run's own test prompts `eval` asks."""
    skip_bad_rows: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "CleaningPlan":
        """The plan of a recipe."""
        return cls(recipe.build, recipe.decontaminate, recipe.eval.prompts, recipe.skip_bad_rows)


def clean_rows(
    chunks: Iterable[RawChunk | RecordChunk],
    plan: CleaningPlan,
    draft: Draft,
    progress: Progress,
    pool: ProcessPool,
    bytes: int = 0,
) -> None:
    """Clean the rows of the chunks and write the artifact's tables. Counts and dropped rows go into the draft.

    `bytes` is the size of all chunks, if it is known. Raises ZephyrError if a row cannot be used or none is left, and
    GateError if a row contains a benchmark prompt and the recipe says `refuse`.
    """
    folder = draft.scratch / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Cleaning(plan, draft, progress, pool, folder).perform(chunks, bytes)
    shutil.rmtree(folder)


class Cleaning:
    """The four passes over one input."""

    def __init__(self, plan: CleaningPlan, draft: Draft, progress: Progress, pool: ProcessPool, folder: Path) -> None:
        self.plan = plan
        self.draft = draft
        self.progress = progress
        self.pool = pool
        self.folder = folder

    def perform(self, chunks: Iterable[RawChunk | RecordChunk], bytes: int) -> None:
        """Do all passes."""
        shards = self._clean(chunks, bytes)
        near = self.plan.build.duplicates.near
        # From here on a row is its position among all rows of its kind: an index of the arrays in `keys` and `rule`.
        dialogues = RowStatus.of([shard for shard in shards if shard.kind == "dialogues"], near)
        # Near duplicates are searched for among dialogues only, so prompts have no bands.
        prompts = RowStatus.of([shard for shard in shards if shard.kind == "prompts"], None)
        self._drop_duplicates(dialogues, prompts)
        self._search(dialogues, prompts)
        if not dialogues.is_kept.any():
            self._count(shards, dialogues, prompts)
            raise ZephyrError(
                f"no dialogue is left ({self.draft.dropped})", "fix the rows that were dropped: see the causes above"
            )
        with ArtifactTables(self.draft.path) as tables:
            self._write("dialogues", dialogues, tables, makes_prompts=not prompts.shards)
            self._write("prompts", prompts, tables)
        self.draft.metrics |= {kind: tables.rows[kind] for kind in KINDS}
        self._count(shards, dialogues, prompts)

    def _clean(self, chunks: Iterable[RawChunk | RecordChunk], bytes: int) -> list[Shard]:
        build = self.plan.build
        settings = CleaningSettings(
            clean=build.clean,
            test_share=build.test_share,
            skip_bad_rows=self.plan.skip_bad_rows,
            near=build.duplicates.near,
            folder=self.folder,
        )
        shards: list[Shard] = []
        cleaned = 0
        for shard in self.pool.map(clean_chunk, ((chunk, settings) for chunk in number_chunks(chunks))):
            shards.append(shard)
            cleaned += shard.bytes
            if bytes:
                self.progress.advance(cleaned >> 20, bytes >> 20, "MB cleaned")
        self.draft.metrics["rows"] = sum(shard.read for shard in shards)
        return shards

    def _drop_duplicates(self, dialogues: RowStatus, prompts: RowStatus) -> None:
        settings = self.plan.build.duplicates
        # From cheap to costly, and each rule sees only what the rules before it kept: a row is counted once.
        dialogues.drop_held_out()
        if settings.exact:
            dialogues.drop_equal(dialogues.keys.contents, cleaning_rules.EXACT)
        if settings.near:
            dialogues.drop_near(settings.near, self.folder, lambda tasks: self.pool.map(read_shingles, tasks))
        prompts.drop_equal(prompts.keys.prompts, cleaning_rules.DUPLICATE_PROMPT)

    def _search(self, dialogues: RowStatus, prompts: RowStatus) -> None:
        """Search the user turns of training rows for benchmark prompts, and do what the recipe says about matches."""
        settings = self.plan.decontaminate
        benchmarks = read_benchmarks(settings.against)
        asked = prompts if prompts.shards else dialogues
        held_out = held_out_prompts(asked, self.plan.eval_prompts) if settings.held_out else ()
        search = BenchmarkSearch(chain(benchmarks, held_out), settings.ngram)
        if not len(search):
            return
        # Processes map the saved arrays: one copy for all. This process needs its own no longer.
        search.save(self.folder / "search")
        del search
        counts: Counter[str] = Counter()
        first: list[ContaminatedTurn] = []
        for status in (dialogues, prompts):
            for part, outcome in self._search_shards(status):
                counts += outcome.rows_by_match
                counts["rows"] += len(outcome.positions)
                first = [*first, *outcome.first][:TURNS_SHOWN]
                if settings.on_hit == "drop":
                    status.drop(outcome.positions + part.start, cleaning_rules.CONTAMINATED)
        if counts["rows"]:
            self._report_matches(counts, first)

    def _search_shards(self, status: RowStatus) -> Iterator[tuple[slice, SearchOutcome]]:
        """(positions of the shard's rows, outcome) for every shard."""
        # Test rows are not searched: they are no training data, and many are the held-out prompts themselves.
        is_searched = status.is_kept & ~status.keys.is_test
        tasks = (
            SearchTask(shard.path, shard.beside("contamination"), is_searched[part], self.folder / "search")
            for shard, part in status.by_shard()
        )
        outcomes = zip(status.by_shard(), self.pool.map(search_shard, tasks), strict=True)
        for number, ((_, part), outcome) in enumerate(outcomes, 1):
            self.progress.advance(number, len(status.shards), "parts searched")
            yield part, outcome

    def _report_matches(self, counts: "Counter[str]", first: Sequence[ContaminatedTurn]) -> None:
        claim = f"{counts['rows']} {cleaning_rules.CAUSES[cleaning_rules.CONTAMINATED]}"
        on_hit = self.plan.decontaminate.on_hit
        if on_hit == "refuse":
            raise GateError(
                f"{claim}: {'; '.join(map(str, first))}",
                "drop them with --set decontaminate.on_hit=drop, or train on them with on_hit=keep",
            )
        self.draft.metrics["contaminated"] = dict(sorted(counts.items()))
        if on_hit == "keep":
            self.draft.notes.append(f"{claim} and are kept (decontaminate.on_hit: keep)")

    def _write(self, kind: Kind, status: RowStatus, tables: ArtifactTables, makes_prompts: bool = False) -> None:
        """Write the rows of one kind. If the source has no prompts, the first turns of dialogues become prompts."""
        is_first = status.is_kept.copy()
        if makes_prompts:
            # `firsts` counts positions within `rows`, the kept dialogues. Dialogues stay: only their prompt is dropped.
            rows = np.flatnonzero(is_first)
            is_first[rows] = duplicates.firsts(status.keys.prompts[rows]) == np.arange(len(rows))
            duplicate_prompts = len(rows) - int(is_first.sum())
            self.draft.drop(cleaning_rules.CAUSES[cleaning_rules.DUPLICATE_PROMPT], duplicate_prompts)
        origins = OriginalRows(status)
        for number, (shard, part) in enumerate(status.by_shard(), 1):
            dropped: list[Raw] = []
            for inside, batch in read_batches(shard.path):
                # `inside` is relative to the shard and `here` to all rows.
                here = slice(part.start + inside.start, part.start + inside.stop)
                origins.note(batch, here)
                self._write_batch(kind, status, batch, here, tables)
                if makes_prompts:
                    _write_prompts(status, batch, here, is_first, tables)
                dropped += _dropped_rows(kind, status, batch, here, origins)
            _write_ledgers(shard, dropped, tables)
            shard.remove()
            self.progress.advance(number, len(status.shards), f"parts of {kind} written")

    def _write_batch(
        self, kind: Kind, status: RowStatus, batch: pa.RecordBatch, here: slice, tables: ArtifactTables
    ) -> None:
        is_test = status.keys.is_test[here]
        for split in SPLITS:
            is_kept = status.kept_in(here) & _is_in(split, is_test)
            tables.write(kind, split, filter_rows(batch, is_kept))
            tables.write(f"order/{kind}", split, pa.record_batch({"row": status.keys.rows[here][is_kept]}))

    def _count(self, shards: Sequence[Shard], dialogues: RowStatus, prompts: RowStatus) -> None:
        """Count rows by rule in the metrics, and dropped rows by cause in the manifest."""
        rules: Counter[str] = Counter()
        for shard in shards:
            rules.update(shard.rules)
            for cause, rows in shard.dropped.items():
                self.draft.drop(cause, rows)
        for status in (dialogues, prompts):
            for number, rows in enumerate(np.bincount(status.rule, minlength=len(RULES)).tolist()):
                if number and rows:  # number 0 is the kept rows
                    rules[RULES[number]] += rows
                    self.draft.drop(cleaning_rules.CAUSES[RULES[number]], rows)
        self.draft.metrics["rules"] = dict(sorted(rules.items()))


class OriginalRows:
    """Where the rows came from that later rows repeat."""

    def __init__(self, status: RowStatus) -> None:
        self.status = status
        # An original comes before the rows that repeat it, so one pass in the order of the input knows each origin when
        # it is needed. Of millions of rows, only the origins of these are kept in memory.
        self._is_repeated = np.zeros(len(status.keys), np.bool_)
        self._is_repeated[status.original[status.original != NO_ROW]] = True
        self._origins: dict[int, str] = {NO_ROW: ""}

    def note(self, batch: pa.RecordBatch, here: slice) -> None:
        """Remember the origins of this batch that later rows need."""
        positions = np.flatnonzero(self._is_repeated[here])
        origins = batch.column("origin").take(pa.array(positions)).to_pylist()
        self._origins |= dict(zip((positions + here.start).tolist(), origins, strict=True))

    def of(self, position: int) -> str:
        """The origin of the row that this row repeats; empty if it repeats none."""
        return self._origins[int(self.status.original[position])]


def _write_prompts(
    status: RowStatus, batch: pa.RecordBatch, here: slice, is_first: Mask, tables: ArtifactTables
) -> None:
    """Write the first turns of the dialogues whose prompt comes first."""
    prompts = cut_to_first_turn(batch)
    for split in SPLITS:
        tables.write("prompts", split, filter_rows(prompts, is_first[here] & _is_in(split, status.keys.is_test[here])))


def _dropped_rows(
    kind: Kind, status: RowStatus, batch: pa.RecordBatch, here: slice, origins: OriginalRows
) -> list[Raw]:
    """The ledger's rows for what was dropped after cleaning."""
    inside = np.flatnonzero(~status.kept_in(here))
    rows = batch.take(pa.array(inside)).to_pylist() if len(inside) else []
    dropped: list[Raw] = []
    for position, row in zip((inside + here.start).tolist(), rows, strict=True):
        is_repeat = status.original[position] != NO_ROW
        ledger_row = {
            "kind": kind,
            "id": row["id"],
            "row": int(status.keys.rows[position]),
            "rule": RULES[status.rule[position]],
            "content": row_json(row),
            "like": origins.of(position),
            "similarity": float(status.similarity[position]) if is_repeat else None,
            "details": "",
            "test": bool(status.keys.is_test[position]),
        }
        dropped.append(ledger_row)
    return dropped


def _write_ledgers(shard: Shard, dropped: list[Raw], tables: ArtifactTables) -> None:
    """Write the changes and the dropped rows of one shard, in the order of the input."""
    for _, batch in read_batches(shard.beside("changes")):
        _write_splits("changes", batch, tables)
    for _, batch in read_batches(shard.beside("dropped")):
        dropped += batch.to_pylist()
    if dropped:
        # Two sources, each in input order: rows that cleaning dropped, and those that were dropped afterwards.
        ordered = sorted(dropped, key=itemgetter("row"))
        _write_splits("dropped", pa.RecordBatch.from_pylist(ordered, NOTES["dropped"]), tables)
    for _, batch in read_batches(shard.beside("contamination")):
        tables.write("contamination", "train", batch)


def _write_splits(name: str, batch: pa.RecordBatch, tables: ArtifactTables) -> None:
    is_test = batch.column("test").to_numpy(zero_copy_only=False)
    for split in SPLITS:
        tables.write(name, split, filter_rows(batch.drop_columns(["test"]), _is_in(split, is_test)))


def _is_in(split: Split, is_test: Mask) -> Mask:
    """Which rows are in a split."""
    return is_test if split == "test" else ~is_test
