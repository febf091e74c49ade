"""Why a score cannot be compared with the published one, in sentences."""

from collections.abc import Iterable, Iterator, Sequence

from zephyrctl import templates
from zephyrctl.contracts import Teacher
from zephyrctl.evaluation.assets import Protocol
from zephyrctl.evaluation.judged_rows import JudgmentRow

MOVING = "gpt-4"
IDENTICAL = "identical outputs"


def of_judge(judge: Teacher, judged: Iterable[JudgmentRow], protocol: Protocol) -> Iterator[str]:
    """A judge that is not the published one, or whose model id is not specific."""
    if judge.is_rule_based:
        yield f"judged by the rules of the {judge.name!r} teacher, not by a language model"
        return
    yield from of_judges({row.judge for row in judged if row.judge and row.judge != IDENTICAL}, protocol)


def of_judges(models: Iterable[str], protocol: Protocol) -> Iterator[str]:
    """The same if only the model ids of the judges are known."""
    found = sorted(models)
    others = [model for model in found if model not in protocol.judges]
    if others:
        yield f"judged by {_listed(others)}, and the published scores by gpt-4 of 2023"
    if MOVING in found:
        yield "the judge's id is the alias gpt-4, which has moved since: it is not known which model it was"


def of_template(chat_template: str) -> Iterator[str]:
    """Answers that were generated in another chat template than Zephyr's."""
    if chat_template != templates.read("chat/zephyr.jinja"):
        yield "the checkpoints answered in another chat template than Zephyr's"


def of_questions(asked: int, protocol: Protocol) -> Iterator[str]:
    """Fewer or more questions than published."""
    if asked != protocol.questions:
        yield f"{asked} of {protocol.questions} questions"


def of_limit(max_new_tokens: int, published: int) -> Iterator[str]:
    """Another limit on the length of answers."""
    if max_new_tokens != published:
        yield f"answers of at most {max_new_tokens} tokens, and {published} when it was published"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
