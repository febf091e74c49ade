"""Whether documents that share a row are learnt as if each had a row of its own."""

from typing import Any

import pytest

from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions

pytestmark = pytest.mark.slow

DOCUMENTS = [list(range(10, 10 + length)) for length in (50, 70, 30, 41, 12)]


def row(*documents: list[int]) -> dict[str, Any]:
    """Documents packed into one row."""
    ids = [token for document in documents for token in document]
    return {"input_ids": ids, "labels": list(ids), "seq_lengths": [len(document) for document in documents]}


@pytest.fixture(scope="module")
def model() -> Any:
    """The tiny base."""
    import torch
    from transformers import AutoModelForCausalLM

    base = TinyMistral(PluginOptions())
    return AutoModelForCausalLM.from_pretrained(base.location(), dtype=torch.float32, attn_implementation="sdpa").eval()


def logits_alone(model: Any) -> list[Any]:
    """The logits of each document in a row of its own."""
    import torch

    with torch.no_grad():
        return [model(input_ids=torch.tensor([document])).logits[0] for document in DOCUMENTS]


def seen(batch: dict[str, Any]) -> dict[str, Any]:
    """What the model is given."""
    return {key: batch[key] for key in ("input_ids", "position_ids")}


def test_documents_of_a_row_do_not_see_each_other(model: Any) -> None:
    import torch

    from zephyrctl.workers.sft import IsolatingCollator

    collator = IsolatingCollator(pad_token_id=0, return_position_ids=True)
    batch = collator([row(*DOCUMENTS[:2]), row(*DOCUMENTS[2:])])
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == batch["position_ids"].shape == (2, 120)
    with torch.no_grad():
        packed = model(**seen(batch), use_cache=False).logits
    found = [packed[0, :50], packed[0, 50:120], packed[1, :30], packed[1, 30:71], packed[1, 71:83]]
    for mine, alone in zip(found, logits_alone(model), strict=True):
        assert (mine - alone).abs().max() < 1e-4


def test_a_documents_first_token_carries_no_loss_and_padding_neither(model: Any) -> None:
    from zephyrctl.workers.sft import IsolatingCollator
    from zephyrctl.workers.tokens import IGNORED

    batch = IsolatingCollator(pad_token_id=0, return_position_ids=True)([row(*DOCUMENTS[:2]), row(*DOCUMENTS[2:])])
    carries = batch["labels"] != IGNORED
    assert carries.sum() == sum(len(document) - 1 for document in DOCUMENTS)
    assert not carries[0, [0, 50]].any()
    assert not carries[1, [0, 30, 71]].any()
    assert not carries[1, 83:].any()


def test_an_all_ones_mask_would_let_them_see_each_other(model: Any) -> None:
    """The trap that the collator avoids: the same positions, and a mask beside them."""
    import torch

    from zephyrctl.workers.sft import IsolatingCollator

    batch = IsolatingCollator(pad_token_id=0, return_position_ids=True)([row(*DOCUMENTS[:2])])
    with torch.no_grad():
        mixed = model(**seen(batch), attention_mask=torch.ones(1, 120), use_cache=False)
    assert (mixed.logits[0, 50:120] - logits_alone(model)[1]).abs().max() > 1e-2


def test_real_tokens_are_counted_without_padding() -> None:
    import torch

    from zephyrctl.workers.sft import IsolatingCollator
    from zephyrctl.workers.trainer_setup import real_tokens

    batch = IsolatingCollator(pad_token_id=0, return_position_ids=True)([row(*DOCUMENTS[:2]), row(*DOCUMENTS[2:])])
    assert real_tokens(batch) == sum(map(len, DOCUMENTS))
    assert real_tokens({"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}) == 3
