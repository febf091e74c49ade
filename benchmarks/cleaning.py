"""Measure the speed and memory of `data build`, compared with plain `datasets` and the same rules.

    python -m benchmarks.cleaning                  # 100,000 rows, twice each, alternating; 6 minutes on two cores
    python -m benchmarks.cleaning --scale          # and 1,474,000 rows once: 9 GB of JSONL and 14 GB of scratch

Both sides read the same JSONL file and apply the same rules: row formats, truecasing, openings, exact duplicates, the
search for benchmark prompts by whole texts and 8-grams, and the split by hash. Both write dialogues, and their first
turns as prompts without duplicates, to Parquet with their own default codec, and must keep the same number of rows.
Only our side writes ledgers and file hashes.

The plain side is `load_dataset`, `map`, `filter` and `to_parquet` in one process, with one function call for each row.
It calls our functions for row formats, truecasing, openings and keys, and looks up 8-grams in a set. A third side uses
`num_proc` for `map` and for the stateless `filter`. Near duplicates and held-out prompts need a second pass: they are
off in the comparison and on in the scale run.

Each run is a process. Memory is the resident set of its process tree, sampled 20 times per second; pages that two
processes share count twice.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import dialogues, machine

RESULT = Path(__file__).with_suffix(".json")
SIDES = {
    "ours": [],
    "plain": ["--plain"],
    "plain with num_proc": ["--plain", "--num-proc", str(os.cpu_count())],
}
PAGE = os.sysconf("SC_PAGE_SIZE")


def recipe(rows: Path, is_scale: bool) -> dict[str, Any]:
    """The recipe of our side."""
    return {
        "extends": "tiny",
        "name": "cleaning",
        "build": {
            "source": {"kind": "files", "paths": [str(rows)]},
            "test_share": dialogues.TEST_SHARE,
            "clean": {"truecase": True, "openings": dialogues.OPENINGS},
            "duplicates": {"exact": True, "near": 0.8 if is_scale else None},
        },
        "decontaminate": {
            "against": [str(dialogues.beside(rows, "benchmark.jsonl"))],
            "held_out": is_scale,
            "ngram": 8,
        },
    }


def run(side: str, rows: Path, is_scale: bool = False) -> dict[str, Any]:
    """One run in an empty folder: seconds, peak memory of its processes, and its counts."""
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        if side == "ours":
            path = Path(folder) / "recipe.yaml"
            path.write_text(json.dumps(recipe(rows, is_scale)))  # JSON is YAML
            command = ["-m", "zephyrctl", "data", "build", "--recipe", str(path), "--json", "--quiet"]
        else:
            command = ["-m", "benchmarks.cleaning", "--input", str(rows), *SIDES[side]]
        environment = {
            **os.environ,
            "HF_HOME": folder,
            "HF_DATASETS_CACHE": folder,
            "PYTHONPATH": str(Path.cwd()),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
        }
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        peak = watch(process)
        seconds = time.monotonic() - began
        out, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{side} failed: {errors.decode()[-2000:]}")
        printed = json.loads(out.splitlines()[-1])
    return {"seconds": round(seconds, 2), "peak_gib": round(peak / 2**30, 3), "metrics": printed["metrics"]}


def watch(process: "subprocess.Popen[bytes]") -> int:
    """The peak memory of a process and its descendants, in bytes."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident, tree(process.pid))))
        time.sleep(0.05)
    return peak


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def resident(process: int) -> int:
    """Resident bytes of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def plain(rows: Path, num_proc: int | None) -> dict[str, Any]:
    """The same rules with `datasets`, one function call for each row."""
    import datasets

    from zephyrctl.data.cleaning_rules import CleaningRules
    from zephyrctl.data.decontaminate.search import benchmark_prompts, normalize
    from zephyrctl.data.duplicates import content_key
    from zephyrctl.recipe.schema import Clean
    from zephyrctl.records import prompt_id, split_of
    from zephyrctl.rows.published_rows import row_formats

    rules = CleaningRules(Clean(truecase=True, openings=dialogues.OPENINGS))
    asked = [normalize(prompt.text) for prompt in benchmark_prompts(dialogues.beside(rows, "benchmark.jsonl"))]
    whole = set(asked)
    grams = {gram for text in asked for gram in grams_of(text)}
    seen: set[bytes] = set()
    asked_before: set[str] = set()

    formats = row_formats()

    def shape(row: dict[str, Any], place: int) -> dict[str, Any]:
        data = row["data"][: len(row["data"]) // 2 * 2]
        messages = formats.dialogue({"data": data}, f"{rows}:{place + 1}", rows.name).messages
        texts = rules.repair([message.content for message in messages])
        turns = [{"role": turn.role, "content": text} for turn, text in zip(messages, texts, strict=True)]
        id = prompt_id(texts[0])
        origin = f"{rows}:{place + 1}"
        side = split_of(id, dialogues.TEST_SHARE)
        return {"id": id, "messages": turns, "source": rows.name, "origin": origin, "side": side}

    def opens_well(row: dict[str, Any]) -> bool:
        turns = row["messages"]
        return rules.find_opening([turn["role"] for turn in turns], [turn["content"] for turn in turns]) is None

    def is_first(row: dict[str, Any]) -> bool:
        turns = row["messages"]
        key = content_key([turn["role"] for turn in turns], [turn["content"] for turn in turns])
        is_new = key not in seen
        seen.add(key)
        return is_new

    def is_clean(row: dict[str, Any]) -> bool:
        said = [normalize(turn["content"]) for turn in row["messages"] if turn["role"] == "user"]
        return row["side"] == "test" or not any(
            text in whole or any(gram in grams for gram in grams_of(text)) for text in said
        )

    def is_new_prompt(row: dict[str, Any]) -> bool:
        is_new = row["id"] not in asked_before
        asked_before.add(row["id"])
        return is_new

    def first_turn(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": row["messages"][:1]}

    loaded = datasets.load_dataset("json", data_files=str(rows), split="train")
    rows_read = len(loaded)
    kept = loaded.map(shape, with_indices=True, remove_columns=loaded.column_names, num_proc=num_proc)
    kept = kept.filter(opens_well, num_proc=num_proc).filter(is_first)
    kept = kept.filter(is_clean, num_proc=num_proc)
    prompts = kept.filter(is_new_prompt).map(first_turn, num_proc=num_proc)
    for name, table in (("dialogues", kept), ("prompts", prompts)):
        for side in ("train", "test"):
            on_side = table.filter(lambda row, side=side: row["side"] == side, num_proc=num_proc)
            on_side.remove_columns("side").to_parquet(f"{name}-{side}.parquet")
    return {"rows": rows_read, "dialogues": len(kept), "prompts": len(prompts)}


def grams_of(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of eight words."""
    words = text.split()
    return (tuple(words[place : place + 8]) for place in range(len(words) - 7))


def compare(rows: Path, count: int, repetitions: int) -> dict[str, Any]:
    """Run all sides in turn, several times: rows per second, and our ratio to each other side in the same round."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repetitions):
        for side in SIDES:
            runs[side].append(run(side, rows))
            print(side, runs[side][-1], flush=True)
    kept = {(one["metrics"]["dialogues"], one["metrics"]["prompts"]) for some in runs.values() for one in some}
    if len(kept) != 1:
        raise SystemExit(f"the sides disagree on how many dialogues and prompts are kept: {kept}")
    rates = {side: [count / one["seconds"] for one in some] for side, some in runs.items()}
    ratios = {
        side: [ours / theirs for ours, theirs in zip(rates["ours"], rates[side], strict=True)]
        for side in list(SIDES)[1:]
    }
    return {
        "rows": count,
        "bytes": rows.stat().st_size,
        "kept": dict(zip(("dialogues", "prompts"), kept.pop(), strict=True)),
        "rows_per_second": {side: spread(values) for side, values in rates.items()},
        "ours_over": {side: spread(values) for side, values in ratios.items()},
        "peak_gib": {side: max(one["peak_gib"] for one in some) for side, some in runs.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    named = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 2) for name, value in named.items()}


def scale(rows: Path, count: int) -> dict[str, Any]:
    """Apply all rules to all rows once; every count must be what the generator planted."""
    result = run("ours", rows, is_scale=True)
    planted = json.loads(dialogues.beside(rows, "counts.json").read_text())
    found = result.pop("metrics")
    found_counts = {"rows": found["rows"], **found["rules"]}
    return {
        "rows": count,
        "bytes": rows.stat().st_size,
        **result,
        "rows_per_second": round(count / result["seconds"]),
        "planted": planted,
        "found": found_counts,
        "holds": {
            "every count is what was planted": found_counts == planted,
            "peak under 2 GiB": result["peak_gib"] < 2,
        },
    }


def main() -> None:
    """Measure, print the result, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--scale", action="store_true", help="also clean --scale-rows rows once")
    parser.add_argument("--scale-rows", type=int, default=dialogues.ROWS)
    parser.add_argument("--folder", type=Path, help="folder for rows and scratch files; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--num-proc", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        print(json.dumps({"metrics": plain(given.input, given.num_proc)}))
        return
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    results["machine"] = machine.describe()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.rows:
            rows = Path(folder) / "rows.jsonl"
            dialogues.write(rows, given.rows)
            results["beside plain datasets"] = compare(rows, given.rows, given.repetitions)
            rows.unlink()
        if given.scale:
            rows = Path(folder) / "scale.jsonl"
            dialogues.write(rows, given.scale_rows)
            results["scale"] = scale(rows, given.scale_rows)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    main()
