"""What a line of a chat is read as."""

import pytest

from zephyrctl.chat.commands import BARE, HELP, ChatInput, parse_line, temperature
from zephyrctl.errors import ZephyrError

NAMES = ("base", "sft", "dpo")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hello there", ChatInput("say", "hello there")),
        ("1/2 of it", ChatInput("say", "1/2 of it")),
        ("//etc is a folder", ChatInput("say", "/etc is a folder")),
        ("/base", ChatInput("compare", names=("base",))),
        ("/base /sft /base", ChatInput("compare", names=("base", "sft"))),
        ("/dpo sft", ChatInput("compare", names=("dpo", "sft"))),
        ("/use sft", ChatInput("use", names=("sft",))),
        ("/system Be brief.", ChatInput("system", "Be brief.")),
        ("/system", ChatInput("system")),
        ("/temperature 0.3", ChatInput("temperature", "0.3")),
        ("/save talk.jsonl", ChatInput("save", "talk.jsonl")),
        ("/reset", ChatInput("reset")),
        ("/clear", ChatInput("reset")),
        ("/undo", ChatInput("undo")),
        ("/exit", ChatInput("quit")),
        ("/?", ChatInput("help")),
    ],
)
def test_lines_are_said_or_done(text: str, line: ChatInput) -> None:
    assert parse_line(text, NAMES) == line


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("/sfft", "'/sfft'", "did you mean '/sft'?"),
        ("/sytem Be brief.", "'/sytem'", "did you mean '/system'?"),
        ("/use spo", "'spo'", "did you mean 'dpo'?"),
        ("/base /xyz", "'xyz'", "base, sft, dpo"),
        ("/etc/passwd", "'/etc/passwd'", "/help"),
        ("/save", "needs an argument", "/save FILE"),
        ("/temperature warm", "'warm'", "0.7"),
        ("/temperature nan", "'nan'", "0.7"),
        ("/temperature -1", "'-1'", "0.7"),
    ],
)
def test_what_is_no_command_names_the_nearest(text: str, problem: str, remedy: str) -> None:
    with pytest.raises(ZephyrError) as raised:
        parse_line(text, NAMES)
    assert problem in raised.value.problem and remedy in raised.value.remedy


def test_help_lists_every_command_that_is_read() -> None:
    listed = {usage.split()[0] for usage in HELP} - {"/NAME"}
    assert set(BARE) <= listed
    for word in listed:
        assert parse_line(f"{word} {'sft' if word == '/use' else 0.5}", NAMES).verb != "say"


def test_a_checkpoint_may_have_any_name() -> None:
    assert parse_line("/dsft-1", ("base", "dsft-1")) == ChatInput("compare", names=("dsft-1",))


@pytest.mark.parametrize("value", ["0", "0.7", "5"])
def test_temperatures_in_bounds_are_taken(value: str) -> None:
    assert temperature(value) == float(value)
