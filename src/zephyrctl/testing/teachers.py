"""Check that a teacher keeps its contract."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psutil

from zephyrctl.contracts import (
    Reply,
    Sampling,
    Teacher,
)
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message, Role
from zephyrctl.testing.plugin_classes import Breach, check_class, require

SEEDS = 6
"""Seeds of which a model's replies at temperature 1 must not all be the same: a draw of two is, once in 32 times."""
AT_ONCE = 8


_TALKS: tuple[tuple[tuple[Role, str], ...], ...] = (
    (("user", "What is the capital of France?"),),
    (("system", "Be brief."), ("user", "What is the opposite of hot?")),
    (("user", "Name a colour."), ("assistant", "Blue."), ("user", "Name another one.")),
)
CONVERSATIONS = tuple(tuple(Message(role=role, content=text) for role, text in talk) for talk in _TALKS)
"""What teachers are asked: a question, one under a system prompt, and a follow-up."""
ANSWERS = ("It is Paris, the city on the Seine.", "Lyon", "I do not know, sorry.")


def check_teacher(make: Callable[[], Teacher], *, replies: bool = True, honours_seed: bool = True) -> None:
    """Check that a teacher answers, rates, criticises, judges and compares as stages expect, and leaves nothing behind.

    `replies=False` is for one that only scores: its `reply` must refuse with a ZephyrError. `honours_seed=False` is for
    one whose server knows no seed; all others must say the same again for the same seed, and one that is no rules must
    draw another reply for another seed.
    """
    teacher = make()
    check_class(type(teacher))
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
