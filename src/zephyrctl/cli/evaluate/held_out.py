"""`zephyrctl eval`, alone or as `tiny`: ask checkpoints the run's held-out prompts and have their answers judged."""

from typing import Annotated

import typer

from zephyrctl.cli.completion import checkpoints
from zephyrctl.cli.evaluate.held_out_table import score_tables
from zephyrctl.cli.session import Session, facts, forecast_lines, with_session
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.held_out import HeldOutStage
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run
from zephyrctl.stages import forecast

app = typer.Typer(invoke_without_command=True)
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", min=0, help="Stop before the judge costs more than this; finished judgments are kept."),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint to evaluate. Repeatable. Default: all finished checkpoints.",
        autocompletion=checkpoints,
    ),
]


@app.callback()
@with_session
def evaluate(session: Session, context: typer.Context, checkpoint: Checkpoints = None, max_usd: MaxUsd = None) -> None:
    """Score checkpoints on the run's held-out prompts (eval alone, or eval tiny) or on a published benchmark.

    Without a subcommand, every finished checkpoint answers held-out prompts. The answers get
    scores from 1 to 10 and are compared in pairs.
    """
    if context.invoked_subcommand is None:
        _evaluate(session, checkpoint, max_usd)
    elif early := [name for name in context.params if _is_given(context, name)]:
        option = f"--{early[0].strip('_').replace('_', '-')}"
        raise UsageError(
            f"{option} stands before {context.invoked_subcommand!r} and is none of its options",
            f"zephyrctl eval {context.invoked_subcommand} {option} ...",
        )


@with_session
def tiny(session: Session, checkpoint: Checkpoints = None, max_usd: MaxUsd = None) -> None:
    """Score answers to the run's held-out prompts, as eval alone does. With the tiny recipe it needs no network."""
    _evaluate(session, checkpoint, max_usd)


def _evaluate(session: Session, checkpoint: list[str] | None, max_usd: float | None) -> None:
    loaded = session.load()
    run = session.open(loaded)
    stage = HeldOutStage(loaded.recipe, chosen(run, loaded.recipe, checkpoint), max_usd)
    if session.dry_run:
        told = forecast(run, stage)
        session.screen.show({"dry_run": [told]}, *forecast_lines([told]))
        return
    done = session.perform(run, stage)
    session.screen.show(facts(done), *score_tables(done.artifact, loaded.recipe))


def chosen(run: Run, recipe: Recipe, names: list[str] | None, extra: tuple[str, ...] = ()) -> list[str]:
    """The checkpoints that are named, in the recipe's order, else all finished ones.

    `extra` are other names that may be given. Raises ZephyrError where one is unknown, or none is finished.
    """
    known = [*extra, *recipe.checkpoints]
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ZephyrError(f"the recipe has no checkpoint {unknown[0]!r}", f"one of: {', '.join(known)}")
    if names:
        return [name for name in known if name in names]
    finished = [name for name in recipe.checkpoints if run.artifact(name)]
    if not finished:
        raise ZephyrError(f"{run.path} has no finished checkpoint to ask", f"zephyrctl sft --run {run.path}")
    return finished


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
