"""Which commands there are; the module of one is imported when it is called, so that help and plan start at once.

All modules together take 0.8 s of a processor to import, and a bare Typer program 0.2 s.
"""

import gc
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from zephyrctl.cli.examples import epilog

WHOLE, STAGES, LOOK = "The whole recipe", "Stages", "Look"
"""The panels of help."""


class Command(Protocol):
    """A command or a group, as Typer makes them."""

    epilog: str | None


@dataclass(frozen=True)
class Door:
    """A command that is known by its name: where its function or group of commands lies, and what it does."""

    module: str
    attribute: str
    panel: str
    about: str

    def open(self, name: str) -> Any:
        """The command itself, with its examples. Its module is imported now."""
        with _uncollected():
            found = getattr(import_module(f"zephyrctl.cli.{self.module}"), self.attribute)
        holder = typer.Typer(rich_markup_mode="rich", pretty_exceptions_show_locals=False)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=name, rich_help_panel=self.panel)
        else:
            holder.command(name, rich_help_panel=self.panel)(found)
        command = get_group(holder).commands[name]
        for words, each in walk(command, name):
            each.epilog = epilog(words)
        return command

    def sign(self, name: str) -> TyperCommand:
        """What a list of commands says of it, without its module."""
        return TyperCommand(name, help=self.about, rich_markup_mode="rich", rich_help_panel=self.panel)


DOORS = {
    "run": Door("run", "run", WHOLE, "Do every stage of a recipe that is not done yet, and write the report."),
    "data": Door("data", "app", STAGES, "Dialogues, AI feedback and preference pairs."),
    "sft": Door("train", "sft", STAGES, "Distilled supervised fine-tuning on the dialogues (paper section 3, dSFT)."),
    "dpo": Door(
        "train",
        "dpo",
        STAGES,
        "Distilled direct preference optimization of the dSFT model on the pairs (paper section 3, dDPO).",
    ),
    "eval": Door(
        "evaluate",
        "app",
        STAGES,
        "Score checkpoints: on the run's held-out prompts (eval alone, or tiny), or on a published benchmark.",
    ),
    "push": Door(
        "push",
        "push",
        STAGES,
        "Publish a checkpoint, its model card and its chain of manifests to the Hub (or to what HF_ENDPOINT names).",
    ),
    "verify": Door(
        "verify",
        "verify",
        LOOK,
        "Hash every file of a published model again, compare it with its manifests, and say what cannot be reproduced.",
    ),
    "plan": Door(
        "plan",
        "plan",
        LOOK,
        "Solve for batch, ZeRO stage and memory on the hardware you name, or on this; say why and what is next best.",
    ),
    "chat": Door(
        "chat",
        "chat",
        LOOK,
        "Chat with a checkpoint in the terminal. Type /base, /sft or /dpo to compare their answers side by side.",
    ),
    "doctor": Door(
        "doctor",
        "doctor",
        LOOK,
        "Check machine, drivers, library versions, FlashAttention, disk, memory, network and Hub login.",
    ),
    "report": Door(
        "report",
        "report",
        LOOK,
        "Write the run's report: scores, benchmarks beside the paper, curves, answers, and where each number came"
        " from.",
    ),
    "plugins": Door(
        "plugins",
        "plugins",
        LOOK,
        "List every plugin with its kind, origin and options.",
    ),
    "recipe": Door("recipe", "app", LOOK, "Recipes: show, compare, start your own."),
}
"""Every command at the top, in the order of help; what is said of each is the first paragraph of its own help."""


class Commands(TyperGroup):
    """The commands at the top: listed and completed without their modules, imported where one is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Opened()

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of help."""
        self._signed().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The names that begin so, with what they do."""
        signed = self._signed()
        return signed.shell_complete(signed.make_context(ctx.info_name, [], resilient_parsing=True), incomplete)

    def _signed(self) -> TyperGroup:
        """The same group, of signs."""
        return TyperGroup(
            name=self.name,
            commands={name: door.sign(name) for name, door in DOORS.items()},
            params=self.params,
            help=self.help,
            epilog=epilog(()),
            rich_markup_mode=self.rich_markup_mode,
            context_settings=self.context_settings,
        )


class Opened(MutableMapping[str, Any]):
    """The commands by name; reading one imports it."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = DOORS[name].open(name)
        return self._known[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._known[name] = command

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(DOORS)

    def __len__(self) -> int:
        return len(DOORS)


def walk(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    """A command and all that lie in it, each with the words that call it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, *words, name)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing that an import makes is garbage: looking for some takes a seventh of its time.

    The shell's command starts without collection, and with this import has begun in earnest.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not was_enabled:
            gc.freeze()
        gc.enable()
