"""The row forms that the field publishes, read into our records.

Dialogues: `messages`, UltraChat's `data`, ShareGPT's `conversations`, Alpaca's instruction/input/output. Rated prompts:
UltraFeedback's nested form. Pairs: the binarized form, and conversations with a chosen and a rejected turn.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from zephyrctl.errors import BadRow
from zephyrctl.records import (
    ASPECTS,
    Completion,
    Dialogue,
    Message,
    PreferencePair,
    Prompt,
    RatedPrompt,
    Rating,
    Role,
    first_user_turn,
    prompt_id,
)
from zephyrctl.rows.files import Raw, Read, opened

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
Made = TypeVar("Made")
_MESSAGES = TypeAdapter(list[Message])
NOT_TURNS = "turns that are not role and text"
FORMS = "`messages`, UltraChat's `data`, ShareGPT's `conversations`, or instruction/input/output"


def each(
    rows: Iterable[tuple[str, Read]], read: Callable[[Raw, str], Made], skip_bad_rows: bool, lose: Callable[[str], None]
) -> Iterator[Made]:
    """Read every (where, row); one that cannot be used stops with its place, or is counted where such are skipped."""
    for where, row in rows:
        try:
            made = read(opened(row), where)
        except BadRow as error:
            if not skip_bad_rows:
                raise
            lose(error.cause)
        else:
            yield made


def dialogue(row: Raw, where: str, source: str) -> Dialogue:
    """A dialogue from any of the forms. Raises BadRow where roles are out of order or an answer is missing."""
    messages = _as_messages(*dialogue_turns(row, where))
    return Dialogue(id=prompt_id(first_user_turn(messages)), messages=messages, source=source)


def dialogue_turns(row: Raw, where: str) -> tuple[list[Role], list[str]]:
    """The roles and the texts of a dialogue, without a record for either: of millions, those take most of the time.

    They are an optional system turn, then user and assistant in turn, none of them empty, the last the assistant's.
    Raises BadRow for anything else.
    """
    roles, texts = _turns(row, where)
    _check_turns(roles, texts, where)
    if roles[-1] != "assistant":
        raise BadRow(where, "no answer to the last user turn")
    return roles, texts


def _check_turns(roles: Sequence[Role], texts: Sequence[str], where: str) -> None:
    if "system" in roles[1:]:
        raise BadRow(where, "a system turn after the first")
    first = int(roles[:1] == ["system"])
    if not roles[first:]:
        raise BadRow(where, "no turns")
    if set(roles[first::2]) != {"user"} or not {"assistant"}.issuperset(roles[first + 1 :: 2]):
        raise BadRow(where, "roles out of order")
    for role, text in zip(roles[first:], texts[first:], strict=True):
        if not text or text.isspace():
            raise BadRow(where, f"an empty {role} turn")


def prompt(row: Raw, where: str, source: str) -> Prompt:
    """A prompt: `prompt` or `instruction`, or the dialogue's turns up to its last user turn."""
    text = row.get("prompt", row.get("instruction"))
    if isinstance(text, str) and "messages" not in row:
        if not text.strip():
            raise BadRow(where, "an empty prompt")
        said = text + (f"\n\n{row['input']}" if row.get("input") else "")
        return prompt_of(_messages({"messages": [{"role": "user", "content": said}]}, where), source)
    roles, texts = _turns(row, where)
    asked = prompt_of(_as_messages(roles, texts), source)
    length = len(asked.messages)
    _check_turns(roles[:length], texts[:length], where)
    return asked


def prompt_of(messages: Sequence[Message], source: str) -> Prompt:
    """The conversation up to and with its last user turn."""
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=-1)
    asked = list(messages[: last + 1])
    return Prompt(id=prompt_id(first_user_turn(asked)), messages=asked, source=source)


def is_rated_form(row: Raw) -> bool:
    """True for rows that bring their answers: UltraFeedback's form."""
    return "instruction" in row and isinstance(row.get("completions"), list)


def rated_prompt(row: Raw, where: str) -> RatedPrompt:
    """A rated prompt from UltraFeedback's nested form; an aspect is an object or a one-element list."""
    if not is_rated_form(row):
        raise BadRow(where, "neither `instruction` nor `completions` in UltraFeedback's form")
    text = row["instruction"]
    if not isinstance(text, str) or not text.strip():
        raise BadRow(where, "an empty instruction")
    messages = _messages({"messages": [{"role": "user", "content": text}]}, where)
    return RatedPrompt(
        id=prompt_id(text),
        messages=messages,
        completions=[_completion(entry, where) for entry in row["completions"]],
        source=str(row.get("source") or "ultrafeedback"),
    )


def preference_pair(row: Raw, where: str) -> PreferencePair:
    """A pair from the binarized form (text or messages), or from `conversations` with two ends."""
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(where, "no `chosen` and `rejected`")
    messages = _pair_prompt(row, where)
    if not messages or messages[-1].role != "user":
        raise BadRow(where, "the prompt does not end on the user")
    try:
        return PreferencePair(
            id=prompt_id(first_user_turn(messages)),
            messages=messages,
            chosen=_last_text(row["chosen"], where),
            rejected=_last_text(row["rejected"], where),
            score_chosen=_score(row, "score_chosen"),
            score_rejected=_score(row, "score_rejected"),
        )
    except ValidationError:
        raise BadRow(where, "a pair that is not made of text") from None


def rating_value(raw: Any) -> float | None:
    """A published rating as a number from 1 to 5; "N/A", nonsense and what is out of range are missing."""
    value = _number(raw)
    return value if value is not None and 1 <= value <= 5 else None


def _messages(row: Raw, where: str) -> list[Message]:
    return _as_messages(*_turns(row, where))


def _as_messages(roles: Sequence[Role], texts: Sequence[str]) -> list[Message]:
    return _MESSAGES.validate_python([{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)])


def _turns(row: Raw, where: str) -> tuple[list[Role], list[str]]:
    """The roles and the texts of a row in any form."""
    try:
        turns = list(_said(row, where))
        roles = [_role(role, where) for role, _ in turns]
    except (KeyError, TypeError, AttributeError):
        raise BadRow(where, NOT_TURNS) from None
    texts = [text for _, text in turns]
    if not all(map(_is_text, texts)):
        raise BadRow(where, NOT_TURNS)
    return roles, texts


def _is_text(value: Any) -> bool:
    """True for text without half characters (lone surrogates), which no file can hold."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _said(row: Raw, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(row.get("messages"), list):
        yield from ((turn["role"], turn["content"]) for turn in row["messages"])
    elif isinstance(row.get("conversations"), list):
        yield from ((turn["from"], turn["value"]) for turn in row["conversations"])
    elif isinstance(row.get("data"), list):
        yield from zip(cycle(("user", "assistant")), row["data"])
    elif "instruction" in row:
        asked = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        yield "user", asked
        if row.get("output") is not None:
            yield "assistant", row["output"]
    else:
        details = f"no known form of dialogue (keys: {', '.join(row)})"
        raise BadRow(where, "no known form", details, remedy=f"give rows with {FORMS}")


def _role(role: str, where: str) -> Role:
    if role not in ROLES:
        raise BadRow(where, f"unknown role {role!r}")
    return ROLES[role]


def _completion(entry: Any, where: str) -> Completion:
    if not isinstance(entry, dict) or not isinstance(entry.get("response"), str):
        raise BadRow(where, "a completion without a `response`")
    annotations = entry.get("annotations")
    given = annotations if isinstance(annotations, dict) else {}
    try:
        return Completion(
            model=str(entry.get("model") or "unknown"),
            text=entry["response"],
            ratings=[_rating(aspect, given[aspect]) for aspect in ASPECTS if aspect in given],
            overall=_number(entry.get("overall_score")),
        )
    except ValidationError:
        raise BadRow(where, "a completion that is not made of text") from None


def _rating(aspect: str, annotation: Any) -> Rating:
    marked = annotation[0] if isinstance(annotation, list) and annotation else annotation
    if not isinstance(marked, dict):
        return Rating(aspect=aspect, value=None)
    rationale = marked.get("Rationale For Rating") or marked.get("Rationale") or ""
    return Rating(aspect=aspect, value=rating_value(marked.get("Rating")), rationale=str(rationale))


def _pair_prompt(row: Raw, where: str) -> list[Message]:
    if isinstance(row.get("conversations"), list):
        return _messages(row, where)
    if isinstance(row.get("prompt"), list):
        return _messages({"messages": row["prompt"]}, where)
    if (
        isinstance(row["chosen"], list) and len(row["chosen"]) > 1
    ):  # holds the turns before the last, `prompt` the first
        return _messages({"messages": row["chosen"][:-1]}, where)
    if isinstance(row.get("prompt"), str):
        return _messages({"messages": [{"role": "user", "content": row["prompt"]}]}, where)
    raise BadRow(where, "no `prompt`")


def _score(row: Raw, name: str) -> float | None:
    """A pair's score from the row, or from its `metadata`, where some sets keep it."""
    metadata = row.get("metadata")
    return _number(row.get(name, metadata.get(name) if isinstance(metadata, dict) else None))


def _last_text(value: Any, where: str) -> str:
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    if not isinstance(value, str):
        raise BadRow(where, "an answer that is not text")
    return value


def _number(raw: Any) -> float | None:
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
