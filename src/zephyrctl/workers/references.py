"""Compute the reference's log-probabilities of pairs once, in fp32, and keep them under everything they depend on.

TRL keeps them under a hash of the weights, which is empty under ZeRO-3, and trains on a bf16 copy of them under
DeepSpeed. Here the key is the content of the start, the template, the rows, the precision and the code.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models import prepare_deepspeed

from zephyrctl.disk import whole
from zephyrctl.errors import ZephyrError
from zephyrctl.runs.manifest import digest
from zephyrctl.workers import shared_prefix
from zephyrctl.workers.length_grouped_sampler import token_counts

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
LIBRARIES = ("torch", "transformers", "trl")
Sums = tuple[np.ndarray, np.ndarray]
"""The log-probability of every chosen and of every rejected answer, summed over its tokens, fp32."""


def key(start: str, template: str, rows: Dataset, precision: str) -> str:
    """The key of the reference log-probabilities of rows; another start, template or row gives another one.

    Beta, the loss and the optimizer are not part of it: runs that differ only in those share their references.
    """
    code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (__file__, shared_prefix.__file__)]
    libraries = {name: version(name) for name in LIBRARIES}
    return digest([start, template, content(rows), precision, code, libraries])


def content(rows: Dataset) -> str:
    """A hash of the ids of all pairs, in order; the row groups of the file do not matter."""
    hashes = {name: (hashlib.sha256(), hashlib.sha256()) for name in IDS}
    for table in rows.select_columns(list(IDS)).with_format("arrow").iter(batch_size=10_000):
        for name, (of_lengths, of_ids) in hashes.items():
            column = table[name].combine_chunks()
            # lengths too: without them [1] [2, 3] and [1, 2] [3] would have the same ids in the same order
            of_lengths.update(column.value_lengths().to_numpy().astype(np.int64).tobytes())
            of_ids.update(column.flatten().to_numpy().astype(np.int64).tobytes())
    return digest([part.hexdigest() for part in chain.from_iterable(hashes.values())])


def add(trainer: DPOTrainer, rows: Dataset, path: Path, batch: int, report: Callable[[int, int], None]) -> Dataset:
    """The rows with two more columns, read from a file, or computed and written to it if it is missing.

    Only the first rank reads and writes. `report` is called with the pairs done and all pairs. Raises ZephyrError if a
    log-probability is not finite.
    """
    # the ranks may not see the same disk, and must agree whether there is anything to compute
    shared: list[Sums | None] = [read(path, len(rows)) if trainer.accelerator.is_main_process else None]
    broadcast_object_list(shared, from_process=0)
    sums = shared[0]
    if sums is None:
        sums = compute(trainer, rows, batch, report)
        if not all(np.isfinite(side).all() for side in sums):
            raise ZephyrError(
                "the reference gives some answers no finite log-probability",
                "check the model that dDPO starts from: its weights may be damaged",
            )
        if trainer.accelerator.is_main_process:
            write(path, sums)
    for name, side in zip(COLUMNS, sums, strict=True):
        rows = rows.add_column(name, side)
    return rows


def read(path: Path, rows: int) -> Sums | None:
    """The log-probabilities in a file; None if it is missing, damaged, or of another number of rows."""
    try:
        with np.load(path, allow_pickle=False) as file:
            sums = tuple(file[name].astype(np.float32) for name in COLUMNS)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return (sums[0], sums[1]) if all(side.shape == (rows,) for side in sums) else None


def write(path: Path, sums: Sums) -> None:
    """Write log-probabilities to a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("wb") as file:
        np.savez(file, ref_chosen_logps=sums[0], ref_rejected_logps=sums[1])


def compute(trainer: DPOTrainer, rows: Dataset, batch: int, report: Callable[[int, int], None]) -> Sums:
    """The log-probabilities of all pairs under the trainer's reference, over all ranks, in the order of the rows.

    The longest pairs are computed first: if memory does not suffice, it fails at once, and the pairs of a batch have
    similar lengths.
    """
    order = np.argsort(-token_counts(rows), kind="stable")  # [pairs]; every rank sorts alike
    sides = [np.concatenate(parts) for parts in zip(*_batches(trainer, rows, order, batch, report), strict=True)]
    sums = np.empty((2, len(rows)), np.float32)  # fp32: at a sum of -330, bf16 has a spacing of 2
    for side, values in zip(sums, sides, strict=True):
        side[order] = values  # undo the sorting
    return sums[0], sums[1]


def _batches(
    trainer: DPOTrainer, rows: Dataset, order: np.ndarray, batch: int, report: Callable[[int, int], None]
) -> Iterator[Sums]:
    model = _reference(trainer)
    loader = DataLoader(rows, batch_size=batch, sampler=order.tolist(), collate_fn=trainer.data_collator)
    done = 0
    for pairs in trainer.accelerator.prepare(loader):
        sums = trainer.compute_ref_log_probs(model, pairs)
        # over all ranks, in the order of the loader; pairs that fill up the last batch are dropped again
        chosen, rejected = trainer.accelerator.gather_for_metrics(tuple(side.float() for side in sums))
        done += len(chosen)
        report(done, len(rows))
        yield chosen.cpu().numpy(), rejected.cpu().numpy()


def _reference(trainer: DPOTrainer) -> torch.nn.Module:
    """The reference model: the policy before training, if there is no other.

    The policy is not yet a DeepSpeed engine at that time: an engine without an optimizer places its weights on the
    device, and gathers them under ZeRO-3.
    """
    if trainer.ref_model is not None or not trainer.is_deepspeed_enabled:
        return (trainer.ref_model or trainer.model).eval()
    if trainer._precompute_engine is None:
        trainer._precompute_engine = prepare_deepspeed(trainer.model, trainer.accelerator)
    return trainer._precompute_engine
