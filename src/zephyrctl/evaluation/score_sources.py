"""Find the scores of a model that a text names: in the run, in other runs, or in files that others wrote."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.evaluation.installed import benchmark_classes, benchmark_of
from zephyrctl.evaluation.judged_rows import read_judgments
from zephyrctl.evaluation.question_scores import KnownScores, mean_by_question
from zephyrctl.rows.files import rows_of
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run

HELD_OUT = "eval"
"""The artifact of the held-out evaluation, and its name among benchmarks."""
MANIFEST = "manifest.json"


def find(run: Run, text: str) -> list[KnownScores]:
    """The scores of the model that a text names, one entry for each benchmark.

    The text is a model that the run's evaluations scored, or PATH or PATH:MODEL, where PATH is a run's folder, one of
    its evaluations, or a file that a benchmark can read. Raises ZephyrError if there is no such model.
    """
    path, model = _split(text)
    if path is not None:
        return _choose(of_path(path), model, str(path))
    known = [scores for artifact in _evaluations(run) for scores in of_artifact(artifact)]
    chosen = [scores for scores in known if scores.model == text]
    if not chosen:
        names = [scores.model for scores in known]
        listed = ", ".join(dict.fromkeys(names)) or "no model yet"
        otherwise = f"{run.path} has scores of {listed}; or give a path: PATH or PATH:MODEL"
        raise ZephyrError(f"there are no scores of {text!r}", did_you_mean(text, names, otherwise))
    return chosen


def of_path(path: Path) -> list[KnownScores]:
    """The scores of every model in a folder or a file."""
    if (path / MANIFEST).is_file():
        artifact = Run(path.parent).artifact(path.name)
        return of_artifact(artifact) if artifact else []
    if path.is_dir() and (artifacts := list(_evaluations(Run(path)))):
        return [scores for artifact in artifacts for scores in of_artifact(artifact)]
    return _of_files(path)


def of_artifact(artifact: Artifact) -> list[KnownScores]:
    """The scores of every model in one evaluation."""
    benchmark = benchmark_of(artifact.manifest)
    if benchmark is None:
        return list(mean_by_question(HELD_OUT, str(artifact.path), read_judgments(artifact)))
    return benchmark.question_scores(artifact)


def _of_files(path: Path) -> list[KnownScores]:
    """The scores in a file or folder of others, read by the benchmark that knows its form."""
    first = None if path.is_dir() else next(rows_of(path))[1]
    for benchmark in reversed(benchmark_classes()):  # a plugin may read a form that a built-in benchmark reads too
        if benchmark.reads_folders if first is None else benchmark.reads_file(first):
            return benchmark.scores_of_files(path)
    forms = [benchmark.file_form for benchmark in benchmark_classes() if benchmark.file_form]
    raise ZephyrError(f"{path} holds no scores", f"give {', '.join(forms)}")


def _split(text: str) -> tuple[Path | None, str | None]:
    """`PATH` or `PATH:MODEL`; no path if there is no such file or folder."""
    if Path(text).exists():
        return Path(text), None
    path, _, model = text.rpartition(":")
    return (Path(path), model) if path and Path(path).exists() else (None, None)


def _choose(known: Sequence[KnownScores], model: str | None, where: str) -> list[KnownScores]:
    """The scores of the model that is meant. Raises ZephyrError if it is missing, or if it is not clear which one."""
    names = list(dict.fromkeys(scores.model for scores in known))
    if not names:
        raise ZephyrError(f"{where} holds no scores", "give a run that was evaluated, or a file of judgments")
    if model is None and len(names) > 1:
        raise ZephyrError(f"{where} has scores of {', '.join(names)}", f"say which: {where}:{names[0]}")
    chosen = [scores for scores in known if model in (None, scores.model)]
    if not chosen:
        remedy = did_you_mean(model or "", names, f"one of: {', '.join(names)}")
        raise ZephyrError(f"{where} has no scores of {model!r}", remedy)
    return chosen


def _evaluations(run: Run) -> Iterator[Artifact]:
    """The evaluations of a run: the held-out one, and those of installed benchmarks."""
    names = {None, *(benchmark.name for benchmark in benchmark_classes())}
    for artifact in run.artifacts():
        if artifact.manifest.plan.stage == HELD_OUT and artifact.manifest.metrics.get("benchmark") in names:
            yield artifact
