"""The table of commands: what it says is what the commands say, examples parse, words are completed and mended."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.conftest import Command
from zephyrctl.cli import examples
from zephyrctl.cli.app import app
from zephyrctl.cli.commands import COMMANDS, walk

TREE: Any = typer.main.get_command(app)
PAGES = dict(walk(TREE))


def lines() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every example with the words of the command that it belongs to."""
    for words in PAGES:
        yield from ((words, line) for line in examples.examples_of(words))


def parse(line: str) -> list[str]:
    """The words of commands in a line, every option and argument of which is read and nothing run."""
    command, words, rest = TREE, [], shlex.split(line)
    context = command.make_context("zephyrctl", rest)
    while rest := [*context._protected_args, *context.args]:
        if not hasattr(command, "commands"):
            break
        name, command, rest = command.resolve_command(context, rest)
        words.append(name)
        context = command.make_context(name, rest, parent=context)
    return words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command, entry = TREE.commands[name], COMMANDS[name]
    assert " ".join((command.help or "").split("\n\n")[0].split()) == entry.about
    assert (command.name, command.rich_help_panel) == (name, entry.panel)
    assert entry.stub(name).name == name


def test_every_command_has_an_example_and_every_example_a_command() -> None:
    assert set(examples.EXAMPLES) <= set(PAGES)
    assert all(examples.examples_of(words) for words in PAGES)


@pytest.mark.parametrize(("words", "line"), list(lines()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_example_parses(words: tuple[str, ...], line: str) -> None:
    found = parse(line)
    assert tuple(found[: len(words)]) == words
    assert len(found) >= 1


def test_a_wrong_example_would_be_seen() -> None:
    with pytest.raises(typer.exceptions.TyperException):
        parse("dpo --bta 1")


@pytest.mark.parametrize("words", [(), ("dpo",), ("data", "build")], ids=" ".join)
def test_help_closes_with_examples(zephyrctl: Command, words: tuple[str, ...]) -> None:
    shown = zephyrctl(*words, "--help").out
    assert f"$ zephyrctl {examples.EXAMPLES[words][0]}" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["evall"], "'eval'"),
        (["eval", "mt-bnch"], "'mt-bench'"),
        (["recipe", "shw"], "'show'"),
        (["dpo", "--bta", "1"], "--beta"),
        (["eval", "mt-bench", "--checkpont", "dpo"], "--checkpoint"),
    ],
)
def test_a_wrong_word_names_the_nearest(zephyrctl: Command, arguments: list[str], near: str) -> None:
    outcome = zephyrctl(*arguments)
    assert outcome.code == 2
    assert near in outcome.err.splitlines()[0]
