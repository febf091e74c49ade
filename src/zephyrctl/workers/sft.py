"""The dSFT worker: dialogues in, a fine-tuned checkpoint out, through TRL's SFTTrainer."""

from collections import Counter
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from zephyrctl.errors import ZephyrError
from zephyrctl.training.job import SftJob
from zephyrctl.workers import training
from zephyrctl.workers.events import Events, run
from zephyrctl.workers.tokens import IGNORED, dialogue_ids, load_tokenizer


def work(path: Path) -> None:
    """Train the job."""
    job = SftJob.model_validate_json(path.read_bytes())
    training.prepare_process(job)
    training.forget_half_checkpoints(job)
    events = Events(job.scratch)
    tokenizer = load_tokenizer(job.model, job.revision, job.chat_template)
    train, lost = tokenize(job.train, tokenizer, job)
    test, _ = tokenize(job.test, tokenizer, job) if job.test else (None, Counter())
    events.send("data", rows=len(train), tokens=sum(map(len, train["input_ids"])), lost=dict(lost))
    if not len(train):
        raise ZephyrError("no dialogue is left to train on", "raise sft.max_length, or look at the losses above")
    arguments = training.shared_arguments(job, job.settings, training.total_steps(len(train), job.settings))
    trainer = SFTTrainer(
        model=training.load_model(job),
        args=SFTConfig(
            **arguments,
            max_length=job.settings.max_length,
            packing=job.settings.packing != "none",
            packing_strategy=job.settings.packing if job.settings.packing != "none" else "bfd_split",
            eval_packing=False,
        ),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        callbacks=[training.Progress(job, events)],
    )
    training.train_and_save(trainer, job)
    held_out = trainer.evaluate()["eval_loss"] if test is not None and len(test) else None
    training.save(trainer, tokenizer, job)
    history = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    events.send(
        "result",
        steps=trainer.state.global_step,
        train_loss=history[-1]["train_loss"] if history else None,
        eval_loss=held_out,
    )


def tokenize(path: Path, tokenizer: PreTrainedTokenizerBase, job: SftJob) -> "tuple[Dataset, Counter[str]]":
    """Ids and labels of every dialogue, and what was lost: rows without a label, tokens beyond the limit."""
    limit = job.settings.max_length if job.settings.packing == "none" else None
    lost: Counter[str] = Counter()

    def render(row: dict[str, list[dict[str, str]]]) -> dict[str, list[int]]:
        ids, labels = dialogue_ids(tokenizer, row["messages"], job.settings.assistant_only_loss)
        return {
            "input_ids": ids[:limit],
            "labels": labels[:limit],
            "cut": [max(0, len(ids) - (limit or len(ids)))],
        }

    rows = Dataset.from_parquet(str(path), cache_dir=str(job.scratch / "cache"))
    rendered = rows.map(render, remove_columns=rows.column_names)
    lost["tokens beyond max_length"] = sum(cut for (cut,) in rendered["cut"])
    kept = rendered.filter(lambda row: any(label != IGNORED for label in row["labels"]))
    lost["dialogues with no assistant token within max_length"] = len(rendered) - len(kept)
    return kept.remove_columns("cut"), +lost


if __name__ == "__main__":
    run(work)
