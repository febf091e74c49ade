"""Whether two ways to make tokens of a conversation are told apart, and by what."""

from pathlib import Path

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.token_contract import FILE, PROBES, TokenContract, read


def made(**changed: object) -> TokenContract:
    """A contract."""
    values = {
        "chat_template": "0" * 64,
        "special_tokens": {"bos": ("<s>", 1), "eos": ("</s>", 2)},
        "vocabulary": 32,
        "starts_with_bos": False,
        "ends_with_eos": True,
        "probes": tuple((3, 4) for _ in PROBES),
    }
    return TokenContract.model_validate(values | changed)


def test_equal_contracts_agree() -> None:
    made().check(made(), "here", "there", "mend")
    assert made().fingerprint == made().fingerprint


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chat_template": "1" * 64}, "chat template"),
        ({"special_tokens": {"bos": ("<s>", 1), "eos": ("</s>", 3)}}, "special tokens"),
        ({"starts_with_bos": True}, "starts with bos"),
        ({"probes": ((3, 5), (3, 4), None)}, "rendered ids"),
    ],
)
def test_what_differs_is_named(changed: dict[str, object], words: str) -> None:
    assert made(**changed).fingerprint != made().fingerprint
    with pytest.raises(ZephyrError, match=f"here and there turn .* tokens: {words} differ") as caught:
        made().check(made(**changed), "here", "there", "mend it")
    assert caught.value.remedy == "mend it"


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    made().write(tmp_path)
    assert read(tmp_path) == made()


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ZephyrError, match="is damaged"):
        read(tmp_path)
