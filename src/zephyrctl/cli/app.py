"""The `zephyrctl` command: its groups, its one place where errors are printed, and its exit codes."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

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
    errno.ENOSPC: "free some space, then run the same command again: it resumes",
    errno.EDQUOT: "free some space, then run the same command again: it resumes",
    errno.EACCES: "mend the rights of that path, or give another --run",
    errno.EPERM: "mend the rights of that path, or give another --run",
    errno.EROFS: "give a --run on a disk that can be written",
    errno.ENOTDIR: "a file lies where a folder is wanted: move it, or give another --run",
    errno.EEXIST: "a file lies where a folder is wanted: move it, or give another --run",
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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zephyrctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """From a base language model to an aligned chat model: dSFT, AI feedback, dDPO, evaluation, publication."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 to mend, 2 usage, 3 a gate failed, 130 interrupted."""
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False, prog_name="zephyrctl")
    except ZephyrError as error:
        _print_error(error.problem, error.remedy)
        return error.exit_code
    except TyperException as error:
        if message := error.format_message():  # empty where a group without a command has printed its help
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
        _print_error("interrupted", "run the same command again: it goes on from where it was")
    return int(code or 0)


def run_from_shell() -> None:
    """The entry point: SIGTERM ends a command as Ctrl-C does, so that workers and drafts are left in order."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would read every installed package for some
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(main())


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _print_error(problem: str, remedy: str) -> None:
    console = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), problem))
    console.print(Text.assemble(("  try: ", "bold"), remedy))


def _command_path(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "zephyrctl"
