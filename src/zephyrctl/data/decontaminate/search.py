"""Which rows hold what a benchmark asks: found by exact text, by normalised text, and by n-grams of words."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zephyrctl.data.word_hashes import Hashes, Places, hash_runs, mixed
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Record
from zephyrctl.rows.files import Raw, read_rows
from zephyrctl.rows.published_rows import RowFormats, row_formats

Kind = Literal["exact", "normalised", "ngram"]

MARKS = ".,;:?\"'()[]{}<>“”‘’„«»…`*_¿¡。，？！"
"""Marks that are no part of a word at whose end they stand; `+ - / % $ = ^` change what is asked and stay."""
SILENT = frozenset(".,;:?!\"'`“”‘’…。，？！")
"""A word of nothing but these is none."""
LONGEST_SHOWN = 160
BATCH = 256
"""Texts whose words are hashed at once."""


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One text that a benchmark asks; a question of several turns is several."""

    benchmark: str
    text: str
    by_words: bool = True
    """Whether n-grams of its words are looked for; the whole text always is."""


@dataclass(frozen=True)
class Match:
    """What a text shares with a benchmark prompt; `ngram` holds the shared words where that is all."""

    kind: Kind
    benchmark: str
    benchmark_text: str
    ngram: str = ""


class Hit(Record):
    """A user turn of a training row that holds what a benchmark asks, with both texts."""

    id: str
    row: str
    turn: int
    kind: Kind
    benchmark: str
    benchmark_text: str
    text: str
    ngram: str = ""

    def __str__(self) -> str:
        """The hit in one line, with the beginnings of both texts."""
        said, asked = (
            text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
            for text in (self.text, self.benchmark_text)
        )
        shared = f" by {self.ngram!r}" if self.ngram else ""
        return (
            f"{self.row or self.id} turn {self.turn} says {said!r}, "
            f"{self.benchmark} asks {asked!r} ({self.kind}{shared})"
        )


def benchmark_prompts(path: Path) -> Iterator[BenchmarkPrompt]:
    """Every prompt of a benchmark's file: MT-Bench's `turns`, a `question`, or any form of prompt or dialogue.

    Raises ZephyrError where the file cannot be read or a row asks nothing.
    """
    name = f"{path.resolve().parent.name}/{path.name}"
    formats = row_formats()
    for where, row in read_rows(path):
        texts = _asked(row, where, name, formats)
        if not texts:
            raise ZephyrError(f"{where}: no prompt to search for", "a row holds turns, question, instruction or prompt")
        yield from (BenchmarkPrompt(name, text) for text in texts)


def read_benchmarks(paths: Iterable[str | Path]) -> Iterator[BenchmarkPrompt]:
    """Every prompt of several files."""
    return chain.from_iterable(benchmark_prompts(Path(path)) for path in paths)


def normal(text: str) -> str:
    """A text by its words alone: NFKC, without case, one space between words, no marks at their ends.

    Signs that change what is asked stay: `3 - 4` is not `3 + 4`, and `-4` is not `4`.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = text.casefold().split()
    return " ".join([bare for word in words if (bare := word if word.isalnum() else _bare(word))])


class Search:
    """The prompts of benchmarks, ready to be looked for in any number of texts.

    A prompt of fewer than `ngram` words is found as a whole text only; `ngram` 0 looks for whole texts alone. Hashes
    lie in sorted arrays (12 bytes an n-gram), which processes share through `save` and `load`; what a hash finds is
    compared by its words.
    """

    def __init__(self, prompts: Iterable[BenchmarkPrompt], ngram: int) -> None:
        self.ngram = ngram
        names: list[str] = []
        texts: list[str] = []
        whole: list[Hashes] = []
        grams: list[Hashes] = []
        owners: list[npt.NDArray[np.int32]] = []
        remaining = iter(prompts)
        while batch := list(islice(remaining, BATCH)):
            normals = [normal(prompt.text) for prompt in batch]
            found, places, _ = _grams(normals, ngram)
            is_sought = np.array([prompt.by_words for prompt in batch])[places]
            grams.append(found[is_sought])
            owners.append((places[is_sought] + len(texts)).astype(np.int32))
            whole.append(_whole(normals))
            names += [prompt.benchmark for prompt in batch]
            texts += [prompt.text for prompt in batch]
        self._prompts = pa.table({"benchmark": pa.array(names, pa.large_string()), "text": _strings(texts)})
        self._whole = _Index(_joined(whole), np.arange(len(texts), dtype=np.int32))
        self._grams = _Index(_joined(grams), np.concatenate(owners) if owners else np.zeros(0, np.int32))

    def __len__(self) -> int:
        return int(self._prompts.num_rows)

    def hits(self, text: str) -> list[Match]:
        """What a text shares with the prompts: at most one match a prompt, by the strictest kind that holds."""
        return [match for _, match in self.find([text])]

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, Match]]:
        """The matches of many texts as (place of the text, match), in the order of the texts."""
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            found = self._find(batch)
            for place in sorted(found):
                for owner in sorted(found[place]):
                    yield start + place, found[place][owner]

    def save(self, folder: Path) -> None:
        """Write the search into a folder, for `load` in another process."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ngram").write_text(str(self.ngram))
        self._whole.save(folder, "whole")
        self._grams.save(folder, "grams")
        with pa.OSFile(str(folder / "prompts.arrow"), "wb") as sink, pa.ipc.new_file(sink, self._prompts.schema) as out:
            out.write_table(self._prompts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The search that was saved there; its arrays stay on the disk and are shared between processes."""
        search = cls((), int((folder / "ngram").read_text()))
        search._whole = _Index.load(folder, "whole")
        search._grams = _Index.load(folder, "grams")
        search._prompts = pa.ipc.open_file(pa.memory_map(str(folder / "prompts.arrow"))).read_all()
        return search

    def _find(self, texts: Sequence[str]) -> dict[int, dict[int, Match]]:
        normals = [normal(text) for text in texts]
        found: dict[int, dict[int, Match]] = {}
        for place, owner in self._whole.pairs(_whole(normals)):
            benchmark, asked = self._prompt(owner)
            if normal(asked) == normals[place]:
                kind: Kind = "exact" if asked == texts[place] else "normalised"
                found.setdefault(place, {})[owner] = Match(kind, benchmark, asked)
        if self.ngram and len(self._grams):
            self._find_grams(normals, found)
        return found

    def _find_grams(self, normals: Sequence[str], found: dict[int, dict[int, Match]]) -> None:
        grams, places, starts = _grams(normals, self.ngram)
        for number, owner in self._grams.pairs(grams):
            place = int(places[number])
            if owner in found.get(place, ()):
                continue
            shared = " ".join(normals[place].split(" ")[starts[number] : starts[number] + self.ngram])
            benchmark, asked = self._prompt(owner)
            if f" {shared} " in f" {normal(asked)} ":
                found.setdefault(place, {})[owner] = Match("ngram", benchmark, asked, shared)

    def _prompt(self, owner: int) -> tuple[str, str]:
        columns = self._prompts.column("benchmark"), self._prompts.column("text")
        return columns[0][owner].as_py(), columns[1][owner].as_py()


class _Index:
    """Hashes in order, each with the first prompt that has it, behind a bitmap that most lookups do not pass."""

    def __init__(self, keys: Hashes, owners: npt.NDArray[np.int32]) -> None:
        self._keys, first = np.unique(keys, return_index=True)
        self._owners = owners[first]
        bits = min(26, max(10, int(len(self._keys) * 8).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._seen = np.zeros(2**bits, bool)
        self._seen[mixed(self._keys) >> self._shift] = True

    def __len__(self) -> int:
        return len(self._keys)

    def pairs(self, keys: Hashes) -> Iterator[tuple[int, int]]:
        """(place of the key, its prompt) for every key that is there."""
        if not len(self._keys):
            return
        places = np.flatnonzero(self._seen[mixed(keys) >> self._shift])
        slots = np.minimum(np.searchsorted(self._keys, keys[places]), len(self._keys) - 1)
        is_there = self._keys[slots] == keys[places]
        yield from zip(places[is_there].tolist(), self._owners[slots[is_there]].tolist(), strict=True)

    def save(self, folder: Path, name: str) -> None:
        """Write the arrays."""
        for part in ("keys", "owners", "seen"):
            np.save(folder / f"{name}.{part}.npy", getattr(self, f"_{part}"))

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Map the arrays into memory."""
        index = cls.__new__(cls)
        for part in ("keys", "owners", "seen"):
            setattr(index, f"_{part}", np.load(folder / f"{name}.{part}.npy", mmap_mode="r"))
        index._shift = np.uint64(65 - len(index._seen).bit_length())
        return index


def _asked(row: Raw, where: str, name: str, formats: RowFormats) -> list[str]:
    if isinstance(turns := row.get("turns"), list):
        return [text for text in turns if isinstance(text, str) and text.strip()]
    if isinstance(question := row.get("question"), str):
        return [question] if question.strip() else []
    return formats.prompt(row, where, name).user_turns()


@lru_cache(2**16)
def _bare(word: str) -> str:
    """A word without the marks at its ends; `5!` and `.5` keep theirs, and a sign that stands alone is a word."""
    bare = word.strip(MARKS)
    if bare.endswith("!") and not bare.rstrip("!")[-1:].isdigit():
        bare = bare.rstrip("!").rstrip(MARKS)
    if bare[:1].isdigit() and f".{bare}" in word and not word[: word.index(bare) - 1].strip(MARKS):
        bare = f".{bare}"
    return bare or ("" if SILENT.issuperset(word) else word)


def _whole(normals: Sequence[str]) -> Hashes:
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in normals)
    return np.frombuffer(digests, np.uint64)


def _grams(normals: Sequence[str], length: int) -> tuple[Hashes, Places, Places]:
    """The hash of every n-gram, the place of its text, and the place of its first word."""
    return hash_runs([text.encode() for text in normals], length)


def _joined(parts: Sequence[Hashes]) -> Hashes:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _strings(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())
