"""The `zephyrctl` command: start it, print errors, and return exit codes."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from typer.exceptions import TyperException

from zephyrctl import __version__
from zephyrctl.cli.commands import Commands
from zephyrctl.errors import ZephyrError

INTERRUPTED = 130
USAGE = 2
REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again to resume",
    errno.EDQUOT: "free some space, then run the same command again to resume",
    errno.EACCES: "fix the permissions of that path, or give another --run",
    errno.EPERM: "fix the permissions of that path, or give another --run",
    errno.EROFS: "give a --run on a writable disk",
    errno.ENOTDIR: "a file is in the place of a folder: move it, or give another --run",
    errno.EEXIST: "a file is in the place of a folder: move it, or give another --run",
}

app = typer.Typer(
    name="zephyrctl",
    cls=Commands,
    help="From a base language model to an aligned chat model: dSFT, AI feedback, dDPO, evaluation, publication.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"zephyrctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """From a base language model to an aligned chat model: dSFT, AI feedback, dDPO, evaluation, publication."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 success, 1 error, 2 usage, 3 failed gate, 130 interrupted."""
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False, prog_name="zephyrctl")
    except ZephyrError as error:
        _print_error(error.problem, error.remedy)
        return error.exit_code
    except TyperException as error:
        if message := error.format_message():  # empty if a group without a command has printed its help
            _print_error(message, f"{_command_path(error)} --help")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        _print_error(f"{error.strerror}: {error.filename or 'this disk'}", REMEDIES[error.errno])
        return 1
    if code == INTERRUPTED:
        _print_error("interrupted", "run the same command again to resume")
    return int(code or 0)


def run_from_shell() -> None:
    """The entry point of the shell command. SIGTERM acts as Ctrl-C, so that workers stop and drafts are kept."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # to look for plugins, it would read the metadata of every package
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(main())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print_error(problem: str, remedy: str) -> None:
    console = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), problem))
    console.print(Text.assemble(("  try: ", "bold"), remedy))


def _command_path(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "zephyrctl"
