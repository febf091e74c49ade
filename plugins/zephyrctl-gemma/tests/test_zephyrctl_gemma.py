"""Whether `gemma-2-9b` is Gemma 2 9B as published, and its template says and stops as the family does."""

from pathlib import Path
from typing import Any

import pytest
import zephyrctl_gemma
from zephyrctl_gemma import STOP

from zephyrctl import plugins
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.testing import check_model_base, check_plugin, end_of_turn, write_tokenizer

SPECIAL = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Good bye."},
]
RENDERED = (
    "<bos>"
    "<start_of_turn>user\nHi<end_of_turn>\n"
    "<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n"
    "<start_of_turn>model\nGood bye.<end_of_turn>\n"
)


def base(**options: str) -> ModelBase:
    """The base, chosen by name as a recipe does."""
    return plugins.load().model_base("gemma-2-9b", options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of bytes with the family's special tokens, loaded with the template as training loads it."""
    from zephyrctl.workers.tokens import load_tokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("gemma"), SPECIAL, "<bos>", "<eos>")
    return load_tokenizer(str(folder), None, base().chat_template())


def test_it_keeps_the_contract() -> None:
    check_plugin(zephyrctl_gemma)
    check_model_base(base)
    assert end_of_turn(base()) == STOP
    assert plugins.load().find("model base", "gemma-2-9b").origin.startswith("zephyrctl-gemma ")


def test_its_parameters_follow_from_its_shape() -> None:
    """16 heads of 256 are wider than the model; four norms a layer, tied embeddings, a last norm."""
    shape = base().sizes()
    attention = 2 * shape.width * (16 * 256 + shape.key_value_width)
    layer = attention + 3 * shape.width * shape.feed_forward + 4 * shape.width
    assert shape.parameters == shape.vocabulary * shape.width + shape.layers * layer + shape.width


def test_where_it_lies() -> None:
    assert (base().location(), base().revision, base().license) == ("google/gemma-2-9b", "main", "gemma")
    assert (base(folder="a/copy").location(), base(folder="a/copy").revision) == ("a/copy", None)
    assert base(revision="abc").revision == "abc"


@pytest.mark.slow
def test_a_conversation_is_rendered_as_the_family_does(tokenizer: Any) -> None:
    """Every marker is one token, and generation begins where training's answer began."""
    from zephyrctl.workers.tokens import contract, dialogues_ids, prompt_ids

    ((ids, _),) = dialogues_ids(tokenizer, [TALK], assistant_only=False)
    assert tokenizer.decode(ids) == RENDERED
    assert set(range(len(SPECIAL))) - set(ids) == {SPECIAL.index("<eos>")}
    assert ids[: len(prompt_ids(tokenizer, TALK[:-1]))] == prompt_ids(tokenizer, TALK[:-1])
    made = contract(tokenizer)
    assert (made.starts_with_bos, made.ends_with_eos) == (True, True)


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
    assert (tokenizer.eos_token, tokenizer.pad_token) == (STOP, "<eos>")
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == STOP


@pytest.mark.slow
def test_a_system_turn_is_refused_as_the_family_does(tokenizer: Any) -> None:
    """And so are turns that do not alternate."""
    from zephyrctl.workers.tokens import prompt_ids

    system = [{"role": "system", "content": "Be brief."}]
    with pytest.raises(ZephyrError, match="no system turn"):
        prompt_ids(tokenizer, system + TALK[:1])
    with pytest.raises(ZephyrError, match="take turns"):
        prompt_ids(tokenizer, TALK[:1] + TALK[:1])
