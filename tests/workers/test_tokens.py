"""The token contract: the same ids in training and generation, and loss on what the assistant says alone."""

from pathlib import Path
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
    from zephyrctl.workers.tokens import dialogues_ids

    ((ids, _),) = dialogues_ids(tokenizer, [DIALOGUE[:3]], assistant_only=False)
    assert tokenizer.decode(ids) == (
        "<|system|>\nBe short.</s>\n"
        "<|user|>\nWhat is the opposite of hot?</s>\n"
        "<|assistant|>\nThe opposite of hot is cold.</s>\n"
    )


def test_what_generation_sees_is_the_start_of_what_training_saw(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogues_ids, prompt_ids

    for end in (2, 4):
        seen = prompt_ids(tokenizer, DIALOGUE[:end])
        ((trained, _),) = dialogues_ids(tokenizer, [DIALOGUE[: end + 1]], assistant_only=True)
        assert trained[: len(seen)] == seen
        assert tokenizer.bos_token_id not in trained


def test_only_the_assistant_and_its_end_carry_loss(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import IGNORED, dialogues_ids

    ((ids, labels),) = dialogues_ids(tokenizer, [DIALOGUE], assistant_only=True)
    learnt = tokenizer.decode([token for token in labels if token != IGNORED])
    assert learnt == "The opposite of hot is cold.</s>The opposite of big is small.</s>"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_without_assistant_only_every_token_carries_loss(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogues_ids

    ((ids, labels),) = dialogues_ids(tokenizer, [DIALOGUE], assistant_only=False)
    assert ids == labels


def test_conversations_of_a_batch_become_what_each_becomes_alone(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import dialogues_ids, prompt_ids, prompts_ids

    dialogues = [DIALOGUE, DIALOGUE[1:3], DIALOGUE[3:]]
    alone = [dialogues_ids(tokenizer, [dialogue], assistant_only=True)[0] for dialogue in dialogues]
    assert dialogues_ids(tokenizer, dialogues, assistant_only=True) == alone
    prompts = [DIALOGUE[:2], DIALOGUE[:4]]
    assert prompts_ids(tokenizer, prompts) == [prompt_ids(tokenizer, prompt) for prompt in prompts]


def test_the_contract_says_how_zephyr_is_rendered(tokenizer: Any) -> None:
    from zephyrctl.workers.tokens import contract

    made = contract(tokenizer)
    assert (made.starts_with_bos, made.ends_with_eos) == (False, True)
    assert made.special_tokens["eos"] == ("</s>", tokenizer.eos_token_id)
    assert all(made.probes)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("message['content'] + eos_token", "message['content']", "ends_with_eos"),
        ("{%- for message", "{{- bos_token -}}{%- for message", "starts_with_bos"),
        ("|>\\n'", "|> '", "probes"),
    ],
)
def test_another_template_makes_another_contract(tokenizer: Any, old: str, new: str, field: str) -> None:
    from zephyrctl.workers.tokens import contract, load_tokenizer

    base = TinyMistral(PluginOptions())
    assert old in base.chat_template()
    other = contract(load_tokenizer(base.location(), None, base.chat_template().replace(old, new)))
    mine = contract(tokenizer)
    assert getattr(other, field) != getattr(mine, field)
    assert other.fingerprint != mine.fingerprint


def test_a_template_may_end_answers_with_another_token_than_the_base_s_own(tokenizer: Any, tmp_path: Path) -> None:
    """That token is then the end of text, also of the tokenizer that is saved; the padding stays."""
    from zephyrctl.workers.tokens import contract, dialogues_ids, load_tokenizer

    base = TinyMistral(PluginOptions())
    other = load_tokenizer(base.location(), None, base.chat_template().replace("eos_token", "'<|system|>'"))
    assert (tokenizer.eos_token, other.eos_token) == ("</s>", "<|system|>")
    assert other.pad_token == tokenizer.pad_token
    assert contract(other).ends_with_eos
    ((_, labels),) = dialogues_ids(other, [DIALOGUE[:3]], assistant_only=True)
    assert labels.count(other.eos_token_id) == 1
    other.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), None, other.chat_template).eos_token == "<|system|>"
    unmarked = base.chat_template().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    assert load_tokenizer(base.location(), None, unmarked).eos_token == "</s>"


def test_a_conversation_that_the_template_refuses_is_a_clear_error(tmp_path: Path) -> None:
    from zephyrctl.errors import ZephyrError
    from zephyrctl.workers.tokens import contract, dialogues_ids, load_tokenizer

    base = TinyMistral(PluginOptions())
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    strict = load_tokenizer(base.location(), None, refusing + base.chat_template())
    assert None in contract(strict).probes
    with pytest.raises(ZephyrError, match="refuses a conversation: no system turns"):
        dialogues_ids(strict, [DIALOGUE[:3]], assistant_only=True)
