"""Whether one method makes a teacher, and what contracts bring beside it."""

import asyncio
import json
from collections.abc import Sequence

from zephyrctl.contracts import GREEDY, ModelBase, PluginOptions, Reply, Sampling, Sizes, Teacher
from zephyrctl.records import Message


class Parrot(Teacher):
    """A teacher with the one method that must be written."""

    name = "parrot"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """What was said."""
        return Reply(messages[-1].content, "parrot-1")


def test_one_method_makes_a_teacher() -> None:
    """Everything else is asked by prompt; a reply that only repeats the prompt gives no number."""
    parrot, asked = Parrot(PluginOptions()), [Message(role="user", content="Why?")]
    assert parrot.label == "parrot"
    ratings = asyncio.run(parrot.rate(asked, ["a", "b"], "honesty"))
    assert [(mark.value, mark.rater) for mark in ratings.marks] == [(None, "parrot-1")] * 2
    assert not ratings.is_readable
    assert ratings.model == "parrot-1" and "Why?" in ratings.text
    critique = asyncio.run(parrot.critique(asked, "a"))
    assert (critique.overall, critique.model) == (None, "parrot-1")
    verdict = asyncio.run(parrot.judge(asked, "a"))
    assert (verdict.score, verdict.model) == (None, "parrot-1")
    assert asyncio.run(parrot.compare(asked, "a", "b")) is None
    assert "Why?" in asyncio.run(parrot.refine("Why?", "Because.", 1))
    assert "Why?" in asyncio.run(parrot.speak_as_user(asked, 1))
    asyncio.run(parrot.close())


class Remembering:
    """A caller that remembers what was asked through it."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.schemas: list[str | None] = []

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """A reply in the JSON form."""
        self.samples.append(sample)
        self.schemas.append(sampling.json_schema)
        return Reply(json.dumps({"answer_1": {"rating": 4.5, "rationale": "so"}}), "server-1")


def test_every_call_goes_through_the_caller_and_ratings_state_their_form() -> None:
    """Who asks the teacher directly would ask outside the ledger."""
    parrot, asked = Parrot(PluginOptions()), [Message(role="user", content="Why?")]
    caller = Remembering()
    parrot.caller = caller

    async def use() -> list[float | None]:
        ratings = await parrot.rate(asked, ["a"], "honesty", sample=3)
        await parrot.critique(asked, "a", sample=2)
        await parrot.judge(asked, "a")
        await parrot.compare(asked, "a", "b")
        await parrot.refine("Why?", "Because.", 1)
        await parrot.speak_as_user(asked, 1)
        await parrot.propose_subtopics("the sea", 3)
        await parrot.open_dialogue("the sea", "tides")
        return [mark.value for mark in ratings.marks]

    assert asyncio.run(use()) == [4.5]
    assert caller.samples == [3, 2, 0, 0, 0, 0, 0, 0]
    assert json.loads(caller.schemas[0] or "")["required"] == ["answer_1"]


def test_a_base_brings_a_template_that_marks_what_is_learned() -> None:
    """Without an override it is Zephyr's, with generation marks (trl's assistant-only loss wants them)."""

    class Base(ModelBase):
        name = "some"

        def location(self) -> str:
            return "some/base"

        def sizes(self) -> Sizes:
            return Sizes(parameters=1, width=1, layers=1, feed_forward=1, key_value_width=1, vocabulary=1)

    base = Base(PluginOptions())
    assert "generation" in base.chat_template()
    assert (base.revision, base.license) == (None, "unknown")
