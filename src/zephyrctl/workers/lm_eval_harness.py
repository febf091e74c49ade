"""The leaderboard worker: models and tasks in, lm-eval's raw results and a score for each question out."""

import gc
import json
import logging
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.lm_eval_files import CUT_PROMPTS
from zephyrctl.evaluation.benchmarks.open_llm import Asked, LeaderboardJob, Task
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import refusing_code

SEED = 1234
"""lm-eval's own default for drawing shots."""
FOLDERS = ("arc", "hellaswag", "mmlu/default", "truthfulqa")
"""Where lm-eval keeps the tasks; reading all its 15,000 takes 14 s."""
KEPT = ("task", "dataset_path", "dataset_name", "test_split", "validation_split", "num_fewshot", "doc_to_text")


class Counted(HFLM):
    """lm-eval's model, which remembers the prompts that lose their beginning, being longer than the model's context."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cut: set[str] = set()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> Any:
        self.cut |= {asked[0] for asked, prompt, answer in requests if len(prompt) + len(answer) > self.max_length + 1}
        return super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": True})


def load(asked: Asked, batch: int) -> Counted:
    """A model of the job, in 16 bits on a GPU and in 32 on a CPU."""
    has_gpu = torch.cuda.is_available()
    source = {"revision": asked.revision, "trust_remote_code": asked.trusts_code}
    with refusing_code(asked.model):
        tokenizer = AutoTokenizer.from_pretrained(asked.model, **source)
        model = AutoModelForCausalLM.from_pretrained(
            asked.model, dtype=torch.bfloat16 if has_gpu else torch.float32, use_safetensors=True, **source
        )
    model.to("cuda" if has_gpu else "cpu").eval()
    return Counted(pretrained=model, tokenizer=tokenizer, batch_size="auto" if has_gpu else batch)


def task_manager() -> TaskManager:
    """lm-eval's own definitions of the leaderboard's tasks, and of no others."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_path=[str(tasks / folder) for folder in FOLDERS], include_defaults=False)


def override(task: Task) -> dict[str, Any]:
    """A task of lm-eval with our number of shots, and with local files where it has some."""
    changes: dict[str, Any] = {"task": task.name, "num_fewshot": task.shots}
    if task.files is not None:
        files = {split: str(path) for split, path in task.files.items()}
        changes |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        changes |= {} if "validation" in files else {"validation_split": None}
    return changes


def measure(model: Counted, task: Task, manager: TaskManager, limit: int | None) -> dict[str, Any]:
    """lm-eval's results of one task, samples included. Raises ZephyrError where its questions cannot be had."""
    try:
        # A registered task is changed inside a group only: lm-eval takes a lone dictionary of its name as it is known.
        tasks = manager.load([{"group": "zephyrctl", "task": [override(task)]}])
    except OSError as error:
        raise ZephyrError(
            f"the questions of {task.name} cannot be loaded: {str(error).splitlines()[0]}",
            "look at the network, or give a folder of local files (--data)",
        ) from None
    for loaded in tasks["tasks"].values():
        loaded.set_fewshot_seed(SEED)
    results: dict[str, Any] = evaluate(model, tasks, limit=limit, bootstrap_iters=1, log_samples=True)
    return results


def raw_result(results: dict[str, Any], task: Task, asked: Asked, model: Counted, limit: int | None) -> dict[str, Any]:
    """One task's results as lm-eval writes them, without samples and without paths of this machine."""
    config = results["configs"][task.name]
    dtype = str(model.model.dtype)
    return {
        "results": {task.name: results["results"][task.name]},
        "configs": {task.name: {name: config[name] for name in KEPT if isinstance(config.get(name), str | int)}},
        **{name: {task.name: results[name][task.name]} for name in ("versions", "n-shot", "n-samples")},
        CUT_PROMPTS: {task.name: sum(_prompt(row) in model.cut for row in results["samples"][task.name])},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": asked.name, "dtype": dtype.removeprefix("torch.")},
            "model_dtype": dtype,
            "limit": limit,
            "fewshot_seed": SEED,
            "device": model.device.type,
        },
        "lm_eval_version": version("lm_eval"),
        "transformers_version": version("transformers"),
        "max_length": model.max_length,
        "date": time.time(),
    }


def scores(samples: Iterable[dict[str, Any]], metric: str) -> list[tuple[str, float, str]]:
    """Each question, by its place and the hash of its content, its score, and what is asked."""
    return [(f"{row['doc_id']}-{row['doc_hash'][:8]}", float(row[metric]), asked(row["doc"])) for row in samples]


def asked(doc: dict[str, Any]) -> str:
    """The words of a question, without choices and shots; HellaSwag's tasks call them the query."""
    return str(doc.get("question") or doc.get("query") or doc.get("ctx") or "")


def work(path: Path) -> None:
    """Do a job, one model after another; every task is told as soon as it is done."""
    job = LeaderboardJob.model_validate_json(path.read_bytes())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every prompt that is cut; they are counted
    events = Events(path.parent)
    manager = task_manager()
    for asked in job.models:
        model = load(asked, job.batch)
        for task in asked.tasks:
            results = measure(model, task, manager, job.limit)
            raw = json.loads(json.dumps(raw_result(results, task, asked, model, job.limit), default=str))
            per_question = scores(results["samples"][task.name], task.metric)
            events.send("task", model=asked.name, task=task.name, raw=raw, scores=per_question)
            model.cut.clear()
        del model
        gc.collect()
        torch.cuda.empty_cache()
    events.send("result")


def _prompt(row: dict[str, Any]) -> Any:
    return row["arguments"][0][0]


if __name__ == "__main__":
    run(work)
