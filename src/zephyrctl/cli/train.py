"""`zephyrctl sft` and `zephyrctl dpo`: train one checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from zephyrctl.cli.session import Session, SkipBadRows, with_session
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import Recipe
from zephyrctl.training import train

Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.")]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Worker processes; more than one runs DeepSpeed ZeRO.")
]
Name = Annotated[
    str | None, typer.Option("--checkpoint", help="Which of the recipe's checkpoints, where it has several.")
]


@with_session
def sft(
    session: Session,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    processes: Processes = None,
    checkpoint: Name = None,
) -> None:
    """Distilled supervised fine-tuning on the dialogues (paper section 3, dSFT)."""
    loaded = session.load(sft__epochs=epochs, sft__learning_rate=learning_rate, launch__processes=processes)
    step = train.step(loaded.recipe, _choose(loaded.recipe, "sft", checkpoint))
    session.one(session.open(loaded), step)


@with_session
def dpo(
    session: Session,
    beta: Annotated[float | None, typer.Option("--beta", help="Strength of the tie to the dSFT model.")] = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="A file of preference pairs instead of the binarize stage's."),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    processes: Processes = None,
    checkpoint: Name = None,
) -> None:
    """Distilled direct preference optimization of the dSFT model on the pairs (paper section 3, dDPO)."""
    loaded = session.load(
        dpo__beta=beta,
        dpo__epochs=epochs,
        dpo__learning_rate=learning_rate,
        launch__processes=processes,
        skip_bad_rows=skip_bad_rows or None,
    )
    step = train.step(loaded.recipe, _choose(loaded.recipe, "dpo", checkpoint), pairs)
    session.one(session.open(loaded), step)


def _choose(recipe: Recipe, stage: Literal["sft", "dpo"], name: str | None) -> str:
    names = [key for key, checkpoint in recipe.checkpoints.items() if checkpoint.stage == stage]
    if name in names:
        return name
    if name:
        raise ZephyrError(f"the recipe has no {stage} checkpoint {name!r}", f"one of: {', '.join(names) or 'none'}")
    if stage in names or len(names) == 1:
        return stage if stage in names else names[0]
    raise ZephyrError(
        f"the recipe trains {len(names)} {stage} checkpoints", f"--checkpoint {' or '.join(names) or '...'}"
    )
