"""The weights that a worker loads: a checkpoint of the run, or the recipe's base."""

from pathlib import Path

from zephyrctl import plugins
from zephyrctl.contracts import ModelBase
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import hash_folder
from zephyrctl.runs.run import Run

MODEL = "model"
"""The folder of the model in a checkpoint artifact."""


def model_base(recipe: Recipe) -> ModelBase:
    """The recipe's base."""
    return plugins.load().model_base(recipe.base.name, recipe.base.options)


def loaded(base: ModelBase, start: Artifact | None) -> dict[str, object]:
    """What a worker needs to load a model: a checkpoint, or the base if `start` is None."""
    return {
        "model": str((start.path / MODEL).absolute()) if start else base.location(),
        "revision": None if start else base.revision,
        "trusts_code": base.trusts_code,
        "chat_template": base.chat_template(),
    }


def base_hash(base: ModelBase) -> str:
    """The content of a base: the hash of its folder, or its id and revision on the Hub."""
    folder = Path(base.location())
    return hash_folder(folder) if folder.is_dir() else f"{base.location()}@{base.revision}"


def checkpoint_folder(run: Run, name: str) -> Path | None:
    """The model folder of a finished checkpoint; None if there is no such checkpoint."""
    artifact = run.artifact(name)
    return artifact.path / MODEL if artifact else None
