"""How long does `zephyrctl` take to start, beside a bare Typer program and `accelerate launch --help`?

    python -m benchmarks.startup                   # 15 rounds; 2 minutes on two cores
    python -m benchmarks.startup --before SRC      # also 3 rounds of `tiny`, in turn with the package in SRC

SRC is the `src` folder of another checkout: `zephyrctl run --recipe tiny` runs from there and from here in every round,
and the scores of both must be equal to the digit.

In every round each command runs once, one after the other, so that what else the machine does falls on all alike; each
round begins with the next one, as what follows a heavy command finds cold caches. The bare program has two commands and
no import but Typer. Each command is a process of its own; a first round that is not counted compiles and warms the
disk's cache. Seconds are of the clock and of the processor (user and system); ratios are medians over the rounds of the
ratio within a round. `accelerate launch --help` is what a launch pays before it reads a configuration: it
imports torch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

BARE = '''
import typer

app = typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def one(name: str = "world") -> None:
    """Greet somebody."""


@app.command()
def two(count: int = 1) -> None:
    """Count something."""


app()
'''
ZEPHYRCTL, ACCELERATE = (str(Path(sys.executable).with_name(name)) for name in ("zephyrctl", "accelerate"))
RATIOS = {
    "help_over_bare_typer": ("zephyrctl --help", "bare typer --help"),
    "accelerate_over_plan": ("accelerate launch --help", "zephyrctl plan"),
    "accelerate_over_plan_json": ("accelerate launch --help", "zephyrctl plan --json"),
}


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed, by name."""
    bare = folder / "bare.py"
    bare.write_text(BARE)
    return {
        "bare typer --help": [sys.executable, str(bare), "--help"],
        "zephyrctl --help": [ZEPHYRCTL, "--help"],
        "zephyrctl plan": [ZEPHYRCTL, "plan"],
        "zephyrctl plan --json": [ZEPHYRCTL, "plan", "--json"],
        "accelerate launch --help": [ACCELERATE, "launch", "--help"],
    }


def time_one(command: Sequence[str]) -> dict[str, float]:
    """Seconds of the clock and of the processor that a command takes."""
    began = time.perf_counter()
    process = os.posix_spawn(
        command[0],
        list(command),
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"clock": time.perf_counter() - began, "processor": usage.ru_utime + usage.ru_stime}


def measure(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds by command, a round an entry."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        asked = commands(folder)
        for command in asked.values():
            time_one(command)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
        order = list(asked)
        for _ in range(rounds):
            for name in order:
                taken[name].append(time_one(asked[name]))
            order.append(order.pop(0))
    return taken


def summarise(taken: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Median seconds by command, the ratios, and whether they are as good as they should be."""
    median = {
        name: {kind: round(statistics.median(one[kind] for one in runs), 3) for kind in ("clock", "processor")}
        for name, runs in taken.items()
    }
    ratios = {
        name: {kind: round(_ratio(taken[above], taken[below], kind), 2) for kind in ("clock", "processor")}
        for name, (above, below) in RATIOS.items()
    }
    holds = {
        "help_within_1.5_of_bare_typer": ratios["help_over_bare_typer"]["clock"] <= 1.5,
        "plan_10_times_as_fast_as_accelerate": ratios["accelerate_over_plan"]["clock"] >= 10,
    }
    return {"seconds": median, "ratios": ratios, "holds": holds}


def _ratio(above: Sequence[Mapping[str, float]], below: Sequence[Mapping[str, float]], kind: str) -> float:
    return statistics.median(one[kind] / other[kind] for one, other in zip(above, below, strict=True))


def run_tiny(source: Path) -> dict[str, Any]:
    """Seconds and result of one whole run of `tiny` in an empty folder, from the package in `source`."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "zephyrctl", "run", "--recipe", "tiny", "--json", "-q"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.perf_counter() - began
    result = json.loads(done.stdout)
    return {"seconds": round(seconds, 1), "stages": result["stages"], "scores": result["scores"]}


def compare_tiny(before: Path, rounds: int) -> dict[str, Any]:
    """Runs of `tiny` before and now, in turn; the ratio is the median of those within a round."""
    sources = {"before": before, "now": Path(__file__).parents[1] / "src"}
    order = list(sources)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name in order:
            runs[name].append(run_tiny(sources[name]))
            print(name, runs[name][-1]["seconds"], flush=True)
        order.reverse()
    ratio = statistics.median(
        old["seconds"] / new["seconds"] for old, new in zip(runs["before"], runs["now"], strict=True)
    )
    scores = [run["scores"] for name in runs for run in runs[name]]
    holds = {"at_least_1.5_times_as_fast": ratio >= 1.5, "same_scores": all(score == scores[0] for score in scores)}
    return {"before_over_now": round(ratio, 2), "holds": holds, "runs": runs}


def main() -> None:
    """Measure and write startup.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--before", type=Path, help="the src folder of a checkout to compare `tiny` with")
    parser.add_argument("--tiny-rounds", type=int, default=3)
    given = parser.parse_args()
    out = given.out.absolute()
    tiny = {"tiny": compare_tiny(given.before.absolute(), given.tiny_rounds)} if given.before else {}
    told = summarise(measure(given.rounds)) | tiny
    result = {"machine": machine.describe(), "rounds": given.rounds, **told}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
