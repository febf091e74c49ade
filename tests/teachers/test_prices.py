"""Whether a model finds its price, by name, by date and by pattern, and whether the user's file is laid over ours."""

from pathlib import Path

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.teachers import prices

OWN = (
    "models:\n  gpt-4o: {input: 1, output: 2}\n  'mine-*': {input: 0, output: 0}\n  'mine-l*': {input: 3, output: 3}\n"
)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_shipped_prices_are_of_tokens_by_the_million() -> None:
    shipped = prices.load()
    assert len(shipped.models) >= 10
    price = shipped.of("gpt-4o")
    assert price and price.output > price.input > 0
    assert shipped.usd("gpt-4o", 1_000_000, 2_000_000) == price.input + 2 * price.output


@pytest.mark.parametrize("dated", ["gpt-4o-2024-08-06", "gpt-4o-latest", "gpt-4o-0806", "gpt-4o-20240806"])
def test_a_dated_id_has_the_price_of_its_name(dated: str) -> None:
    assert prices.load().of(dated) == prices.load().of("gpt-4o")


@pytest.mark.parametrize("other", ["gpt-4o-audio", "gpt-4o-mini-realtime", "my-gpt-4o", "gpt-4o2024"])
def test_a_longer_name_is_another_model(other: str) -> None:
    assert prices.load().of(other) is None
    assert prices.load().usd(other, 1, 1) is None


def test_a_file_in_the_working_folder_is_laid_over_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(OWN)
    mine = prices.load()
    assert mine.usd("gpt-4o", 1_000_000, 0) == 1
    assert mine.usd("mine-small", 10, 10) == 0
    assert mine.usd("mine-large", 1_000_000, 0) == 3, "the longest pattern counts"
    assert mine.of("gpt-4") is not None


def test_a_named_file_is_read_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models: {gpt-4o: {input: 9, output: 9}}")
    (tmp_path / "else.yaml").write_text(OWN)
    assert prices.load("else.yaml").usd("gpt-4o", 1_000_000, 0) == 1
    with pytest.raises(ZephyrError, match=r"no price file none\.yaml"):
        prices.load("none.yaml")


@pytest.mark.parametrize(
    "text", ["models: {a: {input: -1, output: 1}}", "models: {a: 3}", "a: 1", "- 1", "{", "models: {a: {input: 1}}"]
)
def test_what_is_no_price_file_says_what_one_looks_like(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(ZephyrError, match=r"prices\.yaml") as caught:
        prices.load()
    assert "per million tokens" in caught.value.remedy
