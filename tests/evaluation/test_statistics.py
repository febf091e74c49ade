"""Whether intervals cover what they should, come out the same again, and count what was counted."""

import numpy as np
import pytest

from zephyrctl.evaluation.statistics import estimate, interval, paired, rank_correlation, unpaired, win_rate


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


def test_an_interval_over_questions_is_that_of_their_values_together() -> None:
    assert interval([[1.0, 1.0, 1.0], [4.0]], "x")[0] == 1.0
    low, high = interval([[float(place % 7)] for place in range(300)], "x")
    assert low < 3.0 < high and high - low == pytest.approx(2 * 1.96 * 2 / 300**0.5, rel=0.1)
    with pytest.raises(ValueError, match="no values"):
        interval([[], []], "none")


def test_turns_of_one_question_are_no_independent_values() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, size=60)
    alone = interval([[value] for value in values], "x")
    twice = interval([[value, value] for value in values], "x")
    assert np.allclose(twice, alone, atol=1e-12)


@pytest.mark.parametrize("count", [10, 80])
def test_the_p_value_of_no_difference_is_uniform(count: int) -> None:
    rng = np.random.default_rng(5)
    found = [paired([[value] for value in rng.normal(0, 1, size=count)], f"{number}").p for number in range(200)]
    assert 3 <= sum(p <= 0.05 for p in found) <= 20, "5 % of 200 is 10, and its standard deviation 3"
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_the_p_value_of_few_questions_is_exact() -> None:
    assert paired([[1.0], [1.0], [1.0], [1.0]], "x").p == 2 / 16
    assert paired([[3.0], [-1.0]], "x").p == 1.0
    assert paired([[0.0], [0.0]], "x").p == 1.0


def test_a_difference_beyond_chance_has_a_small_p_and_an_interval_without_0() -> None:
    rng = np.random.default_rng(6)
    found = paired([list(rng.normal(0.5, 1, size=2)) for _ in range(100)], "x")
    assert found.low > 0 and found.p < 0.001 and found.n == 100


def test_as_many_questions_as_are_said_to_be_needed_show_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(7)
    drawn = rng.normal(0, 1, size=2000)
    pilot = paired([[value] for value in (drawn - drawn.mean()) / drawn.std(ddof=1) + 0.3], "pilot")
    assert pilot.needed == pytest.approx((1.96 + 0.8416) ** 2 / 0.3**2, abs=1)
    shown = [
        paired([[value] for value in rng.normal(pilot.mean, 1, size=pilot.needed)], f"{number}").p < 0.05
        for number in range(150)
    ]
    assert 0.7 < np.mean(shown) < 0.9
    assert paired([[1.0], [-1.0]], "none").needed is None


def test_a_normal_interval_is_the_textbooks() -> None:
    low, high, p = unpaired(2.0, 1.0)
    assert [low, high] == pytest.approx([2 - 1.959964, 2 + 1.959964])
    assert p == pytest.approx(0.0455, abs=1e-4)
    assert unpaired(0.0, 0.0)[2] == 1.0


def test_rank_correlation_counts_ties_at_their_mean_rank() -> None:
    assert rank_correlation([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1.0)
    assert rank_correlation([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert rank_correlation([(1, 1), (1, 2), (2, 3), (2, 4)]) == pytest.approx(0.8944, abs=1e-4)
    assert rank_correlation([(1, 1), (1, 2)]) is None
    assert rank_correlation([(1, 1)]) is None
