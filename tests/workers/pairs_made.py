"""Pairs of random ids and dDPO jobs over them, small enough to be trained in this process."""

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyrctl.launching.deepspeed_config import deepspeed_config
from zephyrctl.launching.job import DpoJob
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.weights import base_hash, model_base
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Launch

Pair = dict[str, list[int]]
INTS = pa.list_(pa.int32())


def random_pairs(number: int, seed: int = 0, vocabulary: int = 97, longest: int = 40) -> list[Pair]:
    """Pairs of many lengths; the first five have what is easily got wrong.

    Answers that begin alike, an answer of one token, two prompts that are the same, an answer that is the start of the
    other, and a prompt of one token.
    """
    random = Random(seed)

    def ids(most: int) -> list[int]:
        return [random.randrange(4, vocabulary) for _ in range(random.randint(2, most))]

    pairs = [
        {"prompt_ids": ids(longest // 2), "chosen_ids": ids(longest // 2), "rejected_ids": ids(longest // 2)}
        for _ in range(number)
    ]
    for pair in pairs:
        pair["rejected_ids"][0] = 3  # no answer of the others begins with it: unlike answers are never the same
    special = zip(pairs, range(5), strict=False)
    for pair, case in special:
        if case == 0:
            pair["rejected_ids"] = [*pair["chosen_ids"][:2], 3, 3, 3]
        elif case == 1:
            pair["chosen_ids"] = pair["chosen_ids"][:1]
        elif case == 2:
            pair["prompt_ids"] = pairs[1]["prompt_ids"]
        elif case == 3:
            pair["rejected_ids"] = pair["chosen_ids"][:-1]
        else:
            pair["prompt_ids"] = pair["prompt_ids"][:1]
    return pairs


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    """Pairs as prepared rows."""
    columns = {name: pa.array([pair[name] for pair in pairs], INTS) for name in pairs[0]}
    lengths = [len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, "length": pa.array(lengths, pa.int32())}), path)
    return path


def pair_layout(engine: str, micro_batch: int = 4, accumulation: int = 2, **more: Any) -> Layout:
    """One plain CPU process."""
    given = {
        "nodes": 1,
        "processes": 1,
        "on_cpu": True,
        "zero_stage": None,
        "gradient_checkpointing": False,
        "engine": engine,
        "reference": "precomputed",
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        **more,
    }
    return Layout.model_validate({"global_batch": micro_batch * accumulation * given["processes"], **given})


def pair_job(
    folder: Path,
    layout: Layout,
    pairs: list[Pair],
    held_out: list[Pair] | None = None,
    launch: Launch | None = None,
    **settings: Any,
) -> DpoJob:
    """A job over the tiny base and pairs, its files in a folder; the rate is high enough for losses to move."""
    from zephyrctl.workers.tokens import contract, load_tokenizer

    base = model_base(loading.load("tiny", {}).recipe)
    launch = launch or Launch(precision="fp32", threads=1)
    tokenizer = load_tokenizer(base.location(), None, base.chat_template())
    changed = {
        "global_batch": layout.global_batch,
        "max_steps": None,
        "epochs": 1.0,
        "learning_rate": 1e-3,
        "log_every": 1,
        **settings,
    }
    dpo = loading.load("tiny", {}).recipe.dpo.model_copy(update=changed)
    folder.mkdir(parents=True, exist_ok=True)
    return DpoJob(
        model=base.location(),
        revision=None,
        start_hash=base_hash(base),
        chat_template=base.chat_template(),
        token_contract=contract(tokenizer),
        prepared=folder,
        prepared_hash="pairs made for a test",
        train=write_pairs(folder / "train.parquet", pairs),
        test=write_pairs(folder / "test.parquet", held_out) if held_out else None,
        model_folder=folder / "model",
        scratch=folder,
        launch=launch,
        layout=layout,
        deepspeed=deepspeed_config(dpo, launch, layout),
        steps=dpo.max_steps or round(-(-len(pairs) // layout.global_batch) * dpo.epochs),
        seed=0,
        settings=dpo,
    )


def trained(job: DpoJob) -> Any:
    """The trainer of a job after training, in this process."""
    from zephyrctl.workers import dpo, trainer_setup
    from zephyrctl.workers.events import Events

    trainer = dpo.make_trainer(job, trainer_setup.begin(job), Events(job.scratch))
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    """The training losses of a trainer, step by step."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
