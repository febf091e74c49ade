"""Whether prompts are batched with as little padding as can be, and answers end where they should."""

from itertools import combinations

import pytest

from zephyrctl.workers.generate import batches


def read(lengths: list[int], cuts: list[slice], overhead: int) -> int:
    """What reading these batches costs, in tokens."""
    return sum(len(lengths[cut]) * max(lengths[cut]) + overhead for cut in cuts)


@pytest.mark.parametrize("overhead", [0, 10, 300, 10_000])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_no_other_cut_reads_less(most: int, overhead: int) -> None:
    lengths = sorted([3, 5, 5, 9, 40, 41, 90, 200])
    found = batches(lengths, most, overhead)
    assert [place for cut in found for place in range(*cut.indices(len(lengths)))] == list(range(len(lengths)))
    assert all(0 < len(lengths[cut]) <= most for cut in found)
    places = range(1, len(lengths))
    every = (
        [slice(start, end) for start, end in zip((0, *chosen), (*chosen, len(lengths)), strict=True)]
        for count in range(len(lengths))
        for chosen in combinations(places, count)
    )
    possible = [cuts for cuts in every if all(len(lengths[cut]) <= most for cut in cuts)]
    assert read(lengths, found, overhead) == min(read(lengths, cuts, overhead) for cuts in possible)


def test_one_long_prompt_does_not_pad_all_others() -> None:
    lengths = [90] * 39 + [900]
    assert batches(lengths, 64, 64 * 64) == [slice(0, 39), slice(39, 40)]
    assert batches([100] * 40, 64, 64 * 64) == [slice(0, 40)]
    assert batches([], 64, 1) == []
