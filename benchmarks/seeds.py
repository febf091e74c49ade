"""Do the claims of `tiny` and `ablation-tiny` hold at other seeds than the recipe's?

    python -m benchmarks.seeds            # writes benchmarks/seeds.json; about 25 minutes on two cores

A seed changes which prompts are drawn, every answer of the offline teachers, and the training order; the base is the
shipped one. Each run is a process of its own, in an empty folder.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

TINY_SEEDS = (0, 1, 2, 3)
ABLATION_SEEDS = (0, 1, 2, 3, 4)
RESULT = Path(__file__).with_suffix(".json")


def run(recipe: str, seed: int) -> dict[str, Any]:
    """One whole run: its printed object and the seconds that the command took."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "zephyrctl",
            "run",
            "--recipe",
            recipe,
            "--set",
            f"seed={seed}",
            "--json",
            "-q",
        ]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
        seconds = time.monotonic() - began
    printed = json.loads(done.stdout)
    kept = {key: value for key, value in printed.items() if key not in ("report", "unchanged", "run", "published")}
    return {"seconds": round(seconds, 1), **kept}


def check_tiny(result: dict[str, Any]) -> dict[str, bool]:
    """What `tiny` promises, at one seed."""
    scores = result["scores"]
    return {
        "dSFT far above the base": scores["sft"]["low"] > scores["base"]["high"] + 1,
        "dDPO above dSFT, paired interval excludes zero": scores["dpo_minus_sft"]["low"] > 0,
        "first loss within 2e-3 of ln 2": abs(result["dpo"]["first_loss"] - 0.6931472) < 2e-3,
        "held-out reward accuracy at least 0.9": result["dpo"]["reward_accuracy"] >= 0.9,
        "at most 3 minutes": result["seconds"] <= 180,
    }


def check_ablation(result: dict[str, Any]) -> dict[str, bool]:
    """What `ablation-tiny` promises, at one seed."""
    means = {name: result["scores"][name]["mean"] for name in ("ddpo", "dsft-1", "dsft-2", "ddpo-dsft")}
    return {
        "dDPO without dSFT is worst": min(means, key=lambda name: means[name]) == "ddpo",
        "dDPO + dSFT is best": max(means, key=lambda name: means[name]) == "ddpo-dsft",
        "at most 8 minutes": result["seconds"] <= 480,
    }


def main() -> None:
    """Run every seed, print what holds, and write the result."""
    results: dict[str, Any] = {"machine": machine.describe(), "tiny": {}, "ablation-tiny": {}}
    tiny = [(seed, "tiny", check_tiny) for seed in TINY_SEEDS]
    ablation = [(seed, "ablation-tiny", check_ablation) for seed in ABLATION_SEEDS]
    for seed, recipe, check in sorted([*tiny, *ablation], key=lambda one: one[0]):
        result = run(recipe, seed)
        result["holds"] = check(result)
        results[recipe][seed] = result
        means = {name: score["mean"] for name, score in result["scores"].items()}
        print(recipe, seed, f"{result['seconds']} s", means, result["holds"], flush=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
    runs = [*results["tiny"].items(), *results["ablation-tiny"].items()]
    failed = [f"{text} (seed {seed})" for seed, run in runs for text, holds in run["holds"].items() if not holds]
    sys.exit(f"does not hold: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
