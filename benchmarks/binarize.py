"""Measure the time and memory of pairing 64,000 rated prompts, compared with a plain `datasets.map`.

    python -m benchmarks.binarize                    # writes benchmarks/binarize.json; about two minutes on two cores
    python -m benchmarks.binarize --prompts 4000     # quick, and not written

Each prompt has four answers of about 1 kB and sixteen ratings with rationales, as in UltraFeedback. Our side is the
whole command with its manifest and hashes. The other side reads the same Parquet file and applies the paper's rule row
by row. Both run as processes, in turns, and give the same number of pairs.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from benchmarks import machine
from zephyrctl.records import ASPECTS, Completion, Message, RatedPrompt, Rating, prompt_id
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.parquet import write_parquet
from zephyrctl.runs.run import Run

RESULT = Path(__file__).with_suffix(".json")
PEER = """
import random, sys
import datasets
datasets.disable_progress_bars()
rows = datasets.load_dataset("parquet", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
def mean(answer):
    values = [rating["value"] for rating in answer["ratings"] if rating["value"] is not None]
    return sum(values) / len(values)
def pick(row):
    scored = sorted(((mean(answer), place) for place, answer in enumerate(row["completions"])), reverse=True)
    lower = [place for score, place in scored if score < scored[0][0]]
    if not lower:
        return {"chosen": None, "rejected": None}
    best, worse = row["completions"][scored[0][1]], row["completions"][random.Random(row["id"]).choice(lower)]
    return {"chosen": best["text"], "rejected": worse["text"]}
pairs = rows.map(pick, remove_columns=["completions"]).filter(lambda row: row["chosen"] is not None)
pairs.to_parquet(sys.argv[2] + "/pairs.parquet")
"""


def rated_prompts(count: int) -> Iterator[RatedPrompt]:
    """Generated prompts with four answers each, the same in every run."""
    rng = Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    for number in range(count):
        text = f"{number} {' '.join(rng.choices(words, k=30))}"
        yield RatedPrompt(
            id=prompt_id(text),
            messages=[Message(role="user", content=text)],
            completions=[_answer(f"model-{place}", words, rng) for place in range(4)],
            source="made",
        )


def _answer(model: str, words: Sequence[str], rng: Random) -> Completion:
    ratings = [
        Rating(aspect=aspect, value=rng.randint(1, 5), rationale=" ".join(rng.choices(words, k=25)))
        for aspect in ASPECTS
    ]
    return Completion(model=model, text=" ".join(rng.choices(words, k=rng.randint(80, 240))), ratings=ratings)


def make(folder: Path, count: int) -> Path:
    """Write a run with a feedback artifact of so many prompts, all in the train split; returns its Parquet file."""
    plan = Plan(name="feedback", stage="feedback", settings={"made": count}, inputs={})
    with Run(folder / "runs" / "tiny").draft(plan, {}, {}) as draft:
        path = draft.path / "rated" / "train.parquet"
        path.parent.mkdir()
        write_parquet(path, rated_prompts(count), RatedPrompt)
        artifact = draft.finish()
    return artifact.table("rated", "train")


def timed(command: Sequence[str], folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of a command, and the peak memory of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_by(process.pid))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2), "peak_gb": round(peak / 1e9, 3)}


def held_by(session: int) -> int:
    """Bytes of memory of all processes of a session; shared pages count once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # a process that ends meanwhile
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Run both sides in turns; the figures of each round and the ratio of the medians."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = make(folder, count)
        pairs = folder / "runs" / "tiny" / "binarize" / "pairs" / "train.parquet"
        ours = [sys.executable, "-m", "zephyrctl", "data", "binarize", "--fresh", "--quiet", "--recipe", "tiny"]
        sides: dict[str, list[dict[str, float]]] = {"zephyrctl": [], "datasets.map": []}
        for number in range(rounds):
            sides["zephyrctl"].append(timed(ours, folder))
            cache = folder / f"cache {number}"
            cache.mkdir()
            sides["datasets.map"].append(timed([sys.executable, "-c", PEER, str(table), str(cache)], folder))
            if pq.read_metadata(pairs).num_rows != pq.read_metadata(cache / "pairs.parquet").num_rows:
                sys.exit("the two sides make different numbers of pairs")
            shutil.rmtree(cache)
            print({name: figures[-1] for name, figures in sides.items()}, flush=True)
    seconds = {name: median(one["seconds"] for one in figures) for name, figures in sides.items()}
    return {
        "prompts": count,
        "rounds": sides,
        "median_seconds": seconds,
        "times_as_fast": round(seconds["datasets.map"] / seconds["zephyrctl"], 2),
        "holds": {
            "every round under 10 s": all(one["seconds"] < 10 for one in sides["zephyrctl"]),
            "under 1 GB": all(one["peak_gb"] < 1 for one in sides["zephyrctl"]),
        },
    }


def main() -> None:
    """Measure, print the result, and write it for the full size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=64_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    result = {"machine": machine.describe(), **measure(asked.prompts, asked.rounds)}
    print(json.dumps({key: result[key] for key in ("median_seconds", "times_as_fast", "holds")}))
    if asked.prompts == 64_000:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
