"""The dDPO worker: trains a checkpoint on preference pairs with TRL's DPOTrainer."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import DpoJob
from zephyrctl.launching.preference_loss import loss_settings, preference_loss
from zephyrctl.training.diagnostics import LENGTH_CORRELATION
from zephyrctl.training.losses import ExpectedInitialLoss, PairLogProbs, PreferenceLoss, StartLogProbs
from zephyrctl.workers import references, shared_prefix, trainer_setup
from zephyrctl.workers.distributed import leave
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.length_grouped_sampler import LengthGroupedSampler, set_sampler_epoch, token_counts

if TYPE_CHECKING:
    from transformers.modeling_outputs import ModelOutput
    from trl.trainer.utils import FusedCausalLMOutput

LN_2 = math.log(2)
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""How far the first 'sigmoid' loss may be from ln 2; in bf16 the shape of a batch alone moves it.

References rounded to bf16 gave 0.671 to 0.923 instead of 0.693.
"""
TOKEN_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""How far our engine's log-probability of a token may be from TRL's, on average over an answer, in nats."""
Batch = dict[str, Any]
"""What the collator makes of B pairs: TRL's padded rows, chosen ones first, and our layout of the same pairs.

`input_ids`, `attention_mask`, `completion_mask` [2B, L]; `ref_chosen_logps`, `ref_rejected_logps` [B]; `shared_prefix`.
"""
ReportProgress = Callable[[int, int], None]


def tolerance(expected: ExpectedInitialLoss, precision: str) -> float:
    """How far the first loss may be from the expected one: all losses bear the same error in the log-probabilities."""
    return TOLERANCE[precision] * max(1, expected.steepness)


def check_first_loss(loss: float, expected: ExpectedInitialLoss, kind: PreferenceLoss, precision: str) -> None:
    """Raise ZephyrError if the loss before the first optimizer step is not the expected one.

    A loss with a reference is then off because policy and reference differ, one without because its value at the start,
    computed apart from it, is another.
    """
    allowed = tolerance(expected, precision)
    if abs(loss - expected.loss) <= allowed:
        return
    meaning = "ln 2 = " if expected.loss == LN_2 else ""
    remedy = "policy and reference differ before training: report this with the job file"
    if not kind.needs_reference:
        remedy = "the loss or its initial_value is wrong: report this to the author of the loss, with the job file"
    raise ZephyrError(
        f"the first {kind.name} loss is {loss:.6f} and not {meaning}{expected.loss:.6f} (within {allowed:g})", remedy
    )


def length_moments(margins: torch.Tensor, length_differences: torch.Tensor) -> torch.Tensor:
    """Sums over pairs [6] of 1, x, y, x^2, y^2 and xy, for `correlation`; x and y are both [B]."""
    x, y = margins.double(), length_differences.double()
    return torch.stack([torch.ones_like(x), x, y, x**2, y**2, x * y]).sum(1).cpu()


def correlation(sums: torch.Tensor) -> float | None:
    """Pearson's r of such sums; None if one of the two does not vary."""
    count, x, y, xx, yy, xy = sums.tolist()
    spread = (count * xx - x * x) * (count * yy - y * y)
    return (count * xy - x * y) / spread**0.5 if count > 2 and spread > 0 else None


class PreferenceTrainer(trainer_setup.SpeedMixin, DPOTrainer):
    """DPOTrainer over prepared pairs with the recipe's loss, our references and, if the job says so, our forward pass.

    Metrics, callbacks and checkpoints are TRL's. The loss is computed by the description that the recipe names, from
    the log-probabilities of TRL's forward pass; TRL's own loss is discarded. Precomputed references stay fp32: TRL
    casts them to DeepSpeed's dtype, which in bf16 moves a sum near -330 by up to 1. A run stops if its first loss is
    wrong, or if its model computes something else when pairs share their prompts.
    """

    job: DpoJob

    def __init__(self, job: DpoJob, report: ReportProgress = lambda done, total: None, **arguments: Any) -> None:
        self.report = report
        self.preference_loss = preference_loss(job.settings)
        self.loss_settings = loss_settings(job.settings)
        self.first_losses: list[float] = []
        self.expected_losses: list[ExpectedInitialLoss] = []
        self._shares_prompts = job.layout.engine == "prefix-shared"
        self._is_attached = self._is_verified = not self._shares_prompts
        if self._shares_prompts:
            arguments["data_collator"] = shared_prefix.PairCollator(
                pad_token_id=arguments["processing_class"].pad_token_id,
                max_length=arguments["args"].max_length,
                is_flat=shared_prefix.is_flat(arguments["model"]),
            )
        self._moments = torch.zeros(6, dtype=torch.float64)
        self._policy_outputs: FusedCausalLMOutput | None = None
        super().__init__(job=job, **arguments)
        # From here on TRL reads reference columns from every batch. `_with_reference` adds those that it lacks.
        self.precompute_ref_logps = True
        self._attach()
        self.model.register_forward_hook(self._keep_policy_outputs)

    def _attach(self) -> None:
        """Give the models our forward pass, once, after TRL has added its fused head."""
        if self._is_attached:
            return
        for model in (self.model, self.ref_model):
            if model is not None:
                inner = self.accelerator.unwrap_model(model)
                inner = inner.get_base_model() if is_peft_model(inner) else inner
                shared_prefix.attach(inner, self.accelerator.autocast)
        self._is_attached = True

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """The rows as they are: they come tokenised and cut to length."""
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if not self._shares_prompts or self.preference_loss.mixes_pairs:
            return super()._get_train_sampler(train_dataset)
        layout = self.job.layout
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(rows, self.args.data_seed, layout.micro_batch, layout.accumulation, layout.world)

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **others: object) -> None:
        set_sampler_epoch(train_dataloader, epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **others)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if not self.preference_loss.needs_reference:
            return dataset
        self._attach()
        adapter, precision = self.job.settings.adapter, f"{self.job.launch.precision}, {self.model.dtype}"
        if adapter and adapter.quantize:  # the weights of the reference are rounded too
            precision += ", 4 bits"
        key = references.key(self.job.start_hash, self.job.chat_template, dataset, precision)
        path = self.job.prepared / "references" / f"{key}.npz"
        return references.add(self, dataset, path, batch_size, self.report)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        # The Trainer casts every float input to DeepSpeed's dtype. At -330 the spacing of bf16 is 2, and the margin of
        # a pair, the difference of two such sums, is a few nats only.
        columns = {name: inputs[name] for name in references.COLUMNS if name in inputs}
        exact = {name: sums.to(self.args.device, torch.float32) for name, sums in columns.items()}
        prepared: Batch = super()._prepare_inputs(inputs)
        prepared.update(exact)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> "torch.Tensor | tuple[torch.Tensor, ModelOutput]":
        """The mean loss of the micro-batch; until the first optimizer step it is checked against its initial value."""
        if not self._is_verified:
            self._verify_equivalence(model)
        batch = self._with_reference(inputs)
        self._policy_outputs = None  # a reference's forward pass of this model may have left some
        trl_result = super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        policy, self._policy_outputs = self._policy_outputs, None
        assert policy is not None, "TRL's loss begins with a forward pass of the policy"
        pairs = self._pair_log_probs(batch, policy.log_probs.sum(1))
        # TRL's own loss, of 'sigmoid', is not used: its graph is freed with trl_result, and gets no gradient
        loss = self.preference_loss.loss(pairs, self.loss_settings).mean()
        is_training = self.model.training
        if is_training and self.state.global_step == 0:
            self._check_first_loss(model, batch, float(loss.detach()))
        self._measure_rewards(pairs, "train" if is_training else "eval")
        if self.aux_loss_enabled:  # mixture-of-experts models: TRL has added it to its own loss
            loss = loss + self.router_aux_loss_coef * policy.aux_loss
        return (loss, trl_result[1]) if return_outputs else loss

    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the reference's log-probabilities of its pairs: precomputed, from a forward pass, or zeros.

        The zeros of a loss without a reference are for TRL's metrics only; the loss does not see them.
        """
        if references.COLUMNS[0] in batch:
            return batch
        if self.preference_loss.needs_reference:
            sides = self.compute_ref_log_probs(self.ref_model or self.model, batch)
        else:
            sides = torch.zeros(2, len(batch["input_ids"]) // 2, device=batch["input_ids"].device)
        return batch | dict(zip(references.COLUMNS, sides, strict=True))

    def _pair_log_probs(self, batch: Batch, policy: torch.Tensor) -> PairLogProbs:
        """What losses take, from the policy's summed log-probabilities [2B], chosen answers first."""
        chosen, rejected = policy.chunk(2)
        chosen_lengths, rejected_lengths = batch["completion_mask"].sum(1).chunk(2)
        has_reference = self.preference_loss.needs_reference
        reference = [batch[name] if has_reference else None for name in references.COLUMNS]
        return PairLogProbs(chosen, rejected, chosen_lengths, rejected_lengths, *reference)

    def _check_first_loss(self, model: torch.nn.Module, batch: Batch, loss: float) -> None:
        start = None if self.preference_loss.needs_reference else self._start_log_probs(model, batch)
        expected = self.preference_loss.initial_value(self.loss_settings, start)
        check_first_loss(loss, expected, self.preference_loss, self.job.launch.precision)
        self.first_losses.append(loss)
        self.expected_losses.append(expected)

    def _start_log_probs(self, model: torch.nn.Module, batch: Batch) -> StartLogProbs:
        """The pairs under the model that training starts from, by TRL's padded forward pass without adapters."""
        padded = {name: values for name, values in batch.items() if name != shared_prefix.KEY}
        chosen, rejected = (side.tolist() for side in self.compute_ref_log_probs(model, padded))
        chosen_lengths, rejected_lengths = (side.tolist() for side in batch["completion_mask"].sum(1).chunk(2))
        return StartLogProbs(chosen, rejected, chosen_lengths, rejected_lengths)

    def _measure_rewards(self, pairs: PairLogProbs, mode: str) -> None:
        """Log the rewards that the loss implies, and how far margins follow the lengths of the answers."""
        with torch.no_grad():
            chosen, rejected = self.preference_loss.rewards(pairs, self.loss_settings)
        if mode == "train":  # summed on each rank, and reduced once per line of metrics
            self._moments += length_moments(chosen - rejected, pairs.chosen_lengths - pairs.rejected_lengths)
        if self.preference_loss.needs_reference and not self.preference_loss.is_length_normalised:
            return  # TRL has logged the same
        measured = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        }
        for name, values in measured.items():  # in place of what TRL has appended for this micro-batch
            self._metrics[mode][name][-1] = self.accelerator.gather(values.detach()).mean().item()

    def _keep_policy_outputs(
        self, _model: torch.nn.Module, _inputs: tuple[torch.Tensor, ...], outputs: "FusedCausalLMOutput"
    ) -> None:
        """Keep what the first forward pass of TRL's loss computes: the policy's."""
        if self._policy_outputs is None and getattr(outputs, "log_probs", None) is not None:
            self._policy_outputs = outputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's metrics, and the correlation of margins and lengths since the last line."""
        if "loss" in logs:
            sums = self.accelerator.reduce(self._moments.to(self.args.device, torch.float32), "sum").double().cpu()
            self._moments.zero_()
            if (measured := correlation(sums)) is not None:
                logs[LENGTH_CORRELATION] = round(measured, 4)
        super().log(logs, start_time)

    def _verify_equivalence(self, model: torch.nn.Module) -> None:
        """Compare the two forward passes on two pairs of middling length: not every model's attention can be split."""
        # two pairs from the middle of the lengths: long enough for windows to matter, and no outlier in memory
        middle = token_counts(self.train_dataset).argsort()[(len(self.train_dataset) - 1) // 2 :][:2].tolist()
        shared = self._prepare_inputs(self.data_collator([self.train_dataset[row] for row in middle]))
        padded = {name: values for name, values in shared.items() if name != shared_prefix.KEY}
        ours, trls = (torch.stack(self.compute_ref_log_probs(model, batch)).float() for batch in (shared, padded))
        tokens = shared["completion_mask"].sum(1).view_as(ours)
        difference = float(((ours - trls).abs() / tokens).mean())
        # "not <=" instead of ">": NaN must fail too
        if not difference <= TOKEN_TOLERANCE[self.job.launch.precision]:
            raise ZephyrError(
                f"this model computes something else when pairs share their prompts: {difference:.2g} nats per token",
                f"{shared_prefix.OTHER_ENGINE}; and report the model",
            )
        self._is_verified = True

    def margins(self) -> torch.Tensor:
        """The reward margin of every held-out pair, on the CPU."""
        loader = DataLoader(
            self.eval_dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator
        )
        self.model_wrapped.eval()
        margins = []
        for rows in self.accelerator.prepare(loader):
            batch = self._with_reference(rows)
            pairs = self._pair_log_probs(batch, self._held_out_log_probs(batch))
            chosen, rejected = self.preference_loss.rewards(pairs, self.loss_settings)
            # gather_for_metrics drops the pairs that the last batch repeats to give every rank as many
            margins.append(self.accelerator.gather_for_metrics((chosen - rejected).float()).cpu())
        return torch.cat(margins)

    def _held_out_log_probs(self, batch: Batch) -> torch.Tensor:
        """The policy's log-probabilities [2B] of chosen and rejected answers, with its adapters."""
        others = ("completion_mask", *references.COLUMNS)
        inputs = {name: values for name, values in batch.items() if name not in others}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)  # [2B, L]
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self.model_wrapped(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
        log_probs: torch.Tensor = outputs.log_probs.sum(1)
        return log_probs


def make_trainer(job: DpoJob, tokenizer: PreTrainedTokenizerBase, events: Events) -> PreferenceTrainer:
    """The trainer of a job; if its references are precomputed, they are in place."""
    is_live = job.layout.reference == "live"
    model = trainer_setup.load_model(job)
    # Adapters need no second model: switched off, they leave the reference. TRL would load a second one by the name in
    # the policy's configuration, without a revision.
    reference = trainer_setup.load_model(job) if is_live and job.settings.adapter is None else None
    arguments = DPOConfig(
        **trainer_setup.shared_arguments(job, job.settings),
        beta=job.settings.beta,
        max_length=job.settings.max_length,
        precompute_ref_log_probs=not is_live,
        precompute_ref_batch_size=job.layout.micro_batch,
    )
    return PreferenceTrainer(
        job=job,
        report=lambda done, total: events.send("references", done=done, total=total),
        model=model,
        ref_model=reference,
        args=arguments,
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


def _first_loss(trainer: PreferenceTrainer) -> dict[str, float]:
    """Means before the first optimizer step, over ranks and micro-batches; kept across a resume."""
    kept = trainer.job.scratch / "first_loss.json"
    if not trainer.first_losses:
        return _kept_first_loss(kept)
    # one entry per micro-batch of the first optimizer step; the mean over ranks is what TRL would log at that step
    expected = [initial.loss for initial in trainer.expected_losses]
    mine = torch.tensor([trainer.first_losses, expected], device=trainer.args.device).mean(1, keepdim=True)
    measured, wanted = trainer.accelerator.gather(mine.T).mean(0).tolist()
    allowed = max(tolerance(initial, trainer.job.launch.precision) for initial in trainer.expected_losses)
    result = {"first_loss": measured, "expected_first_loss": wanted, "first_loss_tolerance": allowed}
    if trainer.accelerator.is_main_process:
        kept.write_text(json.dumps(result))
    return result


def _kept_first_loss(path: Path) -> dict[str, float]:
    """What was kept before an interruption; the version before kept the first loss alone."""
    if not path.is_file():
        return {}
    kept: dict[str, float] | float = json.loads(path.read_text())
    return kept if isinstance(kept, dict) else {"first_loss": kept}


def _held_out(trainer: PreferenceTrainer) -> dict[str, float]:
    if trainer.eval_dataset is None:
        return {}
    margins = trainer.margins()
    return {
        "reward_accuracy": float((margins > 0).float().mean()),
        "reward_margin": float(margins.mean()),
        "held_out_pairs": len(margins),
    }


def main() -> None:
    """Train the job named on the command line."""
    run(work)
    leave()


if __name__ == "__main__":
    main()
