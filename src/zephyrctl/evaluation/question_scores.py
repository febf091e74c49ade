"""Scores of single questions, wherever they lie: in evaluations of a run, or in files that others wrote."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zephyrctl.errors import BadRow, ZephyrError, did_you_mean
from zephyrctl.evaluation.benchmarks import alpaca_eval, fastchat_files, mt_bench, open_llm
from zephyrctl.evaluation.judged_rows import JudgmentRow, read_judgments
from zephyrctl.rows.files import rows_of
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run

HELD_OUT = "eval"
SCORED = (mt_bench.NAME, alpaca_eval.NAME, HELD_OUT, open_llm.NAME)
"""Artifacts whose tables have a score for every question and model."""
MANIFEST = "manifest.json"

Place = tuple[str, int]
"""A question and its turn."""


@dataclass(frozen=True)
class Marks:
    """One model's scores on one benchmark: the mean of repeated judgments, by question and turn."""

    model: str
    benchmark: str
    origin: str
    scores: Mapping[Place, float]
    categories: Mapping[str, str] = field(default_factory=dict)
    judges: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Summary:
    """One model's score on one benchmark, of which only the standard error is known."""

    model: str
    benchmark: str
    origin: str
    score: float
    error: float
    n: int


def find(run: Run, text: str) -> list[Marks | Summary]:
    """Everything that is known of the model that a text names, one entry a benchmark.

    The text is a model that the run's evaluations scored, or PATH or PATH:MODEL, where PATH is a run's folder, one of
    its evaluations, or a file of judgments, annotations or lm-eval's results. Raises ZephyrError where it is none.
    """
    path, model = _split(text)
    if path is None:
        found = [marks for artifact in _evaluations(run) for marks in of_artifact(artifact)]
        names = [marks.model for marks in found]
        chosen = [marks for marks in found if marks.model == text]
        if not chosen:
            known = ", ".join(dict.fromkeys(names)) or "nobody yet"
            otherwise = f"{run.path} has scores of {known}; or give a path: PATH or PATH:MODEL"
            raise ZephyrError(f"nobody knows of {text!r}", did_you_mean(text, names, otherwise))
        return list(chosen)
    return _choose(of_path(path), model, str(path))


def of_path(path: Path) -> list[Marks | Summary]:
    """What a folder or file tells of every model in it."""
    if (path / MANIFEST).is_file():
        artifact = Run(path.parent).artifact(path.name)
        return list(of_artifact(artifact)) if artifact else []
    if path.is_dir() and (artifacts := list(_evaluations(Run(path)))):
        return [marks for artifact in artifacts for marks in of_artifact(artifact)]
    return of_results(path) if path.is_dir() else of_file(path)


def of_results(path: Path) -> list[Marks | Summary]:
    """The scores of lm-eval's result files, of which no single question is known."""
    scores = open_llm.read_results([path]).rounded()
    known = {name: (scores.estimate(name), scores.standard_errors.get(name)) for name in open_llm.FIGURES}
    return [
        Summary(path.name, f"{open_llm.NAME} {name}", str(path), score.mean, error, scores.n.get(name) or 0)
        for name, (score, error) in known.items()
        if score is not None and error is not None
    ]


def of_artifact(artifact: Artifact) -> list[Marks]:
    """The marks of every model in one evaluation."""
    name, where = artifact.manifest.plan.name, str(artifact.path)
    if name == open_llm.NAME:
        return _of_leaderboard(artifact)
    return gathered(name, where, read_judgments(artifact))


def of_file(path: Path) -> list[Marks | Summary]:
    """What a file tells of every model in it: FastChat's single judgments, AlpacaEval's annotations, or results.

    Raises ZephyrError for a file of another form.
    """
    row = next(rows_of(path))[1]
    if isinstance(row, BadRow) or "results" in row:
        return of_results(path)
    if "preference" in row:
        return list(gathered(alpaca_eval.NAME, str(path), alpaca_eval.read_annotations(path).judged))
    if "score" in row and "question_id" in row:
        judged = fastchat_files.read_judgments([path]).judged
        return list(gathered(mt_bench.NAME, str(path), map(_with_category, judged)))
    raise ZephyrError(
        f"{path} holds no scores", "give FastChat's judgments, AlpacaEval's annotations, or lm-eval's results"
    )


def _split(text: str) -> tuple[Path | None, str | None]:
    """`PATH` or `PATH:MODEL`; no path where nothing lies there."""
    if Path(text).exists():
        return Path(text), None
    path, _, model = text.rpartition(":")
    return (Path(path), model) if path and Path(path).exists() else (None, None)


def _choose(found: list[Marks | Summary], model: str | None, where: str) -> list[Marks | Summary]:
    """What belongs to the model that is meant. Raises ZephyrError where it is not there, or it is not clear which."""
    names = list(dict.fromkeys(one.model for one in found))
    if not names:
        raise ZephyrError(f"{where} holds no scores", "give a run that was evaluated, or a file of judgments")
    if model is None and len(names) > 1:
        raise ZephyrError(f"{where} has scores of {', '.join(names)}", f"say which: {where}:{names[0]}")
    chosen = [one for one in found if model in (None, one.model)]
    if not chosen:
        remedy = did_you_mean(model or "", names, f"one of: {', '.join(names)}")
        raise ZephyrError(f"{where} has no scores of {model!r}", remedy)
    return chosen


def _evaluations(run: Run) -> Iterator[Artifact]:
    for name in SCORED:
        if artifact := run.artifact(name):
            yield artifact


def gathered(benchmark: str, origin: str, judged: Iterable[JudgmentRow]) -> list[Marks]:
    """The marks of every model in some judgments; win rates are in per cent."""
    scores: dict[str, dict[Place, list[float]]] = {}
    categories: dict[str, str] = {}
    judges: dict[str, set[str]] = {}
    for row in judged:
        categories[row.question] = row.category
        places = scores.setdefault(row.model, {})
        if row.score is not None:
            judges.setdefault(row.model, set()).add(row.judge)
            factor = 100 if benchmark == alpaca_eval.NAME else 1
            places.setdefault((row.question, row.turn), []).append(factor * row.score)
    return [
        Marks(
            model,
            benchmark,
            origin,
            {place: sum(given) / len(given) for place, given in places.items()},
            categories,
            frozenset(judges.get(model, ())),
        )
        for model, places in scores.items()
    ]


def _of_leaderboard(artifact: Artifact) -> list[Marks]:
    """Marks in per cent, benchmark by benchmark; those of MMLU weigh questions alike, and so subjects by their size."""
    found: dict[tuple[str, str], dict[str, open_llm.Scored]] = {}
    for row in artifact.read("scores", "test", open_llm.Scored):
        found.setdefault((row.model, row.benchmark), {})[f"{row.category} {row.question}"] = row
    return [
        Marks(
            model,
            f"{open_llm.NAME} {benchmark}{'_by_size' if benchmark == 'mmlu' else ''}",
            str(artifact.path),
            {(question, 1): 100 * row.score for question, row in rows.items()},
            {question: row.category for question, row in rows.items()},
        )
        for (model, benchmark), rows in found.items()
    ]


def _with_category(row: JudgmentRow) -> JudgmentRow:
    return row if row.category else row.model_copy(update={"category": mt_bench.category_of(row.question)})
