"""Whether the options of `data binarize` do what they say, and those that rule each other out are refused."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Command
from tests.data.rows_made import ultrafeedback_row, write_jsonl

ASPECTS = {"helpful": {"helpfulness": "5", "honesty": "1"}, "honest": {"helpfulness": "1", "honesty": "4"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty prompts whose most helpful answer is not the honest one, and whose worst answer has an overall of 10."""
    rows = [ultrafeedback_row(f"Why {n}?", {"helpful": "3", "honest": "3", "bad": "1"}) for n in range(20)]
    for row in rows:
        for completion, overall in zip(row["completions"], (6, 7, 10), strict=True):
            completion["overall_score"] = overall
            for aspect, mark in ASPECTS.get(completion["response"], {}).items():
                completion["annotations"][aspect] = {"Rating": mark}
    return write_jsonl(tmp_path / "rated.jsonl", rows)


def chosen(zephyrctl: Command, file: Path, *options: str) -> set[str]:
    """The answers that are chosen with these options."""
    outcome = zephyrctl("data", "binarize", "--input", file, "--json", "--fresh", *options)
    assert outcome.code == 0, outcome.err
    tables = [pq.read_table(path) for path in Path(outcome.json["path"]).rglob("*.parquet")]
    return {text for table in tables for text in table["chosen"].to_pylist()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"helpful"}),  # 5, 1, 3, 3 against 1, 4, 3, 3
        (("--weights", "helpfulness=1"), {"helpful"}),
        (("--weights", "honesty=2", "--weights", "helpfulness=0.5"), {"honest"}),
        (("--score", "weights", "--set", "binarize.weights={honesty: 1}"), {"honest"}),
        (("--score", "overall"), {"honest"}),  # the 10 of the bad one was a 1
        (("--compat", "zephyr-v1"), {"bad"}),
        (("--compat", "zephyr-fixed"), {"honest"}),
        (("--strategy", "all-pairs"), {"helpful", "honest"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_say_what_is_chosen(
    zephyrctl: Command, file: Path, options: tuple[str, ...], expected: set[str]
) -> None:
    assert chosen(zephyrctl, file, *options) == expected


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (("--compat", "zephyr-v1", "--strategy", "notus"), 2, "and --strategy exclude each other"),
        (("--compat", "zephyr-fixed", "--score", "mean"), 2, "and --score exclude each other"),
        (("--compat", "zephyr-fixed", "--weights", "honesty=1"), 2, "and --weights exclude each other"),
        (("--score", "mean", "--weights", "honesty=1"), 2, "--score is mean"),
        (("--weights", "honesty"), 2, "'honesty' is not a weight"),
        (("--weights", "honest=1"), 1, "'honest', for which no answer is rated"),
        (("--weights", "honesty=nan"), 1, "binarize.weights.honesty"),
        (("--score", "meen"), 1, "binarize.score = 'meen'"),
        (("--strategy", "margn"), 1, "did you mean 'margin'?"),
        (("--strategy", "margin", "--set", "binarize.options.atleast=2"), 1, "did you mean 'at_least'?"),
        (("--compat", "zephyr-v1", "--set", "binarize.strategy=notus"), 1, "they exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused(
    zephyrctl: Command, file: Path, options: tuple[str, ...], code: int, problem: str
) -> None:
    """Before anything is written; the aspects that are rated are known at the end, and nothing is left either."""
    outcome = zephyrctl("data", "binarize", "--input", file, *options)
    assert outcome.code == code, outcome.err
    assert problem in " ".join(outcome.err.split())
    assert not (Path("runs") / "tiny" / "binarize").exists()


def test_the_dry_run_says_the_rule(zephyrctl: Command, file: Path) -> None:
    for options, said in (
        (("--compat", "zephyr-v1"), "published rule 'zephyr-v1'"),
        (("--strategy", "margin", "--score", "overall"), "strategy 'margin' on the repaired overall score"),
    ):
        assert said in zephyrctl("data", "binarize", "--input", file, "--dry-run", *options).out
