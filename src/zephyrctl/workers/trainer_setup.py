"""What the two training workers share: arguments, callbacks, resumable checkpoints and saving."""

import json
import math
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from datasets import Dataset
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
from zephyrctl.recipe.schema import Dpo, Sft
from zephyrctl.runs.artifacts import COMPLETE
from zephyrctl.workers.distributed import join
from zephyrctl.workers.events import Events
from zephyrctl.workers.tokens import contract, load_tokenizer, refusing_code

if TYPE_CHECKING:
    from peft import LoraConfig

DAYS = 24 * 3600


def begin(job: Job) -> PreTrainedTokenizerBase:
    """Make the process ready for the job and return its tokenizer.

    Raises ZephyrError where the tokenizer renders conversations otherwise than the rows were rendered.
    """
    join(job)
    forget_half_checkpoints(job)
    # by default they lie among the checkpoints, which go when the training is done
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.model_folder.parent / "tensorboard"))
    tokenizer = load_tokenizer(job.model, job.revision, job.chat_template, job.trusts_code)
    if job.token_contract is not None:
        job.token_contract.check(
            contract(tokenizer),
            "the prepared rows",
            f"the tokenizer of {job.model}",
            "remove the run's .prepared folder, so that rows are made anew",
        )
    return tokenizer


def rows(job: Job, path: Path | None) -> Dataset | None:
    """Prepared rows, read from where they lie."""
    return Dataset.from_parquet(str(path), cache_dir=str(job.scratch / "cache")) if path else None


def shared_arguments(job: Job, settings: Sft | Dpo) -> dict[str, Any]:
    """The training arguments that SFT and DPO have in common."""
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
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": layout.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if layout.gradient_checkpointing else None,
        "bf16": job.launch.precision == "bf16",
        "use_cpu": layout.on_cpu,
        "seed": job.seed,
        "data_seed": job.seed,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if job.is_probe else "steps",
        "save_steps": settings.save_every or max(1, -(-job.steps // 4)),
        "save_total_limit": 2,
        "report_to": list(job.launch.trackers),
        "disable_tqdm": True,
        "dataloader_pin_memory": not layout.on_cpu,
        "ddp_timeout": DAYS,
    }


def load_model(job: Job) -> PreTrainedModel:
    """The model to train. Plain training keeps fp32 weights; DeepSpeed keeps fp32 masters of its own.

    Frozen weights under adapters need no masters: they are held in the precision of the arithmetic, or in 4 bits.
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


def _load(job: Job, **options: Any) -> PreTrainedModel:
    with refusing_code(job.model):
        return AutoModelForCausalLM.from_pretrained(
            job.model, revision=job.revision, trust_remote_code=job.trusts_code, use_safetensors=True, **options
        )


def _four_bits() -> BitsAndBytesConfig:
    """NF4 with doubly quantized constants, as QLoRA (arXiv 2305.14314) published it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def adapter(settings: Sft | Dpo) -> "LoraConfig | None":
    """What peft is told, where adapters are trained; None trains every weight."""
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
    """What watches a training: progress and metrics, and whoever wants it to end."""
    return [Stopping(job), Progress(job, events)]  # what the first asks to be saved, the second has logged


def train(trainer: Trainer, job: Job, events: Events) -> bool:
    """Train, from the last whole checkpoint where there is one; False where there is nothing to save of it.

    That is where it was asked to stop before its end, and where it was only to be timed.
    """
    last = last_whole_checkpoint(job.scratch / "checkpoints")
    trim_metrics(job.scratch / "metrics.jsonl", int(last.name.split("-")[1]) if last else 0, trainer)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    is_whole = bool(trainer.state.global_step >= trainer.state.max_steps)
    if not is_whole:
        events.send("stopped", step=trainer.state.global_step)
    elif job.is_probe:
        events.send("result")
    return is_whole and not job.is_probe


def result(trainer: Trainer) -> dict[str, float]:
    """Steps and the mean loss over all of them, those before a resume included."""
    total, before = 0.0, 0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return {"steps": trainer.state.global_step, **({"train_loss": total / before} if before else {})}


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Write model, tokenizer and token contract; what the trainer adds in pickled form is removed.

    Adapters are merged into the weights that they were trained beside, unless the recipe keeps them apart.
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
    """Write the start's weights with the adapters added to them in fp32, on the CPU, whatever they were held in.

    They are kept in the precision of the training.
    """
    from peft import PeftModel

    merged = PeftModel.from_pretrained(_load(job, dtype=torch.float32), str(adapters)).merge_and_unload()
    kept = torch.float32 if job.launch.precision == "fp32" else torch.bfloat16
    merged.to(kept).save_pretrained(str(job.model_folder))


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


class Measured(Trainer):
    """A trainer whose logs also say how fast it is; to be mixed in before one of TRL's.

    `job` must be set before training. Tokens are those that are real, padding left out, over all ranks.
    """

    job: Job

    def __init__(self, job: Job, **arguments: Any) -> None:
        self.job = job
        self._tokens: torch.Tensor | int = 0
        self._since = time.monotonic()
        super().__init__(**arguments)

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **others: Any) -> None:
        """Nothing where a checkpoint of the last step was read: transformers 5.23 would train one step more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **others)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """One micro-batch, its tokens counted."""
        if not self._tokens and not self.state.global_step:
            self._since = time.monotonic()
        self._tokens = self._tokens + real_tokens(inputs)
        return super().training_step(model, inputs, *rest)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, *rest: Any, **options: Any
    ) -> None:
        """Stop before anything is saved that a gradient without a value has spoilt; the norm is that of all ranks."""
        if grad_norm is not None and not math.isfinite(float(grad_norm)):
            last = last_whole_checkpoint(self.job.scratch / "checkpoints")
            raise ZephyrError(
                f"the gradient of step {self.state.global_step} is not finite: training has come apart"
                f"{f', and {last.name} is kept' if last else ''}",
                "lower the learning rate or raise its warm-up, and look for broken rows: zephyrctl data audit",
            )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Every line with a training loss says tokens a second, MFU and the most memory that a process has taken."""
        if "loss" in logs and isinstance(self._tokens, torch.Tensor):
            tokens = float(self.accelerator.reduce(self._tokens.to(self.args.device), "sum"))
            rate = tokens / max(time.monotonic() - self._since, 1e-9)
            logs |= {"tokens_per_second": round(rate, 1), "memory_gb": round(memory_gb(), 3)}
            if self.job.peak_flops:
                logs["mfu"] = rate * self.job.flops_a_token / (self.job.peak_flops * self.job.layout.world)
            self._tokens, self._since = 0, time.monotonic()
        super().log(logs, start_time)


def real_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """The tokens of a micro-batch without padding; packed rows have positions and no mask."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum().float()
    positions = inputs["position_ids"]
    return ((positions > 0).sum() + (positions == 1).sum()).float()


def memory_gb() -> float:
    """The most memory that this process has taken so far, on its GPU or of the machine, in GB of 1e9 bytes."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Stopping(TrainerCallback):
    """Ends training with a checkpoint, on every rank at the same step, where a signal or the command asks for it."""

    def __init__(self, job: Job) -> None:
        self._file = job.scratch / STOP
        self._is_asked = False
        self._handlers: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From now on SIGTERM and SIGINT are wishes."""
        self._handlers = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What comes after training is short: signals end it at once again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop where any rank was asked to."""
        if state.global_step < state.max_steps and self._is_asked_anywhere(args.device):
            control.should_save = True
            control.should_training_stop = True

    def _is_asked_anywhere(self, device: torch.device) -> bool:
        asked = self._is_asked or self._file.exists()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return asked
        flag = torch.tensor(float(asked), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _ask(self, *_: Any) -> None:
        self._is_asked = True


class Progress(TrainerCallback):
    """Send steps and metrics to the command, and mark checkpoints that are whole."""

    def __init__(self, job: Job, events: Events) -> None:
        self.job = job
        self.events = events
        self._last_sent = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """At most ten progress events a second; losses are logged before each save, so that a resume loses none."""
        control.should_log |= control.should_save
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
            assert self.job.token_contract is not None
            self.job.token_contract.write(folder)
            (folder / COMPLETE).touch()


def forget_half_checkpoints(job: Job) -> None:
    """Remove checkpoints that were being written when the last attempt was killed."""
    for folder in (job.scratch / "checkpoints").glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
