"""Check that a model base keeps its contract, above all its chat template."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zephyrctl.contracts import (
    ModelBase,
)
from zephyrctl.records import Role
from zephyrctl.testing.plugin_classes import Breach, check_class, require

_SYSTEM, _ASKED, _ANSWERED, _AGAIN, _LAST = (
    "Be brief, SYSTEM.",
    "Where is naïve FIRST?",
    "It is\n\n    SECOND.",
    "And where THIRD?",
    "There FOURTH.",
)
_OPEN, _SHUT = "\ue000", "\ue001"
"""What stands for the two ends of a generation mark; no text holds these characters."""


class _Generation(Extension):
    """`{% generation %}` as transformers knows it, with its ends made visible."""

    tags: set[str] = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The block with a sign on either side."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_SHUT}"


def check_model_base(make: Callable[[], ModelBase], *, is_dense: bool = True) -> None:
    """Check a base's location and size, and that a model can learn to answer from its chat template.

    The parameters must be about what a decoder of that shape has, within the ways of tying embeddings and of sizing
    heads; `is_dense=False` skips that check for a mixture of experts.
    """
    base = make()
    check_class(type(base))
    for name, value in {"location": base.location(), "license": base.license}.items():
        require(isinstance(value, str) and bool(value.strip()), f"its {name} is no text")
    require(base.location() == make().location(), "it lies in another place each time")
    require(base.revision is None or isinstance(base.revision, str), "its revision is neither text nor None")
    require(isinstance(base.trusts_code, bool), "trusts_code is not True or False")
    _check_sizes(base, is_dense)
    require(base.chat_template() == make().chat_template(), "it has another chat template each time")
    end_of_turn(base)
    _check_template(base.chat_template())


def _check_sizes(base: ModelBase, is_dense: bool) -> None:
    shape = base.sizes()
    require(shape == base.sizes(), "it has other sizes each time")
    embeddings, width, grouped = shape.vocabulary * shape.width, shape.width, shape.key_value_width
    require(grouped <= 2 * width, f"keys and values of {grouped} are wider than twice the model's {width}")
    least = embeddings + shape.layers * (width * (width + 2 * grouped) + 2 * width * shape.feed_forward)
    most = 2 * embeddings + shape.layers * (width * (4 * width + 2 * grouped) + 3 * width * shape.feed_forward)
    is_possible = 0.98 * least <= shape.parameters <= 1.02 * most
    require(
        is_possible or not is_dense,
        f"a decoder of this shape has {least / 1e6:,.0f} to {most / 1e6:,.0f} million parameters, and it states "
        f"{shape.parameters / 1e6:,.0f} million",
    )


def end_of_turn(base: ModelBase) -> str:
    """What the base's chat template ends an answer with, and thus what a model learns to stop by."""
    learnt = _learnt(_render(base.chat_template(), _turns(_ASKED, _ANSWERED)))
    require(len(learnt) == 1, "the chat template does not mark each answer by {% generation %}, once")
    require(learnt[0].startswith(_ANSWERED), "the generation marks do not begin where the answer begins")
    end = learnt[0].removeprefix(_ANSWERED)
    require(
        bool(end.strip()), "no token ends the answer within the generation marks: a model would never learn to stop"
    )
    return end.strip()


def _check_template(template: str) -> None:
    """What generation sees is the start of what training saw, and nobody but the assistant carries loss."""
    turns = _turns(_ASKED, _ANSWERED, _AGAIN, _LAST)
    whole = _render(template, turns)
    learnt = _learnt(whole)
    require(len(learnt) == 2, f"of two answers {len(learnt)} are marked by {{% generation %}}")
    require(_ANSWERED in learnt[0] and _LAST in learnt[1], "the generation marks do not hold what the assistant says")
    others = [text for text in (_ASKED, _AGAIN) if any(text in part for part in learnt)]
    require(not others, "the generation marks hold what the user says")
    for text in (_ASKED, _AGAIN):
        require(_plain(whole).count(text) == 1, "a user's turn is not rendered once")
    for end in (1, 3):
        asked = _plain(_render(template, turns[:end], add_generation_prompt=True))
        require(
            _plain(whole).startswith(asked + turns[end]["content"]),
            "an answer is generated after another text than it was trained after: see add_generation_prompt",
        )
    _check_system(template)


def _check_system(template: str) -> None:
    """A system turn is rendered without loss or refused; quietly left out it would be trained without."""
    try:
        whole = _render(template, [{"role": "system", "content": _SYSTEM}, *_turns(_ASKED, _ANSWERED)])
    except jinja2.TemplateError:
        return
    require(_SYSTEM in _plain(whole), "a system turn is left out: render it, or refuse it by raise_exception")
    require(not any(_SYSTEM in part for part in _learnt(whole)), "the generation marks hold the system turn")


def _turns(*texts: str) -> list[dict[str, str]]:
    roles: tuple[Role, Role] = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def _render(template: str, turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
    """A conversation as transformers renders it; what the time of day or a missing value would change is a Breach."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        parsed = environment.from_string(template)
        return parsed.render(
            messages=list(turns), add_generation_prompt=add_generation_prompt, bos_token="<BOS>", eos_token="<EOS>"
        )
    except jinja2.UndefinedError as error:
        raise Breach(f"the chat template needs what it is not given: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise Breach(f"the chat template is no template: {error}") from None


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


def _learnt(rendered: str) -> list[str]:
    return re.findall(f"{_OPEN}(.*?){_SHUT}", rendered, re.DOTALL)


def _plain(rendered: str) -> str:
    return rendered.replace(_OPEN, "").replace(_SHUT, "")


def write_tokenizer(folder: Path, special: Sequence[str], bos: str | None, eos: str) -> Path:
    """A small tokenizer to try a template with: a token for every byte and each special text; the folder again."""
    vocabulary = {text: place for place, text in enumerate([*special, *_byte_letters()])}
    added = [
        {"id": place, "content": text, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for place, text in enumerate(special)
    ]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": None}
    whole = {"version": "1.0", "added_tokens": added, "pre_tokenizer": bytewise, "decoder": bytewise, "model": model}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(named | ({"bos_token": bos} if bos else {})))
    return folder


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return [*map(chr, printed), *(chr(256 + place) for place in range(len(hidden)))]
