"""The lm-eval worker: models and tasks in, lm-eval's raw results and the scores of each question out."""

import gc
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pydantic import JsonValue
from transformers import AutoModelForCausalLM, AutoTokenizer

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.harness import HarnessJob, HarnessTask, ModelTasks
from zephyrctl.evaluation.benchmarks.lm_eval_files import CUT_PROMPTS
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import refusing_code

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

SEED = 1234
"""lm-eval's own default for drawing shots."""
KEPT = ("task", "dataset_path", "dataset_name", "test_split", "validation_split", "num_fewshot", "doc_to_text")
"""The entries of a task's configuration that a raw result keeps: the others hold functions and local paths."""
PER_TASK = ("versions", "n-shot", "n-samples")
"""What lm-eval reports for each task beside its scores."""
LoggedSample = dict[str, Any]
"""A question as lm-eval logs it: `doc_id`, `doc_hash`, `doc`, `arguments`, and the value of each metric by name."""
LmEvalResults = dict[str, dict[str, Any]]
"""What lm-eval's `evaluate` returns, by kind and then by task: `results`, `configs`, `samples` and `PER_TASK`."""
TokenizedRequest = tuple[tuple[str, str], list[int], list[int]]
"""Prompt and answer as text, the ids of the prompt, and the ids of the answer."""


class CountingModel(HFLM):
    """lm-eval's model, with a record of the prompts that are longer than its context and lose their beginning."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.cut: set[str] = set()
        """The prompts of the current task that were too long."""

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenizedRequest], **options: object
    ) -> list[tuple[float, bool]]:
        # The last token of an answer is predicted and never read, so a context of n tokens has room for n + 1.
        longest = self.max_length + 1
        self.cut |= {text[0] for text, prompt, answer in requests if len(prompt) + len(answer) > longest}
        outputs: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": True})
        return outputs

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """The model's answers; prompts that leave too little room for one are recorded.

        Raises ZephyrError if the longest answer would fill the model's whole context.
        """
        for prompt, settings in (request.args for request in requests):
            longest = int(settings.get("max_gen_toks", self.max_gen_toks))
            if longest >= self.max_length:
                raise ZephyrError(
                    f"answers of {longest:,} tokens do not fit into the model's context of {self.max_length:,}",
                    "lower max_new_tokens, for example: --set eval.benchmarks.ifeval.max_new_tokens="
                    f"{self.max_length // 2}",
                )
            room = self.max_length - longest
            if len(self.tok_encode(prompt)) > room:
                self.cut.add(prompt)
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers


def load(candidate: ModelTasks, batch: int) -> CountingModel:
    """A model of the job, in 16 bits on a GPU and in 32 on a CPU, with the chat template if one is applied."""
    has_gpu = torch.cuda.is_available()
    source = {"revision": candidate.revision, "trust_remote_code": candidate.trusts_code}
    with refusing_code(candidate.model):
        tokenizer = AutoTokenizer.from_pretrained(candidate.model, **source)
        model = AutoModelForCausalLM.from_pretrained(
            candidate.model, dtype=torch.bfloat16 if has_gpu else torch.float32, use_safetensors=True, **source
        )
    if candidate.chat_template is not None:
        tokenizer.chat_template = candidate.chat_template
    model.to("cuda" if has_gpu else "cpu").eval()
    return CountingModel(pretrained=model, tokenizer=tokenizer, batch_size="auto" if has_gpu else batch)


def task_manager(folders: Iterable[str]) -> TaskManager:
    """lm-eval's own definitions of the tasks in some folders. Reading all its 15,000 tasks takes 14 s."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_path=[str(tasks / folder) for folder in folders], include_defaults=False)


def override(task: HarnessTask) -> dict[str, JsonValue]:
    """A task of lm-eval with our number of shots, our longest answer, and local files if it has some."""
    changes: dict[str, JsonValue] = {"task": task.name, "num_fewshot": task.shots}
    if task.max_new_tokens is not None:
        # lm-eval replaces these settings as a whole, so the greedy ones of the task are repeated
        generation: dict[str, JsonValue] = {"until": [], "do_sample": False, "temperature": 0.0}
        changes["generation_kwargs"] = {**generation, "max_gen_toks": task.max_new_tokens}
    if task.files is not None:
        files: dict[str, JsonValue] = {split: str(path) for split, path in task.files.items()}
        changes |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        if "validation" not in files:  # lm-eval would look for the split of the published set
            changes["validation_split"] = None
    return changes


def measure(
    model: CountingModel, task: HarnessTask, manager: TaskManager, limit: int | None, chats: bool = False
) -> LmEvalResults:
    """lm-eval's results of one task, samples included; with `chats` the model's chat template is applied.

    Raises ZephyrError if its questions, or NLTK's data that it needs, cannot be loaded.
    """
    try:
        # lm-eval changes a registered task only inside a group: outside of one it ignores what the dictionary adds.
        tasks = manager.load([{"group": "zephyrctl", "task": [override(task)]}])
    except OSError as error:
        raise ZephyrError(
            f"the questions of {task.name} cannot be loaded: {str(error).splitlines()[0]}",
            "check the network, or give a folder of local files (--data)",
        ) from None
    for loaded in tasks["tasks"].values():
        loaded.set_fewshot_seed(SEED)
    try:
        # Means have a formula for their standard error. Other metrics would be resampled 100,000 times, for nothing.
        results: LmEvalResults = evaluate(
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
    results: LmEvalResults, task: HarnessTask, candidate: ModelTasks, model: CountingModel, limit: int | None
) -> dict[str, object]:
    """One task's results as lm-eval writes them, without samples and without paths of this machine."""
    # The keys are those of lm-eval's own files: `lm_eval_files` reads both in the same way.
    name, dtype = task.name, str(model.model.dtype)
    config = results["configs"][name]
    raw: dict[str, object] = {
        "results": {name: results["results"][name]},
        "configs": {name: {key: config[key] for key in KEPT if isinstance(config.get(key), str | int)}},
    }
    for kind in PER_TASK:
        raw[kind] = {name: results[kind][name]}
    raw[CUT_PROMPTS] = {name: sum(_prompt(row) in model.cut for row in results["samples"][name])}
    raw["config"] = {
        "model": "hf",
        "model_args": {"pretrained": candidate.name, "dtype": dtype.removeprefix("torch.")},
        "model_dtype": dtype,
        "limit": limit,
        "fewshot_seed": SEED,
        "device": model.device.type,
    }
    raw |= {"lm_eval_version": version("lm_eval"), "transformers_version": version("transformers")}
    return raw | {"max_length": model.max_length, "date": time.time()}


def scores(samples: Iterable[LoggedSample], task: HarnessTask) -> Iterator[list[object]]:
    """For each question its index and the hash of its content, its score, its text, and other metrics, if any."""
    for row in samples:
        entry: list[object] = [
            f"{row['doc_id']}-{row['doc_hash'][:8]}",
            float(row[task.metric]),
            question_text(row["doc"]),
        ]
        if task.more_metrics:
            values = {name: row[name] for name in task.more_metrics}
            if task.labels:
                values["labels"] = row["doc"][task.labels]
            entry.append(values)
        yield entry


def question_text(doc: Mapping[str, object]) -> str:
    """The text of a question, without choices and shots. HellaSwag's tasks call it the query, IFEval the prompt."""
    return str(doc.get("question") or doc.get("query") or doc.get("ctx") or doc.get("prompt") or "")


def work(path: Path) -> None:
    """Do a job, one model after another. Each task is reported as soon as it is finished."""
    job = HarnessJob.model_validate_json(path.read_bytes())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each prompt that is cut, which we count
    events = Events(path.parent)
    folders = dict.fromkeys(task.folder for candidate in job.models for task in candidate.tasks)  # in order, once each
    manager = task_manager(folders)
    for candidate in job.models:
        model = load(candidate, job.batch)
        for task in candidate.tasks:
            results = measure(model, task, manager, job.limit, chats=candidate.chat_template is not None)
            # what JSON cannot express becomes text, as in lm-eval's own files
            raw = json.loads(json.dumps(raw_result(results, task, candidate, model, job.limit), default=str))
            per_question = list(scores(results["samples"][task.name], task))
            events.send("task", model=candidate.name, task=task.name, raw=raw, scores=per_question)
            model.cut.clear()
        del model
        gc.collect()  # frees the weights before the next model is loaded
        torch.cuda.empty_cache()
    events.send("result")


def _prompt(row: LoggedSample) -> str:
    """The prompt of a question's first request; all its requests share it."""
    prompt: str = row["arguments"][0][0]
    return prompt


def main() -> None:
    """Do the job named on the command line."""
    run(work)


if __name__ == "__main__":
    main()
