"""`zephyrctl data`: build dialogues, collect feedback, binarize it."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.session import Session, SkipBadRows, with_session
from zephyrctl.data import binarize as binarizing
from zephyrctl.data import build as building
from zephyrctl.feedback import collect

app = typer.Typer(help="Dialogues, AI feedback and preference pairs.", no_args_is_help=True)

InputFile = Annotated[Path | None, typer.Option("--input", help="A file to read instead of the earlier stage.")]


@app.command()
@with_session
def build(
    session: Session,
    input: Annotated[
        list[Path] | None,
        typer.Option("--input", help="JSON, JSONL or Parquet dialogues; may be given again."),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Build dialogues for dSFT and prompts for AI feedback: from a teacher, the Hub, or files of your own."""
    given = {"kind": "files", "paths": [str(path) for path in input]} if input else None
    loaded = session.load(build__source=given, skip_bad_rows=skip_bad_rows or None)
    session.one(session.open(loaded), building.step(loaded.recipe))


@app.command()
@with_session
def feedback(session: Session, input: InputFile = None, skip_bad_rows: SkipBadRows = False) -> None:
    """Collect four answers to each prompt and rate them; --input takes prompts, or UltraFeedback rows with answers."""
    loaded = session.load(skip_bad_rows=skip_bad_rows or None)
    session.one(session.open(loaded), collect.step(loaded.recipe, input))


@app.command()
@with_session
def binarize(
    session: Session,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="random-rejected (paper), highest-lowest, notus, or a plugin's."),
    ] = None,
    input: InputFile = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Pair a chosen with a rejected answer for each prompt; --input takes UltraFeedback rows."""
    loaded = session.load(binarize__strategy=strategy, skip_bad_rows=skip_bad_rows or None)
    session.one(session.open(loaded), binarizing.step(loaded.recipe, input))
