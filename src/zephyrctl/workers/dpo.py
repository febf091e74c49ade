"""The dDPO worker: preference pairs and a checkpoint in, an aligned checkpoint out, through TRL's DPOTrainer."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from zephyrctl.errors import ZephyrError
from zephyrctl.training.job import DpoJob
from zephyrctl.workers import training
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import dialogue_ids, load_tokenizer, prompt_ids

LN_2 = math.log(2)
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")


class ReferencedDPOTrainer(DPOTrainer):
    """DPOTrainer whose reference log-probabilities are right under DeepSpeed too.

    TRL casts them to the engine's dtype with the other inputs, which in bf16 moves a sum near -330 by up to 1, and
    caches them under a hash of the weights that is empty under ZeRO-3. Here they stay fp32, the key is the content of
    the start, and a run whose first loss is not ln 2 stops.
    """

    def __init__(self, job: DpoJob, **arguments: Any) -> None:
        self.job = job
        self.first_losses: list[float] = []
        super().__init__(**arguments)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._precompute_model_hash = self.job.start_hash
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        exact = {name: inputs[name].to(self.args.device, torch.float32) for name in REFERENCES if name in inputs}
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        prepared.update(exact)
        return prepared

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """TRL's loss; until the first optimizer step it must be ln 2, as policy and reference are the same model."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step == 0 and model.training and self.args.loss_type == ["sigmoid"]:
            self._check_first(float((loss[0] if return_outputs else loss).detach()))
        return loss

    def _check_first(self, loss: float) -> None:
        tolerance = TOLERANCE[self.job.launch.precision]
        if not abs(loss - LN_2) <= tolerance:
            raise ZephyrError(
                f"the first DPO loss is {loss:.6f} and not ln 2 = {LN_2:.6f} (within {tolerance:g})",
                "policy and reference differ before training: report this with the job file",
            )
        self.first_losses.append(loss)

    def margins(self) -> torch.Tensor:
        """The reward margin of every held-out pair, beta (log-ratio chosen - log-ratio rejected), on the CPU."""
        assert isinstance(self.eval_dataset, Dataset)
        loader = self.accelerator.prepare(
            DataLoader(
                self.eval_dataset,
                batch_size=self.args.per_device_eval_batch_size,
                collate_fn=self.data_collator,
            )
        )
        self.model_wrapped.eval()
        margins = []
        for batch in loader:
            chosen, rejected = self.compute_ref_log_probs(self.model_wrapped, batch)
            ratio = (chosen - batch["ref_chosen_logps"]) - (rejected - batch["ref_rejected_logps"])
            margins.append(self.accelerator.gather_for_metrics(self.beta * ratio.float()).cpu())
        return torch.cat(margins)


def work(path: Path) -> None:
    """Train the job."""
    job = DpoJob.model_validate_json(path.read_bytes())
    training.prepare_process(job)
    training.forget_half_checkpoints(job)
    events = Events(job.scratch)
    tokenizer = load_tokenizer(job.model, job.revision, job.chat_template)
    train, lost = read_pairs(job.train, tokenizer, job)
    test, _ = read_pairs(job.test, tokenizer, job) if job.test else (None, Counter())
    if test is not None and not len(test):
        test = None
    events.send("data", rows=len(train), lost=dict(lost))
    if not len(train):
        raise ZephyrError("no preference pair is left to train on", "raise dpo.max_length, or look at the losses above")
    arguments = training.shared_arguments(job, job.settings, training.total_steps(len(train), job.settings))
    trainer = ReferencedDPOTrainer(
        job=job,
        model=training.load_model(job),
        args=DPOConfig(
            **arguments,
            beta=job.settings.beta,
            loss_type=[job.settings.loss],
            max_length=job.settings.max_length,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=arguments["per_device_train_batch_size"],
        ),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        callbacks=[training.Progress(job, events)],
    )
    if len(trainer.train_dataset) != len(train):
        raise RuntimeError(f"TRL dropped {len(train) - len(trainer.train_dataset)} pairs that were counted as kept")
    training.train_and_save(trainer, job)
    result = {**_first_loss(trainer, job), **_held_out(trainer, test)}
    training.save(trainer, tokenizer, job)
    events.send("result", steps=trainer.state.global_step, **_train_loss(trainer), **result)


def read_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, job: DpoJob) -> "tuple[Dataset, Counter[str]]":
    """Pairs in TRL's conversational form, and what the length limit costs.

    A pair whose prompt fills the limit has nothing to learn from: TRL would drop it in silence, here it is counted.
    """
    limit = job.settings.max_length
    lost: Counter[str] = Counter()

    def shape(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row["messages"]
        chosen, rejected = ([{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected"))
        lengths = [len(dialogue_ids(tokenizer, [*prompt, *answer], False)[0]) for answer in (chosen, rejected)]
        return {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "prompt_length": len(prompt_ids(tokenizer, prompt)),
            "cut": sum(max(0, length - limit) for length in lengths),
        }

    rows = Dataset.from_parquet(str(path), cache_dir=str(job.scratch / "cache"))
    shaped = rows.map(shape, remove_columns=rows.column_names)
    kept = shaped.filter(lambda row: row["prompt_length"] < limit)
    lost["pairs whose prompt fills max_length"] = len(shaped) - len(kept)
    lost["completion tokens beyond max_length"] = sum(kept["cut"])
    return kept.remove_columns(["prompt_length", "cut"]), +lost


def _first_loss(trainer: ReferencedDPOTrainer, job: DpoJob) -> dict[str, float]:
    """The mean loss before the first optimizer step, over ranks and micro-batches; kept across a resume."""
    kept = job.scratch / "first_loss.json"
    if trainer.first_losses:
        mine = torch.tensor(trainer.first_losses, device=trainer.args.device).mean().reshape(1)
        first = float(trainer.accelerator.gather(mine).mean())
        if trainer.accelerator.is_main_process:
            kept.write_text(json.dumps(first))
        return {"first_loss": first}
    return {"first_loss": json.loads(kept.read_text())} if kept.is_file() else {}


def _held_out(trainer: ReferencedDPOTrainer, test: Dataset | None) -> dict[str, float]:
    if test is None:
        return {}
    margins = trainer.margins()
    return {
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
        "held_out_pairs": len(margins),
    }


def _train_loss(trainer: ReferencedDPOTrainer) -> dict[str, float]:
    history = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    return {"train_loss": history[-1]["train_loss"]} if history else {}


if __name__ == "__main__":
    run(work)
