"""Which pairs of an optimizer step share a micro-batch: pairs of similar length, with equal shares for all ranks.

Every step consists of the same pairs as without grouping, so its loss and its gradient are the same sums.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler


class LengthGroupedSampler(Sampler[int]):
    """The order of a seeded random sampler, in which the rows of each full step are sorted into groups by length.

    A last, short step keeps its order: its micro-batches differ in size, and TRL gives each of them the same weight.
    """

    def __init__(self, rows: Dataset, seed: int, micro_batch: int, accumulation: int, world: int) -> None:
        self.random = SeedableRandomSampler(rows, data_seed=seed)
        self.token_counts = token_counts(rows)
        self.micro_batch = micro_batch
        self.world = world
        self.rows_per_step = micro_batch * accumulation * world

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this, also on a resume."""
        self.random.set_epoch(epoch)

    def __len__(self) -> int:
        """Rows per epoch: with several ranks, rounded up to a multiple of what they take at once."""
        rows, at_once = len(self.token_counts), self.micro_batch * self.world
        return rows if self.world == 1 else -(-rows // at_once) * at_once

    def __iter__(self) -> Iterator[int]:
        order = list(self.random)  # all ranks draw the same order, and accelerate gives each its micro-batches of it
        whole = len(order) // self.rows_per_step * self.rows_per_step
        starts = range(0, whole, self.rows_per_step)
        grouped = chain.from_iterable(self._group(order[start : start + self.rows_per_step]) for start in starts)
        # accelerate fills up the ranks' last batches from the front of the order as it was before grouping
        return islice(chain(grouped, order[whole:], cycle(order)), len(self))

    def _group(self, rows: Sequence[int]) -> Iterator[int]:
        """The rows of one step, longest first, in the order in which the ranks take them.

        All ranks together take micro_batch x world rows at once, and each should get as many tokens as the others. The
        rows are dealt in rounds, forth and back. Two ranks, micro-batches of 3, rows named by their rank in length:

            round 0:   0 1     rank 0 gets 0 3 4
            round 1:   3 2     rank 1 gets 1 2 5
            round 2:   4 5
        """
        ordered = sorted(rows, key=lambda row: -self.token_counts[row])
        at_once = self.micro_batch * self.world
        for start in range(0, len(ordered), at_once):
            rounds = np.array(ordered[start : start + at_once]).reshape(self.micro_batch, self.world)
            rounds[1::2] = rounds[1::2, ::-1]
            yield from rounds.T.ravel().tolist()  # rank by rank: [world, micro_batch]


def set_sampler_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the sampler below a chain of batch samplers which epoch begins.

    accelerate's own `set_epoch` stops at a shard from which batches are skipped: a run of several ranks that resumes
    after its first epoch would repeat the order of that epoch.
    """
    sampler = loader.batch_sampler
    while sampler is not None and not hasattr(sampler, "set_epoch"):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is not None:
        sampler.set_epoch(epoch)


def token_counts(rows: Dataset) -> NDArray[np.int64]:
    """The tokens of every pair [rows], with its prompt counted once."""
    table = rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format("arrow")[:]
    columns = [column.combine_chunks().value_lengths().to_numpy().astype(np.int64) for column in table.columns]
    counts: NDArray[np.int64] = np.sum(columns, axis=0)
    return counts
