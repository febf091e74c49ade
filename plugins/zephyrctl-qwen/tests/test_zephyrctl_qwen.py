"""Whether `qwen2.5-7b` is Qwen2.5 7B as published, and its template says and stops as the family does."""

from pathlib import Path
from typing import Any

import pytest
import zephyrctl_qwen
from zephyrctl_qwen import STOP

from zephyrctl import plugins
from zephyrctl.contracts import ModelBase
from zephyrctl.testing import check_model_base, check_plugin, end_of_turn, write_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye."},
]
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\nGood bye.<|im_end|>\n"
)


def base(**options: str) -> ModelBase:
    """The base, chosen by name as a recipe does."""
    return plugins.load().model_base("qwen2.5-7b", options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of bytes with the family's special tokens, loaded with the template as training loads it."""
    from zephyrctl.workers.tokens import load_tokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("qwen"), SPECIAL, None, "<|endoftext|>")
    return load_tokenizer(str(folder), None, base().chat_template())


def test_it_keeps_the_contract() -> None:
    check_plugin(zephyrctl_qwen)
    check_model_base(base)
    assert end_of_turn(base()) == STOP
    assert plugins.load().find("model base", "qwen2.5-7b").origin.startswith("zephyrctl-qwen ")


def test_its_parameters_follow_from_its_shape() -> None:
    """Queries, keys and values have biases; two norms a layer, embeddings on both sides, a last norm."""
    shape = base().sizes()
    attention = 2 * shape.width * (shape.width + shape.key_value_width) + shape.width + 2 * shape.key_value_width
    layer = attention + 3 * shape.width * shape.feed_forward + 2 * shape.width
    assert shape.parameters == 2 * shape.vocabulary * shape.width + shape.layers * layer + shape.width


def test_where_it_lies() -> None:
    assert (base().location(), base().revision, base().license) == ("Qwen/Qwen2.5-7B", "main", "apache-2.0")
    assert (base(folder="a/copy").location(), base(folder="a/copy").revision) == ("a/copy", None)
    assert base(revision="abc").revision == "abc"


@pytest.mark.slow
def test_a_conversation_is_rendered_as_the_family_does(tokenizer: Any) -> None:
    """Every marker is one token, and generation begins where training's answer began."""
    from zephyrctl.workers.tokens import contract, dialogues_ids, prompt_ids

    ((ids, _),) = dialogues_ids(tokenizer, [TALK], assistant_only=False)
    assert tokenizer.decode(ids) == RENDERED
    assert set(range(len(SPECIAL))) - set(ids) == {SPECIAL.index("<|endoftext|>")}
    assert ids[: len(prompt_ids(tokenizer, TALK[:-1]))] == prompt_ids(tokenizer, TALK[:-1])
    made = contract(tokenizer)
    assert (made.starts_with_bos, made.ends_with_eos) == (False, True)


@pytest.mark.slow
def test_answers_and_their_stop_token_alone_carry_loss_and_generation_stops_there(
    tokenizer: Any, tmp_path: Path
) -> None:
    """A tokenizer that is saved with a checkpoint stops there too."""
    from transformers import AutoTokenizer

    from zephyrctl.workers.tokens import IGNORED, dialogues_ids

    ((_, labels),) = dialogues_ids(tokenizer, [TALK], assistant_only=True)
    learnt = tokenizer.decode([token for token in labels if token != IGNORED])
    assert learnt == f"Hello.{STOP}Good bye.{STOP}"
    assert (tokenizer.eos_token, tokenizer.pad_token) == (STOP, "<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == STOP
