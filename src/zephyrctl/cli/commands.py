"""The table of top-level commands; the module of a command is imported only when it is called.

To import all of them takes 0.8 s of CPU time; `zephyrctl --help` takes 0.2 s, as long as a bare Typer program.
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

RECIPE, STAGES, TOOLS = "Whole recipe", "Stages", "Tools"
"""The panels of the help page."""


class Command(Protocol):
    """A command or a group, as Typer makes them."""

    epilog: str | None


@dataclass(frozen=True)
class CommandEntry:
    """A command in the table: the module and name of its function or group, and the first line of its help."""

    module: str
    attribute: str
    panel: str
    about: str

    def load(self, name: str) -> Any:
        """The command, with its examples. Its module is imported now."""
        with _without_collection():
            imported = getattr(import_module(f"zephyrctl.cli.{self.module}"), self.attribute)
        parent = typer.Typer(rich_markup_mode="rich", pretty_exceptions_show_locals=False)
        if isinstance(imported, typer.Typer):
            parent.add_typer(imported, name=name, rich_help_panel=self.panel)
        else:
            parent.command(name, rich_help_panel=self.panel)(imported)
        command = get_group(parent).commands[name]
        for words, inner in walk(command, name):
            inner.epilog = epilog(words)
        return command

    def stub(self, name: str) -> TyperCommand:
        """A command for lists only: it has the help line, and its module is not imported."""
        return TyperCommand(name, help=self.about, rich_markup_mode="rich", rich_help_panel=self.panel)


COMMANDS = {
    "run": CommandEntry(
        "run", "run", RECIPE, "Run every stage of a recipe that is not finished, and write the report."
    ),
    "data": CommandEntry("data", "app", STAGES, "Dialogues, AI feedback and preference pairs."),
    "sft": CommandEntry(
        "train", "sft", STAGES, "Distilled supervised fine-tuning on the dialogues (paper section 3, dSFT)."
    ),
    "dpo": CommandEntry(
        "train",
        "dpo",
        STAGES,
        "Distilled direct preference optimization of the dSFT model on the pairs (paper section 3, dDPO).",
    ),
    "eval": CommandEntry(
        "evaluate",
        "app",
        STAGES,
        "Score checkpoints on the run's held-out prompts (eval alone, or eval tiny) or on a published benchmark.",
    ),
    "push": CommandEntry(
        "push",
        "push",
        STAGES,
        "Publish a checkpoint, its model card and its manifests to the Hub (or to the server in HF_ENDPOINT).",
    ),
    "verify": CommandEntry(
        "verify",
        "verify",
        TOOLS,
        "Hash every file of a published model, compare it with the manifests, and list what cannot be reproduced.",
    ),
    "plan": CommandEntry(
        "plan",
        "plan",
        TOOLS,
        "Find batch size, ZeRO stage and memory for the given hardware, or for this machine, and explain the choice.",
    ),
    "chat": CommandEntry(
        "chat",
        "chat",
        TOOLS,
        "Chat with a checkpoint in the terminal. Type /base, /sft or /dpo to compare their answers side by side.",
    ),
    "doctor": CommandEntry(
        "doctor",
        "doctor",
        TOOLS,
        "Check machine, drivers, library versions, FlashAttention, disk, memory, network and Hub login.",
    ),
    "report": CommandEntry(
        "report",
        "report",
        TOOLS,
        "Write the report of the run as one HTML file.",
    ),
    "plugins": CommandEntry(
        "plugins",
        "plugins",
        TOOLS,
        "List every plugin with its kind, origin and options.",
    ),
    "recipe": CommandEntry("recipe", "app", TOOLS, "Show and compare recipes, and start your own."),
}
"""The top-level commands in the order of the help page. Each line is the first paragraph of the command's own help."""


class Commands(TyperGroup):
    """The top-level group: commands are listed and completed without their modules, and imported when called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        self._stubs().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands whose names start with these letters."""
        stubs = self._stubs()
        return stubs.shell_complete(stubs.make_context(ctx.info_name, [], resilient_parsing=True), incomplete)

    def _stubs(self) -> TyperGroup:
        """The same group with commands that are only listed."""
        return TyperGroup(
            name=self.name,
            commands={name: entry.stub(name) for name, entry in COMMANDS.items()},
            params=self.params,
            help=self.help,
            epilog=epilog(()),
            rich_markup_mode=self.rich_markup_mode,
            context_settings=self.context_settings,
        )


class LazyCommands(MutableMapping[str, Any]):
    """The commands by name; a command is imported when it is read."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = COMMANDS[name].load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def walk(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    """A command and all commands inside it, each with the words that call it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, *words, name)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Import without garbage collection: nothing becomes garbage, and looking for it takes a seventh of the time.

    `__main__` has switched collection off; if so, what is imported by now is frozen before it is switched on.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not was_enabled:
            gc.freeze()
        gc.enable()
