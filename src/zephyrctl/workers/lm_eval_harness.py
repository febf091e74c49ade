"""The lm-eval worker: models and tasks in, lm-eval's raw results and the scores of each question out."""

import gc
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
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
from zephyrctl.evaluation.benchmarks.harness import HarnessJob, HarnessTask, ModelTasks
from zephyrctl.evaluation.benchmarks.lm_eval_files import CUT_PROMPTS
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import refusing_code

SEED = 1234
"""lm-eval's own default for drawing shots."""
KEPT = ("task", "dataset_path", "dataset_name", "test_split", "validation_split", "num_fewshot", "doc_to_text")


class CountingModel(HFLM):
    """lm-eval's model, with a record of the prompts that are longer than its context and lose their beginning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cut: set[str] = set()

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> Any:
        self.cut |= {asked[0] for asked, prompt, answer in requests if len(prompt) + len(answer) > self.max_length + 1}
        return super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": True})

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """The model's answers; prompts that leave too little room for one are recorded."""
        for prompt, settings in (request.args for request in requests):
            room = self.max_length - int(settings.get("max_gen_toks", self.max_gen_toks))
            if len(self.tok_encode(prompt)) > room:
                self.cut.add(prompt)
        return super().generate_until(requests, disable_tqdm=True)


def load(asked: ModelTasks, batch: int) -> CountingModel:
    """A model of the job, in 16 bits on a GPU and in 32 on a CPU, with the chat template if one is applied."""
    has_gpu = torch.cuda.is_available()
    source = {"revision": asked.revision, "trust_remote_code": asked.trusts_code}
    with refusing_code(asked.model):
        tokenizer = AutoTokenizer.from_pretrained(asked.model, **source)
        model = AutoModelForCausalLM.from_pretrained(
            asked.model, dtype=torch.bfloat16 if has_gpu else torch.float32, use_safetensors=True, **source
        )
    if asked.chat_template is not None:
        tokenizer.chat_template = asked.chat_template
    model.to("cuda" if has_gpu else "cpu").eval()
    return CountingModel(pretrained=model, tokenizer=tokenizer, batch_size="auto" if has_gpu else batch)


def task_manager(folders: Iterable[str]) -> TaskManager:
    """lm-eval's own definitions of the tasks in some folders. Reading all its 15,000 tasks takes 14 s."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_path=[str(tasks / folder) for folder in folders], include_defaults=False)


def override(task: HarnessTask) -> dict[str, Any]:
    """A task of lm-eval with our number of shots, our longest answer, and local files if it has some."""
    changes: dict[str, Any] = {"task": task.name, "num_fewshot": task.shots}
    if task.max_new_tokens is not None:
        greedy = {"until": [], "do_sample": False, "temperature": 0.0}
        changes["generation_kwargs"] = {**greedy, "max_gen_toks": task.max_new_tokens}
    if task.files is not None:
        files = {split: str(path) for split, path in task.files.items()}
        changes |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        changes |= {} if "validation" in files else {"validation_split": None}
    return changes


def measure(
    model: CountingModel, task: HarnessTask, manager: TaskManager, limit: int | None, chats: bool = False
) -> dict[str, Any]:
    """lm-eval's results of one task, samples included; with `chats` the model's chat template is applied.

    Raises ZephyrError if its questions, or NLTK's data that it needs, cannot be loaded.
    """
    try:
        # A registered task is changed inside a group only: lm-eval takes a lone dictionary of its name as it is known.
        tasks = manager.load([{"group": "zephyrctl", "task": [override(task)]}])
    except OSError as error:
        raise ZephyrError(
            f"the questions of {task.name} cannot be loaded: {str(error).splitlines()[0]}",
            "check the network, or give a folder of local files (--data)",
        ) from None
    for loaded in tasks["tasks"].values():
        loaded.set_fewshot_seed(SEED)
    try:
        results: dict[str, Any] = evaluate(
            model, tasks, limit=limit, bootstrap_iters=1, log_samples=True, apply_chat_template=chats
        )
    except LookupError as error:
        if "punkt" not in str(error):
            raise
        raise ZephyrError(
            f"{task.name} needs NLTK's punkt_tab, which is not on this machine",
            "python -m nltk.downloader punkt_tab on a machine with a network; NLTK_DATA names the folder",
        ) from None
    return results


def raw_result(
    results: dict[str, Any], task: HarnessTask, asked: ModelTasks, model: CountingModel, limit: int | None
) -> dict[str, Any]:
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


def scores(samples: Iterable[dict[str, Any]], task: HarnessTask) -> Iterator[list[Any]]:
    """Each question: its place and the hash of its content, its score, and its text; then other metrics, if any."""
    for row in samples:
        entry = [f"{row['doc_id']}-{row['doc_hash'][:8]}", float(row[task.metric]), question_text(row["doc"])]
        if task.more_metrics:
            values = {name: row[name] for name in task.more_metrics}
            entry.append({**values, "labels": row["doc"][task.labels]} if task.labels else values)
        yield entry


def question_text(doc: dict[str, Any]) -> str:
    """The words of a question, without choices and shots. HellaSwag's tasks call them the query, IFEval the prompt."""
    return str(doc.get("question") or doc.get("query") or doc.get("ctx") or doc.get("prompt") or "")


def work(path: Path) -> None:
    """Do a job, one model after another. Each task is reported as soon as it is finished."""
    job = HarnessJob.model_validate_json(path.read_bytes())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each prompt that is cut, which we count
    events = Events(path.parent)
    manager = task_manager(dict.fromkeys(task.folder for asked in job.models for task in asked.tasks))
    for asked in job.models:
        model = load(asked, job.batch)
        for task in asked.tasks:
            results = measure(model, task, manager, job.limit, chats=asked.chat_template is not None)
            raw = json.loads(json.dumps(raw_result(results, task, asked, model, job.limit), default=str))
            per_question = list(scores(results["samples"][task.name], task))
            events.send("task", model=asked.name, task=task.name, raw=raw, scores=per_question)
            model.cut.clear()
        del model
        gc.collect()
        torch.cuda.empty_cache()
    events.send("result")


def _prompt(row: dict[str, Any]) -> Any:
    return row["arguments"][0][0]


def main() -> None:
    """Do the job named on the command line."""
    run(work)


if __name__ == "__main__":
    main()
