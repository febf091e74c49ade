"""Checks for authors of plugins: whether a teacher, a binarizer or a model base keeps its contract.

A check takes a function that returns a new instance, and raises `Breach`, an AssertionError that says what is wrong. It
runs under any test framework and imports none::

    def test_it_keeps_the_contract() -> None:
        check_binarizer(lambda: Shortest(Shortest.Options()))
"""

import asyncio
import json
import os
import random
import re
from abc import ABC
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

import jinja2
import psutil
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel

from zephyrctl import plugins
from zephyrctl.contracts import (
    Answer,
    Answers,
    Binarizer,
    LazyPrompt,
    ModelBase,
    NoPair,
    Picked,
    Reply,
    Sampling,
    Teacher,
)
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Completion, Message, RatedPrompt, Rating, Role
from zephyrctl.training.losses import ExpectedInitialLoss, LossSettings, PairLogProbs, PreferenceLoss, StartLogProbs

Ties = Literal["random", "first", "drop"]
CASES = 120
"""Rated prompts that a binarizer is shown; one in four has a tie for the best, one in eight is tied throughout."""
SEEDS = 6
"""Seeds of which a model's replies at temperature 1 must not all be the same: a draw of two is, once in 32 times."""
AT_ONCE = 8
LOSS_BATCHES = 5
LOSS_SETTINGS = LossSettings(beta=0.5, label_smoothing=0.1)


class Breach(AssertionError):
    """A class breaks its contract."""


def require(claim: bool, otherwise: str) -> None:
    """Raise Breach with this message if a claim is false."""
    if not claim:
        raise Breach(otherwise)


def check_plugin(module: Any) -> None:
    """Check what a plugin's hooks return: classes with a name, a docstring, and a description of every option."""
    try:
        offers = list(plugins.offers_of(module, "the plugin"))
    except TypeError as error:
        raise Breach(str(error)) from None
    require(bool(offers), "its hooks return no class")
    for offer in offers:
        _check_class(offer.offered)


def _check_class(offered: type[Any]) -> None:
    name = getattr(offered, "name", None)
    require(isinstance(name, str), f"{offered.__name__} has no name")
    require(
        bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", str(name))), f"the name {name!r} is not in small-letters-and-dashes"
    )
    require(
        bool((offered.__dict__.get("__doc__") or "").strip()), f"{offered.__name__} has no docstring to be listed with"
    )
    contract = next(kind.contract for kind in plugins.KINDS.values() if issubclass(offered, kind.contract))
    own = {member for member in vars(contract) if member[:2] != "__"}
    written = {member for kind in _below(offered, contract) for member in vars(kind)}
    taken = [member for member in sorted(own & written) if member.startswith("_") and member != "_abc_impl"]
    require(not taken, f"{', '.join(taken)}: the contract uses that name itself, so give yours another")
    options: type[BaseModel] = offered.Options
    silent = [option for option, field in options.model_fields.items() if not field.description]
    require(not silent, f"options of {name!r} without a description: {', '.join(silent)}")


def _below(offered: type, contract: type) -> list[type]:
    """The classes that an offered one is made of, without its contract."""
    return [parent for parent in offered.__mro__ if parent not in (contract, ABC, object)]


# Binarizers


def rated(*answers: tuple[str, float | None], ties: Ties = "random", asked: str = "Why?") -> Answers:
    """The answers to a prompt as a strategy sees them: texts with their scores, 1 to 5; None is not scored."""
    completions = [
        Completion(model=f"model-{place}", text=text, ratings=[Rating(aspect="helpfulness", value=score)])
        for place, (text, score) in enumerate(answers)
    ]
    messages = [Message(role="user", content=asked)]
    prompt = RatedPrompt(id=f"id of {asked}", messages=messages, completions=completions, source="conformance")
    lazy_prompt = LazyPrompt(lambda: prompt)
    scored = [Answer(place, score, lazy_prompt) for place, (_, score) in enumerate(answers) if score is not None]
    best = [answer for answer in scored if answer.score == max(one.score for one in scored)]
    if len(best) > 1:
        best = {"random": best, "first": best[:1], "drop": []}[ties]
    return Answers(lazy_prompt, scored, best)


def check_binarizer(make: Callable[[], Binarizer], *, pairs_ties: bool = False) -> None:
    """Whether a strategy pairs scored answers of one prompt, the better one chosen, by the prompt's seed alone.

    `pairs_ties` allows pairs of equal scores, as the published set has.
    """
    strategy = make()
    _check_class(type(strategy))
    cases = list(_cases())
    picked = {number: _picked(strategy, case, number, pairs_ties) for number, case in enumerate(cases)}
    require(any(picked.values()), f"it makes no pair of any of {len(cases)} prompts with scores from 1 to 5")
    for number in reversed(picked):  # another instance, another order, another state of the process
        with _other_chance(number):
            again = _picked(make(), cases[number], number, pairs_ties)
        require(
            again == picked[number],
            f"it is not deterministic: with the same seed the pairs {picked[number]} became {again}; draw from rng "
            "alone, and keep nothing from one prompt to the next",
        )


def _cases() -> Iterator[Answers]:
    """Prompts of two to five answers: short, long, equal and empty texts, ties, and answers without a score."""
    draw = Random(0)
    for number in range(CASES):
        texts = [
            draw.choice(["", "Yes.", "naïve 東京 🙂 ", "word "]) * draw.randint(1, 30)
            for _ in range(draw.randint(2, 5))
        ]
        scores: list[float | None] = [draw.randint(2, 10) / 2 for _ in texts]
        if number % 4 == 0:
            scores[0] = scores[-1] = 5.0
        if number % 8 == 1:
            scores = [3.0] * len(texts)
        if number % 5 == 0 and len(scores) > 2:
            scores[1] = None
        yield rated(*zip(texts, scores, strict=True), ties=get_args(Ties)[number % 3], asked=f"Question {number}?")


@contextmanager
def _other_chance(seed: int) -> Iterator[None]:
    """The process's own generator in another state, which no plugin may draw from."""
    state = random.getstate()
    random.seed(f"other {seed}")
    try:
        yield
    finally:
        random.setstate(state)


def _picked(strategy: Binarizer, case: Answers, number: int, pairs_ties: bool) -> list[tuple[int, int]]:
    """The places that a strategy pairs. Raises Breach where they are no pairs, or where it changed what it got."""
    before = list(case.scored), list(case.best), case.prompt.model_dump()
    result = strategy.pick(case, Random(f"seed:{number}"))
    after = list(case.scored), list(case.best), case.prompt.model_dump()
    require(before == after, "it changes the answers that it is given: sort and filter copies")
    if result is None or isinstance(result, NoPair):
        cause = getattr(result, "cause", "no cause")
        require(isinstance(cause, str) and bool(cause.strip()), "a NoPair has no cause to be counted under")
        return []
    pairs = [result] if isinstance(result, Picked) else list(result)
    require(bool(pairs), "it returns an empty sequence: return a NoPair that says why")
    for pair in pairs:
        _check_pair(pair, case, pairs_ties)
    places = [(pair.chosen.place, pair.rejected.place) for pair in pairs]
    require(len(set(places)) == len(places), "it returns the same pair twice")
    return places


def _check_pair(pair: Any, case: Answers, pairs_ties: bool) -> None:
    require(isinstance(pair, Picked), f"it returns {pair!r} where a Picked is wanted")
    for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        known = isinstance(answer, Answer) and any(answer is one or answer == one for one in case.scored)
        require(known, f"the {side} answer is none of the scored answers of the prompt")
    chosen, rejected = pair.chosen, pair.rejected
    require(chosen.place != rejected.place, "an answer is paired with itself")
    is_above = chosen.score > rejected.score or (pairs_ties and chosen.score == rejected.score)
    require(is_above, f"the chosen answer, scored {chosen.score:g}, is not above the rejected one, {rejected.score:g}")


# Model bases

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
    """Whether a base says where it lies and how large it is, and has a template by which a model learns to answer.

    The parameters must be about what a decoder of that shape has, within the ways of tying embeddings and of sizing
    heads; `is_dense=False` spares a mixture of experts that check.
    """
    base = make()
    _check_class(type(base))
    for name, value in {"location": base.location(), "license": base.license}.items():
        require(isinstance(value, str) and bool(value.strip()), f"its {name} is no text")
    require(base.location() == make().location(), "it lies in another place each time")
    require(base.revision is None or isinstance(base.revision, str), "its revision is neither text nor None")
    require(isinstance(base.trusts_code, bool), "trusts_code is not True or False")
    _check_sizes(base, is_dense)
    require(base.chat_template() == make().chat_template(), "it has another chat template each time")
    end_of_turn(base)
    _check_template(base.chat_template())


def check_loss(make: Callable[[], PreferenceLoss], settings: LossSettings = LOSS_SETTINGS) -> None:
    """Whether a preference loss computes one value per pair, and truly says what it is at the start."""
    import torch

    loss = make()
    loss.check(settings)
    for seed in range(LOSS_BATCHES):
        start, pairs = _pairs_at_the_start(seed, loss.needs_reference)
        values = loss.loss(pairs, settings)
        require(
            values.shape == pairs.chosen.shape, f"its losses have the shape {tuple(values.shape)}, not one per pair"
        )
        require(bool(values.isfinite().all()), "a loss is not finite")
        expected = loss.initial_value(settings, None if loss.needs_reference else start)
        require(
            abs(values.mean().item() - expected.loss) <= 1e-6 * max(1, abs(expected.loss)),
            f"its loss at the start is {values.mean().item():.6f}, and initial_value says {expected.loss:.6f}",
        )
        _check_steepness(loss, settings, pairs, expected)
        apart, swapped = (min(_losses_at_margins(loss, settings, pairs, sign)) for sign in (1, -1))
        require(apart < swapped, "its lowest values are where rejected answers are more likely than chosen ones")
        if not loss.mixes_pairs:
            order = torch.arange(len(values)).flip(0)
            turned = replace(pairs, **{name: side[order] for name, side in vars(pairs).items() if side is not None})
            is_same = torch.allclose(loss.loss(turned, settings), values[order])
            require(is_same, "a loss depends on the other pairs: say `mixes_pairs = True`")


def _pairs_at_the_start(seed: int, has_reference: bool) -> tuple[StartLogProbs, PairLogProbs]:
    """Six pairs of which policy and reference are the same model."""
    import torch

    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2, 6), generator=random)
    sums = -3 * torch.rand(2, 6, generator=random, dtype=torch.float64) * lengths
    chosen, rejected = (side.clone().requires_grad_() for side in sums)
    reference = [side.clone() if has_reference else None for side in sums]
    start = StartLogProbs(sums[0].tolist(), sums[1].tolist(), lengths[0].tolist(), lengths[1].tolist())
    return start, PairLogProbs(chosen, rejected, lengths[0], lengths[1], *reference)


def _losses_at_margins(loss: PreferenceLoss, settings: LossSettings, pairs: PairLogProbs, sign: int) -> Iterator[float]:
    """Mean losses at margins of one sign, from small ones to those at which most losses are nearly flat.

    Small ones alone would not do: DiscoPOP falls with the margin only after a small hill at 0.
    """
    for size in (0.1, 1, 10, 100):
        change = sign * size / settings.beta
        moved = replace(pairs, chosen=pairs.chosen + change, rejected=pairs.rejected - change)
        yield loss.loss(moved, settings).mean().item()


def _check_steepness(
    loss: PreferenceLoss, settings: LossSettings, pairs: PairLogProbs, expected: ExpectedInitialLoss
) -> None:
    """An error of e in both sums of every pair moves the loss by at most steepness x beta / 2 x 2e."""
    error = 1e-4
    for sign in (error, -error):
        moved = loss.loss(replace(pairs, chosen=pairs.chosen + sign, rejected=pairs.rejected - sign), settings)
        change = abs(moved.mean().item() - expected.loss)
        bound = max(1, expected.steepness) * settings.beta * error
        require(
            change <= 1.01 * bound, f"it is steeper than it says: {change:.2g} for an error that allows {bound:.2g}"
        )


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


# Teachers

_TALKS: tuple[tuple[tuple[Role, str], ...], ...] = (
    (("user", "What is the capital of France?"),),
    (("system", "Be brief."), ("user", "What is the opposite of hot?")),
    (("user", "Name a colour."), ("assistant", "Blue."), ("user", "Name another one.")),
)
CONVERSATIONS = tuple(tuple(Message(role=role, content=text) for role, text in talk) for talk in _TALKS)
"""What teachers are asked: a question, one under a system prompt, and a follow-up."""
ANSWERS = ("It is Paris, the city on the Seine.", "Lyon", "I do not know, sorry.")


def check_teacher(make: Callable[[], Teacher], *, replies: bool = True, honours_seed: bool = True) -> None:
    """Whether a teacher answers, rates, criticises, judges and compares as stages expect, and leaves nothing behind.

    `replies=False` is for one that only scores: its `reply` must refuse with a ZephyrError. `honours_seed=False` is for
    one whose server knows no seed; all others must say the same again for the same seed, and one that is no rules must
    draw another reply for another seed.
    """
    teacher = make()
    _check_class(type(teacher))
    _check_identity(teacher, make())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    asyncio.run(_check_at_work(teacher, replies, honours_seed))
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in children]
    require(not left, f"close leaves processes behind: {', '.join(child.name() for child in left)}")


def _check_identity(teacher: Teacher, other: Teacher) -> None:
    require(bool(teacher.label.strip()), "its label is empty")
    try:
        told = json.dumps(teacher.identity, sort_keys=True)
    except TypeError as error:
        raise Breach(f"its identity is not plain JSON: {error}") from None
    require(told == json.dumps(other.identity, sort_keys=True), "two with the same options have another identity")
    variables = [value for name, value in teacher.options if name.endswith("_variable")]
    keys = [key for name in variables if (key := os.environ.get(str(name), ""))]
    require(not any(key in f"{told}{teacher.label}{teacher!r}" for key in keys), "its identity or label holds its key")


async def _check_at_work(teacher: Teacher, replies: bool, honours_seed: bool) -> None:
    before = asyncio.all_tasks()
    try:
        require(teacher.rest_seconds >= 0, "rest_seconds is below 0")
        if replies:
            await _check_replies(teacher)
            await _check_draws(teacher, honours_seed)
        else:
            await _check_refusal(teacher)
        await _check_marks(teacher)
    finally:
        await teacher.close()
    for _ in range(3):  # what was just ended needs a turn of the loop
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    require(not left, f"close leaves tasks behind: {', '.join(task.get_name() for task in left)}")


async def _check_replies(teacher: Teacher) -> None:
    for conversation in CONVERSATIONS:
        await _reply(teacher, conversation, Sampling(max_tokens=24))
    schema = json.dumps({"type": "object", "properties": {"answer": {"type": "string"}}})
    await _reply(teacher, CONVERSATIONS[0], Sampling(max_tokens=24, json_schema=schema))
    reply = await _reply(teacher, CONVERSATIONS[0], Sampling(max_tokens=2))
    is_short = reply.completion_tokens <= 2 or teacher.is_rule_based
    require(is_short, f"max_tokens is 2, and a reply has {reply.completion_tokens} tokens")
    many = [CONVERSATIONS[place % len(CONVERSATIONS)] for place in range(AT_ONCE)]
    await asyncio.gather(*(_reply(teacher, conversation, Sampling(max_tokens=8)) for conversation in many))


async def _reply(teacher: Teacher, conversation: Sequence[Message], sampling: Sampling) -> Reply:
    """One reply. Raises Breach where it is none, or where the conversation was changed."""
    shown = list(conversation)
    reply = await teacher.reply(shown, sampling)
    require(tuple(shown) == tuple(conversation), "reply changes the messages that it is given")
    require(isinstance(reply, Reply), f"reply returns {reply!r} and no Reply")
    require(isinstance(reply.text, str) and bool(reply.text.strip()), "a reply is empty: raise CallFailed instead")
    require(isinstance(reply.model, str) and bool(reply.model.strip()), "a reply does not say which model answered")
    require(isinstance(reply.finish_reason, str) and bool(reply.finish_reason), "a reply does not say why it ended")
    for count in (reply.prompt_tokens, reply.completion_tokens):
        require(isinstance(count, int) and count >= 0, f"{count!r} is no number of tokens")
    return reply


async def _check_draws(teacher: Teacher, honours_seed: bool) -> None:
    if not honours_seed:
        return
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, seed=1, max_tokens=24)
        once, again = [await _reply(teacher, CONVERSATIONS[0], sampling) for _ in range(2)]
        require(once.text == again.text, f"temperature {temperature:g}: the same seed gives another reply")
    if not teacher.is_rule_based:
        drawn = [Sampling(temperature=1.0, seed=seed, max_tokens=24) for seed in range(SEEDS)]
        texts = {(await _reply(teacher, CONVERSATIONS[0], sampling)).text for sampling in drawn}
        require(len(texts) > 1, f"the seed is ignored: {SEEDS} seeds give one reply at temperature 1")


async def _check_refusal(teacher: Teacher) -> None:
    try:
        await teacher.reply(list(CONVERSATIONS[0]), Sampling())
    except ZephyrError as error:
        require(bool(error.problem and error.remedy), "reply refuses without a remedy")
    else:
        raise Breach("it does not reply, and its reply raises no ZephyrError")


async def _check_marks(teacher: Teacher) -> None:
    """Every way to score returns the contract's records, and a mark stays with its answer in any order."""
    asked = CONVERSATIONS[0]
    marks = await _marks(teacher, ANSWERS)
    turned = await _marks(teacher, ANSWERS[::-1])
    if type(teacher).rate is not Teacher.rate:
        require(marks == turned[::-1], "in another order an answer gets another mark")
    critique = await _scored(teacher.critique(asked, ANSWERS[0]), "a critique")
    require(isinstance(critique.text, str), "a critique has no text")
    _check_score(critique.overall)
    _check_score((await _scored(teacher.judge(asked, ANSWERS[0]), "a verdict")).score)
    better = await teacher.compare(asked, ANSWERS[0], ANSWERS[1])
    require(better is None or better in (0.0, 0.5, 1.0), f"a comparison is {better!r} and not 1, 0, 0.5 or None")


async def _scored(call: Awaitable[Any], what: str) -> Any:
    made = await call
    require(isinstance(getattr(made, "model", None), str), f"{what} is {made!r}, which does not say who scored")
    return made


async def _marks(teacher: Teacher, answers: Sequence[str]) -> list[float | None]:
    shown = list(answers)
    ratings = await teacher.rate(list(CONVERSATIONS[0]), shown, "helpfulness")
    require(shown == list(answers), "rate changes the answers that it is given")
    require(len(ratings.marks) == len(shown), f"{len(ratings.marks)} marks for {len(shown)} answers")
    require(
        all(mark.aspect == "helpfulness" for mark in ratings.marks), "a mark is for another aspect than was asked for"
    )
    return [mark.value for mark in ratings.marks]


def _check_score(score: float | None) -> None:
    require(score is None or 1 <= score <= 10, f"a score is {score!r} and not from 1 to 10")
