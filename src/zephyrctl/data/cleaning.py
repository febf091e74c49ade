"""How every row of every source comes to be cleaned, kept once, searched for what eval asks, and written to its side.

Four passes. The first reads the input in shares, over processes, and leaves columns on the disk; of each row only some
eighty bytes of keys come back here. The second decides on duplicates from the keys. The third searches the rows that
are left. The fourth filters the columns into the artifact, in the order of the input: the result hangs on no process.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from zephyrctl.data import cleaning_rules, duplicates
from zephyrctl.data.artifact_tables import Tables, filtered, first_turns
from zephyrctl.data.chunks import Made, RawChunk, numbered
from zephyrctl.data.cleaning_rules import Kind
from zephyrctl.data.decontaminate.search import Hit, Search, read_benchmarks
from zephyrctl.data.decontaminate.shard_search import HITS_SHOWN, Outcome, Task, held_out, search_share
from zephyrctl.data.duplicates import Flags
from zephyrctl.data.process_pool import ProcessPool
from zephyrctl.data.row_status import NOBODY, RULES, Fates, read_shingles
from zephyrctl.data.shards import NOTED, Settings, Sheet, batches, clean_share, row_json
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Split
from zephyrctl.rows.files import Raw
from zephyrctl.runs.artifacts import SPLITS, Draft

KINDS: tuple[Kind, ...] = ("dialogues", "prompts")


def clean_rows(
    chunks: Iterable[RawChunk | Made],
    recipe: Recipe,
    draft: Draft,
    progress: Progress,
    pool: ProcessPool,
    bytes: int = 0,
) -> None:
    """Clean the rows of the shares and write the artifact's tables; counts and losses go into the draft.

    `bytes` is how much the shares are in all, where that is known. Raises ZephyrError where a row cannot be used or
    none is left, GateError where the recipe refuses a hit.
    """
    folder = draft.scratch / "shares"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Cleaning(recipe, draft, progress, pool, folder).perform(chunks, bytes)
    shutil.rmtree(folder)


class Cleaning:
    """The passes over one input."""

    def __init__(self, recipe: Recipe, draft: Draft, progress: Progress, pool: ProcessPool, folder: Path) -> None:
        self.recipe = recipe
        self.draft = draft
        self.progress = progress
        self.pool = pool
        self.folder = folder

    def perform(self, chunks: Iterable[RawChunk | Made], bytes: int) -> None:
        """All passes."""
        sheets = self._clean(chunks, bytes)
        near = self.recipe.build.duplicates.near
        dialogues = Fates.of([sheet for sheet in sheets if sheet.kind == "dialogues"], near)
        prompts = Fates.of([sheet for sheet in sheets if sheet.kind == "prompts"], None)
        self._leave_out_repeated(dialogues, prompts)
        self._search(dialogues, prompts)
        if not dialogues.is_kept.any():
            self._count(sheets, dialogues, prompts)
            raise ZephyrError(
                f"no dialogue is left ({self.draft.dropped})", "mend the rows that were lost, by the causes above"
            )
        with Tables(self.draft.path) as tables:
            self._write("dialogues", dialogues, tables, is_asked=not prompts.sheets)
            self._write("prompts", prompts, tables)
        self.draft.metrics |= {kind: tables.rows[kind] for kind in KINDS}
        self._count(sheets, dialogues, prompts)

    def _clean(self, chunks: Iterable[RawChunk | Made], bytes: int) -> list[Sheet]:
        build = self.recipe.build
        near = build.duplicates.near
        settings = Settings(build.clean, build.test_share, self.recipe.skip_bad_rows, near, self.folder)
        sheets: list[Sheet] = []
        done = 0
        for sheet in self.pool.map(clean_share, ((chunk, settings) for chunk in numbered(chunks))):
            sheets.append(sheet)
            done += sheet.bytes
            if bytes:
                self.progress.advance(done >> 20, bytes >> 20, "MB cleaned")
        self.draft.metrics["rows"] = sum(sheet.read for sheet in sheets)
        return sheets

    def _leave_out_repeated(self, dialogues: Fates, prompts: Fates) -> None:
        settings = self.recipe.build.duplicates
        dialogues.leave_out_held_out()
        if settings.exact:
            dialogues.leave_out_same(dialogues.keys.contents, cleaning_rules.EXACT)
        if settings.near:
            dialogues.leave_out_alike(settings.near, self.folder, lambda tasks: self.pool.map(read_shingles, tasks))
        prompts.leave_out_same(prompts.keys.prompts, cleaning_rules.ASKED_BEFORE)

    def _search(self, dialogues: Fates, prompts: Fates) -> None:
        """Look in the user turns of training rows for what eval asks, and act on it as the recipe says."""
        settings = self.recipe.decontaminate
        asked = read_benchmarks(settings.against)
        asking = prompts if prompts.sheets else dialogues
        mine = held_out(asking, self.recipe.eval.prompts) if settings.held_out else ()
        search = Search(chain(asked, mine), settings.ngram)
        if not len(search):
            return
        search.save(self.folder / "search")
        del search
        found: Counter[str] = Counter()
        first: list[Hit] = []
        for fates in (dialogues, prompts):
            for (_, part), outcome in self._searched(fates):
                found += outcome.found
                found["rows"] += len(outcome.places)
                first = [*first, *outcome.first][:HITS_SHOWN]
                if settings.on_hit == "drop":
                    fates.leave_out(outcome.places + part.start, cleaning_rules.CONTAMINATED)
        self._tell_hits(found, first)

    def _searched(self, fates: Fates) -> Iterator[tuple[tuple[Sheet, slice], Outcome]]:
        is_searched = fates.is_kept & ~fates.keys.is_test
        place = self.folder / "search"
        tasks = (Task(sheet.path, sheet.beside("hits"), is_searched[part], place) for sheet, part in fates.parts())
        for number, outcome in enumerate(zip(fates.parts(), self.pool.map(search_share, tasks), strict=True), 1):
            self.progress.advance(number, len(fates.sheets), "shares searched")
            yield outcome

    def _tell_hits(self, found: "Counter[str]", first: Sequence[Hit]) -> None:
        if not found["rows"]:
            return
        told = f"{found['rows']} {cleaning_rules.LOSSES[cleaning_rules.CONTAMINATED]}"
        on_hit = self.recipe.decontaminate.on_hit
        if on_hit == "refuse":
            raise GateError(
                f"{told}: {'; '.join(map(str, first))}",
                "leave them out with --set decontaminate.on_hit=drop, or train on them with on_hit=keep",
            )
        self.draft.metrics["contaminated"] = dict(sorted(found.items()))
        if on_hit == "keep":
            self.draft.notes.append(f"{told} and are kept (decontaminate.on_hit: keep)")

    def _write(self, kind: Kind, fates: Fates, tables: Tables, is_asked: bool = False) -> None:
        """Write the rows of one kind; where nobody made prompts, the first turns of dialogues are."""
        is_first = fates.is_kept.copy()
        if is_asked:
            rows = np.flatnonzero(is_first)
            is_first[rows] = duplicates.firsts(fates.keys.prompts[rows]) == np.arange(len(rows))
            self.draft.drop(cleaning_rules.LOSSES[cleaning_rules.ASKED_BEFORE], len(rows) - int(is_first.sum()))
        origins = Origins(fates)
        for number, (sheet, part) in enumerate(fates.parts(), 1):
            dropped: list[Raw] = []
            for inside, batch in batches(sheet.path):
                here = slice(part.start + inside.start, part.start + inside.stop)
                origins.note(batch, here)
                self._write_batch(kind, fates, batch, here, tables, is_first if is_asked else None)
                dropped += _dropped(kind, fates, batch, here, origins)
            _write_ledgers(sheet, dropped, tables)
            sheet.remove()
            self.progress.advance(number, len(fates.sheets), f"shares of {kind} written")

    def _write_batch(
        self, kind: Kind, fates: Fates, batch: pa.RecordBatch, here: slice, tables: Tables, is_first: Flags | None
    ) -> None:
        is_test = fates.keys.is_test[here]
        for split in SPLITS:
            is_kept = fates.kept_in(here) & _on_side(is_test, split)
            tables.write(kind, split, filtered(batch, is_kept))
            tables.write(f"order/{kind}", split, pa.record_batch({"row": fates.keys.rows[here][is_kept]}))
        if is_first is not None:
            asked = first_turns(batch)
            for split in SPLITS:
                tables.write("prompts", split, filtered(asked, is_first[here] & _on_side(is_test, split)))

    def _count(self, sheets: Sequence[Sheet], dialogues: Fates, prompts: Fates) -> None:
        """Rows by rule, for the table; and rows lost, by cause."""
        rules: Counter[str] = Counter()
        for sheet in sheets:
            rules.update(sheet.rules)
            for cause, rows in sheet.losses.items():
                self.draft.drop(cause, rows)
        for fates in (dialogues, prompts):
            for number, rows in enumerate(np.bincount(fates.rule, minlength=len(RULES)).tolist()):
                if number and rows:
                    rules[RULES[number]] += rows
                    self.draft.drop(cleaning_rules.LOSSES[RULES[number]], rows)
        self.draft.metrics["rules"] = dict(sorted(rules.items()))


class Origins:
    """Where the rows stood that others repeat; they come earlier than those."""

    def __init__(self, fates: Fates) -> None:
        self.fates = fates
        self._is_wanted = np.zeros(len(fates.keys), np.bool_)
        self._is_wanted[fates.like[fates.like != NOBODY]] = True
        self._origins: dict[int, str] = {NOBODY: ""}

    def note(self, batch: pa.RecordBatch, here: slice) -> None:
        """Keep the origins that are asked for later."""
        places = np.flatnonzero(self._is_wanted[here])
        found = batch.column("origin").take(pa.array(places)).to_pylist()
        self._origins |= dict(zip((places + here.start).tolist(), found, strict=True))

    def of(self, place: int) -> str:
        """The origin of the row that a row repeats; empty where it repeats none."""
        return self._origins[int(self.fates.like[place])]


def _dropped(kind: Kind, fates: Fates, batch: pa.RecordBatch, here: slice, origins: Origins) -> list[Raw]:
    """The ledger's rows for what was left out after it was cleaned."""
    places = np.flatnonzero(~fates.kept_in(here))
    rows = batch.take(pa.array(places)).to_pylist() if len(places) else []
    return [
        {
            "kind": kind,
            "id": row["id"],
            "row": int(fates.keys.rows[place]),
            "rule": RULES[fates.rule[place]],
            "content": row_json(row),
            "like": origins.of(place),
            "similarity": float(fates.similarity[place]) if fates.like[place] != NOBODY else None,
            "details": "",
            "test": bool(fates.keys.is_test[place]),
        }
        for place, row in zip((places + here.start).tolist(), rows, strict=True)
    ]


def _write_ledgers(sheet: Sheet, dropped: list[Raw], tables: Tables) -> None:
    """What was changed and left out of one share, each to its side, in the order of the input."""
    for _, batch in batches(sheet.beside("changes")):
        _write_sides("changes", batch, tables)
    dropped += [row for _, batch in batches(sheet.beside("dropped")) for row in batch.to_pylist()]
    if dropped:
        ordered = sorted(dropped, key=itemgetter("row"))
        _write_sides("dropped", pa.RecordBatch.from_pylist(ordered, NOTED["dropped"]), tables)
    for _, batch in batches(sheet.beside("hits")):
        tables.write("contamination", "train", batch)


def _write_sides(name: str, batch: pa.RecordBatch, tables: Tables) -> None:
    is_test = batch.column("test").to_numpy(zero_copy_only=False)
    for split in SPLITS:
        tables.write(name, split, filtered(batch.drop_columns(["test"]), _on_side(is_test, split)))


def _on_side(is_test: Flags, split: Split) -> Flags:
    """Which rows are on a side."""
    return is_test if split == "test" else ~is_test
