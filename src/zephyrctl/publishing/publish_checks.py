"""What speaks against publishing a run; each thing has a name, by which whoever knows better waives it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zephyrctl.contracts import ModelBase
from zephyrctl.data.audit import audit, failed_gates
from zephyrctl.publishing.uploads import Objection, looks_pickled
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact

NAMES = ("contamination", "gates", "licence", "secrets", "pickle")
AUDITED = {"build": "dialogues", "feedback": "rated", "binarize": "pairs"}
"""Artifacts that `data audit` reads, and their table."""


def objections(
    recipe: Recipe,
    base: ModelBase,
    chain: Sequence[Artifact],
    evaluations: Sequence[Artifact],
    files: Sequence[str],
) -> list[Objection]:
    """Contamination, failed gates of the recipe, a licence that nobody knows, and pickled weights."""
    return [
        *_contamination(chain, evaluations),
        *_gates(recipe, chain),
        *_licence(base),
        *_pickles(files),
    ]


def _contamination(chain: Sequence[Artifact], evaluations: Sequence[Artifact]) -> Iterator[Objection]:
    for artifact in chain:
        if kept := _kept(artifact.manifest.metrics.get("contaminated"), artifact.manifest.plan.settings):
            yield Objection(
                "contamination",
                f"{artifact.manifest.plan.name} kept {kept} training rows that hold what a benchmark asks",
                "drop them: decontaminate.on_hit=drop, and train again",
            )
    for artifact in evaluations:
        found = artifact.manifest.metrics.get("contamination") or {}
        if found.get("hits"):
            asked = f"questions of {artifact.manifest.plan.name}"
            yield Objection(
                "contamination",
                f"{found['hits']} of {found['questions']} {asked} are in the training data",
                "decontaminate against them: decontaminate.against names the benchmark's files; then train again",
            )


def _kept(contaminated: Any, settings: Mapping[str, Any]) -> int:
    """Rows that were trained on all the same; a stage that dropped its hits kept none."""
    if isinstance(contaminated, int):
        return contaminated
    is_kept = (settings.get("decontaminate") or {}).get("on_hit") == "keep"
    return int((contaminated or {}).get("rows", 0)) if is_kept else 0


def _gates(recipe: Recipe, chain: Sequence[Artifact]) -> Iterator[Objection]:
    """The recipe's own gates of `data audit`, on the last data that has their figures."""
    if not recipe.audit.gates:
        return
    named = {artifact.manifest.plan.name: artifact for artifact in chain}
    for name in reversed([name for name in AUDITED if name in named]):
        figures = audit(named[name].path, ngram=recipe.decontaminate.ngram or 8).figures()
        for gate, value in failed_gates(figures, recipe.audit.gates):
            yield Objection(
                "gates",
                f"{name}: {gate} is {value:g}, and audit.gates allows {recipe.audit.gates[gate]:g}",
                "mend the data, or change audit.gates in the recipe",
            )
        return


def _licence(base: ModelBase) -> Iterator[Objection]:
    if base.license == "unknown":
        yield Objection(
            "licence",
            f"nobody knows under which licence {base.name} may be passed on",
            "name it: --set base.options.license=apache-2.0",
        )


def _pickles(files: Sequence[str]) -> Iterator[Objection]:
    for name in files:
        if looks_pickled(name):
            yield Objection(
                "pickle", f"{name} is a pickle, which runs code when it is loaded", "save it as safetensors"
            )
