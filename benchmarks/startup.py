"""How long does `zephyrctl` take to start, beside a bare Typer program and `accelerate launch --help`?

    python -m benchmarks.startup                   # 15 rounds; 2 minutes on two cores

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


def main() -> None:
    """Measure and write startup.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    out = given.out.absolute()
    told = summarise(measure(given.rounds))
    result = {"machine": machine.describe(), "rounds": given.rounds, **told}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
