"""Whom one can talk to: the checkpoints of a run and their base, or any model with a chat template of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.launching.weights import MODEL, loaded
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

BASE = "base"
"""The name of the model that every checkpoint comes from; it is asked in their template, which it has never seen."""


@dataclass(frozen=True)
class Speaker:
    """A model to talk to, and what the worker that loads it is told."""

    name: str
    load: Mapping[str, Any]


def speakers(recipe: Recipe, run: Run) -> dict[str, Speaker]:
    """The base and the run's finished checkpoints by name, in the recipe's order.

    Their template is that of the token contract: the worker refuses a checkpoint that was trained on other tokens.
    """
    base = plugins.load().model_base(recipe.base.name, recipe.base.options)
    finished = {name: run.artifact(name) for name in recipe.checkpoints}
    known = {BASE: None} | {name: artifact for name, artifact in finished.items() if artifact}
    return {name: Speaker(name, _request(loaded(base, artifact))) for name, artifact in known.items()}


def choose(given: str | None, known: Mapping[str, Speaker], recipe: Recipe, run: Run) -> Speaker:
    """The speaker that is named: a checkpoint, else a folder or Hub id; the last finished checkpoint where none is.

    Raises ZephyrError for a checkpoint that is not finished, and a name that is none of these.
    """
    if given is None:
        if len(known) == 1:
            raise ZephyrError(
                f"{run.path} has no finished checkpoint to talk to",
                f"zephyrctl sft --run {run.path}, or talk to its base: zephyrctl chat base",
            )
        return list(known.values())[-1]
    if given in known:
        return known[given]
    if given in recipe.checkpoints:
        stage = recipe.checkpoints[given].stage
        raise ZephyrError(f"{run.path} has no finished {given!r}", f"zephyrctl {stage} --run {run.path}")
    return elsewhere(given, known)


def elsewhere(given: str, known: Mapping[str, Speaker]) -> Speaker:
    """A model of a folder or of the Hub, in its own template; a stage's folder is as good as the model in it.

    Raises ZephyrError for what is no folder and cannot be the id of a model.
    """
    folder = Path(given)
    if not (folder / "config.json").is_file() and (folder / MODEL).is_dir():
        folder = folder / MODEL
    if not folder.is_dir() and given.count("/") != 1:
        names: Sequence[str] = list(known)
        remedy = did_you_mean(given, names, otherwise=f"one of: {', '.join(names)}; a folder; or a Hub id, ORG/NAME")
        raise ZephyrError(f"there is no checkpoint and no folder {given!r}", remedy)
    model = str(folder.absolute()) if folder.is_dir() else given
    return Speaker(given, {"load": model, "revision": None, "chat_template": None, "trusts_code": False})


def _request(told: dict[str, Any]) -> dict[str, Any]:
    """What a generation worker is told to load. The transformers engine shows an answer as it is written."""
    return {"load": told["model"], **{key: value for key, value in told.items() if key != "model"}}
