"""`zephyrctl sft` and `zephyrctl dpo`: train one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.completion import checkpoints
from zephyrctl.cli.session import HARDWARE, Gpus, GpuType, Nodes, Session, SkipBadRows, with_session
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.recipe.schema import Recipe
from zephyrctl.training.kinds import DPO, SFT, TrainingKind
from zephyrctl.training.stage import TrainStage

Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.")]
Processes = Annotated[
    int | None,
    typer.Option("--processes", help="Worker processes on a machine without GPUs.", rich_help_panel=HARDWARE),
]
LauncherName = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        help="What starts the workers: single, accelerate, torchrun, deepspeed or slurm.",
        rich_help_panel=HARDWARE,
    ),
]
Door = Annotated[str | None, typer.Option("--door", help="The old name of --launcher.", hidden=True)]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint to train, if the recipe has several.",
        autocompletion=checkpoints,
    ),
]


@with_session
def sft(
    session: Session,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    checkpoint: CheckpointName = None,
    nodes: Nodes = None,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
    processes: Processes = None,
    launcher: LauncherName = None,
    door: Door = None,
) -> None:
    """Distilled supervised fine-tuning on the dialogues (paper section 3, dSFT)."""
    loaded = session.load(
        sft__epochs=epochs,
        sft__learning_rate=learning_rate,
        hardware__nodes=nodes,
        hardware__gpus=gpus,
        hardware__gpu_type=gpu_type,
        launch__processes=processes,
        launch__launcher=launcher,
        launch__door=door,
    )
    stage = TrainStage(loaded.recipe, _choose(loaded.recipe, SFT, checkpoint, epochs))
    session.run_stage(session.open(loaded), stage)


@with_session
def dpo(
    session: Session,
    beta: Annotated[float | None, typer.Option("--beta", help="Strength of the pull towards the dSFT model.")] = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="File of preference pairs to use instead of the binarize stage."),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    engine: Annotated[
        str | None, typer.Option("--engine", help="'prefix-shared' (computes a pair's prompt once), or 'trl'.")
    ] = None,
    checkpoint: CheckpointName = None,
    nodes: Nodes = None,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
    processes: Processes = None,
    launcher: LauncherName = None,
    door: Door = None,
) -> None:
    """Distilled direct preference optimization of the dSFT model on the pairs (paper section 3, dDPO)."""
    loaded = session.load(
        dpo__beta=beta,
        dpo__epochs=epochs,
        dpo__learning_rate=learning_rate,
        dpo__engine=engine,
        hardware__nodes=nodes,
        hardware__gpus=gpus,
        hardware__gpu_type=gpu_type,
        launch__processes=processes,
        launch__launcher=launcher,
        launch__door=door,
        skip_bad_rows=skip_bad_rows or None,
    )
    stage = TrainStage(loaded.recipe, _choose(loaded.recipe, DPO, checkpoint, epochs), pairs)
    session.run_stage(session.open(loaded), stage)


def _choose(recipe: Recipe, kind: TrainingKind, name: str | None, epochs: float | None) -> str:
    """The checkpoint to train. Raises UsageError if --epochs would have no effect, as the checkpoint has its own."""
    chosen = _checkpoint_name(recipe, kind, name)
    own_epochs = recipe.checkpoints[chosen].epochs
    if epochs is not None and own_epochs is not None:
        raise UsageError(
            f"--epochs has no effect on {chosen!r}, as the recipe sets checkpoints.{chosen}.epochs to {own_epochs:g}",
            f"--set checkpoints.{chosen}.epochs={epochs:g}",
        )
    return chosen


def _checkpoint_name(recipe: Recipe, kind: TrainingKind, name: str | None) -> str:
    names = [key for key, checkpoint in recipe.checkpoints.items() if checkpoint.stage == kind.name]
    if name in names:
        return name
    if name:
        raise ZephyrError(f"the recipe has no {kind.name} checkpoint {name!r}", f"one of: {', '.join(names) or 'none'}")
    if kind.name in names:
        return kind.name
    if len(names) == 1:
        return names[0]
    raise ZephyrError(
        f"the recipe trains {len(names)} {kind.name} checkpoints", f"--checkpoint {' or '.join(names) or '...'}"
    )
