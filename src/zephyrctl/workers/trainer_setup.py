"""What the training workers share: arguments, callbacks, resumable checkpoints and saving."""

import json
import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
import torch.distributed
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import Job
from zephyrctl.launching.processes import STOP
from zephyrctl.recipe.schema import Training
from zephyrctl.runs.artifacts import COMPLETE
from zephyrctl.workers.distributed import join
from zephyrctl.workers.events import Events
from zephyrctl.workers.tokens import contract, load_tokenizer, refusing_code

if TYPE_CHECKING:
    from peft import LoraConfig

DAY_SECONDS = 24 * 3600
"""How long ranks wait for each other: one may be writing a checkpoint of 100 GB."""


def begin(job: Job) -> PreTrainedTokenizerBase:
    """Prepare the process for the job and return the tokenizer.

    Raises ZephyrError if the tokenizer renders conversations differently from the prepared rows.
    """
    join(job)
    remove_partial_checkpoints(job)
    # the default is beside the checkpoints, which are removed when training ends
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.model_folder.parent / "tensorboard"))
    tokenizer = load_tokenizer(job.model, job.revision, job.chat_template, job.trusts_code)
    if job.token_contract is not None:
        job.token_contract.check(
            contract(tokenizer),
            "the prepared rows",
            f"the tokenizer of {job.model}",
            "remove the run's .prepared folder, so that the rows are prepared again",
        )
    return tokenizer


def rows(job: Job, path: Path | None) -> Dataset | None:
    """Prepared rows, read from their Parquet file; None if there is no file."""
    return Dataset.from_parquet(str(path), cache_dir=str(job.scratch / "cache")) if path else None


def shared_arguments(job: Job, settings: Training) -> dict[str, object]:
    """The training arguments that every kind of training has."""
    layout = job.layout
    return {
        "output_dir": str(job.scratch / "checkpoints"),
        "per_device_train_batch_size": layout.micro_batch,
        "per_device_eval_batch_size": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": layout.gradient_checkpointing,
        # with reentrant checkpoints adapters would get no gradient: the frozen embeddings before them need none
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if layout.gradient_checkpointing else None,
        "bf16": job.launch.precision == "bf16",
        "use_cpu": layout.on_cpu,
        "seed": job.seed,
        "data_seed": job.seed,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # the Trainer would log a recent mean instead of NaN
        "save_strategy": "no" if job.is_probe else "steps",
        "save_steps": settings.save_every or max(1, -(-job.steps // 4)),  # four checkpoints, rounded up
        "save_total_limit": 2,
        "report_to": list(job.launch.trackers),
        "disable_tqdm": True,
        "dataloader_pin_memory": not layout.on_cpu,
        "ddp_timeout": DAY_SECONDS,
    }


def load_model(job: Job) -> PreTrainedModel:
    """The model to train. Plain training keeps fp32 weights, and DeepSpeed keeps fp32 masters of its own.

    In bf16 alone a learning rate of 5e-7 hardly moves a weight: bf16 has 8 bits of mantissa, so a step below 0.4 % of
    the weight is rounded away. Frozen weights under adapters need no masters: they are in the precision of the
    arithmetic, or in 4 bits.
    """
    settings = job.settings
    needs_masters = job.layout.zero_stage is None and settings.adapter is None
    is_fp32 = needs_masters or job.launch.precision == "fp32"
    return _load(
        job,
        dtype=torch.float32 if is_fp32 else torch.bfloat16,
        attn_implementation=job.launch.attention,
        quantization_config=_four_bits() if settings.adapter and settings.adapter.quantize else None,
    )


def _load(job: Job, **options: object) -> PreTrainedModel:
    with refusing_code(job.model):
        return AutoModelForCausalLM.from_pretrained(
            job.model, revision=job.revision, trust_remote_code=job.trusts_code, use_safetensors=True, **options
        )


def _four_bits() -> BitsAndBytesConfig:
    """NF4 with doubly quantized constants, as in QLoRA (arXiv 2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def adapter(settings: Training) -> "LoraConfig | None":
    """The adapters to train, for peft; None trains every weight."""
    if settings.adapter is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.adapter.rank,
        lora_alpha=settings.adapter.alpha,
        lora_dropout=settings.adapter.dropout,
        target_modules=settings.adapter.targets,
        task_type="CAUSAL_LM",
    )


def callbacks(job: Job, events: Events) -> list[TrainerCallback]:
    """The callbacks of a training: one that stops it on request, and one that reports steps and metrics."""
    return [StopOnRequest(job), EventReporter(job, events)]  # in this order: the second logs before the first saves


def train(trainer: Trainer, job: Job, events: Events) -> bool:
    """Train, from the last complete checkpoint if there is one.

    Returns False if there is nothing to save: if it was stopped before its end, or was only a probe.
    """
    last = last_complete_checkpoint(job.scratch / "checkpoints")
    trim_metrics(job.scratch / "metrics.jsonl", int(last.name.split("-")[1]) if last else 0, trainer)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    is_finished = bool(trainer.state.global_step >= trainer.state.max_steps)
    if not is_finished:
        events.send("stopped", step=trainer.state.global_step)
    elif job.is_probe:
        events.send("result")
    return is_finished and not job.is_probe


def result(trainer: Trainer) -> dict[str, float]:
    """The number of steps and the mean loss over them, including the steps before a resume."""
    # each logged loss is the mean over the steps since the last log: weighted by their number, they add up
    total, before = 0.0, 0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    steps: dict[str, float] = {"steps": trainer.state.global_step}
    return steps | {"train_loss": total / before} if before else steps


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write model, tokenizer and token contract; the trainer's own pickled files are removed.

    Adapters are merged into the weights that they were trained with, unless the recipe keeps them separate.
    """
    settings = job.settings
    is_merged = settings.adapter is not None and settings.adapter.merge
    trained = job.scratch / "adapters" if is_merged else job.model_folder
    trainer.save_model(str(trained))
    if trainer.accelerator.is_main_process:
        if is_merged:
            merge(job, trained)
        tokenizer.save_pretrained(str(job.model_folder))
        assert job.token_contract is not None
        job.token_contract.write(job.model_folder)
        for unwanted in ("training_args.bin", "README.md"):
            (job.model_folder / unwanted).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()


def merge(job: Job, adapters: Path) -> None:
    """Write the start's weights with the adapters added, in the precision of the training.

    They are added in fp32 on the CPU, whatever the weights were trained in: in 4 bits the sum would be rounded again.
    """
    from peft import PeftModel

    merged = PeftModel.from_pretrained(_load(job, dtype=torch.float32), str(adapters)).merge_and_unload()
    dtype = torch.float32 if job.launch.precision == "fp32" else torch.bfloat16
    merged.to(dtype).save_pretrained(str(job.model_folder))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was marked complete."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def trim_metrics(path: Path, step: int, trainer: Trainer) -> None:
    """Drop the metrics of steps that will be trained again."""
    if not trainer.accelerator.is_main_process:
        return
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept))


class SpeedMixin(Trainer):
    """A trainer that also logs its speed; a base class before one of TRL's.

    Tokens are counted over all ranks and without padding.
    """

    job: Job

    def __init__(self, job: Job, **arguments: object) -> None:
        self.job = job
        self._tokens: torch.Tensor | int = 0
        self._since = time.monotonic()
        super().__init__(**arguments)

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **others: object) -> None:
        """Skip the epoch if a checkpoint of the last step was read: transformers 5.23 would train one step more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **others)

    def training_step(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *rest: object) -> torch.Tensor:
        """Train on one micro-batch and count its tokens."""
        if not self._tokens and not self.state.global_step:  # without what came before: models, references, compiling
            self._since = time.monotonic()
        self._tokens = self._tokens + real_tokens(inputs)  # stays on the device: reading it here would wait for the GPU
        return super().training_step(model, inputs, *rest)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, *rest: object, **options: object
    ) -> None:
        """Stop before anything is saved if the gradient norm, over all ranks, is NaN or infinite."""
        if grad_norm is not None and not math.isfinite(float(grad_norm)):
            last = last_complete_checkpoint(self.job.scratch / "checkpoints")
            kept = f"; {last.name} is kept" if last else ""
            raise ZephyrError(
                f"the gradient of step {self.state.global_step} is not finite, so training has diverged{kept}",
                "lower the learning rate or lengthen its warm-up, and look for broken rows: zephyrctl data audit",
            )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens per second, MFU and peak memory to every line with a training loss."""
        if "loss" in logs and isinstance(self._tokens, torch.Tensor):
            tokens = float(self.accelerator.reduce(self._tokens.to(self.args.device), "sum"))
            tokens_per_second = tokens / max(time.monotonic() - self._since, 1e-9)
            logs |= {"tokens_per_second": round(tokens_per_second, 1), "memory_gb": round(memory_gb(), 3)}
            if self.job.peak_flops:
                # share of all devices' peak operations that the model's own arithmetic takes (PaLM, appendix B)
                peak = self.job.peak_flops * self.job.layout.world
                logs["mfu"] = tokens_per_second * self.job.flops_a_token / peak
            self._tokens, self._since = 0, time.monotonic()
        super().log(logs, start_time)


def real_tokens(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tokens of a micro-batch without padding, as a tensor of one element.

    Packed rows have position_ids [rows, length] and no mask. Positions restart at 0 with each document, and padding is
    0 throughout: so positions above 0 are tokens, and each document has one more, its first. Documents are counted by
    their position 1; one of a single token is not counted.
    """
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum().float()
    positions = inputs["position_ids"]
    return ((positions > 0).sum() + (positions == 1).sum()).float()


def memory_gb() -> float:
    """The peak memory of this process so far, on its GPU or else in RAM, in GB of 1e9 bytes."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class StopOnRequest(TrainerCallback):
    """Ends training with a checkpoint, on every rank at the same step, if a signal or the command requests it."""

    def __init__(self, job: Job) -> None:
        self._file = job.scratch / STOP
        self._is_requested = False
        self._handlers: dict[int, signal.Handlers | int | Callable[[int, FrameType | None], object] | None] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """From now on SIGTERM and SIGINT are requests to stop."""
        self._handlers = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """What comes after training is short: signals end the process at once again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Save and stop if any rank was asked to."""
        if state.global_step < state.max_steps and self._is_requested_anywhere(args.device):
            control.should_save = True
            control.should_training_stop = True

    def _is_requested_anywhere(self, device: torch.device) -> bool:
        is_requested = self._is_requested or self._file.exists()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return is_requested
        # a rank that stopped alone would leave the others waiting in their next collective
        flag = torch.tensor(float(is_requested), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _request(self, *_: object) -> None:
        self._is_requested = True


class EventReporter(TrainerCallback):
    """Sends steps and metrics to the command, and marks checkpoints that are complete."""

    def __init__(self, job: Job, events: Events) -> None:
        self.job = job
        self.events = events
        self._last_sent = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Send at most ten events per second, and log before each save, so that no metrics are lost on a resume."""
        # what was logged since the last line is in memory only: a resume from this checkpoint would not have it
        control.should_log |= control.should_save
        if time.monotonic() - self._last_sent > 0.1 or state.global_step == state.max_steps:
            self._last_sent = time.monotonic()
            self.events.send("step", step=state.global_step, total=state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        """Write each log as one line of metrics.jsonl."""
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if self.events.is_mine and numbers:
            with (self.job.scratch / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")
            self.events.send("metrics", step=state.global_step, **numbers)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Mark the checkpoint as complete when every rank has written its part."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if self.events.is_mine:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            (folder / "training_args.bin").unlink(missing_ok=True)
            assert self.job.token_contract is not None
            self.job.token_contract.write(folder)
            (folder / COMPLETE).touch()


def remove_partial_checkpoints(job: Job) -> None:
    """Remove checkpoints that were incomplete when the last attempt was killed."""
    for folder in (job.scratch / "checkpoints").glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
