"""What a line of a chat means: something to say, or a command that begins with a slash."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from zephyrctl.errors import ZephyrError, did_you_mean

Verb = Literal["say", "compare", "use", "system", "reset", "undo", "temperature", "save", "help", "quit"]
HELP = {
    "/NAME ...": "have these checkpoints answer the same prompt, side by side: /base /sft /dpo",
    "/use NAME": "go on with another checkpoint",
    "/system TEXT": "set the system message; without TEXT there is none",
    "/undo": "take back the last prompt and its answer",
    "/reset": "forget the conversation, and keep the system message",
    "/temperature NUMBER": "0 takes the likeliest token every time",
    "/save FILE": "add the conversation to a JSONL file of messages, which data build reads",
    "/help": "this list",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}
"""What can be typed, and what it does."""
ALIASES = {"/exit": "/quit", "/bye": "/quit", "/?": "/help", "/clear": "/reset", "/temp": "/temperature"}
BARE = ("/reset", "/undo", "/help", "/quit")
"""The commands that take nothing."""


@dataclass(frozen=True)
class Line:
    """What is wanted, and with what."""

    verb: Verb
    text: str = ""
    names: tuple[str, ...] = ()


def read_line(text: str, names: Collection[str]) -> Line:
    """What a line means; `names` are the checkpoints that can be asked, and `//` begins a prompt with one slash.

    Raises ZephyrError for a command that nobody knows, with the nearest one, and for one that lacks something.
    """
    if not text.startswith("/") or text.startswith("//"):
        return Line("say", text.removeprefix("/") if text.startswith("//") else text)
    word, _, rest = text.partition(" ")
    word, rest = ALIASES.get(word, word), rest.strip()
    if word.removeprefix("/") in names:
        return Line("compare", names=_names(text.split(), names))
    if word in BARE:
        return Line(_verb(word))
    if word == "/system":
        return Line("system", rest)
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
        raise ZephyrError(f"{text!r} is no temperature", "a number from 0 to 5, such as 0.7")
    return value


def _with_argument(word: str, rest: str, names: Collection[str]) -> Line:
    if not rest:
        usage = next(usage for usage in HELP if usage.startswith(word))
        raise ZephyrError(f"{word} lacks what it is about", usage)
    if word == "/temperature":
        temperature(rest)
    if word == "/use":
        return Line("use", names=_names([f"/{rest}"], names))
    return Line(_verb(word), rest)


def _names(words: list[str], names: Collection[str]) -> tuple[str, ...]:
    """The checkpoints that words name, each once."""
    found = [word.removeprefix("/") for word in words]
    for name in found:
        if name not in names:
            remedy = did_you_mean(name, names, otherwise=f"one of: {', '.join(names)}")
            raise ZephyrError(f"there is no checkpoint {name!r} to talk to", remedy)
    return tuple(dict.fromkeys(found))


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
