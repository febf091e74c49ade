"""The dSFT worker: trains a checkpoint on prepared dialogues with TRL's SFTTrainer."""

from collections.abc import Mapping
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from zephyrctl.launching.job import SftJob
from zephyrctl.workers import trainer_setup
from zephyrctl.workers.distributed import leave
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import IGNORED


class IsolatingCollator(DataCollatorForLanguageModeling):
    """Packed rows whose documents do not attend to each other: positions restart with each, and there is no mask.

    Example of a row with documents of 3 and 2 tokens and one of padding:

        input_ids     a0 a1 a2 b0 b1  .
        position_ids   0  1  2  0  1  0
        labels         -  a1 a2 -  b1 -     a document's first token has no context to be predicted from

    transformers derives a block-diagonal mask from positions that restart, but only without an attention mask: an
    all-ones mask would let documents see each other (difference in a loss 2.3 instead of 9e-7). The rows are not
    flattened into one, as TRL does for FlashAttention: with sdpa that costs a dense mask of the micro-batch squared.
    """

    def torch_call(self, examples: list[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels` and `position_ids`, each [rows, length]."""
        batch: dict[str, torch.Tensor] = super().torch_call(examples)
        batch.pop("attention_mask", None)
        batch["labels"][batch["position_ids"] == 0] = IGNORED  # first tokens of documents, and padding
        return batch


class DialogueTrainer(trainer_setup.SpeedMixin, SFTTrainer):
    """SFTTrainer over prepared dialogues, with a held-out loss that is a mean over tokens.

    The Trainer's own is a mean over batches, which changes with their size.
    """

    def held_out_loss(self) -> float:
        """The mean loss of a held-out token in nats, over all ranks; each row counts once."""
        assert isinstance(self.eval_dataset, Dataset)
        rows = self.eval_dataset.sort("length")  # rows of similar length share a batch: little padding
        # [sum of -log p, tokens] in fp64: sums over millions of tokens would lose digits in fp32
        self.model_wrapped.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in self.get_eval_dataloader(rows):
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model_wrapped(**self._prepare_inputs(batch), use_cache=False, fused_lm_head=True)
            tokens = outputs.label_mask.sum(1).float()  # [rows]; the first token of a row is not predicted
            row_sums = torch.stack([-outputs.log_probs.float().sum(1), tokens], dim=1)  # [rows, 2]
            # gather_for_metrics drops the rows that the last batch repeats to give every rank as many
            sums += self.accelerator.gather_for_metrics(row_sums).double().sum(0).cpu()
        return float(sums[0] / sums[1])


def make_trainer(job: SftJob, tokenizer: PreTrainedTokenizerBase, events: Events) -> DialogueTrainer:
    """The trainer of a job."""
    model = trainer_setup.load_model(job)
    arguments = SFTConfig(
        **trainer_setup.shared_arguments(job, job.settings),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # rows are cut to length already, and `padding_free` refuses one
    )
    return DialogueTrainer(
        job=job,
        model=model,
        args=arguments,
        train_dataset=trainer_setup.rows(job, job.train),
        eval_dataset=trainer_setup.rows(job, job.test),
        processing_class=tokenizer,
        peft_config=trainer_setup.adapter(job.settings),
        data_collator=_collator(job, tokenizer.pad_token_id),
        callbacks=trainer_setup.callbacks(job, events),
    )


def work(path: Path) -> None:
    """Train the job."""
    job = SftJob.model_validate_json(path.read_bytes())
    events = Events(job.scratch)
    tokenizer = trainer_setup.begin(job)
    trainer = make_trainer(job, tokenizer, events)
    if not trainer_setup.train(trainer, job, events):
        return
    held_out = trainer.held_out_loss() if trainer.eval_dataset is not None else None
    trainer_setup.save(trainer, tokenizer, job)
    events.send("result", **trainer_setup.result(trainer), eval_loss=held_out)


def _collator(job: SftJob, padding: int) -> DataCollatorForLanguageModeling:
    if job.settings.packing != "bfd_split":
        return DataCollatorForLanguageModeling(pad_token_id=padding)
    # FlashAttention reads documents from cu_seqlens: rows can be flattened into one, with no mask at all
    if job.launch.attention == "flash_attention_2" and torch.cuda.is_available():
        return DataCollatorForLanguageModeling(pad_token_id=padding, padding_free=True)
    return IsolatingCollator(pad_token_id=padding, return_position_ids=True)


def main() -> None:
    """Train the job named on the command line."""
    run(work)
    leave()


if __name__ == "__main__":
    main()
