"""Say in sentences why a score cannot be compared with the published one."""

from collections.abc import Iterable, Iterator, Sequence

from zephyrctl import templates
from zephyrctl.contracts import Teacher
from zephyrctl.evaluation.assets import Protocol
from zephyrctl.evaluation.judged_rows import JudgmentRow

MOVING = "gpt-4"
"""An alias: OpenAI served gpt-4-0314 under it, then gpt-4-0613."""
IDENTICAL = "identical outputs"


def of_judge(judge: Teacher, judged: Iterable[JudgmentRow], protocol: Protocol) -> Iterator[str]:
    """Say so if the judge is not the published one, or if its model id is an alias."""
    if judge.is_rule_based:
        yield f"judged by the rules of the {judge.name!r} teacher, not by a language model"
        return
    yield from of_judges({row.judge for row in judged if row.judge and row.judge != IDENTICAL}, protocol)


def of_judges(models: Iterable[str], protocol: Protocol) -> Iterator[str]:
    """The same remarks if only the model ids of the judges are known."""
    names = sorted(models)
    others = [name for name in names if name not in protocol.judges]
    if others:
        yield f"judged by {_listed(others)}; the published scores were judged by gpt-4 of 2023"
    if MOVING in names:
        yield "the judge is the alias gpt-4, which has changed since: it is not known which model judged"


def of_template(chat_template: str) -> Iterator[str]:
    """Say so if answers were generated with another chat template than Zephyr's."""
    if chat_template != templates.read("chat/zephyr.jinja"):
        yield "the checkpoints answered with another chat template than Zephyr's"


def of_questions(count: int, protocol: Protocol) -> Iterator[str]:
    """Say so if there are fewer or more questions than published."""
    if count != protocol.questions:
        yield f"{count} of {protocol.questions} questions"


def of_limit(max_new_tokens: int, published: int) -> Iterator[str]:
    """Say so if answers have another maximum length than published."""
    if max_new_tokens != published:
        yield f"answers of at most {max_new_tokens} tokens; the published ones have at most {published}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
