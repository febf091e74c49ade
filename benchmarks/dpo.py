"""How fast is dDPO beside TRL, where TRL holds a live reference, and where it computes its reference in advance?

    python -m benchmarks.dpo            # three rounds at micro-batches of two and of eight; half an hour on one core
    python -m benchmarks.dpo --gpu      # a slice of twelve layers of Mistral-7B's shape in bf16, where there is a GPU

All sides train the same real pairs from the same start, in the same optimizer steps, and take turns within each round:
`live` and `precomputed` are TRL's DPOTrainer as it comes, `ours` is the trainer of our worker. What is timed is whole
training, from its first batch to after its last optimizer step, logging and metrics included; references that are
computed in advance are timed apart and counted over one epoch and over the paper's three. One process with one thread;
gradient checkpointing is off for all on a CPU and on for all on a GPU.

Micro-batches of two pairs are the paper's, of eight the handbook's. The model is a Mistral of 5 M parameters with a
vocabulary of 4,096: its head is a quarter of its arithmetic, where it is a fiftieth of Mistral-7B's, and a larger
vocabulary would only flatter the side that leaves out what is not scored. TRL asks for large pieces of memory all the
time, and a fresh page costs more on some machines than on others: each size is also measured with glibc told to keep
what it has.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULT = Path(__file__).with_suffix(".json")
PAIRS = Path(__file__).parents[2] / "shared" / "data" / "ultrafeedback_binarized" / "train.jsonl"
TEMPLATE = Path(__file__).parents[1] / "templates" / "chat" / "zephyr.jinja"
SIDES = ("live", "precomputed", "ours")
MICRO_BATCHES = (2, 8)
GLOBAL_BATCH = 16
NUMBER = 48
SHORT = 16
"""Tokens of a prompt where a pair is as long as may be: nearly all of it is answers."""
MAX_LENGTH = 1024
EPOCHS = (1, 3)
GOALS = {"live": 3.0, "precomputed": 2.5}
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
TINY = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SLICE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
Side = dict[str, Any]


def prepare(folder: Path, shape: dict[str, int], vocabulary: int) -> dict[str, Any]:
    """A random model of a shape, a tokenizer made of the pairs' texts, and the first pairs as prepared rows."""
    import pyarrow.parquet as pq
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from zephyrctl.workers.prepare import prepare_pairs

    raw = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    tokenizer = make_tokenizer(raw, vocabulary)
    torch.manual_seed(0)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = MistralConfig(**shape, **special, vocab_size=len(tokenizer), sliding_window=None)
    model = MistralForCausalLM(config)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "start")
    request = write_request(folder, raw)
    report = prepare_pairs(request, "train", tokenizer, lambda rows: None)
    rows = pq.read_table(folder / "train.parquet").slice(0, NUMBER)
    assert len(rows) == NUMBER, f"{len(rows)} pairs are left of {report.rows_in}"
    pq.write_table(rows, folder / "train.parquet")
    names = ("prompt", "chosen", "rejected")
    return {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "pairs": NUMBER,
        "tokens": {name: len(rows[f"{name}_ids"].combine_chunks().flatten()) / NUMBER for name in names},
        "max_length": MAX_LENGTH,
    }


def make_tokenizer(raw: list[dict[str, str]], vocabulary: int) -> Any:
    """Byte-level BPE over the texts of the pairs, with Zephyr's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((row[part] for row in raw for part in ("prompt", "chosen", "rejected")), trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=TEMPLATE.read_text(), **names)


def write_request(folder: Path, raw: list[dict[str, str]]) -> Any:
    """As many pairs as are measured, spread over the file, as the preparing worker takes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from zephyrctl.training.prepared_rows import PrepareRequest

    usable = [row for row in raw if row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"]]
    rows = [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": row["prompt"]}],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for number, row in enumerate(usable[:: len(usable) // (2 * NUMBER)])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return PrepareRequest(
        kind="dpo",
        model=str(folder / "start"),
        revision=None,
        chat_template=TEMPLATE.read_text(),
        rows={"train": folder / "pairs.parquet"},
        folder=folder,
        max_length=MAX_LENGTH,
        seed=0,
    )


def job_of(folder: Path, run: Path, micro_batch: int, on_gpu: bool, attention: str) -> Any:
    """The job that all sides read their settings from; what a run writes goes into a folder of its own."""
    from zephyrctl.launching.job import DpoJob
    from zephyrctl.launching.parallelism import Layout
    from zephyrctl.recipe import loading
    from zephyrctl.recipe.schema import Launch
    from zephyrctl.workers.tokens import contract, load_tokenizer

    settings = loading.load("zephyr-7b-beta", {}).recipe.dpo
    changes = {
        "global_batch": GLOBAL_BATCH,
        "epochs": 1.0,
        "learning_rate": 1e-4,
        "warmup_share": 0.0,
        "log_every": 1,
        "save_every": 10**9,
    }
    layout = Layout(
        nodes=1,
        processes=1,
        on_cpu=not on_gpu,
        global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch,
        accumulation=GLOBAL_BATCH // micro_batch,
        zero_stage=None,
        gradient_checkpointing=on_gpu,
        engine="prefix-shared",
        reference="precomputed",
    )
    precision = "bf16" if on_gpu else "fp32"
    launch = Launch.model_validate({"precision": precision, "attention": attention, "threads": 1})
    tokenizer = load_tokenizer(str(folder / "start"), None, TEMPLATE.read_text())
    return DpoJob(
        model=str(folder / "start"),
        revision=None,
        start_hash="random weights",
        chat_template=TEMPLATE.read_text(),
        token_contract=contract(tokenizer),
        prepared=run,
        prepared_hash="real pairs",
        train=folder / "train.parquet",
        test=None,
        model_folder=run / "model",
        scratch=run,
        launch=launch,
        layout=layout,
        deepspeed=None,
        steps=-(-NUMBER // GLOBAL_BATCH),
        seed=0,
        settings=settings.model_copy(update=changes),
    )


def train(side: str, job: Any) -> Side:
    """Train all pairs once: seconds, those before training for references, and the losses."""
    import torch
    from transformers import TrainerCallback

    from zephyrctl.workers import trainer_setup

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Reads the time where training begins and ends."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = read_clocks()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = read_clocks()

    clock, before = Clock(), read_clocks()
    trainer = make_trainer(side, job, trainer_setup.begin(job))
    ready = read_clocks()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.add_callback(clock)
    trainer.train()
    seconds, processor = (end - start for start, end in zip(clock.began, clock.ended, strict=True))
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "reference_seconds": 0.0 if side == "live" else ready[0] - before[0],
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


def read_clocks() -> tuple[float, float]:
    """Seconds that have passed, and seconds that this process has computed, once a GPU has done what it was asked."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def make_trainer(side: str, job: Any, tokenizer: Any) -> Any:
    """Our worker's trainer, or TRL's own over the same rows with the same arguments."""
    from trl import DPOConfig, DPOTrainer

    from zephyrctl.workers import dpo, trainer_setup
    from zephyrctl.workers.events import Events

    if side == "ours":
        return dpo.make_trainer(job, tokenizer, Events(job.scratch))

    class Prepared(DPOTrainer):  # type: ignore[misc]
        """TRL's trainer, told that its rows are tokenised."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Prepared(
        model=trainer_setup.load_model(job),
        args=DPOConfig(
            **trainer_setup.shared_arguments(job, job.settings),
            beta=job.settings.beta,
            max_length=job.settings.max_length,
            precompute_ref_log_probs=side == "precomputed",
        ),
        train_dataset=trainer_setup.rows(job, job.train),
        processing_class=tokenizer,
    )


def rounds(
    folder: Path, number: int, micro_batch: int, on_gpu: bool = False, attention: str = "sdpa"
) -> list[dict[str, Side]]:
    """Every side in every round, each time first another one; what is warm after a first run is warm for all."""
    measured: list[dict[str, Side]] = []
    for turn in range(number):
        order = SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]
        measured.append({})
        for side in order:
            with tempfile.TemporaryDirectory(dir=folder) as run:
                measured[-1][side] = train(side, job_of(folder, Path(run), micro_batch, on_gpu, attention))
            print(
                f"micro-batch {micro_batch}, round {turn + 1}, {side}: {measured[-1][side]['seconds']:.1f} s",
                flush=True,
            )
    return measured


def summary(measured: list[dict[str, Side]]) -> dict[str, Any]:
    """Pairs a second of each side, how many times as fast ours is, and how far the losses are apart."""
    pairs = {side: spread([NUMBER / turn[side]["seconds"] for turn in measured]) for side in SIDES}
    references = {
        side: spread([turn[side]["reference_seconds"] for turn in measured]) for side in ("precomputed", "ours")
    }
    return {
        "rounds": len(measured),
        "pairs_a_second": pairs,
        "reference_seconds": references,
        "times_as_fast": {side: times(measured, side, whole(0)) for side in GOALS},
        "times_as_fast_in_processor_seconds": {
            side: times(measured, side, lambda run: run["processor_seconds"]) for side in GOALS
        },
        "times_as_fast_with_references": {
            f"over {epochs} epoch{'s' * (epochs > 1)}": {side: times(measured, side, whole(epochs)) for side in GOALS}
            for epochs in EPOCHS
        },
        "losses": {side: measured[0][side]["losses"] for side in SIDES},
        "losses_apart": max(
            abs(mine / theirs - 1)
            for turn in measured
            for side in GOALS
            for mine, theirs in zip(turn["ours"]["losses"], turn[side]["losses"], strict=True)
        ),
    }


def whole(epochs: int) -> Callable[[Side], float]:
    """Seconds of so many epochs and of the references before them; of one epoch alone where it is 0."""
    return lambda run: run["seconds"] * max(1, epochs) + (run["reference_seconds"] if epochs else 0)


def times(measured: list[dict[str, Side]], side: str, cost: Callable[[Side], float]) -> dict[str, float]:
    """How many times as fast ours is as a side, round by round."""
    return spread([cost(turn[side]) / cost(turn["ours"]) for turn in measured])


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and most."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def holds(result: dict[str, Any]) -> dict[str, bool]:
    """What is claimed, and whether it is so in the median of every size."""
    return {
        f"{goal} x {side} at micro-batches of {size}, {memory}": found["times_as_fast"][side]["median"] >= goal
        for side, goal in GOALS.items()
        for memory, sizes in result["cpu"]["measured"].items()
        for size, found in sizes.items()
    }


def on_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """The measurement on one core, with glibc as it comes, or as the environment has it."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(Path(folder), TINY, 4096)
        measured = {str(size): summary(rounds(Path(folder), arguments.rounds, size)) for size in arguments.sizes}
    return {"model": model, "threads": 1, "global_batch": GLOBAL_BATCH, "measured": measured}


def on_gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same on a slice of Mistral-7B in bf16, with the share of the device's arithmetic that was made use of."""
    import torch
    from trl.trainer.utils import get_peak_flops

    name = torch.cuda.get_device_name()
    peak = get_peak_flops(name, "bf16")
    results: dict[str, Any] = {"device": name, "peak_tflops": peak / 1e12 if peak else None, "measured": {}}
    with tempfile.TemporaryDirectory() as folder:
        results["model"] = prepare(Path(folder), SLICE, 32000)
        flops = flops_of_pairs(Path(folder), results["model"]["parameters"])
        for attention in arguments.attention:
            measured = rounds(Path(folder), arguments.rounds, 4, True, attention)
            found = summary(measured)
            found["gpu_memory_gb"] = {
                side: spread([turn[side]["gpu_memory_gb"] for turn in measured]) for side in SIDES
            }
            found["mfu"] = {
                side: spread([flops[side] / turn[side]["seconds"] / peak for turn in measured]) if peak else None
                for side in SIDES
            }
            found["memory_gb_at_full_length"] = memory_of_full_pairs(Path(folder), attention)
            results["measured"][attention] = found
    return results


def memory_of_full_pairs(folder: Path, attention: str) -> dict[str, float]:
    """What a plan says of pairs that are as long as pairs may be, and what torch has allocated of it at most.

    The allowance of the plan for what torch does not see, CUDA's context and the allocator's losses, is left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from zephyrctl.builtin.bases import sizes_of_folder
    from zephyrctl.planning.memory import GPU_ALONE, MicroBatchShape, TrainedModel, estimate_memory

    prompt, answer = [[5] * SHORT] * GLOBAL_BATCH, [[7] * (MAX_LENGTH - SHORT)] * GLOBAL_BATCH
    other = [[8] * (MAX_LENGTH - SHORT)] * GLOBAL_BATCH
    columns = {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": other}
    lengths = pa.array([2 * MAX_LENGTH - SHORT] * GLOBAL_BATCH, pa.int32())
    with tempfile.TemporaryDirectory(dir=folder) as run:
        path = Path(run) / "full.parquet"
        pq.write_table(pa.table({**columns, "length": lengths}), path)
        job = job_of(folder, Path(run), 4, True, attention).model_copy(update={"train": path, "steps": 1})
        measured = train("ours", job)["gpu_memory_gb"]
    sizes = sizes_of_folder(folder / "start")
    planned = (
        estimate_memory(TrainedModel(sizes, "bf16"), job.layout, MicroBatchShape(4, 2 * MAX_LENGTH)).peak - GPU_ALONE
    ) / 1e9
    return {"planned": round(planned, 2), "allocated": round(measured, 2), "error": round(planned / measured - 1, 4)}


def flops_of_pairs(folder: Path, parameters: int) -> dict[str, float]:
    """Floating-point operations that the model needs for all pairs: padding and recomputation are not counted.

    Three passes over every token, 2 N' + 2 L d s each, and one more for a live reference. Ours reads a prompt once; to
    count it twice would make its MFU larger than the device's work.
    """
    from datasets import Dataset

    rows = Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "cache"))
    layers, width = SLICE["num_hidden_layers"], SLICE["hidden_size"]
    weights = parameters - 32000 * width
    needed = dict.fromkeys(SIDES, 0.0)
    for row in rows:
        prompt, *answers = (len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        twice = sum((prompt + answer) * (2 * weights + 2 * layers * width * (prompt + answer)) for answer in answers)
        once = twice - prompt * (2 * weights + 2 * layers * width * prompt)
        needed["live"] += 4 * twice
        needed["precomputed"] += 3 * twice
        needed["ours"] += 3 * once
    return needed


def keeping_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """The CPU measurement in a process whose glibc keeps freed memory."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        sizes = [word for size in arguments.sizes for word in ("--micro-batch", str(size))]
        command = ["-m", "benchmarks.dpo", "--rounds", str(arguments.rounds), *sizes, "--alone", file.name]
        subprocess.run([sys.executable, *command], check=True, env={**os.environ, **KEEP_MEMORY})
        result: dict[str, Any] = json.loads(Path(file.name).read_text())
    return result


def main() -> None:
    """Measure, print, and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, action="append", dest="sizes")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="with --gpu")
    parser.add_argument("--alone", type=Path, help="write the CPU measurement of this process there, and nothing else")
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or list(MICRO_BATCHES)
    if not PAIRS.is_file():
        raise SystemExit(f"the real pairs are not there: {PAIRS}")
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    os.environ |= quiet
    if arguments.alone:
        arguments.alone.write_text(json.dumps(on_cpu(arguments)))
        return
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    if arguments.gpu:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("no CUDA GPU on this machine: nothing was measured")
        result["gpu"] = on_gpu(arguments) | {"machine": machine.describe()}
    else:
        plain, kept = on_cpu(arguments), keeping_memory(arguments)
        measured = {"glibc as it comes": plain["measured"], "glibc keeps memory": kept["measured"]}
        result["cpu"] = plain | {"machine": machine.describe(), "measured": measured}
        result["holds"] = holds(result)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
