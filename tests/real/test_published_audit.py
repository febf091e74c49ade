"""Whether the audit of real published pairs comes to what is known of them."""

from pathlib import Path

import pytest

from tests.conftest import Command

pytestmark = pytest.mark.real


def test_published_pairs(zephyrctl: Command, real_data: Path) -> None:
    """111 ties, four identical pairs, one empty text on either side, in 1,000 rows; 25 and one in the other 200."""
    pairs = real_data / "ultrafeedback_binarized"
    against = [
        real_data / "mt_bench" / "question.jsonl",
        real_data / "alpaca_eval/outputs/text_davinci_003.reference.json",
    ]
    options = [part for path in against for part in ("--against", path)]
    told = zephyrctl("data", "audit", pairs / "train.jsonl", *options, "--json").json
    expected = {"rows": 1000, "ties": 111, "identical": 4, "empty_chosen": 1, "empty_rejected": 1}
    assert {name: told[name] for name in expected} == expected
    assert told["languages"]["en"] > 850
    assert told["benchmark_overlap"] == 3
    told = zephyrctl("data", "audit", pairs / "test.jsonl", "--json").json
    assert (told["rows"], told["ties"], told["identical"]) == (200, 25, 1)


@pytest.mark.parametrize(
    ("file", "form", "rows"),
    [
        ("ultrafeedback_binarized/ultrafeedback_shaped_10.json", "rated prompts", 10),
        ("instructions/dpo_en_demo.json", "pairs", 300),
        ("instructions/alpaca_en_demo.json", "dialogues", 999),
    ],
)
def test_every_published_form_is_read(zephyrctl: Command, real_data: Path, file: str, form: str, rows: int) -> None:
    """Without a bad row."""
    told = zephyrctl("data", "audit", real_data / file, "--json").json
    assert (told["form"], told["rows"], told["bad_rows"]) == (form, rows, 0)
