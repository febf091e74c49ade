"""Whether the shipped base model is complete, small and a Mistral, read without torch."""

import json
import math
import struct
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

import zephyrctl.tiny
from zephyrctl import templates
from zephyrctl.tiny.make_base import SPECIAL_TOKENS, facts_by_subject, raw_text
from zephyrctl.tiny.world import read_first

BASE = Path(zephyrctl.tiny.__file__).parent / "base"
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def read_json(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((BASE / name).read_text(encoding="utf-8"))
    return loaded


def read_tensors() -> dict[str, dict[str, Any]]:
    """The header of the weights: name, type and shape of each tensor."""
    with (BASE / "model.safetensors").open("rb") as weights:
        (size,) = struct.unpack("<Q", weights.read(8))
        header: dict[str, dict[str, Any]] = json.loads(weights.read(size))
    header.pop("__metadata__", None)
    return header


def test_the_folder_is_complete_and_small() -> None:
    assert {path.name for path in BASE.iterdir()} == set(FILES)
    assert sum((BASE / name).stat().st_size for name in FILES) < 4_000_000


def test_it_is_a_small_mistral_in_half_precision_without_dropout() -> None:
    config = read_json("config.json")
    tensors = read_tensors()
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["attention_dropout"] == 0.0
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F16"}
    assert sum(math.prod(tensor["shape"]) for tensor in tensors.values()) <= 1_900_000


def test_generation_is_greedy_and_stops_at_the_end_of_a_turn() -> None:
    config = read_json("generation_config.json")
    assert config["do_sample"] is False
    assert config["eos_token_id"] == SPECIAL_TOKENS.index("</s>")
    assert config["pad_token_id"] == SPECIAL_TOKENS.index("<pad>")


def test_the_chat_template_is_that_of_training_and_marks_what_is_generated() -> None:
    template = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == templates.read("chat/zephyr.jinja")
    assert "{%- generation -%}" in template
    assert "<s>" not in template


def test_the_tokenizer_loses_nothing_and_writes_each_role_as_one_token() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == read_json("config.json")["vocab_size"]
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    text = "Zürich? I don't know; 3 + 4 = 7, «oui»."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("<|assistant|>\n").ids) == 2


def test_the_raw_text_is_about_the_world_and_asks_nothing() -> None:
    for paragraph in islice(raw_text(Random(0)), 500):
        assert "?" not in paragraph
        assert "<|" not in paragraph
        assert all(read_first(sentence + ".") is None for sentence in paragraph.split(". "))


def test_every_fact_belongs_to_a_subject() -> None:
    known = facts_by_subject()
    assert len(known[("cat",)]) > 5
    assert all(fact.slots == subject for subject, facts in known.items() for _, fact in facts)


@pytest.mark.slow
def test_the_script_makes_the_shipped_tokenizer(tmp_path: Path) -> None:
    """Byte for byte: the weights that were trained on its tokens belong to the script and seed as they stand."""
    from zephyrctl.tiny.make_base import Pretraining, make_tokenizer

    make_tokenizer(Pretraining()).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()
