"""The options that `mt-bench`, `alpaca-eval` and `arena` share: who answers, who judges, from which files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zephyrctl import plugins
from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.evaluate.held_out import chosen
from zephyrctl.cli.session import Session, facts, forecast_lines
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.answering import BASE, Contestant
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmark_stage import Contest, step
from zephyrctl.evaluation.results import read_result
from zephyrctl.recipe.loading import Loaded
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.runs.run import Run
from zephyrctl.stages import forecast

WHO = "Who answers"
JUDGING = "Who judges, and from which files"

Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="A checkpoint of the run, or base; may be given again. Else all finished ones.",
        rich_help_panel=WHO,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[NAME=]MODEL",
        help="A folder or Hub id, with its own chat template; may be given again.",
        rich_help_panel=WHO,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Where --model is served (OpenAI's API, as vLLM has it) instead of loaded.",
        rich_help_panel=WHO,
    ),
]
AnswerFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--answers",
        metavar="[NAME=]FILE",
        help="Answers that exist, one file a model, in the form that this benchmark has; may be given again.",
        rich_help_panel=WHO,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="MODEL",
        help="The judge, by OpenAI's API, or a teacher's name; else eval.judge.",
        rich_help_panel=JUDGING,
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge-url", metavar="URL", help="Where the judge is served.", rich_help_panel=JUDGING),
]
AssetsFolder = Annotated[
    Path | None,
    typer.Option(
        "--assets",
        metavar="DIR",
        help="Questions, prompts and references of your own; else what eval fetch has fetched.",
        rich_help_panel=JUDGING,
    ),
]
MaxUsd = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0,
        help="Stop before calls cost more than this; what is done is kept.",
        rich_help_panel=JUDGING,
    ),
]
Against = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        metavar="FILE",
        help="Judgments of the same answers by people or another judge, to compare this judge with.",
        rich_help_panel=JUDGING,
    ),
]


def load(session: Session, judge: str | None, url: str | None, **overrides: Any) -> Loaded:
    """The recipe with the judge that the command line names: a model behind OpenAI's API, or a teacher by its name.

    Raises UsageError for a URL without a judge.
    """
    if url and not judge:
        raise UsageError("--judge-url says where, and not which model judges", "give --judge MODEL too")
    session.load()  # from here on, teachers in the recipe's plugin files are known too
    teachers = plugins.load().names("teacher")
    options = {"model": judge, **({"base_url": url} if url else {})}
    choice = {"name": judge} if judge in teachers and not url else {"name": "openai", "options": options}
    return session.load(eval__judge=choice if judge else None, **overrides)


def contestants(
    run: Run,
    recipe: Recipe,
    checkpoints: list[str] | None,
    models: list[str] | None,
    answers: list[str] | None,
    server: str | None,
) -> list[Contestant]:
    """Everybody who is to answer. Raises ZephyrError or UsageError where that is not clear."""
    if server and not models:
        raise UsageError("--server says where, and not which model answers", "give --model NAME, as it is served")
    found = [_from_file(text) for text in answers or []]
    found += [_model(text, server) for text in models or []]
    if checkpoints or not found:
        found = [Contestant(name, checkpoint=name) for name in chosen(run, recipe, checkpoints, (BASE,))] + found
    return found


def assets(benchmark: str, folder: Path | None) -> Assets:
    """The benchmark's files. Raises ZephyrError where the folder is none."""
    if folder and not folder.is_dir():
        raise ZephyrError(f"there is no folder {folder}", "check the path of --assets; it is read from here")
    return Assets(benchmark, folder)


def perform(
    session: Session,
    loaded: Loaded,
    run: Run,
    contest: Contest,
    models: list[Contestant],
    max_usd: float | None,
) -> None:
    """Forecast the evaluation, or do it and show what came of it."""
    made = step(loaded.recipe, contest, models, run, max_usd)
    if session.dry_run:
        told = forecast(run, made)
        session.screen.show({"dry_run": [told]}, *forecast_lines([told]))
        return
    done = session.perform(run, made)
    session.screen.show(facts(done), *benchmark_tables(read_result(done.artifact.manifest)))


def _model(text: str, server: str | None) -> Contestant:
    name, model = _named(text)
    if server:
        choice = TeacherChoice(name="openai", options={"model": model, "base_url": server})
        return Contestant(name or model, server=choice)
    folder = Path(model)
    if folder.is_dir():
        usual = folder.resolve().parent.name if folder.resolve().name == "model" else folder.resolve().name
        return Contestant(name or usual, model=str(folder))
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ZephyrError(f"there is no folder {model}", "give a folder with a model, or a Hub id: ORG/NAME")
    return Contestant(name or model.rpartition("/")[2], model=model)


def _from_file(text: str) -> Contestant:
    name, path = _named(text)
    if not Path(path).is_file():
        raise ZephyrError(f"there is no file {path}", "check the path of --answers; it is read from the working folder")
    return Contestant(name or Path(path).stem, file=Path(path))


def _named(text: str) -> tuple[str, str]:
    """`NAME=WHAT` as both; a path that holds = and exists is a path."""
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and not Path(text).exists() else ("", text)
