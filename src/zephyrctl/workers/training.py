"""What the two training workers share: arguments, callbacks, resumable checkpoints and saving."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from zephyrctl.recipe import Dpo, Sft
from zephyrctl.runs import COMPLETE
from zephyrctl.training.deepspeed import accumulation, micro_batch
from zephyrctl.training.job import Job
from zephyrctl.workers.events import Events

DAYS = 24 * 3600


def shared_arguments(job: Job, settings: Sft | Dpo, steps: int) -> dict[str, Any]:
    """The training arguments that SFT and DPO have in common; `steps` is the length of the run."""
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(job.scratch / "checkpoints"),
        "per_device_train_batch_size": micro_batch(settings, job.launch),
        "per_device_eval_batch_size": micro_batch(settings, job.launch),
        "gradient_accumulation_steps": accumulation(settings, job.launch),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        "bf16": job.launch.precision == "bf16",
        "use_cpu": on_cpu,
        "seed": job.seed,
        "data_seed": job.seed,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": settings.save_every or max(1, -(-steps // 4)),
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_timeout": DAYS,
    }


def total_steps(rows: int, settings: Sft | Dpo) -> int:
    """Optimizer steps of a run over `rows` rows; the last batch of an epoch may be short."""
    an_epoch = max(1, -(-rows // settings.global_batch))
    return settings.max_steps or max(1, round(an_epoch * settings.epochs))


def load_model(job: Job) -> PreTrainedModel:
    """The model to train. Plain training keeps fp32 weights; DeepSpeed keeps fp32 masters of its own."""
    needs_own_masters = job.launch.processes == 1 or job.launch.precision == "fp32"
    return AutoModelForCausalLM.from_pretrained(
        job.model,
        revision=job.revision,
        dtype=torch.float32 if needs_own_masters else torch.bfloat16,
        attn_implementation=job.launch.attention,
        trust_remote_code=False,
        use_safetensors=True,
    )


def prepare_process(job: Job) -> None:
    """Settle what must be settled before DeepSpeed starts: on a CPU its shared-memory kernel is left alone.

    Compiling it takes 85 s and a C++ compiler; gloo, which is there anyway, does the same work.
    """
    if torch.cuda.is_available() or job.launch.processes == 1:
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def train_and_save(trainer: Trainer, job: Job) -> None:
    """Train, from the last whole checkpoint where there is one, and save the model as safetensors."""
    last = last_whole_checkpoint(job.scratch / "checkpoints")
    trim_metrics(job.scratch / "metrics.jsonl", int(last.name.split("-")[1]) if last else 0, trainer)
    trainer.train(resume_from_checkpoint=str(last) if last else None)


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write model, tokenizer and template; what the trainer adds in pickled form is removed."""
    trainer.save_model(str(job.model_folder))
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(str(job.model_folder))
        for unwanted in ("training_args.bin", "README.md"):
            (job.model_folder / unwanted).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was marked complete; half-written ones are removed by the first rank's next save."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def trim_metrics(path: Path, step: int, trainer: Trainer) -> None:
    """Drop metrics of steps that will be trained again."""
    if not trainer.accelerator.is_main_process:
        return
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept))


class Progress(TrainerCallback):
    """Send steps and metrics to the command, and mark checkpoints that are whole."""

    def __init__(self, job: Job, events: Events) -> None:
        self.job = job
        self.events = events
        self._last_sent = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """At most ten progress events a second."""
        if time.monotonic() - self._last_sent > 0.1 or state.global_step == state.max_steps:
            self._last_sent = time.monotonic()
            self.events.send("step", step=state.global_step, total=state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """One line of metrics.jsonl a log."""
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if self.events.is_mine and numbers:
            with (self.job.scratch / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")
            self.events.send("metrics", step=state.global_step, **numbers)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint once every rank has written its part."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if self.events.is_mine:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            (folder / "training_args.bin").unlink(missing_ok=True)
            (folder / COMPLETE).touch()


def forget_half_checkpoints(job: Job) -> None:
    """Remove checkpoints that were being written when the last attempt was killed."""
    for folder in (job.scratch / "checkpoints").glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
