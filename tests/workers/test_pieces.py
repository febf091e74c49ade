"""Whether an answer that is shown as it is written is the answer, piece by piece, with no character torn."""

import io
import json
from pathlib import Path

import pytest
import torch

from zephyrctl import templates
from zephyrctl.builtin.bases import TinyMistral
from zephyrctl.errors import ZephyrError
from zephyrctl.workers.generate import GenerationRequest, Generator, Pieces, Stopped, serve

pytestmark = pytest.mark.slow

SAID = "  naïve café, 東京 🙂🙂\n\n  def f(x):\n    return x  "
TEMPLATE = templates.read("chat/zephyr.jinja")
BASE = str(Path(TinyMistral(TinyMistral.Options()).location()))


@pytest.fixture(scope="module")
def generator() -> Generator:
    """The embedded base."""
    return Generator(BASE, None, TEMPLATE)


def test_no_piece_tears_a_character_and_all_make_the_text(generator: Generator) -> None:
    tokens = generator.tokenizer(SAID, add_special_tokens=False)["input_ids"]
    sent: list[str] = []
    pieces = Pieces(generator, sent.append)
    pieces.put(torch.tensor([[1, 2, 3]]))
    for token in tokens:
        pieces.put(torch.tensor([token]))
        assert generator.text(pieces.tokens).startswith("".join(sent))
    pieces.put(torch.tensor([generator.tokenizer.eos_token_id]))
    answer = generator.reply([], pieces.tokens)
    pieces.finish(answer["text"])
    assert "".join(sent) == answer["text"] == generator.text(tokens)
    assert len(sent) > 5 and not any("\ufffd" in piece for piece in sent)
    assert answer["finish_reason"] == "stop"


def test_an_answer_that_is_not_wanted_further_ends_where_it_is(generator: Generator) -> None:
    def stop_at_once(_: str) -> None:
        Pieces.is_stopped = True

    request: GenerationRequest = {"max_tokens": 50, "seed": 0}
    whole = generator.stream([{"role": "user", "content": "Hello"}], request, lambda text: None)
    assert not Pieces.is_stopped
    part = generator.stream([{"role": "user", "content": "Hello"}], request, stop_at_once)
    assert part["finish_reason"] == "stopped"
    assert whole["text"].startswith(part["text"]) and len(part["text"]) < len(whole["text"])
    pieces = Pieces(generator, lambda text: None)
    pieces.put(torch.tensor([1]))
    Pieces.is_stopped = True
    with pytest.raises(Stopped):
        pieces.put(torch.tensor([5]))


def test_an_answer_ends_where_the_models_positions_do(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = [{"role": "user", "content": "Hello"}]
    prompt = generator.stream(conversation, {"max_tokens": 1}, lambda text: None)["prompt_tokens"]
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", prompt + 2)
    answer = generator.stream(conversation, {"max_tokens": 50}, lambda text: None)
    assert (answer["completion_tokens"], answer["finish_reason"]) == (2, "length")
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", prompt)
    with pytest.raises(ZephyrError, match=f"has {prompt} tokens, and the model reads {prompt}"):
        generator.stream(conversation, {"max_tokens": 50}, lambda text: None)


def test_a_conversation_that_the_template_refuses_is_answered_with_its_problem() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEMPLATE
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    requests = [
        {"load": BASE, "revision": None, "chat_template": refusing},
        {"conversations": [talk], "max_tokens": 2},
        {"conversations": [talk[1:]], "max_tokens": 2},
    ]
    replies = io.StringIO()
    serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), replies)
    _, refused, answered = map(json.loads, replies.getvalue().splitlines())
    assert "no system turns" in refused["problem"]
    assert "system turn" in refused["remedy"]
    assert answered["answers"]


def test_a_stream_is_lines_of_text_and_then_the_reply() -> None:
    hello = [{"role": "user", "content": "Hello"}]
    requests = [
        {"load": BASE, "revision": None, "chat_template": TEMPLATE},
        {"conversations": [hello], "max_tokens": 8, "stream": True},
        {"conversations": [hello], "max_tokens": 8},
        {"conversations": [hello, hello], "max_tokens": 8, "stream": True},
    ]
    replies = io.StringIO()
    serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), replies)
    said = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert "token_contract" in said[0]
    deltas = [line["delta"] for line in said if "delta" in line]
    first, second = (line["answers"] for line in said if "answers" in line)
    assert "".join(deltas) == first[0]["text"] and first == second
    assert "problem" in said[-1]
