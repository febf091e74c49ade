"""`zephyrctl eval`: ask checkpoints held-out prompts and have their answers judged."""

from typing import Annotated

import typer

from zephyrctl.cli.scores import score_tables
from zephyrctl.cli.session import Session, facts, forecast_lines, with_session
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation import held_out
from zephyrctl.recipe import Recipe
from zephyrctl.runs import Run
from zephyrctl.stages import forecast


@with_session
def evaluate(
    session: Session,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", help="A checkpoint to ask; may be given again. Else all finished."),
    ] = None,
) -> None:
    """Answer held-out prompts with every finished checkpoint, score the answers 1-10 and compare them in pairs."""
    loaded = session.load()
    run = session.open(loaded)
    step = held_out.step(loaded.recipe, _chosen(run, loaded.recipe, checkpoint))
    if session.dry_run:
        told = forecast(run, step)
        session.screen.show({"dry_run": [told]}, *forecast_lines([told]))
        return
    done = session.perform(run, step)
    session.screen.show(facts(done), *score_tables(done.artifact, loaded.recipe))


def _chosen(run: Run, recipe: Recipe, names: list[str] | None) -> list[str]:
    unknown = [name for name in names or [] if name not in recipe.checkpoints]
    if unknown:
        raise ZephyrError(f"the recipe has no checkpoint {unknown[0]!r}", f"one of: {', '.join(recipe.checkpoints)}")
    if names:
        return [name for name in recipe.checkpoints if name in names]
    finished = [name for name in recipe.checkpoints if run.artifact(name)]
    if not finished:
        raise ZephyrError(f"{run.path} has no finished checkpoint to ask", f"zephyrctl sft --run {run.path}")
    return finished
