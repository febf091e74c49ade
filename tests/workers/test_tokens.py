"""The token contract: the same ids in training and generation, and loss on what the assistant says alone."""

from typing import Any

import pytest

from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.contracts import PluginOptions

pytestmark = pytest.mark.slow

DIALOGUE = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is the opposite of hot?"},
    {"role": "assistant", "content": "The opposite of hot is cold."},
    {"role": "user", "content": "And of big?"},
    {"role": "assistant", "content": "The opposite of big is small."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tiny base's tokenizer with the template that training uses."""
    from zephyrctl.workers.tokens import load_tokenizer

    base = TinyMistral(PluginOptions())
    return load_tokenizer(base.location(), None, base.chat_template())


def test_a_dialogue_is_rendered_as_zephyr_does(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogue_ids

    ids, _ = dialogue_ids(tokenizer, DIALOGUE[:3], assistant_only=False)
    assert tokenizer.decode(ids) == (
        "<|system|>\nBe short.</s>\n"
        "<|user|>\nWhat is the opposite of hot?</s>\n"
        "<|assistant|>\nThe opposite of hot is cold.</s>\n"
    )


def test_what_generation_sees_is_the_start_of_what_training_saw(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogue_ids, prompt_ids

    for end in (2, 4):
        seen = prompt_ids(tokenizer, DIALOGUE[:end])
        trained, _ = dialogue_ids(tokenizer, DIALOGUE[: end + 1], assistant_only=True)
        assert trained[: len(seen)] == seen
        assert tokenizer.bos_token_id not in trained


def test_only_the_assistant_and_its_end_carry_loss(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import IGNORED, dialogue_ids

    ids, labels = dialogue_ids(tokenizer, DIALOGUE, assistant_only=True)
    learnt = tokenizer.decode([token for token in labels if token != IGNORED])
    assert learnt == "The opposite of hot is cold.</s>The opposite of big is small.</s>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_without_assistant_only_every_token_carries_loss(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogue_ids

    ids, labels = dialogue_ids(tokenizer, DIALOGUE, assistant_only=False)
    assert ids == labels
