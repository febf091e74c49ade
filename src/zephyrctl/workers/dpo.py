"""The dDPO worker: preference pairs and a checkpoint in, an aligned checkpoint out, through TRL's DPOTrainer."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import DpoJob
from zephyrctl.recipe.schema import Dpo, DpoLoss
from zephyrctl.training.diagnostics import LENGTH_CORRELATION
from zephyrctl.workers import references, shared_prefix, trainer_setup
from zephyrctl.workers.distributed import leave
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.length_grouped_sampler import DealingSampler, lengths, settle_epoch

LN_2 = math.log(2)
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""How far the first sigmoid loss may be from ln 2; in bf16 the shape of a batch alone moves it."""
APART = {"fp32": 1e-4, "bf16": 5e-2}
"""How far the engine's log-probability of a token may be from TRL's, on average over an answer."""
Told = Callable[[int, int], None]
ACROSS_PAIRS = {"aot", "aot_unpaired", "sft"}
"""Losses that depend on which pairs meet in a micro-batch: their order is TRL's."""


class First(NamedTuple):
    """A loss where policy and reference are the same model, and how steep it is there, beside the slope of 'sigmoid'.

    The slope is over the log-ratios of both answers; it may be rounded up.
    """

    loss: float
    steepness: float = 1


def first(name: DpoLoss, beta: float, smoothing: float = 0.0) -> First | None:
    """What the first loss must be, in closed form; None for 'sft', which knows no reference."""
    known = {
        "sigmoid": First(LN_2),
        "sigmoid_norm": First(LN_2),
        "robust": First(LN_2, 1 / (1 - 2 * smoothing)),
        "aot": First(LN_2),
        "aot_unpaired": First(LN_2),
        "bco_pair": First(2 * LN_2),
        "nca_pair": First(2 * LN_2),
        "apo_zero": First(1),
        "apo_down": First(1),
        "hinge": First(1, 2),
        "ipo": First(1 / (4 * beta**2), 2 / beta**2),
        "sppo_hard": First(1 / (2 * beta**2), 2 / beta**2),
        "discopop": First((LN_2 + 1) / 2, 5),
    }
    if name == "exo_pair":
        right, wrong = math.log1p(-smoothing), math.log(smoothing)
        return First(-LN_2 - (right + wrong) / 2, (right - wrong) / 2)
    return known.get(name)


def check_first(loss: float, settings: Dpo, precision: str) -> None:
    """Raise ZephyrError where a loss before the first step shows that policy and reference differ.

    All losses bear the same error in the log-probabilities as 'sigmoid' does with its tolerance.
    """
    expected = first(settings.loss, settings.beta, settings.label_smoothing)
    if expected is None:
        return
    tolerance = TOLERANCE[precision] * max(1, expected.steepness)
    if not abs(loss - expected.loss) <= tolerance:
        meaning = "ln 2 = " if expected.loss == LN_2 else ""
        raise ZephyrError(
            f"the first {settings.loss} loss is {loss:.6f} and not {meaning}{expected.loss:.6f} (within {tolerance:g})",
            "policy and reference differ before training: report this with the job file",
        )


def moments(beta: float, scores: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Sums over pairs of 1, x, y, x^2, y^2 and xy: x is the reward margin, y how much longer the chosen answer is."""
    (chosen, rejected), (longer, shorter) = scores.double().chunk(2), inputs["completion_mask"].sum(1).double().chunk(2)
    of_chosen, of_rejected = (inputs[name].double() for name in references.COLUMNS)
    margin, gap = beta * ((chosen - of_chosen) - (rejected - of_rejected)), longer - shorter
    return torch.stack([torch.ones_like(gap), margin, gap, margin**2, gap**2, margin * gap]).sum(1).cpu()


def correlation(sums: torch.Tensor) -> float | None:
    """Pearson's r of such sums; None where one of the two does not vary."""
    count, x, y, xx, yy, xy = sums.tolist()
    spread = (count * xx - x * x) * (count * yy - y * y)
    return (count * xy - x * y) / spread**0.5 if count > 2 and spread > 0 else None


class ReferencedDPOTrainer(trainer_setup.Measured, DPOTrainer):
    """DPOTrainer over prepared pairs, with our references and, where the job says so, our forward pass.

    Losses, metrics, callbacks and checkpoints are TRL's. Precomputed references stay fp32 where TRL casts them to
    DeepSpeed's dtype, which in bf16 moves a sum near -330 by up to 1. A run whose first loss is wrong stops, and so
    does one whose model computes something else when its pairs share their prompts. `tell` is called with pairs done
    and all pairs while references are computed.
    """

    job: DpoJob

    def __init__(self, job: DpoJob, tell: Told = lambda done, total: None, **arguments: Any) -> None:
        self.tell = tell
        self.first_losses: list[float] = []
        self._shares = job.layout.engine == "prefix-shared"
        self._is_attached = self._is_proved = not self._shares
        if self._shares:
            arguments["data_collator"] = shared_prefix.PairCollator(
                pad_token_id=arguments["processing_class"].pad_token_id,
                max_length=arguments["args"].max_length,
                is_flat=shared_prefix.is_flat(arguments["model"]),
            )
        self._moments = torch.zeros(6, dtype=torch.float64)
        super().__init__(job=job, **arguments)
        self._attach()
        self.model.register_forward_hook(self._keep_scores)

    def _attach(self) -> None:
        """Give the models our forward pass, once; TRL's fused head must be there before."""
        if self._is_attached:
            return
        for model in (self.model, self.ref_model):
            if model is not None:
                inner = self.accelerator.unwrap_model(model)
                inner = inner.get_base_model() if is_peft_model(inner) else inner
                shared_prefix.attach(inner, self.accelerator.autocast)
        self._is_attached = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Rows come tokenised and cut to length."""
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if not self._shares or self.job.settings.loss in ACROSS_PAIRS:
            return super()._get_train_sampler(train_dataset)
        layout = self.job.layout
        rows = self.train_dataset if train_dataset is None else train_dataset
        return DealingSampler(rows, self.args.data_seed, layout.micro_batch, layout.accumulation, layout.world)

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **others: Any) -> None:
        settle_epoch(train_dataloader, epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **others)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._attach()
        adapter, precision = self.job.settings.adapter, f"{self.job.launch.precision}, {self.model.dtype}"
        if adapter and adapter.quantize:
            precision += ", 4 bits"
        key = references.key(self.job.start_hash, self.job.chat_template, dataset, precision)
        path = self.job.prepared / "references" / f"{key}.npz"
        return references.add(self, dataset, path, batch_size, self.tell)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        references_of = {name: inputs[name] for name in references.COLUMNS if name in inputs}
        exact = {name: sums.to(self.args.device, torch.float32) for name, sums in references_of.items()}
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        prepared.update(exact)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """TRL's loss; until the first optimizer step it must be what it is where policy and reference are the same."""
        if not self._is_proved:
            self._prove(model)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step == 0 and self.model.training:
            before = float((loss[0] if return_outputs else loss).detach())
            check_first(before, self.job.settings, self.job.launch.precision)
            self.first_losses.append(before)
        if self.model.training and references.COLUMNS[0] in inputs:
            self._moments += moments(self.beta, self._scores, inputs)
        return loss

    def _keep_scores(self, _model: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        if torch.is_grad_enabled() and getattr(outputs, "log_probs", None) is not None:
            self._scores = outputs.log_probs.detach().sum(1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Beside TRL's metrics: how far the margins since the last line go with the lengths of the answers."""
        if "loss" in logs:
            sums = self.accelerator.reduce(self._moments.to(self.args.device, torch.float32), "sum").double().cpu()
            self._moments.zero_()
            if (found := correlation(sums)) is not None:
                logs[LENGTH_CORRELATION] = round(found, 4)
        super().log(logs, start_time)

    def _prove(self, model: torch.nn.Module) -> None:
        """Compare the two forward passes on two pairs of middling length: a model may have a way of its own to look."""
        middle = lengths(self.train_dataset).argsort()[(len(self.train_dataset) - 1) // 2 :][:2].tolist()
        shared = self._prepare_inputs(self.data_collator([self.train_dataset[row] for row in middle]))
        padded = {name: values for name, values in shared.items() if name != shared_prefix.KEY}
        ours, theirs = (torch.stack(self.compute_ref_log_probs(model, batch)).float() for batch in (shared, padded))
        tokens = shared["completion_mask"].sum(1).view_as(ours)
        apart = float(((ours - theirs).abs() / tokens).mean())
        if not apart <= APART[self.job.launch.precision]:
            raise ZephyrError(
                f"this model computes something else when pairs share their prompts: {apart:.2g} a token",
                f"{shared_prefix.OTHER_ENGINE}; and report the model",
            )
        self._is_proved = True

    def margins(self) -> torch.Tensor:
        """The reward margin of every held-out pair, beta (log-ratio chosen - log-ratio rejected), on the CPU."""
        loader = DataLoader(
            self.eval_dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator
        )
        self.model_wrapped.eval()
        margins = []
        for batch in self.accelerator.prepare(loader):
            policy, reference = self._policy(batch), self._reference(batch)
            ratio = (policy[0] - reference[0]) - (policy[1] - reference[1])
            margins.append(self.accelerator.gather_for_metrics(self.beta * ratio.float()).cpu())
        return torch.cat(margins)

    def _policy(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """The policy's log-probabilities of chosen and rejected answers, its adapters at work."""
        others = ("completion_mask", *references.COLUMNS)
        inputs = {name: values for name, values in batch.items() if name not in others}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self.model_wrapped(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
        return tuple(outputs.log_probs.sum(1).chunk(2))

    def _reference(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        if self.precompute_ref_logps:
            return tuple(batch[name] for name in references.COLUMNS)
        return tuple(self.compute_ref_log_probs(self.ref_model or self.model_wrapped, batch))


def make_trainer(job: DpoJob, tokenizer: PreTrainedTokenizerBase, events: Events) -> ReferencedDPOTrainer:
    """The trainer of a job, its reference log-probabilities in place where they are precomputed."""
    is_live = job.layout.reference == "live"
    return ReferencedDPOTrainer(
        job=job,
        tell=lambda done, total: events.send("references", done=done, total=total),
        model=trainer_setup.load_model(job),
        # TRL would load it by the name that the policy's configuration has, without a revision.
        ref_model=trainer_setup.load_model(job) if is_live and job.settings.adapter is None else None,
        args=DPOConfig(
            **trainer_setup.shared_arguments(job, job.settings),
            beta=job.settings.beta,
            loss_type=[job.settings.loss],
            label_smoothing=job.settings.label_smoothing,
            max_length=job.settings.max_length,
            precompute_ref_log_probs=not is_live,
            precompute_ref_batch_size=job.layout.micro_batch,
        ),
        train_dataset=trainer_setup.rows(job, job.train),
        eval_dataset=trainer_setup.rows(job, job.test),
        processing_class=tokenizer,
        peft_config=trainer_setup.adapter(job.settings),
        callbacks=trainer_setup.callbacks(job, events),
    )


def work(path: Path) -> None:
    """Train the job."""
    job = DpoJob.model_validate_json(path.read_bytes())
    events = Events(job.scratch)
    tokenizer = trainer_setup.begin(job)
    trainer = make_trainer(job, tokenizer, events)
    if not trainer_setup.train(trainer, job, events):
        return
    result = {**_first_loss(trainer), **_held_out(trainer)}
    trainer_setup.save(trainer, tokenizer, job)
    events.send("result", **trainer_setup.result(trainer), **result)


def _first_loss(trainer: ReferencedDPOTrainer) -> dict[str, float]:
    """The mean loss before the first optimizer step, over ranks and micro-batches; kept across a resume."""
    kept = trainer.job.scratch / "first_loss.json"
    if trainer.first_losses:
        mine = torch.tensor(trainer.first_losses, device=trainer.args.device).mean().reshape(1)
        loss = float(trainer.accelerator.gather(mine).mean())
        if trainer.accelerator.is_main_process:
            kept.write_text(json.dumps(loss))
        return {"first_loss": loss}
    return {"first_loss": json.loads(kept.read_text())} if kept.is_file() else {}


def _held_out(trainer: ReferencedDPOTrainer) -> dict[str, float]:
    if trainer.eval_dataset is None:
        return {}
    margins = trainer.margins()
    return {
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
        "held_out_pairs": len(margins),
    }


if __name__ == "__main__":
    run(work)
    leave()
