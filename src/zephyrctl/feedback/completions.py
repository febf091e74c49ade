"""Choose which teachers answer a prompt and under which principle, and ask them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

from zephyrctl import templates
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.data.conversations import seed_of
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Feedback
from zephyrctl.records import Completion, Message, RatedPrompt

Principles = Mapping[str, Sequence[str]]
"""Name of a principle -> its system prompts."""
SHIPPED = "shipped"


@dataclass(frozen=True)
class AnswerSlot:
    """One answer to ask for: its teacher, that teacher's number in the pool, and the system prompt, if any."""

    number: int
    teacher: Teacher
    principle: str = ""
    system: str = ""


def choose_slots(
    prompt: RatedPrompt, pool: Sequence[Teacher], principles: Principles, answers: int, seed: int
) -> list[AnswerSlot]:
    """Who answers a prompt: the whole pool in its order, or `answers` of it, drawn by the prompt's id.

    Seeds and principles depend on the prompt's id and the teacher's number in the pool: if teachers are added at the
    end of the pool, the answers of the others are kept.
    """
    numbers: Sequence[int] = range(len(pool))
    if len(pool) > answers:
        numbers = Random(f"{seed}:{prompt.id}:completers").sample(numbers, answers)
    return [AnswerSlot(number, pool[number], *_draw(principles, prompt.id, number, seed)) for number in numbers]


def _draw(principles: Principles, prompt_id: str, number: int, seed: int) -> tuple[str, str]:
    """A principle's name and one of its system prompts; both empty if there are no principles."""
    if not principles:
        return "", ""
    rng = Random(f"{seed}:{prompt_id}:{number}:principle")
    name = rng.choice(list(principles))
    return name, rng.choice(principles[name])


async def complete(prompt: RatedPrompt, slot: AnswerSlot, feedback: Feedback, seed: int) -> Completion:
    """One answer to a prompt. Raises CallFailed if the call fails for good."""
    sampling = Sampling(
        temperature=feedback.temperature,
        max_tokens=feedback.max_tokens,
        seed=seed_of(seed, f"{prompt.id}:{slot.number}"),
    )
    reply = await slot.teacher.ask(add_system_prompt(slot.system, prompt.messages), sampling)
    return Completion(model=reply.model, text=reply.text, principle=slot.principle, finish_reason=reply.finish_reason)


def add_system_prompt(system: str, messages: Sequence[Message]) -> list[Message]:
    """A conversation with a system prompt; one that it has already follows ours in the same turn."""
    if not system:
        return list(messages)
    if messages and messages[0].role == "system":
        return [Message(role="system", content=f"{system}\n\n{messages[0].content}"), *messages[1:]]
    return [Message(role="system", content=system), *messages]


def load_principles(feedback: Feedback) -> Principles:
    """The principles that a recipe names; empty if it names none.

    Raises ZephyrError if the file is missing or is not a mapping of names to system prompts.
    """
    if not feedback.principles:
        return {}
    is_shipped = feedback.principles == SHIPPED
    path = templates.path("principles.yaml") if is_shipped else Path(feedback.principles)
    if not path.is_file():
        raise ZephyrError(f"there is no file {path}", "feedback.principles: give a YAML file, or 'shipped'")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZephyrError(f"{path} is not YAML: {_first_line(error)}", "fix it") from None
    if not isinstance(content, dict) or not content:
        raise ZephyrError(
            f"{path} contains no principles", "write a mapping: name of the principle, list of system prompts"
        )
    return {str(name): _system_prompts(path, name, texts) for name, texts in content.items()}


def _system_prompts(path: Path, name: object, texts: object) -> list[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, list) or not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise ZephyrError(f"{path}: the principle {name!r} has no texts", "give it a system prompt, or a list of them")
    return listed


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
