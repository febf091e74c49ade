"""Generate dialogues in UltraChat's form for measurements: seeded, of UltraChat's length, with known faults.

    python -m benchmarks.dialogues FILE --rows 1474000    # 9 GB in 2 minutes

Beside FILE it writes `FILE.benchmark.jsonl`, prompts in MT-Bench's form that some rows contain, and
`FILE.counts.json`: how many rows each rule must find. A row depends on the seed and its number alone.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson

from zephyrctl.records import prompt_id, split_of

ROWS = 1_474_000
SEED = 7
TEST_SHARE = 0.05
OPENINGS = {
    "experiences": "I don't have personal experiences",
    "emotions": "I do not have emotions",
    "opinions": "I don't have opinions",
}
SHARES = {
    "lower-cased": 0.05,
    "experiences": 0.01,
    "emotions": 0.01,
    "opinions": 0.01,
    "exact": 0.03,
    "near": 0.02,
    "benchmark": 0.005,
    "unanswered": 0.01,
}
"""The share of rows with each fault. A row has at most one fault."""
BENCHMARK_PROMPTS = 400
WORDS = 6000
SENTENCES = 20_000
SENTENCES_A_TURN = 17


class World:
    """The words and sentences of the rows."""

    def __init__(self, seed: int) -> None:
        rng = Random(f"{seed}:world")
        self.seed = seed
        starts = [c + v for c in "bcdfghklmnprstvw" for v in "aeiou"]
        self.words = sorted({"".join(rng.choices(starts, k=rng.randint(1, 4))) for _ in range(WORDS * 2)})[:WORDS]
        self.sentences = [self._sentence(rng) for _ in range(SENTENCES)]
        self.benchmark = [f"{self._asked(rng, 24)}?" for _ in range(BENCHMARK_PROMPTS)]

    def row(self, number: int) -> dict[str, Any]:
        """The row with this number. A copy comes after its original."""
        fault = self.fault(number)
        if fault in ("exact", "near"):
            return self._copy(number, fault)
        rng = Random(f"{self.seed}:{number}")
        turns = [turn for _ in range(rng.randint(2, 5)) for turn in (self._question(rng), self._answer(rng))]
        _FAULTS.get(fault, lambda *_: None)(self, rng, turns, fault)
        return {"id": str(number), "data": turns}

    def fault(self, number: int) -> str:
        """The fault of the row with this number, or an empty string."""
        place = Random(self.seed * 1_000_003 + number).random()
        for name, share in SHARES.items():
            if place < share:
                return name if number or name not in ("exact", "near") else ""
            place -= share
        return ""

    def copied(self, number: int) -> int:
        """The number of the earlier row without a fault that this one copies; its own number if there is none."""
        rng = Random(f"{self.seed}:{number}:copy")
        for _ in range(200):
            if not self.fault(other := rng.randrange(number)):
                return other
        return number

    def _copy(self, number: int, fault: str) -> dict[str, Any]:
        rng = Random(f"{self.seed}:{number}")
        other = self.copied(number)
        turns = self.row(other)["data"] if other != number else [self._question(rng), self._answer(rng)]
        if fault == "near":
            first, _, rest = turns[1].partition(" ")
            turns[1] = f"{first} {rng.choice(self.words)} {rest}"
        return {"id": str(number), "data": turns}

    def _sentence(self, rng: Random) -> str:
        words = rng.choices(self.words, k=rng.randint(8, 18))
        if rng.random() < 0.3:
            words[rng.randrange(2, 8)] = rng.choice(self.words).capitalize()
        words[0] = words[0].capitalize()
        return f"{' '.join(words)}{rng.choice('...?!')}"

    def _asked(self, rng: Random, words: int) -> str:
        return " ".join(rng.choices(self.words, k=words)).capitalize()

    def _question(self, rng: Random) -> str:
        return f"{self._asked(rng, rng.randint(10, 35))}?"

    def _answer(self, rng: Random) -> str:
        sentences = rng.choices(self.sentences, k=rng.randint(SENTENCES_A_TURN // 2, SENTENCES_A_TURN * 3 // 2))
        if rng.random() < 0.05:
            sentences.insert(3, f"\n\n```python\n{rng.choice(self.words)} = X.{rng.choice(self.words)}()\n```\n\n")
        if rng.random() < 0.3:
            sentences.insert(2, "\n\n")
        return " ".join(sentences)


def _lower(world: World, rng: Random, turns: list[str], fault: str) -> None:
    turns[:] = [turn.lower() for turn in turns]


def _open(world: World, rng: Random, turns: list[str], fault: str) -> None:
    place = rng.randrange(1, len(turns), 2)
    turns[place] = f"{turns[place]} {OPENINGS[fault]}. {rng.choice(world.sentences)}"


def _ask_benchmark(world: World, rng: Random, turns: list[str], fault: str) -> None:
    text = rng.choice(world.benchmark)
    forms = (text, text.upper() + "!", f"Please say: {text}")
    turns[rng.randrange(2, len(turns), 2)] = rng.choice(forms)


def _leave_unanswered(world: World, rng: Random, turns: list[str], fault: str) -> None:
    turns.append(world._question(rng))


_FAULTS: dict[str, Any] = {
    "lower-cased": _lower,
    **dict.fromkeys(OPENINGS, _open),
    "benchmark": _ask_benchmark,
    "unanswered": _leave_unanswered,
}


def write(path: Path, rows: int, seed: int = SEED) -> dict[str, int]:
    """Write the rows, the benchmark and the counts; returns the counts."""
    world = World(seed)
    counts: Counter[str] = Counter()
    with path.open("wb") as file:
        for lines in _groups(world, rows, counts):
            file.write(lines)
    benchmark = [{"question_id": n, "turns": [text]} for n, text in enumerate(world.benchmark)]
    beside(path, "benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benchmark))
    beside(path, "counts.json").write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    return dict(counts)


def beside(path: Path, name: str) -> Path:
    """A file that belongs to the rows."""
    return path.with_name(f"{path.name}.{name}")


def _groups(world: World, rows: int, counts: "Counter[str]") -> Iterator[bytes]:
    for start in range(0, rows, 1000):
        made = []
        for number in range(start, min(start + 1000, rows)):
            row = world.row(number)
            _count(world, number, row, counts)
            made.append(orjson.dumps(row))
        yield b"\n".join([*made, b""])


def _count(world: World, number: int, row: dict[str, Any], counts: "Counter[str]") -> None:
    """What the rules must find; benchmark prompts count in the training split only."""
    fault = world.fault(number)
    counts["rows"] += 1
    if fault in ("exact", "near") and world.copied(number) == number:
        fault = ""
    if fault == "lower-cased":
        counts["truecase"] += len(row["data"])
    elif fault == "benchmark":
        counts["decontaminate"] += split_of(prompt_id(row["data"][0]), TEST_SHARE) == "train"
    elif fault:
        counts[_RULES.get(fault, f"openings.{fault}")] += 1


_RULES = {"exact": "duplicates.exact", "near": "duplicates.near", "unanswered": "unanswered"}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    print(json.dumps(write(given.file, given.rows, given.seed), sort_keys=True))


if __name__ == "__main__":
    main()
