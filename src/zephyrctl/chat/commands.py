"""Parse a line of the chat: a prompt, or a command that begins with a slash."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from zephyrctl.errors import ZephyrError, did_you_mean

Verb = Literal["say", "compare", "use", "system", "reset", "undo", "temperature", "save", "help", "quit"]
HELP = {
    "/NAME ...": "let these checkpoints answer the last prompt too, side by side: /base /sft /dpo",
    "/use NAME": "continue with another checkpoint",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/undo": "remove the last prompt and its answer",
    "/reset": "forget the conversation, but keep the system message",
    "/temperature NUMBER": "0 always takes the most likely token",
    "/save FILE": "append the conversation to a JSONL file that data build can read",
    "/help": "show this list",
    "/quit": "quit (or press Ctrl-D); Ctrl-C stops an answer",
}
"""The commands, and what each does."""
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "/clear": "/reset", "/temp": "/temperature"}
BARE = ("/reset", "/undo", "/help", "/quit")
"""The commands without an argument."""


@dataclass(frozen=True)
class ChatInput:
    """A parsed line: what to do, and its argument."""

    verb: Verb
    text: str = ""
    names: tuple[str, ...] = ()


def parse_line(text: str, names: Collection[str]) -> ChatInput:
    """Parse a line. `names` are the available checkpoints; `//` begins a prompt that starts with a slash.

    Raises ZephyrError for an unknown command, naming the nearest one, and for a missing argument.
    """
    if not text.startswith("/") or text.startswith("//"):
        return ChatInput("say", text.removeprefix("/") if text.startswith("//") else text)
    word, _, rest = text.partition(" ")
    word, rest = ALIASES.get(word, word), rest.strip()
    if word.removeprefix("/") in names:
        return ChatInput("compare", names=_names(text.split(), names))
    if word in BARE:
        return ChatInput(_verb(word))
    if word == "/system":
        return ChatInput("system", rest)
    if word in ("/use", "/save", "/temperature"):
        return _with_argument(word, rest, names)
    known = [*(f"/{name}" for name in names), *BARE, "/system", "/use", "/save", "/temperature"]
    raise ZephyrError(f"there is no command {word!r}", did_you_mean(word, known, otherwise="/help lists them"))


def temperature(text: str) -> float:
    """A temperature from 0 to 5. Raises ZephyrError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 5:
        raise ZephyrError(f"{text!r} is not a temperature", "give a number from 0 to 5, such as 0.7")
    return value


def _with_argument(word: str, rest: str, names: Collection[str]) -> ChatInput:
    if not rest:
        usage = next(usage for usage in HELP if usage.startswith(word))
        raise ZephyrError(f"{word} needs an argument", usage)
    if word == "/temperature":
        temperature(rest)
    if word == "/use":
        return ChatInput("use", names=_names([f"/{rest}"], names))
    return ChatInput(_verb(word), rest)


def _names(words: list[str], names: Collection[str]) -> tuple[str, ...]:
    """The checkpoints that are named, each once."""
    mentioned = [word.removeprefix("/") for word in words]
    for name in mentioned:
        if name not in names:
            remedy = did_you_mean(name, names, otherwise=f"one of: {', '.join(names)}")
            raise ZephyrError(f"there is no checkpoint {name!r} to chat with", remedy)
    return tuple(dict.fromkeys(mentioned))


def _verb(word: str) -> Verb:
    verbs: dict[str, Verb] = {
        "/reset": "reset",
        "/undo": "undo",
        "/help": "help",
        "/quit": "quit",
        "/save": "save",
        "/temperature": "temperature",
    }
    return verbs[word]
