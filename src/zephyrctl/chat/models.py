"""The models to chat with: a run's base and checkpoints, or any model that has its own chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.launching.weights import MODEL, loaded
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

BASE = "base"
"""The name of the base model. It is prompted with the checkpoints' template, which it was not trained on."""


@dataclass(frozen=True)
class ChatModel:
    """A model to chat with, and the request that makes a worker load it."""

    name: str
    load: Mapping[str, object]


def chat_models(recipe: Recipe, run: Run) -> dict[str, ChatModel]:
    """The base and the run's finished checkpoints by name, in the recipe's order.

    They use the template of the token contract: the worker refuses a checkpoint that was trained with another one.
    """
    base = plugins.load().model_base(recipe.base.name, recipe.base.options)
    finished = {name: run.artifact(name) for name in recipe.checkpoints}
    known = {BASE: None} | {name: artifact for name, artifact in finished.items() if artifact}
    return {name: ChatModel(name, _request(loaded(base, artifact))) for name, artifact in known.items()}


def choose(given: str | None, known: Mapping[str, ChatModel], recipe: Recipe, run: Run) -> ChatModel:
    """The named checkpoint, folder or Hub id; the last finished checkpoint if no name is given.

    Raises ZephyrError if the checkpoint is not finished, or the name is none of these.
    """
    if given is None:
        if len(known) == 1:
            raise ZephyrError(
                f"{run.path} has no finished checkpoint to chat with",
                f"zephyrctl sft --run {run.path}, or chat with its base: zephyrctl chat base",
            )
        return list(known.values())[-1]
    if given in known:
        return known[given]
    if given in recipe.checkpoints:
        stage = recipe.checkpoints[given].stage
        raise ZephyrError(f"{run.path} has no finished {given!r}", f"zephyrctl {stage} --run {run.path}")
    return model_from_path(given, known)


def model_from_path(given: str, known: Mapping[str, ChatModel]) -> ChatModel:
    """A model from a folder or the Hub, with its own template. A checkpoint's artifact folder works too.

    Raises ZephyrError if `given` is neither a folder nor a possible Hub id.
    """
    folder = Path(given)
    if not (folder / "config.json").is_file() and (folder / MODEL).is_dir():
        folder = folder / MODEL
    if not folder.is_dir() and given.count("/") != 1:
        names: Sequence[str] = list(known)
        remedy = did_you_mean(given, names, otherwise=f"one of: {', '.join(names)}; a folder; or a Hub id, ORG/NAME")
        raise ZephyrError(f"there is no checkpoint and no folder {given!r}", remedy)
    model = str(folder.absolute()) if folder.is_dir() else given
    return ChatModel(given, {"load": model, "revision": None, "chat_template": None, "trusts_code": False})


def _request(weights: Mapping[str, object]) -> dict[str, object]:
    """The request that makes a generation worker load the model. The transformers engine streams answers."""
    return {"load": weights["model"], **{key: value for key, value in weights.items() if key != "model"}}
