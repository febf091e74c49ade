"""Whether intervals cover what they should, come out the same again, and count what was counted."""

import numpy as np
import pytest

from zephyrctl.evaluation.statistics import estimate, win_rate


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        found = estimate(list(rng.normal(5.0, 2.0, size=60)), f"sample {number}")
        hits += found.low <= 5.0 <= found.high
    assert 178 <= hits <= 198, "95 % of 200 is 190, and its standard deviation 3"


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = list(np.random.default_rng(1).normal(0.0, 1.0, size=400))
    found = estimate(values, "x")
    assert found.mean == pytest.approx(np.mean(values), abs=1e-4)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / 20, rel=0.1)
    assert found.low < found.mean < found.high
    assert found.n == 400


def test_the_interval_shrinks_with_more_prompts() -> None:
    widths = []
    for count in (25, 100, 400):
        found = estimate([float(number % 10) for number in range(count)], "x")
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_the_interval_is_drawn_again_alike_for_a_name_and_otherwise_for_another() -> None:
    values = list(np.random.default_rng(3).normal(0.0, 1.0, size=30))
    assert estimate(values, "a") == estimate(values, "a")
    assert len({(found.low, found.high) for found in (estimate(values, name) for name in "abcde")}) > 1


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(5.0, 3.0, size=100)
    better = hard + rng.normal(0.5, 0.2, size=100)
    paired = estimate(list(better - hard), "paired")
    unpaired = estimate(list(hard), "one side")
    assert paired.low > 0
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 5


def test_one_value_is_its_own_interval() -> None:
    found = estimate([3.25], "one")
    assert (found.mean, found.low, found.high, found.n) == (3.25, 3.25, 3.25, 1)
    same = estimate([7.0] * 50, "same")
    assert (same.low, same.high) == (7.0, 7.0)


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([], "none")
    with pytest.raises(ValueError, match="no values"):
        win_rate([], "none")


def test_a_win_rate_counts_wins_draws_and_losses() -> None:
    found = win_rate([1.0, 1.0, 1.0, 0.5, 0.0, 0.0], "x")
    assert (found.wins, found.draws, found.losses) == (3, 1, 2)
    assert found.win_rate == pytest.approx(3.5 / 6, abs=1e-4)
    assert 0 <= found.low <= found.win_rate <= found.high <= 1
    swapped = win_rate([0.0, 0.0, 0.0, 0.5, 1.0, 1.0], "x")
    assert swapped.win_rate == pytest.approx(1 - found.win_rate, abs=1e-3)
