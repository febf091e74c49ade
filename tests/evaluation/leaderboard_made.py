"""Questions of the leaderboard and raw result files of lm-eval, made up in code, in the published forms."""

import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

from zephyrctl.evaluation.benchmarks.contract import EvaluationRequest
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import SUBJECTS
from zephyrctl.evaluation.benchmarks.open_llm import OpenLlm
from zephyrctl.evaluation.candidates import Candidate
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run
from zephyrctl.stages import Stage

WORDS = ["sun", "moon", "rock", "tree", "gas", "heat", "cell", "sea", "salt", "iron", "wool", "milk"]
SIZES = {"abstract_algebra": 9, "anatomy": 4, "virology": 6}
"""Subjects of MMLU in the made files, of different sizes."""
Row = dict[str, Any]


def write_questions(folder: Path, rows: int = 7, words: int = 1) -> Path:
    """A folder of local files: so many questions of each benchmark, of so many words in ARC, and `SIZES`."""
    rng = Random(0)
    _write(folder / "arc" / "train.jsonl", [_arc(rng, words) for _ in range(26)])
    _write(folder / "arc" / "test.jsonl", [_arc(rng, words) for _ in range(rows)])
    _write(folder / "hellaswag" / "train.jsonl", [_hellaswag(rng) for _ in range(12)])
    _write(folder / "hellaswag" / "validation.jsonl", [_hellaswag(rng) for _ in range(rows)])
    _write(folder / "truthfulqa" / "validation.jsonl", [_truthfulqa(rng) for _ in range(rows)])
    for subject, size in SIZES.items():
        _write(folder / "mmlu" / subject / "dev.jsonl", [_mmlu(rng, subject) for _ in range(5)])
        _write(folder / "mmlu" / subject / "test.jsonl", [_mmlu(rng, subject) for _ in range(size)])
    return folder


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _arc(rng: Random, words: int) -> Row:
    choices = {"text": rng.sample(WORDS, 4), "label": list("ABCD")}
    question = " ".join(rng.choices(WORDS, k=words))
    return {"id": str(rng.random()), "question": question, "choices": choices, "answerKey": rng.choice("ABCD")}


def _hellaswag(rng: Random) -> Row:
    words = {name: rng.choice(WORDS) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**words, "endings": rng.sample(WORDS, 4), "label": str(rng.randrange(4))}


def _mmlu(rng: Random, subject: str) -> Row:
    shown = {"question": rng.choice(WORDS), "choices": rng.sample(WORDS, 4)}
    return {**shown, "subject": subject, "answer": rng.randrange(4)}


def _truthfulqa(rng: Random) -> Row:
    targets = {"choices": rng.sample(WORDS, 5), "labels": [1, 1, 0, 0, 0]}
    return {"question": f"{rng.choice(WORDS)}?", "mc1_targets": targets, "mc2_targets": targets}


def measured(metric: str, right: int, questions: int, after: str = "") -> dict[str, float]:
    """A share of right answers with its standard error as lm-eval writes them; `after` is ",none" in new files."""
    share = right / questions
    return {metric + after: share, f"{metric}_stderr{after}": sqrt(share * (1 - share) / (questions - 1))}


def subject_sizes() -> dict[str, int]:
    """A size for each of the 57 subjects, all different and together as many as MMLU's."""
    sizes = {subject: 50 + 7 * place for place, subject in enumerate(SUBJECTS)}
    return sizes | {SUBJECTS[-1]: sizes[SUBJECTS[-1]] + 14_042 - sum(sizes.values())}


def subjects_right() -> dict[str, int]:
    """How many questions of each subject a made-up model got right."""
    return {subject: size * (place % 9 + 1) // 10 for place, (subject, size) in enumerate(subject_sizes().items())}


def subjects_measured(named: str, after: str = "") -> dict[str, dict[str, float]]:
    """Results of all 57 subjects; `named` is the task's name with `{}` for the subject."""
    right = subjects_right()
    return {named.format(name): measured("acc", right[name], size, after) for name, size in subject_sizes().items()}


def old_file(**changes: Any) -> Row:
    """What a harness up to 0.3 wrote: plain metrics, `hendrycksTest-`, and one number of shots for all."""
    config = {"model": "hf-causal", "model_args": "pretrained=org/model,dtype=bfloat16", "num_fewshot": 25}
    config |= {"batch_size": "1", "device": None, "no_cache": True, "limit": None, "description_dict": {}}
    return {"results": {}, "versions": {}, "config": config} | changes


def leaderboard_file(**changes: Any) -> Row:
    """What the leaderboard itself wrote: every task with its shots, a sum over all, and no version of the harness."""
    truthful = {"mc1": 0.35, "mc1_stderr": 0.017, "mc2": 0.52, "mc2_stderr": 0.015}
    results = {
        "harness|arc:challenge|25": measured("acc", 700, 1172) | measured("acc_norm", 753, 1172),
        "harness|hellaswag|10": measured("acc", 6500, 10042) | measured("acc_norm", 8526, 10042),
        **subjects_measured("harness|hendrycksTest-{}|5"),
        "harness|truthfulqa:mc|0": truthful,
        "harness|winogrande|5": {"acc": 0.8},
        "all": {"acc": 0.6, "acc_norm": 0.6, **truthful},
    }
    general = {"model_name": "org/model", "model_dtype": "torch.bfloat16", "max_samples": None, "lighteval_sha": "4"}
    return {"config_general": general, "results": results, "versions": dict.fromkeys(results, 1)} | changes


def new_file(**changes: Any) -> Row:
    """What lm-eval 0.4 writes: metrics with a filter, groups, numbers of shots and of questions."""
    results: dict[str, Any] = {
        "arc_challenge": measured("acc", 700, 1172, ",none") | measured("acc_norm", 753, 1172, ",none"),
        "hellaswag": measured("acc_norm", 8526, 10042, ",none"),
        "truthfulqa_mc2": {"acc,none": 0.52, "acc_stderr,none": 0.015},
        **subjects_measured("mmlu_{}", ",none"),
    }
    shots = {name: 25 if name.startswith("arc") else 10 if name == "hellaswag" else 5 for name in results}
    sizes = {"arc_challenge": 1172, "hellaswag": 10042, "truthfulqa_mc2": 817}
    sizes |= {f"mmlu_{subject}": size for subject, size in subject_sizes().items()}
    return {
        "results": results,
        "n-shot": shots | {"truthfulqa_mc2": 0},
        "n-samples": {name: {"original": size, "effective": size} for name, size in sizes.items()},
        "config": {"model": "hf", "model_args": {"pretrained": "org/model", "dtype": "bfloat16"}, "limit": None},
        "git_hash": "b281b09",
        "date": 1_700_000_000.5,
    } | changes


def put(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a result file, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2))
    return path


def leaderboard_stage(recipe: Recipe, names: Sequence[str], run: Run | None = None, **given: object) -> Stage:
    """The stage that asks the leaderboard's tasks of these checkpoints, with the options of its command."""
    candidates = [Candidate(name, checkpoint=name) for name in names]
    request = EvaluationRequest(recipe, run or Run(Path("no run")), candidates, given=given)
    return OpenLlm(OpenLlm.Options()).stage(request)
