"""Decide which cleaned rows are dropped, by which rule, and which earlier row they repeat."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zephyrctl.data import cleaning_rules, duplicates
from zephyrctl.data.duplicates import Mask
from zephyrctl.data.shards import Keys, RowKeys, Shard, empty_keys, read_batches
from zephyrctl.data.word_hashes import Hashes, Positions

RULES = (
    "",
    cleaning_rules.HELD_OUT,
    cleaning_rules.EXACT,
    cleaning_rules.NEAR,
    cleaning_rules.DUPLICATE_PROMPT,
    cleaning_rules.CONTAMINATED,
)
"""The rules that may drop a row, by their number in `RowStatus.rule`; 0 means that the row is kept."""
NO_ROW = -1
ReadShingles = Callable[[Sequence[tuple[Path, Positions]]], Iterable[list[Hashes]]]


@dataclass
class RowStatus:
    """All rows of one kind in the order of the input. Arrays have one entry for each row."""

    shards: list[Shard]
    keys: RowKeys
    rule: npt.NDArray[np.int8]
    """The number of the rule that dropped the row, or 0."""
    original: Positions
    """The position of the earlier row that this row repeats, or NO_ROW."""
    similarity: npt.NDArray[np.float32]
    """How similar the row is to its original: 1 for an exact duplicate."""

    @classmethod
    def of(cls, shards: list[Shard], near: float | None) -> Self:
        """The rows of some shards, all of them kept. The keys move here from the shards."""
        keys = RowKeys.join([empty_keys(near), *(shard.keys for shard in shards)])
        for shard in shards:
            shard.keys = empty_keys(None)
        count = len(keys)
        return cls(shards, keys, np.zeros(count, np.int8), np.full(count, NO_ROW), np.zeros(count, np.float32))

    @property
    def is_kept(self) -> Mask:
        """Which rows are kept."""
        return self.kept_in(slice(None))

    def kept_in(self, positions: slice) -> Mask:
        """Which rows of a range are kept."""
        mask: Mask = self.rule[positions] == 0
        return mask

    def by_shard(self) -> Iterator[tuple[Shard, slice]]:
        """Every shard with the positions of its rows among all rows."""
        start = 0
        for shard in self.shards:
            yield shard, slice(start, start + shard.count)
            start += shard.count

    def drop(self, positions: Positions, rule: str) -> None:
        """Drop the rows at these positions."""
        self.rule[positions] = RULES.index(rule)

    def drop_held_out(self) -> None:
        """If the data was published with splits, drop training rows whose prompt is also on the test side."""
        if any(shard.split for shard in self.shards):
            test_prompts = self.keys.prompts[self.keys.is_test]
            is_held_out = ~self.keys.is_test & np.isin(self.keys.prompts, test_prompts)
            self.drop(np.flatnonzero(is_held_out), cleaning_rules.HELD_OUT)

    def drop_equal(self, keys: Keys, rule: str) -> None:
        """Of kept rows with the same key, drop all but the first."""
        positions = np.flatnonzero(self.is_kept)
        first = positions[duplicates.firsts(keys[positions])]
        self.original[positions] = np.where(first == positions, self.original[positions], first)
        repeated = positions[first != positions]
        self.similarity[repeated] = 1
        self.drop(repeated, rule)

    def drop_near(self, threshold: float, folder: Path, read: ReadShingles) -> None:
        """Of kept rows with nearly the same words, drop all but the first.

        The word n-grams of the candidates are in a file: 8 kB for each candidate would be too much memory.
        """
        groups = list(duplicates.candidates(self.keys.bands, self.is_kept))
        wanted = np.array(sorted(chain.from_iterable(groups)), np.int64)
        with ShingleFile(folder / "shingles", wanted, read(self._in_files(wanted))) as shingles:
            for group in groups:
                for row, original, similarity in duplicates.repeats(group, self.keys.bands, threshold, shingles.of):
                    self.original[row], self.similarity[row] = original, similarity
                    self.drop(np.array([row]), cleaning_rules.NEAR)
        self.keys.bands = empty_keys(None).bands

    def _in_files(self, wanted: Positions) -> list[tuple[Path, Positions]]:
        """(shard file, positions in it) of some rows."""
        tasks = []
        for shard, part in self.by_shard():
            low, high = np.searchsorted(wanted, [part.start, part.stop])
            if high > low:
                tasks.append((shard.path, wanted[low:high] - part.start))
        return tasks


class ShingleFile:
    """The word n-grams of some rows as a file of 8-byte hashes."""

    def __init__(self, path: Path, rows: Positions, read: Iterable[list[Hashes]]) -> None:
        sizes = []
        with path.open("wb") as file:
            for hashes in chain.from_iterable(read):
                file.write(hashes.tobytes())
                sizes.append(len(hashes))
        ends = np.cumsum(sizes, dtype=np.int64).tolist()
        self._ranges = dict(zip(rows.tolist(), zip([0, *ends], ends, strict=False), strict=True))
        self._file = path.open("rb")

    def of(self, row: int) -> Hashes:
        """The distinct n-grams of a row, sorted."""
        begin, end = self._ranges[row]
        self._file.seek(8 * begin)
        return np.frombuffer(self._file.read(8 * (end - begin)), np.uint64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_shingles(task: tuple[Path, Positions]) -> list[Hashes]:
    """The distinct n-grams of the rows at some positions of a shard, in whichever process this is called."""
    path, wanted = task
    shingles: list[Hashes] = []
    for inside, batch in read_batches(path):
        here = wanted[(wanted >= inside.start) & (wanted < inside.stop)] - inside.start
        if len(here):
            rows = batch.column("messages").take(pa.array(here)).to_pylist()
            hashes, offsets = duplicates.shingles([[turn["content"] for turn in row] for row in rows])
            shingles += [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
    return shingles
