"""Which pairs of an optimizer step meet in a micro-batch: those of like length, and ranks get equal shares.

Every step is made of the same pairs as without it, so its loss and its gradient are the same sums.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler


class DealingSampler(Sampler[int]):
    """The order of a random sampler with a seed, in which each full step is dealt by length.

    A last, short step stays as it lies: its micro-batches are not all of one size, and TRL weighs each of them alike.
    """

    def __init__(self, rows: Dataset, seed: int, micro_batch: int, accumulation: int, world: int) -> None:
        self.random = SeedableRandomSampler(rows, data_seed=seed)
        self.lengths = lengths(rows)
        self.micro_batch = micro_batch
        self.world = world
        self.step = micro_batch * accumulation * world

    def set_epoch(self, epoch: int) -> None:
        """Settle which order comes next; accelerate calls this, also on a resume."""
        self.random.set_epoch(epoch)

    def __len__(self) -> int:
        """How many rows are dealt: on several ranks a multiple of what they take at once."""
        rows, at_once = len(self.lengths), self.micro_batch * self.world
        return rows if self.world == 1 else -(-rows // at_once) * at_once

    def __iter__(self) -> Iterator[int]:
        order = list(self.random)
        whole = len(order) // self.step * self.step
        dealt = chain.from_iterable(self._deal(order[at : at + self.step]) for at in range(0, whole, self.step))
        # accelerate evens out the ranks' last batches from the front of the order as it lay before it was dealt.
        return islice(chain(dealt, order[whole:], cycle(order)), len(self))

    def _deal(self, rows: Sequence[int]) -> Iterator[int]:
        """One step's rows, longest first: as many as the ranks take at once, dealt to them there and back."""
        ordered = sorted(rows, key=lambda row: -self.lengths[row])
        at_once = self.micro_batch * self.world
        for at in range(0, len(ordered), at_once):
            rounds = np.array(ordered[at : at + at_once]).reshape(self.micro_batch, self.world)
            rounds[1::2] = rounds[1::2, ::-1]
            yield from rounds.T.ravel().tolist()


def settle_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler at the end of a chain of batch samplers which epoch it is.

    accelerate's own `set_epoch` ends at a shard from which batches are skipped: a run of several ranks that is resumed
    after its first epoch would see that epoch's order again.
    """
    sampler = loader.batch_sampler
    while sampler is not None and not hasattr(sampler, "set_epoch"):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is not None:
        sampler.set_epoch(epoch)


def lengths(rows: Dataset) -> Any:
    """The tokens of every pair, its prompt counted once, as an array."""
    table = rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).with_format("arrow")[:]
    return sum(column.combine_chunks().value_lengths().to_numpy().astype(np.int64) for column in table.columns)
