"""The options that the commands of benchmarks share: which models answer, who judges, from which files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zephyrctl import plugins
from zephyrctl.cli.evaluate.held_out import chosen
from zephyrctl.cli.session import Session
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.benchmarks.contract import JUDGING
from zephyrctl.evaluation.candidates import Candidate
from zephyrctl.evaluation.held_out import BASE
from zephyrctl.recipe.loading import Loaded
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.runs.run import Run

WHO = "Who answers"

Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint of the run, or base. Repeatable. Default: all finished checkpoints.",
        rich_help_panel=WHO,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[NAME=]MODEL",
        help="Folder or Hub id of a model, with its own chat template. Repeatable.",
        rich_help_panel=WHO,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Address of a server that runs --model (with OpenAI's API, such as vLLM).",
        rich_help_panel=WHO,
    ),
]
AnswerFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--answers",
        metavar="[NAME=]FILE",
        help="Existing answers in this benchmark's format, one file per model. Repeatable.",
        rich_help_panel=WHO,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="MODEL",
        help="Model with OpenAI's API, or the name of a teacher. Default: eval.judge.",
        rich_help_panel=JUDGING,
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge-url", metavar="URL", help="Address of the judge's server.", rich_help_panel=JUDGING),
]
AssetsFolder = Annotated[
    Path | None,
    typer.Option(
        "--assets",
        metavar="DIR",
        help="Folder with questions, prompts and references. Default: the cache of eval fetch.",
        rich_help_panel=JUDGING,
    ),
]
MaxUsd = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0,
        help="Stop before calls cost more than this; finished calls are kept.",
        rich_help_panel=JUDGING,
    ),
]


def load(session: Session, judge: str | None, url: str | None, **overrides: Any) -> Loaded:
    """The recipe with the judge that the command line names: a model on a server, or a teacher by its name.

    Raises UsageError for an address without a judge.
    """
    if url and not judge:
        raise UsageError("--judge-url says where, and not which model judges", "give --judge MODEL too")
    session.load()  # from here on, teachers in the recipe's plugin files are known too
    teachers = plugins.load().names("teacher")
    options = {"model": judge, **({"base_url": url} if url else {})}
    choice = {"name": judge} if judge in teachers and not url else {"name": "openai", "options": options}
    return session.load(eval__judge=choice if judge else None, **overrides)


def candidates(run: Run, recipe: Recipe, takes_only_checkpoints: bool, values: Mapping[str, Any]) -> list[Candidate]:
    """The models that the options name, or the finished checkpoints of the run.

    Raises ZephyrError or UsageError if it is not clear which models are meant.
    """
    checkpoints = values.get("checkpoint")
    if takes_only_checkpoints:
        return [Candidate(name, checkpoint=name) for name in chosen(run, recipe, checkpoints)]
    if values.get("server") and not values.get("model"):
        raise UsageError("--server says where, and not which model answers", "give --model NAME, as it is served")
    found = [_from_file(text) for text in values.get("answers") or []]
    found += [_model(text, values.get("server")) for text in values.get("model") or []]
    if checkpoints or not found:
        names = chosen(run, recipe, checkpoints, (BASE,))
        found = [Candidate(name, checkpoint=name) for name in names] + found
    return found


def assets_folder(folder: Path | None) -> Path | None:
    """The folder of --assets. Raises ZephyrError if there is no such folder."""
    if folder and not folder.is_dir():
        raise ZephyrError(f"there is no folder {folder}", "check the path of --assets; it is read from here")
    return folder


def _model(text: str, server: str | None) -> Candidate:
    name, model = _split_name(text)
    if server:
        choice = TeacherChoice(name="openai", options={"model": model, "base_url": server})
        return Candidate(name or model, server=choice)
    folder = Path(model)
    if folder.is_dir():
        path = folder.resolve()
        usual = path.parent.name if path.name == "model" else path.name
        return Candidate(name or usual, model=str(folder))
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ZephyrError(f"there is no folder {model}", "give a folder with a model, or a Hub id: ORG/NAME")
    return Candidate(name or model.rpartition("/")[2], model=model)


def _from_file(text: str) -> Candidate:
    name, path = _split_name(text)
    if not Path(path).is_file():
        raise ZephyrError(f"there is no file {path}", "check the path of --answers; it is read from the working folder")
    return Candidate(name or Path(path).stem, file=Path(path))


def _split_name(text: str) -> tuple[str, str]:
    """`NAME=VALUE` as both; an existing path that contains = is a path."""
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and not Path(text).exists() else ("", text)
