"""Is every row there or listed, and every call on record, where the server fails one call in five?

    python -m benchmarks.faults

`zephyrctl data feedback` over made prompts, four answers and four ratings each, against `tests/hostile_server.py`,
which answers 20 % of all requests with 429 (with and without Retry-After), 500, a hang beyond the timeout, slow bytes,
a cut stream, malformed JSON or an empty answer, and a tenth of the ratings with a wrong count. Afterwards every attempt
in the call log is compared with the server's own log, call by call and outcome by outcome.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks import machine
from tests import hostile_server
from zephyrctl.teachers.call_log import CallLog

RESULT = Path(__file__).with_suffix(".json")
RUN = "runs/hostile"


def write_inputs(folder: Path, base_url: str, prompts: int, limits: dict[str, int], timeout: float) -> None:
    """prompts.jsonl and recipe.yaml: a pool of four models and a rater, all on one server."""
    rows = ({"prompt": f"Question {number}: what is {number} times {number + 1}?"} for number in range(prompts))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def teacher(model: str) -> dict[str, Any]:
        options = {"model": model, "base_url": base_url, "timeout_seconds": timeout}
        return {"name": "openai", "options": options, "limits": {"breaker": 50, **limits}}

    pool = [teacher(f"model-{letter}") for letter in "abcd"]
    feedback = {"completers": pool, "rater": teacher("judge"), "max_tokens": 64, "failed_share": 0.5}
    recipe = {"extends": "tiny", "name": "hostile", "feedback": feedback}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def command() -> list[str]:
    """The command under test."""
    inputs = ["--input", "prompts.jsonl", "--recipe", "recipe.yaml"]
    return [sys.executable, "-m", "zephyrctl", "data", "feedback", *inputs, "--run", RUN, "--quiet"]


def environment() -> dict[str, str]:
    """The environment of a process that imports this checkout, without a key."""
    root = Path(__file__).parents[1]
    kept = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return {**kept, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}


def rows(artifact: Path) -> dict[str, int]:
    """Rows by table of an artifact: rated, failed, judgments."""
    counted: Counter[str] = Counter()
    for path in artifact.glob("*/*.parquet"):
        counted[path.parent.name] += pq.read_metadata(path).num_rows
    return dict(counted)


def measure(folder: Path, prompts: int, rate: float, attempts: int = 20, timeout: float = 1.0) -> dict[str, Any]:
    """One run; rows, attempts by outcome, and whether all that must hold does."""
    log = folder / "log.jsonl"
    with hostile_server.serve(log, rate, hang=3 * timeout) as base_url:
        write_inputs(folder, base_url, prompts, {"attempts": attempts}, timeout)
        began = time.monotonic()
        subprocess.run(command(), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, check=True)
        seconds = time.monotonic() - began
    seen = Counter(request["outcome"] for request in hostile_server.requests(log))
    tries = hostile_server.attempts(folder / RUN)
    with CallLog(folder / RUN) as ledger:
        possibly_paid = len(ledger.possibly_paid())
    counted = rows(folder / RUN / "feedback")
    manifest = json.loads((folder / RUN / "feedback" / "manifest.json").read_text())
    disagreements = hostile_server.disagreements(log, folder / RUN)
    lost = sum(count for cause, count in manifest["dropped"].items() if cause.startswith("prompts failed"))
    outcomes = Counter(outcome for course in tries.values() for outcome in course)
    return {
        "prompts": prompts,
        "calls": len(tries),
        "fault_rate": 1 - seen[hostile_server.ANSWERED] / seen.total(),
        "seconds": seconds,
        "rows_rated": counted.get("rated", 0),
        "dropped": manifest["dropped"],
        "requests_seen": dict(sorted(seen.items())),
        "attempts_in_the_ledger": dict(sorted(outcomes.items())),
        "possibly_paid": possibly_paid,
        "disagreements": disagreements,
        "holds": {
            "every row is rated or counted with its cause": counted.get("rated", 0) + lost == prompts,
            "every attempt is a request that the server saw, with the same outcome": not disagreements,
            "what broke off after it was sent may have been paid": possibly_paid
            == sum(seen[fault] for fault in ("hang", "slow bytes", "cut", "malformed", "empty")),
        },
    }


def main() -> None:
    """Measure, print, and write the result of the full size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--rate", type=float, default=0.2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = {"machine": machine.describe(), **measure(Path(place), asked.prompts, asked.rate)}
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=1))
    if asked.prompts == 400:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    assert all(result["holds"].values())


if __name__ == "__main__":
    main()
