"""Dealing pairs by length: every optimizer step keeps its pairs, and its micro-batches and ranks get a better hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.workers.pairs_made import pair_job, pair_layout, random_pairs

pytestmark = pytest.mark.slow

SHAPES = [(4, 2, 1), (2, 2, 2), (1, 4, 4), (4, 1, 2)]
"""Micro-batch, accumulation and ranks."""


def rows_of(number: int, seed: int = 0) -> Any:
    """Pairs as a data set."""
    from datasets import Dataset

    return Dataset.from_list(random_pairs(number, seed))


def hands(sampler: Any, micro_batch: int, world: int, epoch: int = 0) -> list[list[list[int]]]:
    """The micro-batches of every rank, as accelerate hands them out."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    batches = BatchSampler(sampler, micro_batch, drop_last=False)
    given = []
    for rank in range(world):
        sampler.set_epoch(epoch)
        given.append(list(BatchSamplerShard(batches, world, rank)) if world > 1 else list(batches))
    return given


def steps(given: list[list[list[int]]], accumulation: int) -> list[Counter[int]]:
    """The rows of every optimizer step, over all ranks."""
    together = [Counter(row for batch in batches for row in batch) for batches in zip(*given, strict=True)]
    return [sum(together[at : at + accumulation], Counter()) for at in range(0, len(together), accumulation)]


@pytest.mark.parametrize(("micro_batch", "accumulation", "world"), SHAPES)
@pytest.mark.parametrize("number", [64, 61, 67, 5])
def test_every_step_is_made_of_the_pairs_that_it_had(
    micro_batch: int, accumulation: int, world: int, number: int
) -> None:
    """Also the last one, short, in which accelerate repeats rows so that all ranks have as many."""
    from accelerate.data_loader import SeedableRandomSampler

    from zephyrctl.workers.length_grouped_sampler import LengthGroupedSampler

    rows = rows_of(number)
    dealing = LengthGroupedSampler(rows, 7, micro_batch, accumulation, world)
    for epoch in (0, 1):
        plain = hands(SeedableRandomSampler(rows, data_seed=7), micro_batch, world, epoch)
        dealt = hands(dealing, micro_batch, world, epoch)
        assert steps(dealt, accumulation) == steps(plain, accumulation)
        assert [list(map(len, rank)) for rank in dealt] == [list(map(len, rank)) for rank in plain]
        whole = number // (micro_batch * accumulation * world) * accumulation
        for mine, theirs in zip(dealt, plain, strict=True):
            assert mine[whole:] == theirs[whole:], "in a short step micro-batches of unlike size weigh alike"
    assert hands(dealing, micro_batch, world, 0) != hands(dealing, micro_batch, world, 1) or number < 8


def test_micro_batches_are_alike_in_length_and_ranks_finish_together() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    from zephyrctl.workers.length_grouped_sampler import LengthGroupedSampler, token_counts

    micro_batch, accumulation, world = 4, 8, 2
    rows = rows_of(640)
    tokens = token_counts(rows)

    def padding(given: list[list[list[int]]]) -> float:
        batches = [tokens[batch] for rank in given for batch in rank]
        return float(1 - sum(batch.sum() for batch in batches) / sum(len(batch) * batch.max() for batch in batches))

    def waiting(given: list[list[list[int]]]) -> float:
        sums = [[int(tokens[batch].sum()) for batch in batches] for batches in zip(*given, strict=True)]
        return 1 - sum(map(sum, sums)) / sum(world * max(batch) for batch in sums)

    plain = hands(SeedableRandomSampler(rows, data_seed=7), micro_batch, world)
    dealt = hands(LengthGroupedSampler(rows, 7, micro_batch, accumulation, world), micro_batch, world)
    assert padding(dealt) < padding(plain) / 3
    assert waiting(dealt) < waiting(plain) / 5


def test_ranks_share_alike_where_a_step_is_one_micro_batch_each() -> None:
    """The paper's 16 ranks of two pairs: the longest pair of a step goes to the rank that gets the shortest one too."""
    from zephyrctl.workers.length_grouped_sampler import LengthGroupedSampler, token_counts

    rows = rows_of(320)
    tokens = token_counts(rows)
    for step in zip(*hands(LengthGroupedSampler(rows, 7, 2, 1, 16), 2, 16), strict=True):
        sums = [int(tokens[batch].sum()) for batch in step]
        all_of_step = sorted(int(tokens[row]) for batch in step for row in batch)
        assert max(sums) <= all_of_step[-1] + all_of_step[len(all_of_step) // 2]


@pytest.mark.parametrize("kind", ["dealt", "plain"])
def test_a_rank_that_resumes_in_the_second_epoch_goes_on_in_its_order(kind: str) -> None:
    """Through accelerate's own shards and its own way of skipping what was trained."""
    from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
    from torch.utils.data import DataLoader

    from zephyrctl.workers.length_grouped_sampler import LengthGroupedSampler, set_sampler_epoch

    rows = rows_of(40)

    def loader() -> Any:
        sampler = (
            LengthGroupedSampler(rows, 7, 2, 2, 2) if kind == "dealt" else SeedableRandomSampler(rows, data_seed=7)
        )
        plain = DataLoader(rows, batch_size=2, sampler=sampler, collate_fn=lambda pairs: [str(pair) for pair in pairs])
        return prepare_data_loader(
            plain, num_processes=2, process_index=1, put_on_device=False, use_seedable_sampler=True, data_seed=7
        )

    def epoch(batches: Any, number: int) -> list[list[str]]:
        set_sampler_epoch(batches, number)
        batches.set_epoch(number)
        return list(batches)

    unbroken = loader()
    first, second = epoch(unbroken, 0), epoch(unbroken, 1)
    assert len(second) == 10 and first != second
    assert epoch(skip_first_batches(loader(), 4), 1) == second[4:]


def pairs_of_steps(job: Any, resume_from: Path | None = None) -> dict[int, Counter[tuple[int, ...]]]:
    """The chosen rows of every optimizer step that the trainer of a job makes."""
    from zephyrctl.workers import dpo, trainer_setup
    from zephyrctl.workers.events import Events

    trainer = dpo.make_trainer(job, trainer_setup.begin(job), Events(job.scratch))
    seen: dict[int, Counter[tuple[int, ...]]] = {}
    compute_loss = trainer.compute_loss

    def noting(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        chosen = zip(inputs["input_ids"].chunk(2)[0], inputs["attention_mask"].chunk(2)[0], strict=True)
        rows = Counter(tuple(ids[mask.bool()].tolist()) for ids, mask in chosen)
        seen.setdefault(trainer.state.global_step, Counter()).update(rows)
        return compute_loss(model, inputs, *rest, **options)

    trainer.compute_loss = noting  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return seen


def test_the_trainer_takes_the_same_pairs_in_the_same_steps(tmp_path: Path) -> None:
    """Through TRL, transformers and accelerate, over two epochs of two steps and a half, and after a resume."""
    pairs = random_pairs(20, vocabulary=200)
    settings: dict[str, Any] = {"epochs": 2.0, "learning_rate": 1e-5, "save_every": 4}
    theirs = pairs_of_steps(pair_job(tmp_path / "trl", pair_layout("trl"), pairs, **settings))
    job = pair_job(tmp_path / "ours", pair_layout("prefix-shared"), pairs, **settings)
    ours = pairs_of_steps(job)
    assert [sum(rows.values()) for rows in theirs.values()] == [8, 8, 4] * 2
    assert ours == theirs
    resumed = pairs_of_steps(job, job.scratch / "checkpoints" / "checkpoint-4")
    assert resumed == {step: rows for step, rows in ours.items() if step >= 4}


@pytest.mark.parametrize("loss", ["aot", "sft"])
def test_losses_that_look_at_a_whole_micro_batch_keep_its_pairs(tmp_path: Path, loss: str) -> None:
    """Dealt otherwise their value would be another."""
    from tests.workers.pairs_made import losses, trained

    pairs = random_pairs(20, vocabulary=200)
    logged = [
        losses(trained(pair_job(tmp_path / engine, pair_layout(engine), pairs, loss=loss)))
        for engine in ("trl", "prefix-shared")
    ]
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
