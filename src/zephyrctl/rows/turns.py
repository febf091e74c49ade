"""Check the turns of a published row and turn them into messages, dialogues and prompts."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import TypeAdapter

from zephyrctl.errors import BadRow
from zephyrctl.records import Dialogue, Message, Prompt, Role, first_user_turn, prompt_id

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
NOT_TURNS = "turns that are not role and text"
_MESSAGES = TypeAdapter(list[Message])


def parse_turns(read: Callable[[], Iterable[tuple[str, str]]], where: str) -> tuple[list[Role], list[str]]:
    """The roles and the texts that `read` returns as pairs. Raises BadRow if they are not roles and text."""
    try:
        turns = list(read())
        roles = [_role(role, where) for role, _ in turns]
    except (LookupError, TypeError, AttributeError, ValueError):
        raise BadRow(where, NOT_TURNS) from None
    texts = [text for _, text in turns]
    if not all(map(is_text, texts)):
        raise BadRow(where, NOT_TURNS)
    return roles, texts


def check_dialogue(roles: Sequence[Role], texts: Sequence[str], where: str) -> None:
    """Raise BadRow unless the turns are a dialogue to imitate.

    That is an optional system turn, then user and assistant in turn, none of them empty, the assistant last.
    """
    check_turns(roles, texts, where)
    if roles[-1] != "assistant":
        raise BadRow(where, "no answer to the last user turn")


def check_turns(roles: Sequence[Role], texts: Sequence[str], where: str) -> None:
    """Raise BadRow unless user and assistant speak in turn, the user first, and no turn is empty."""
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


def to_messages(roles: Sequence[Role], texts: Sequence[str]) -> list[Message]:
    """Turns as messages."""
    return _MESSAGES.validate_python([{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)])


def to_dialogue(roles: Sequence[Role], texts: Sequence[str], where: str, source: str) -> Dialogue:
    """Turns as a dialogue. Raises BadRow if they are none (see `check_dialogue`)."""
    check_dialogue(roles, texts, where)
    messages = to_messages(roles, texts)
    return Dialogue(id=prompt_id(first_user_turn(messages)), messages=messages, source=source)


def to_prompt(roles: Sequence[Role], texts: Sequence[str], where: str, source: str) -> Prompt:
    """The turns up to and including the last user turn, as a prompt. Raises BadRow if they are out of order."""
    length = max((number for number, role in enumerate(roles, 1) if role == "user"), default=0)
    check_turns(roles[:length], texts[:length], where)
    messages = to_messages(roles[:length], texts[:length])
    return Prompt(id=prompt_id(first_user_turn(messages)), messages=messages, source=source)


def _role(role: str, where: str) -> Role:
    if role not in ROLES:
        raise BadRow(where, f"unknown role {role!r}")
    return ROLES[role]


def is_text(value: object) -> bool:
    """True for text without lone surrogates (half of a character), which no UTF-8 file can contain."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False
