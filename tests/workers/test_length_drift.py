"""Whether the metric for length drift is the correlation that it says it is."""

import pytest

pytestmark = pytest.mark.slow


def test_sums_of_parts_give_the_correlation_of_the_whole() -> None:
    import torch

    from zephyrctl.workers.dpo import correlation, length_moments

    torch.manual_seed(0)
    total = torch.zeros(6, dtype=torch.float64)
    margins, gaps = [], []
    for _ in range(5):
        chosen, rejected = torch.randint(1, 40, (2, 4))
        margins.append(torch.randn(4))
        gaps.append((chosen - rejected).float())
        total += length_moments(margins[-1], chosen - rejected)
    expected = torch.corrcoef(torch.stack([torch.cat(margins), torch.cat(gaps)]))[0, 1]
    assert correlation(total) == pytest.approx(float(expected), abs=1e-5)


def test_answers_of_equal_length_have_no_correlation() -> None:
    import torch

    from zephyrctl.workers.dpo import correlation

    assert correlation(torch.tensor([4.0, 1, 0, 3, 0, 0])) is None
    assert correlation(torch.tensor([2.0, 1, 1, 3, 3, 1])) is None
