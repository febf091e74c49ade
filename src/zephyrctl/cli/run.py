"""`zephyrctl run`: every stage of a recipe, one after another."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import typer
from pydantic import JsonValue

from zephyrctl.cli.evaluate.held_out_table import score_tables
from zephyrctl.cli.push import publish
from zephyrctl.cli.session import Gpus, GpuType, Nodes, Session, forecast_lines, with_session
from zephyrctl.data import binarize, build
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.held_out import HeldOutStage
from zephyrctl.evaluation.results import HeldOutResult, read_result
from zephyrctl.feedback import collect
from zephyrctl.launching.processes import warm_workers
from zephyrctl.publishing.report import write_report
from zephyrctl.recipe.schema import Checkpoint, Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run
from zephyrctl.stages import Done, Stage, StageForecast, forecast
from zephyrctl.training.kinds import training_kind
from zephyrctl.training.results import TrainingResult
from zephyrctl.training.stage import TrainStage


@with_session
def run(
    session: Session,
    hub: Annotated[str | None, typer.Option("--hub", help="Publish the result to this Hub repository.")] = None,
    nodes: Nodes = None,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
) -> None:
    """Run every stage of a recipe that is not finished, and write the report."""
    loaded = session.load(hardware__nodes=nodes, hardware__gpus=gpus, hardware__gpu_type=gpu_type)
    folder = session.open(loaded)
    stages = list(chain(loaded.recipe))
    if session.dry_run:
        forecasts = list(_forecasts(folder, stages))
        session.screen.show({"dry_run": forecasts}, *forecast_lines(forecasts))
        return
    todo = [stage for stage in stages if session.fresh or not folder.artifact(stage.name)]
    with warm_workers(_workers(loaded.recipe.checkpoints.values()) if todo else [], loaded.recipe.launch.threads):
        for stage in todo:
            stage.check()
        done = {stage.name: session.perform(folder, stage) for stage in stages}
    report = write_report(folder, loaded.recipe)
    pushed = publish(session, folder, loaded.recipe, hub, public=False) if hub else None
    evaluation = done["eval"].artifact
    result = outcome(loaded.recipe, done, str(report)) | ({"push": pushed.as_json()} if pushed else {})
    session.screen.show(
        result,
        *score_tables(evaluation, loaded.recipe),
        *_training_lines(done, loaded.recipe.checkpoints),
        f"report: {report}",
    )


def chain(recipe: Recipe) -> Iterator[Stage]:
    """The stages of a recipe, in order; feedback and binarize only if something is trained on pairs."""
    yield build.BuildStage(recipe)
    if any(checkpoint.trains_on != "dialogues" for checkpoint in recipe.checkpoints.values()):
        yield collect.FeedbackStage(recipe)
        yield binarize.BinarizeStage(recipe)
    for name in recipe.checkpoints:
        yield TrainStage(recipe, name)
    chat_models = [
        name for name, point in recipe.checkpoints.items() if training_kind(point.stage).makes == "chat model"
    ]
    yield HeldOutStage(recipe, chat_models)


def _workers(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """The workers of a recipe with these checkpoints, in the order in which its stages start them."""
    trained = [training_kind(checkpoint.stage).worker for checkpoint in checkpoints]
    return list(dict.fromkeys(["prepare", *trained, "generate"]))


def outcome(recipe: Recipe, done: dict[str, Done], report: str) -> dict[str, object]:
    """The result of a run: seconds per stage, scores, results of each training, dropped rows by cause."""
    manifests = {name: entry.artifact.manifest for name, entry in done.items()}
    evaluation = read_result(manifests["eval"])
    assert isinstance(evaluation, HeldOutResult)
    stated = evaluation.as_json()
    results = {name: _training_results(done[name].artifact) for name in recipe.checkpoints}
    trained = {name: result for name, result in results.items() if result}
    published = {name: point.published for name, point in recipe.checkpoints.items() if point.published}
    return {
        "run": recipe.name,
        "seed": recipe.seed,
        "stages": {name: manifest.seconds for name, manifest in manifests.items()},
        "unchanged": [name for name, entry in done.items() if not entry.is_new],
        "scores": stated["scores"],
        "pairwise": stated["pairwise"],
        "judge": stated["judge"],
        **trained,
        **({"published": published} if published else {}),
        "dropped": {name: manifest.dropped for name, manifest in manifests.items() if manifest.dropped},
        "report": report,
    }


def _training_results(artifact: Artifact) -> dict[str, JsonValue]:
    """The figures that a kind of training reports, as far as they were measured."""
    keys = training_kind(artifact.manifest.plan.stage).results
    stated = TrainingResult.of(artifact).model_dump(mode="json", include=set(keys))
    return {key: stated[key] for key in keys if stated[key] is not None}


def _training_lines(done: dict[str, Done], checkpoints: Iterable[str]) -> Iterator[str]:
    """A line for each training that measures its first loss: that loss, what it must be, and the held-out accuracy."""
    for name in checkpoints:
        result = TrainingResult.of(done[name].artifact)
        if result.first_loss is None:
            continue
        parts = [f"{name}: first loss {result.first_loss:.6f}"]
        if result.expected_first_loss is not None:
            parts[0] += f" (expected {result.expected_first_loss:.6f})"
        if result.reward_accuracy is not None:
            parts.append(f"held-out reward accuracy {result.reward_accuracy:.3f}")
        yield ", ".join(parts)


def _forecasts(folder: Run, stages: Sequence[Stage]) -> Iterator[StageForecast]:
    rebuilt: set[str] = set()
    for stage in stages:
        stated = forecast(folder, stage, rebuilt)
        if not stated["unchanged"]:
            rebuilt.add(stage.name)
        stated["would_fail"] = _problem(stage)
        yield stated


def _problem(stage: Stage) -> str | None:
    """Why this machine cannot do the work of a stage; None if it can."""
    try:
        stage.check()
    except ZephyrError as error:
        return error.problem
    return None
