"""Is anything lost, or paid twice, where the process is killed with -9 again and again?

    python -m benchmarks.kills

`zephyrctl data feedback` is killed, its process group with it, at 50 random moments: each time after another random
number of further requests, and some thousandths of a second. Then it is left to finish. Its tables must be those of a
run that nobody disturbed, to the byte; no call that had settled may be made again; and every request that the server
saw beside those that settled must be on the list of what may have been paid.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import machine
from benchmarks.faults import RUN, command, environment, write_inputs
from tests import hostile_server
from zephyrctl.runs.manifest import hash_file
from zephyrctl.teachers.call_log import INTERRUPTED, NOT_SENT, SETTLED, CallLog

RESULT = Path(__file__).with_suffix(".json")
LIMITS = {"concurrency": 8}


def tables(folder: Path) -> dict[str, str]:
    """sha256 of every table of the finished artifact."""
    artifact = folder / RUN / "feedback"
    return {str(path.relative_to(artifact)): hash_file(path) for path in sorted(artifact.rglob("*.parquet"))}


def requests(log: Path) -> int:
    """How many requests the server has seen."""
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def kill_after(folder: Path, log: Path, more: int, seconds: float) -> bool:
    """Kill the command so long after so many more requests; False where it was done before."""
    process = subprocess.Popen(
        command(), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    enough = requests(log) + more
    while process.poll() is None and requests(log) < enough:
        time.sleep(0.002)
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def finish(folder: Path) -> float:
    """Leave the command to finish; how many seconds it took."""
    began = time.monotonic()
    subprocess.run(command(), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def measure(folder: Path, kills: int, prompts: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Both runs, and whether all that must hold does. The server answers after so many seconds."""
    whole, disturbed = folder / "whole", folder / "disturbed"
    rng = Random(seed)
    took = 0.0
    killed = 0
    for place, times in ((whole, 0), (disturbed, kills)):
        place.mkdir()
        log = place / "log.jsonl"
        with hostile_server.serve(log, rate=0.0, delay=seconds) as base_url:
            write_inputs(place, base_url, prompts, LIMITS, timeout=30)
            most = max(1, 2 * requests(whole / "log.jsonl") // (kills + 3))
            killed += sum(kill_after(place, log, rng.randint(0, most), rng.uniform(0, seconds)) for _ in range(times))
            took = took or finish(place)
            if times:
                finish(place)
    return told(whole, disturbed, kills) | {"prompts": prompts, "seconds_undisturbed": took, "killed": killed}


def told(whole: Path, disturbed: Path, kills: int) -> dict[str, Any]:
    """What the two runs came to."""
    tries = hostile_server.attempts(disturbed / RUN)
    outcomes = Counter(outcome for course in tries.values() for outcome in course)
    seen = requests(disturbed / "log.jsonl")
    disagreements = hostile_server.disagreements(disturbed / "log.jsonl", disturbed / RUN)
    with CallLog(disturbed / RUN) as ledger:
        possibly_paid = len(ledger.possibly_paid())
    return {
        "kills": kills,
        "calls": len(tries),
        "attempts_in_the_ledger": dict(outcomes),
        "requests_seen": seen,
        "possibly_paid": possibly_paid,
        "disagreements": disagreements,
        "holds": {
            "the tables are those of an undisturbed run, to the byte": tables(disturbed) == tables(whole) != {},
            "every call settled once, and was not made after that": all(
                course.count(SETTLED) == 1 and course[-1] == SETTLED for course in tries.values()
            ),
            "as many calls as in the undisturbed run": len(tries) == len(hostile_server.attempts(whole / RUN)),
            "what the server saw beside is listed as possibly paid": (
                seen - outcomes[SETTLED] <= outcomes[INTERRUPTED] == possibly_paid
            ),
            "ledger and log agree on every request": not disagreements,
            "nothing else happened": set(outcomes) <= {SETTLED, INTERRUPTED, NOT_SENT},
        },
    }


def main() -> None:
    """Measure, print, and write the result of the full size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=250)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), asked.kills, asked.prompts, seconds=0.05)
    print(json.dumps(result, indent=1))
    if asked.kills == 50:
        RESULT.write_text(json.dumps({"machine": machine.describe(), **result}, indent=1) + "\n")
    assert all(result["holds"].values())
    assert result["killed"] == asked.kills


if __name__ == "__main__":
    main()
