"""Check a run before it is published; each check has a name, by which it is waived."""

from collections.abc import Iterator, Sequence

from zephyrctl.contracts import ModelBase
from zephyrctl.data.audit import audit, failed_gates
from zephyrctl.data.results import RowsResult
from zephyrctl.evaluation.results import BenchmarkResult, read_result
from zephyrctl.publishing.stage_settings import StageSettings
from zephyrctl.publishing.uploads import FailedCheck, looks_pickled
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact

NAMES = ("contamination", "gates", "licence", "secrets", "pickle")
AUDITED = ("build", "feedback", "binarize")
"""Artifacts that `data audit` can read, in the order of the work."""


def failed_checks(
    recipe: Recipe,
    base: ModelBase,
    chain: Sequence[Artifact],
    evaluations: Sequence[Artifact],
    files: Sequence[str],
) -> list[FailedCheck]:
    """What fails of: contamination, the recipe's gates, a known licence, and weights that are not pickled."""
    return [
        *_check_contamination(chain, evaluations),
        *_check_gates(recipe, chain),
        *_check_licence(base),
        *_check_pickles(files),
    ]


def _check_contamination(chain: Sequence[Artifact], evaluations: Sequence[Artifact]) -> Iterator[FailedCheck]:
    for artifact in chain:
        manifest = artifact.manifest
        on_hit = StageSettings.of(manifest.plan).decontaminate.on_hit
        if kept := RowsResult.of(manifest).kept_contaminated(on_hit):
            yield FailedCheck(
                "contamination",
                f"{manifest.plan.name} kept {kept} training rows that contain prompts of a benchmark",
                "drop them: decontaminate.on_hit=drop, and train again",
            )
    for artifact in evaluations:
        result = read_result(artifact.manifest)
        overlap = result.contamination if isinstance(result, BenchmarkResult) else None
        if overlap and overlap.hits:
            yield FailedCheck(
                "contamination",
                f"{overlap.hits} of {overlap.questions} questions of {artifact.manifest.plan.name} "
                "are in the training data",
                "decontaminate against them: decontaminate.against names the benchmark's files; then train again",
            )


def _check_gates(recipe: Recipe, chain: Sequence[Artifact]) -> Iterator[FailedCheck]:
    """The recipe's gates for `data audit`, on the last data of the chain."""
    named = {artifact.manifest.plan.name: artifact for artifact in chain}
    audited = [name for name in AUDITED if name in named]
    if not recipe.audit.gates or not audited:
        return
    name = audited[-1]
    figures = audit(named[name].path, ngram=recipe.decontaminate.ngram or 8).figures()
    for gate, value in failed_gates(figures, recipe.audit.gates):
        yield FailedCheck(
            "gates",
            f"{name}: {gate} is {value:g}, and audit.gates allows {recipe.audit.gates[gate]:g}",
            "fix the data, or change audit.gates in the recipe",
        )


def _check_licence(base: ModelBase) -> Iterator[FailedCheck]:
    if base.license == "unknown":
        yield FailedCheck(
            "licence",
            f"the licence of {base.name} is unknown",
            "name it: --set base.options.license=apache-2.0",
        )


def _check_pickles(files: Sequence[str]) -> Iterator[FailedCheck]:
    for name in files:
        if looks_pickled(name):
            yield FailedCheck(
                "pickle", f"{name} is a pickle, which runs code when it is loaded", "save it as safetensors"
            )
