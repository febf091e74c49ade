"""Which rows are left out once all are cleaned, by which rule, and which earlier row they repeat."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zephyrctl.data import cleaning_rules, duplicates
from zephyrctl.data.duplicates import Flags
from zephyrctl.data.shards import Keys, Sheet, batches, no_keys
from zephyrctl.data.word_hashes import Hashes, Places

RULES = (
    "",
    cleaning_rules.HELD_OUT,
    cleaning_rules.EXACT,
    cleaning_rules.NEAR,
    cleaning_rules.ASKED_BEFORE,
    cleaning_rules.CONTAMINATED,
)
"""What may leave a row out, by its number in `Fates.rule`; 0 is none."""
NOBODY = -1
ReadShingles = Callable[[Sequence[tuple[Path, Places]]], Iterable[list[Hashes]]]


@dataclass
class Fates:
    """The rows of one kind, in the order of the input: their keys, what left them out, and what they repeat."""

    sheets: list[Sheet]
    keys: Keys
    rule: npt.NDArray[np.int8]
    like: Places
    similarity: npt.NDArray[np.float32]

    @classmethod
    def of(cls, sheets: list[Sheet], near: float | None) -> Self:
        """The rows of some sheets, all of them kept."""
        keys = Keys.join([no_keys(near), *(sheet.keys for sheet in sheets)])
        for sheet in sheets:
            sheet.keys = no_keys(None)
        count = len(keys)
        return cls(sheets, keys, np.zeros(count, np.int8), np.full(count, NOBODY), np.zeros(count, np.float32))

    @property
    def is_kept(self) -> Flags:
        """Which rows nothing has left out."""
        return self.kept_in(slice(None))

    def kept_in(self, part: slice) -> Flags:
        """Which rows of a part nothing has left out."""
        flags: Flags = self.rule[part] == 0
        return flags

    def parts(self) -> Iterator[tuple[Sheet, slice]]:
        """Every sheet with where its rows stand among all."""
        start = 0
        for sheet in self.sheets:
            yield sheet, slice(start, start + sheet.count)
            start += sheet.count

    def leave_out(self, places: Places, rule: str) -> None:
        """Leave out the rows at these places."""
        self.rule[places] = RULES.index(rule)

    def leave_out_held_out(self) -> None:
        """Of training rows, those whose prompt the test side has, where sides were published."""
        if any(sheet.split for sheet in self.sheets):
            test = self.keys.prompts[self.keys.is_test]
            self.leave_out(
                np.flatnonzero(~self.keys.is_test & np.isin(self.keys.prompts, test)), cleaning_rules.HELD_OUT
            )

    def leave_out_same(self, keys: "npt.NDArray[np.bytes_]", rule: str) -> None:
        """Of kept rows with the same key, all but the first."""
        places = np.flatnonzero(self.is_kept)
        first = places[duplicates.firsts(keys[places])]
        self.like[places] = np.where(first == places, self.like[places], first)
        repeated = places[first != places]
        self.similarity[repeated] = 1
        self.leave_out(repeated, rule)

    def leave_out_alike(self, threshold: float, folder: Path, read: ReadShingles) -> None:
        """Of kept rows whose words are nearly the same, all but the first.

        Their n-grams lie in a file meanwhile: 8 kB a candidate is too much for memory where there are many.
        """
        groups = list(duplicates.candidates(self.keys.bands, self.is_kept))
        wanted = np.array(sorted(chain.from_iterable(groups)), np.int64)
        with Shingles(folder / "shingles", wanted, read(self._places(wanted))) as shingles:
            for group in groups:
                for row, other, alike in duplicates.repeats(group, self.keys.bands, threshold, shingles.of):
                    self.like[row], self.similarity[row] = other, alike
                    self.leave_out(np.array([row]), cleaning_rules.NEAR)
        self.keys.bands = no_keys(None).bands

    def _places(self, wanted: Places) -> list[tuple[Path, Places]]:
        """(file, places in it) of the rows that are wanted."""
        tasks = []
        for sheet, part in self.parts():
            low, high = np.searchsorted(wanted, [part.start, part.stop])
            if high > low:
                tasks.append((sheet.path, wanted[low:high] - part.start))
        return tasks


class Shingles:
    """The n-grams of some rows, in a file."""

    def __init__(self, path: Path, rows: Places, read: Iterable[list[Hashes]]) -> None:
        sizes = []
        with path.open("wb") as file:
            for hashes in chain.from_iterable(read):
                file.write(hashes.tobytes())
                sizes.append(len(hashes))
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        self._spans = dict(zip(rows.tolist(), zip([0, *ends], ends, strict=False), strict=True))
        self._file = path.open("rb")

    def of(self, row: int) -> Hashes:
        """The distinct n-grams of a row, in order."""
        begin, end = self._spans[row]
        self._file.seek(8 * begin)
        return np.frombuffer(self._file.read(8 * (end - begin)), np.uint64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_shingles(task: tuple[Path, Places]) -> list[Hashes]:
    """The distinct n-grams of the rows at some places of a sheet; this is what the processes are given."""
    path, places = task
    found: list[Hashes] = []
    for inside, batch in batches(path):
        here = places[(places >= inside.start) & (places < inside.stop)] - inside.start
        if len(here):
            rows = batch.column("messages").take(pa.array(here)).to_pylist()
            hashes, offsets = duplicates.shingles([[turn["content"] for turn in row] for row in rows])
            found += [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
    return found
