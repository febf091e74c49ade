"""`zephyrctl data`: build dialogues, collect feedback, and binarize it."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.audit import audit
from zephyrctl.cli.calls import calls
from zephyrctl.cli.explain import explain
from zephyrctl.cli.session import Session, SkipBadRows, with_session
from zephyrctl.cli.undo import rules_table, undo
from zephyrctl.data import binarize as binarizing
from zephyrctl.data import build as building
from zephyrctl.errors import UsageError
from zephyrctl.feedback import collect
from zephyrctl.feedback import pilot as pilots

app = typer.Typer(help="Dialogues, AI feedback and preference pairs.", no_args_is_help=True)
app.command()(audit)
app.command()(explain)
app.command()(undo)
app.command()(calls)

MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", min=0, help="Stop before calls cost more than this; finished calls are kept."),
]
InputFile = Annotated[
    Path | None, typer.Option("--input", help="Read this file instead of the result of the earlier stage.")
]


@app.command()
@with_session
def build(
    session: Session,
    input: Annotated[
        list[Path] | None,
        typer.Option("--input", help="JSON, JSONL or Parquet file of dialogues. Repeatable."),
    ] = None,
    max_usd: MaxUsd = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Build dialogues for dSFT and prompts for AI feedback, from a teacher, the Hub or your own files."""
    given = {"kind": "files", "paths": [str(path) for path in input]} if input else None
    loaded = session.load(build__source=given, skip_bad_rows=skip_bad_rows or None)
    run = session.open(loaded)
    session.run_stage(run, building.BuildStage(loaded.recipe, max_usd))
    artifact = run.artifact("build")
    if artifact and not (session.dry_run or session.json or session.quiet):
        session.screen.err.print(*rules_table(artifact))


@app.command()
@with_session
def feedback(
    session: Session,
    input: InputFile = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", help="File of one model's answers, as AlpacaEval writes them. Repeatable."),
    ] = None,
    pilot: Annotated[
        int | None,
        typer.Option("--pilot", min=1, metavar="K", help="Process only K prompts and forecast the rest from them."),
    ] = None,
    max_usd: MaxUsd = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Collect answers to each prompt and rate them.

    --input takes prompts, or UltraFeedback rows with answers. --answers takes one file of answers for each model.
    """
    loaded = session.load(skip_bad_rows=skip_bad_rows or None)
    stage = collect.FeedbackStage(loaded.recipe, input, answers or (), max_usd)
    run = session.open(loaded)
    if not pilot:
        session.run_stage(run, stage)
        return
    if session.dry_run:
        raise UsageError("--dry-run makes no calls, and --pilot makes some", "give one of them")
    with session.screen.watch("pilot") as watcher:
        result = pilots.run_pilot(run, stage, pilot, watcher)
    session.screen.show(dict(result), *pilots.lines(result))


@app.command()
@with_session
def binarize(
    session: Session,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="random-rejected (paper), highest-lowest, notus, margin, all-pairs, or a plugin's.",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", help="mean (of the aspects), overall (with its known defect fixed) or weights."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="ASPECT=NUMBER", help="Weight of an aspect. Repeatable."),
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option("--compat", help="Rule of the published data set: zephyr-v1 (with its defects) or zephyr-fixed."),
    ] = None,
    input: InputFile = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Make preference pairs from rated answers. --input takes rows with answers and ratings."""
    _check_choices(strategy, score, weights, compat)
    loaded = session.load(
        binarize__strategy=strategy,
        binarize__score="weights" if weights else score,
        binarize__weights=dict(map(_weight, weights)) if weights else None,
        binarize__compat=compat,
        skip_bad_rows=skip_bad_rows or None,
    )
    session.run_stage(session.open(loaded), binarizing.BinarizeStage(loaded.recipe, input))


def _check_choices(strategy: str | None, score: str | None, weights: list[str] | None, compat: str | None) -> None:
    """Raise UsageError for options that contradict each other."""
    others = {"--strategy": strategy, "--score": score, "--weights": weights}
    given = [option for option, value in others.items() if value]
    if compat and given:
        raise UsageError(
            f"--compat {compat} and {given[0]} exclude each other: both say how to score or pair", "give one of them"
        )
    if weights and score not in (None, "weights"):
        raise UsageError(f"--weights is for --score weights, and --score is {score}", "give one of them")


def _weight(text: str) -> tuple[str, float]:
    aspect, _, number = text.partition("=")
    try:
        return aspect.strip(), float(number)
    except ValueError:
        raise UsageError(f"--weights {text!r} is not a weight", "write it as --weights helpfulness=2") from None
