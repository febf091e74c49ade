"""Find benchmark prompts in texts: by the exact text, by the normalised text, and by n-grams of words."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zephyrctl.data.word_hashes import Hashes, Positions, hash_runs, mixed
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Conversation, Record
from zephyrctl.rows.files import Raw, read_rows
from zephyrctl.rows.published_rows import RowFormats, row_formats

MatchKind = Literal["exact", "normalised", "ngram"]
AnyConversation = TypeVar("AnyConversation", bound=Conversation)

PUNCTUATION = ".,;:?\"'()[]{}<>“”‘’„«»…`*_¿¡。，？！"
"""Marks that are removed from both ends of a word. `+ - / % $ = ^` change what is asked and stay."""
SILENT = frozenset(".,;:?!\"'`“”‘’…。，？！")
"""A word of nothing but these is not a word."""
LONGEST_SHOWN = 160
"""Characters of a text that an error quotes."""
BATCH = 256
"""Texts whose words are hashed at once."""


@dataclass(frozen=True)
class BenchmarkPrompt:
    """One text that a benchmark asks. A question of several turns gives several."""

    benchmark: str
    text: str
    by_words: bool = True
    """Whether its n-grams are searched for. The whole text always is."""


@dataclass(frozen=True)
class Match:
    """What a text has in common with a benchmark prompt; `ngram` is the shared words if that is all."""

    kind: MatchKind
    benchmark: str
    benchmark_text: str
    ngram: str = ""


class ContaminatedTurn(Record):
    """A user turn of a training row that contains a benchmark prompt, with both texts."""

    id: str
    row: str
    turn: int
    kind: MatchKind
    benchmark: str
    benchmark_text: str
    text: str
    ngram: str = ""

    def __str__(self) -> str:
        """One line with the beginnings of both texts."""
        text, prompt = _shorten(self.text), _shorten(self.benchmark_text)
        shared = f" by {self.ngram!r}" if self.ngram else ""
        return (
            f"{self.row or self.id} turn {self.turn} says {text!r}, {self.benchmark} asks {prompt!r} "
            f"({self.kind}{shared})"
        )


def benchmark_prompts(path: Path) -> Iterator[BenchmarkPrompt]:
    """Every prompt of a benchmark's file: MT-Bench's `turns`, a `question`, or any form of prompt or dialogue.

    Raises ZephyrError if the file cannot be read or a row has no prompt.
    """
    name = f"{path.resolve().parent.name}/{path.name}"
    formats = row_formats()
    for where, row in read_rows(path):
        texts = _prompt_texts(row, where, name, formats)
        if not texts:
            raise ZephyrError(
                f"{where}: no prompt to search for", "give rows with turns, question, instruction or prompt"
            )
        yield from (BenchmarkPrompt(name, text) for text in texts)


def read_benchmarks(paths: Iterable[str | Path]) -> Iterator[BenchmarkPrompt]:
    """Every prompt of several files."""
    return chain.from_iterable(benchmark_prompts(Path(path)) for path in paths)


def normalize(text: str) -> str:
    """The words of a text: NFKC, case-folded, one space between words, without punctuation at their ends.

    Signs that change what is asked stay: `3 - 4` is not `3 + 4`, and `-4` is not `4`.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = text.casefold().split()
    return " ".join([bare for word in words if (bare := word if word.isalnum() else _strip_word(word))])


class BenchmarkSearch:
    """The prompts of benchmarks, indexed to be searched for in any number of texts.

    A prompt of fewer than `ngram` words is found as a whole text only; with `ngram` 0, all are. The index is sorted
    arrays of hashes (12 bytes for each n-gram), which processes share through `save` and `load`. What a hash finds is
    compared word by word.
    """

    def __init__(self, prompts: Iterable[BenchmarkPrompt], ngram: int) -> None:
        self.ngram = ngram
        names: list[str] = []
        texts: list[str] = []
        whole: list[Hashes] = []
        grams: list[Hashes] = []
        owners: list[npt.NDArray[np.int32]] = []  # for each n-gram, the number of its prompt
        remaining = iter(prompts)
        while batch := list(islice(remaining, BATCH)):
            # of_text counts within the batch; plus len(texts), the prompts before the batch, it is the prompt's number.
            normalized = [normalize(prompt.text) for prompt in batch]
            hashes, of_text, _ = _ngram_hashes(normalized, ngram)
            is_indexed = np.array([prompt.by_words for prompt in batch])[of_text]
            grams.append(hashes[is_indexed])
            owners.append((of_text[is_indexed] + len(texts)).astype(np.int32))
            whole.append(_text_hashes(normalized))
            names += [prompt.benchmark for prompt in batch]
            texts += [prompt.text for prompt in batch]
        self._prompts = pa.table({"benchmark": pa.array(names, pa.large_string()), "text": _strings(texts)})
        self._whole = _HashIndex(_concatenate(whole), np.arange(len(texts), dtype=np.int32))
        self._grams = _HashIndex(_concatenate(grams), np.concatenate(owners) if owners else np.zeros(0, np.int32))

    def __len__(self) -> int:
        return int(self._prompts.num_rows)

    def matches(self, text: str) -> list[Match]:
        """The matches of one text: at most one for each prompt, of the strictest kind."""
        return [match for _, match in self.find([text])]

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, Match]]:
        """(position of the text, match) for every match in many texts, in the order of the texts."""
        for start in range(0, len(texts), BATCH):
            found = self._find_in_batch(texts[start : start + BATCH])
            for position in sorted(found):
                for owner in sorted(found[position]):
                    yield start + position, found[position][owner]

    def find_in_rows(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, int, Match]]:
        """(row, text in the row, match) for every match in rows of several texts, in the order of the rows."""
        owners: list[tuple[int, int]] = []  # of each text in the flat list: its row, and its position in the row
        for number, texts in enumerate(rows):
            owners += [(number, position) for position in range(len(texts))]
        for position, match in self.find(list(chain.from_iterable(rows))):
            yield *owners[position], match

    def save(self, folder: Path) -> None:
        """Write the search to a folder, for `load` in another process."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ngram").write_text(str(self.ngram))
        self._whole.save(folder, "whole")
        self._grams.save(folder, "grams")
        with pa.OSFile(str(folder / "prompts.arrow"), "wb") as sink, pa.ipc.new_file(sink, self._prompts.schema) as out:
            out.write_table(self._prompts)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A saved search. Its arrays are memory-mapped, so that processes share them."""
        search = cls((), int((folder / "ngram").read_text()))
        search._whole = _HashIndex.load(folder, "whole")
        search._grams = _HashIndex.load(folder, "grams")
        search._prompts = pa.ipc.open_file(pa.memory_map(str(folder / "prompts.arrow"))).read_all()
        return search

    def _find_in_batch(self, texts: Sequence[str]) -> dict[int, dict[int, Match]]:
        """The matches by position of the text and number of the prompt."""
        normalized = [normalize(text) for text in texts]
        found: dict[int, dict[int, Match]] = {}
        for position, owner in self._whole.find(_text_hashes(normalized)):
            benchmark, prompt = self._prompt(owner)
            if normalize(prompt) == normalized[position]:  # not so if two texts share an 8-byte hash
                kind: MatchKind = "exact" if prompt == texts[position] else "normalised"
                found.setdefault(position, {})[owner] = Match(kind, benchmark, prompt)
        if self.ngram and len(self._grams):
            self._add_ngram_matches(normalized, found)
        return found

    def _add_ngram_matches(self, normalized: Sequence[str], found: dict[int, dict[int, Match]]) -> None:
        """Add the matches by n-grams for prompts that were not found as whole texts."""
        hashes, of_text, first_words = _ngram_hashes(normalized, self.ngram)
        for number, owner in self._grams.find(hashes):
            position = int(of_text[number])
            if owner in found.get(position, ()):
                continue
            shared = " ".join(normalized[position].split(" ")[first_words[number] :][: self.ngram])
            benchmark, prompt = self._prompt(owner)
            if f" {shared} " in f" {normalize(prompt)} ":  # two n-grams may have one hash
                found.setdefault(position, {})[owner] = Match("ngram", benchmark, prompt, shared)

    def _prompt(self, owner: int) -> tuple[str, str]:
        columns = self._prompts.column("benchmark"), self._prompts.column("text")
        return columns[0][owner].as_py(), columns[1][owner].as_py()


def search_records(
    search: BenchmarkSearch, records: Iterable[AnyConversation]
) -> Iterator[tuple[AnyConversation, list[ContaminatedTurn]]]:
    """Every record with its contaminated user turns: none for most, one for each prompt that a turn matches."""
    remaining = iter(records)
    while batch := list(islice(remaining, BATCH)):
        numbers = [[number for number, turn in enumerate(row.messages) if turn.role == "user"] for row in batch]
        contaminated: list[list[ContaminatedTurn]] = [[] for _ in batch]
        for row, place, match in search.find_in_rows([record.user_turns() for record in batch]):
            record, number = batch[row], numbers[row][place]
            turn = ContaminatedTurn(
                id=record.id,
                row=getattr(record, "origin", ""),
                turn=number,
                text=record.messages[number].content,
                **vars(match),
            )
            contaminated[row].append(turn)
        yield from zip(batch, contaminated, strict=True)


class _HashIndex:
    """Sorted hashes, each with the first prompt that has it. A bitmap in front rejects most hashes that are not in it.

    The bitmap has 8 to 16 entries for each hash, so that about one in ten foreign hashes passes it by chance.
    """

    def __init__(self, keys: Hashes, owners: npt.NDArray[np.int32]) -> None:
        # Of prompts that share a hash, the first is kept: a match then names one prompt and not all that contain it.
        self._keys, first = np.unique(keys, return_index=True)
        self._owners = owners[first]
        # At most 2^26 entries of one byte, 64 MB. The index of an entry is the highest `bits` bits of the mixed hash.
        bits = min(26, max(10, int(len(self._keys) * 8).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._seen = np.zeros(2**bits, bool)
        self._seen[mixed(self._keys) >> self._shift] = True

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Hashes) -> Iterator[tuple[int, int]]:
        """(position of the key, number of its prompt) for every key that is in the index."""
        if not len(self._keys):
            return
        # One look at the bitmap for each key. A binary search among millions of keys would be twenty, all cache misses.
        positions = np.flatnonzero(self._seen[mixed(keys) >> self._shift])
        # `searchsorted` gives len(keys) for a hash above all others, which is no index.
        slots = np.minimum(np.searchsorted(self._keys, keys[positions]), len(self._keys) - 1)
        is_found = self._keys[slots] == keys[positions]
        yield from zip(positions[is_found].tolist(), self._owners[slots[is_found]].tolist(), strict=True)

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


def _prompt_texts(row: Raw, where: str, name: str, formats: RowFormats) -> list[str]:
    if isinstance(turns := row.get("turns"), list):
        return [text for text in turns if isinstance(text, str) and text.strip()]
    if isinstance(question := row.get("question"), str):
        return [question] if question.strip() else []
    return formats.prompt(row, where, name).user_turns()


@lru_cache(2**16)
def _strip_word(word: str) -> str:
    """A word without punctuation at its ends; `5!` and `.5` keep theirs, and a sign that stands alone is a word."""
    bare = word.strip(PUNCTUATION)
    # "!" is no punctuation after a digit (a factorial), and "." none before one (a decimal): "5!" is not "5".
    if bare.endswith("!") and not bare.rstrip("!")[-1:].isdigit():
        bare = bare.rstrip("!").rstrip(PUNCTUATION)
    if bare[:1].isdigit() and f".{bare}" in word and not word[: word.index(bare) - 1].strip(PUNCTUATION):
        bare = f".{bare}"
    return bare or ("" if SILENT.issuperset(word) else word)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _text_hashes(normalized: Sequence[str]) -> Hashes:
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in normalized)
    return np.frombuffer(digests, np.uint64)


def _ngram_hashes(normalized: Sequence[str], length: int) -> tuple[Hashes, Positions, Positions]:
    """The hash of every n-gram, the position of its text, and the position of its first word in the text."""
    return hash_runs([text.encode() for text in normalized], length)


def _concatenate(parts: Sequence[Hashes]) -> Hashes:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _strings(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())
