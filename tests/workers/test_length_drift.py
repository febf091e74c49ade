"""Whether the metric for length drift is the correlation that it says it is."""

import pytest

pytestmark = pytest.mark.slow


def test_sums_of_parts_give_the_correlation_of_the_whole() -> None:
    import torch

    from zephyrctl.workers.dpo import correlation, moments

    torch.manual_seed(0)
    total = torch.zeros(6, dtype=torch.float64)
    margins, gaps = [], []
    for _ in range(5):
        scores = torch.randn(8) * 10
        mask = (torch.arange(40) < torch.randint(1, 40, (8, 1))).long()
        inputs = {"completion_mask": mask, "ref_chosen_logps": torch.randn(4), "ref_rejected_logps": torch.randn(4)}
        total += moments(0.1, scores, inputs)
        ratio = (scores[:4] - inputs["ref_chosen_logps"]) - (scores[4:] - inputs["ref_rejected_logps"])
        margins.append(0.1 * ratio)
        gaps.append((mask[:4].sum(1) - mask[4:].sum(1)).float())
    expected = torch.corrcoef(torch.stack([torch.cat(margins), torch.cat(gaps)]))[0, 1]
    assert correlation(total) == pytest.approx(float(expected), abs=1e-5)


def test_answers_of_equal_length_have_no_correlation() -> None:
    import torch

    from zephyrctl.workers.dpo import correlation

    assert correlation(torch.tensor([4.0, 1, 0, 3, 0, 0])) is None
    assert correlation(torch.tensor([2.0, 1, 1, 3, 3, 1])) is None
