"""The `offline` teacher: rules over the tiny world. It uses no language model and no network."""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import Field

from zephyrctl.contracts import GREEDY, Critique, PluginOptions, Ratings, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message, Rating
from zephyrctl.tiny import marking, styles, world
from zephyrctl.verdicts import Verdict

LEANINGS = {leaning.name: leaning for leaning in (styles.DIALOGUE_TEACHER, *styles.COMPLETERS)}


class OfflineTeacher(Teacher):
    """Rules, not a language model. It answers, refines, rates and judges; elsewhere it checks form only."""

    class Options(PluginOptions):
        """Options of `offline`."""

        leaning: Literal["dialogues", "careful", "short", "hedging", "guessing"] = Field(
            default="dialogues",
            description="whose flaws its answers have: those of the dialogue teacher, or of one completer",
        )

    name = "offline"
    is_rule_based = True

    @property
    def label(self) -> str:
        """`offline:` and the leaning."""
        return f"{self.name}:{self.options.leaning}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """An answer with the flaws of the leaning, seeded by the sampling's seed and the conversation."""
        turns = _turns(messages)
        rng = Random(f"{sampling.seed}:{self.label}:{turns}")
        text = styles.reply(turns, LEANINGS[self.options.leaning], rng)
        prompt_words = sum(len(turn["content"].split()) for turn in turns)
        return Reply(text, self.label, prompt_tokens=prompt_words, completion_tokens=len(text.split()))

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """Another instruction that follows from the answer."""
        return world.refine(instruction, answer, Random(f"{seed}:{instruction}"))

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """A follow-up that only makes sense after the first turn."""
        return world.follow_up(_turns(messages), Random(f"{seed}:{messages[0].content}"))

    async def propose_subtopics(self, topic: str, count: int, seed: int = 0) -> list[str]:
        """Kinds of instruction, whatever the topic; at most as many as there are."""
        return world.subjects(Random(f"{seed}:{topic}"))[:count]

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """An instruction of that kind."""
        return world.draw_about(subtopic, Random(f"{seed}:{topic}:{subtopic}")).prompt

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """A rating from 1 to 5 for each answer, by the faults that the rules find, with the reason."""
        if aspect not in marking.ASPECTS:
            raise ZephyrError(
                f"the offline teacher has no rules for the aspect {aspect!r}",
                f"choose feedback.aspects from {', '.join(marking.ASPECTS)}, or set another feedback.rater",
            )
        marked = [marks[aspect] for marks in marking.rate(_turns(messages), answers)]
        marks = [Rating(aspect=aspect, value=mark.rating, rationale=mark.rationale, rater=self.name) for mark in marked]
        return Ratings(marks, model=self.name)

    async def critique(self, messages: Sequence[Message], answer: str, sample: int = 0) -> Critique:
        """The faults that the rules find, and a score from 1 to 10."""
        score, reason = marking.score(_turns(messages), answer)
        return Critique(reason, float(score), model=self.name)

    async def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """A score from 1 to 10 by the same rules."""
        score, reason = marking.score(_turns(messages), answer)
        return Verdict(float(score), reason, model=self.name)

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float | None:
        """Which of two answers scores higher: 1.0 for the first, 0.0 for the second, 0.5 for a tie."""
        return marking.compare(_turns(messages), first, second)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
