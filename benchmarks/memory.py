"""Compare the memory that a plan predicts with real processes: plain torch and DeepSpeed's stages 0 to 3, on a CPU.

    python -m benchmarks.memory                # writes benchmarks/memory.json; about half an hour on two cores
    python -m benchmarks.memory --stages 3     # one stage; the results of the others are kept

Each case is a real job in a layout of the solver: a Mistral with random weights, generated rows, and two gloo processes
that load and train as the dSFT worker does. The result is resident memory above that before the model was loaded: after
the first step, and at the peak of both steps. glibc and MKL are set to return freed memory at once: by default both
keep some, which belongs neither to the model nor to DeepSpeed.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions, Sizes
from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import SftJob
from zephyrctl.launching.processes import free_port, worker_environment
from zephyrctl.planning.candidates import ZeroStage
from zephyrctl.planning.hardware import Machine, Precision, memory_bytes, table
from zephyrctl.planning.memory import CPU_PROCESS, CPU_TRAINING
from zephyrctl.planning.solver import Solution, solve
from zephyrctl.recipe.schema import Launch, Sft

RESULT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
STEPS = 2
"""The peak is in the second step: in the first, the optimizer creates its moments at the end."""
PROCESSES = 2
RETURN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "MKL_DISABLE_FAST_MM": "1",
}
VOCABULARY = 16384


@dataclass(frozen=True)
class Shape:
    """The shape of a Mistral whose heads are 64 wide; a third as many are key-value heads."""

    width: int
    feed_forward: int
    layers: int

    @property
    def sizes(self) -> Sizes:
        """Parameters as transformers counts them: head and embeddings are separate, and layers have two norms."""
        d, f, kv = self.width, self.feed_forward, self.width // 3
        layer = 2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
        return Sizes(
            parameters=self.layers * layer + 2 * VOCABULARY * d + d,
            width=d,
            layers=self.layers,
            feed_forward=f,
            key_value_width=kv,
            vocabulary=VOCABULARY,
        )


SHAPE = Shape(768, 2688, 12)
"""118 M parameters."""


@dataclass(frozen=True)
class Case:
    """One measurement: ZeRO stage, precision, checkpointing and length of rows."""

    zero_stage: ZeroStage
    precision: Precision
    is_checkpointed: bool
    length: int

    @property
    def processes(self) -> int:
        """One for plain torch, two for DeepSpeed."""
        return 1 if self.zero_stage is None else PROCESSES


def cases() -> Iterator[Case]:
    """Short rows, whose peak is in the optimizer's step, and long rows, whose peak is in the backward pass."""
    stages: tuple[ZeroStage, ...] = (None, 0, 1, 2, 3)
    for stage in stages:
        for precision in ("fp32", "bf16"):
            yield Case(stage, precision, False, 64)
            for is_checkpointed in (False, True):
                yield Case(stage, precision, is_checkpointed, 1024)


def settings(case: Case) -> Sft:
    """One row per process and step."""
    return Sft(
        learning_rate=1e-5,
        schedule="constant",
        epochs=1,
        max_steps=STEPS,
        global_batch=case.processes,
        max_length=case.length,
        packing="wrapped",
        assistant_only_loss=False,
        gradient_checkpointing=case.is_checkpointed,
        save_every=10 * STEPS,
        log_every=1,
    )


def plan(case: Case, sizes: Sizes) -> Solution:
    """The plan of a case."""
    launch = Launch(precision=case.precision, zero_stage=case.zero_stage, threads=1)
    here = Machine(
        nodes=1,
        processes=case.processes,
        device=table()["cpu"],
        host_memory=memory_bytes(),
        cores=os.cpu_count() or 1,
    )
    return solve(settings(case), launch, here, sizes, "sft")


def measure(case: Case, shape: Shape, base: Path) -> dict[str, Any]:
    """The predicted and the measured memory of a case in MB, for its largest process, and the relative error."""
    solution = plan(case, shape.sizes)
    memory = solution.chosen.memory
    predicted = {"standing": memory.standing + CPU_TRAINING, "peak": memory.peak - CPU_PROCESS}
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(case, solution, base, Path(folder))
        run(job, case.processes)
        ranks = [json.loads((Path(folder) / f"rank-{rank}.json").read_text()) for rank in range(case.processes)]
    told: dict[str, Any] = asdict(case) | {"processes": case.processes, "parameters": shape.sizes.parameters}
    for name, size in predicted.items():
        found = max(rank[name] for rank in ranks)
        told[name] = {
            "predicted_mb": round(size / 1e6, 1),
            "measured_mb": round(found / 1e6, 1),
            "error": round(size / found - 1, 4),
        }
    return told


def make_job(case: Case, solution: Solution, base: Path, folder: Path) -> Path:
    """The path of a job file, with its rows beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from zephyrctl.workers.tokens import contract, load_tokenizer

    tokens = [(7 * place) % 1000 + 10 for place in range(case.length)]
    rows = [tokens] * (STEPS * case.processes)
    lengths = pa.array([case.length] * len(rows), pa.int32())
    pieces = [[case.length]] * len(rows)
    table_of_rows = pa.table({"input_ids": rows, "labels": rows, "seq_lengths": pieces, "length": lengths})
    pq.write_table(table_of_rows, folder / "train.parquet")
    template = TinyMistral(PluginOptions()).chat_template()
    job = SftJob(
        model=str(base),
        revision=None,
        start_hash="random weights",
        chat_template=template,
        token_contract=contract(load_tokenizer(str(base), None, template)),
        prepared=folder,
        prepared_hash="made rows",
        train=folder / "train.parquet",
        test=None,
        model_folder=folder / "model",
        scratch=folder,
        launch=solution.workload.launch,
        layout=solution.layout,
        deepspeed=deepspeed_config(settings(case), solution.workload.launch, solution.layout),
        settings=settings(case),
        steps=STEPS,
        seed=0,
    )
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    return path


def make_base(shape: Shape, folder: Path) -> Path:
    """A folder with a Mistral with random bf16 weights, and the tokenizer of the tiny base."""
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    sizes = shape.sizes
    config = MistralConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 64,
        num_key_value_heads=sizes.key_value_width // 64,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config).to(torch.bfloat16)
    assert model.num_parameters() == sizes.parameters
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TinyMistral(PluginOptions()).location()).save_pretrained(folder)
    return folder


def run(job: Path, processes: int) -> None:
    """Start the processes of a job and wait for them; their output is in worker.log beside it."""
    environment = {**os.environ, **worker_environment(processes, 1), **RETURN_MEMORY, "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    log = job.parent / "worker.log"
    with log.open("wb") as words:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.memory", "--job", str(job)],
                cwd=ROOT,
                env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
                stdout=words,
                stderr=subprocess.STDOUT,
            )
            for rank in range(processes)
        ]
        codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"exit {codes}:\n{log.read_text(errors='replace')[-4000:]}")


def train(path: Path) -> None:
    """Warm up, train the job as the worker does, and write the memory of this process beside the job."""
    from transformers import TrainerCallback

    from zephyrctl.workers import sft, trainer_setup
    from zephyrctl.workers.distributed import leave
    from zephyrctl.workers.events import Events

    job = SftJob.model_validate_json(path.read_bytes())
    tokenizer = trainer_setup.begin(job)
    trainer_setup.rows(job, job.train)  # read once before anything is counted
    warm_up()
    before = resident("VmRSS")
    found: dict[str, int] = {}

    def begin(*_: Any, **__: Any) -> None:
        forget_peak()

    def look(*_: Any, **__: Any) -> None:
        gc.collect()
        found.setdefault("standing", resident("VmRSS") - before)
        found["peak"] = resident("VmHWM") - before

    watch = type("Watch", (TrainerCallback,), {"on_train_begin": begin, "on_step_end": look})
    trainer = sft.make_trainer(job, tokenizer, Events(job.scratch))
    trainer.add_callback(watch())
    trainer.train()
    (path.parent / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    leave()


def warm_up() -> None:
    """Train a model of two layers, so that libraries allocate their own memory before anything is counted."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    small = MistralConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=None,
    )
    for kind in (torch.float32, torch.bfloat16):
        model = MistralForCausalLM(small).to(kind)
        ids = torch.arange(64)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True).step()
    del model
    gc.collect()


def resident(name: str) -> int:
    """Resident bytes of this process: `VmRSS` is the current value, `VmHWM` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> None:
    """Reset `VmHWM` to the current value."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Measure every case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="*", help="ZeRO stages; -1 is plain torch")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        train(arguments.job)
        return
    stages = arguments.stages or list(range(-1, 4))
    kept = json.loads(RESULT.read_text())["cases"] if arguments.stages and RESULT.is_file() else []
    measured = [told for told in kept if _number(told["zero_stage"]) not in stages]
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(SHAPE, Path(folder))
        for case in cases():
            if _number(case.zero_stage) in stages:
                measured.append(measure(case, SHAPE, base))
                print(json.dumps(measured[-1]), flush=True)
    measured.sort(key=lambda told: _number(told["zero_stage"]))
    result = {
        "machine": machine.describe(),
        "worst_standing_error": max(abs(one["standing"]["error"]) for one in measured),
        "worst_peak_error": max(abs(one["peak"]["error"]) for one in measured),
        "cases": measured,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key.startswith("worst")}))


def _number(zero_stage: int | None) -> int:
    return -1 if zero_stage is None else zero_stage


if __name__ == "__main__":
    main()
