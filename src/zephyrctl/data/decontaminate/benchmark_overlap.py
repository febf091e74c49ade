"""Count the questions of a benchmark that are in a run's training data, to report beside its scores."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from zephyrctl.data.decontaminate.search import BenchmarkPrompt, BenchmarkSearch, search_records
from zephyrctl.recipe.schema import Decontaminate
from zephyrctl.records import Dialogue, PreferencePair
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import Source

SEARCHED: Mapping[str, tuple[str, type[Dialogue] | type[PreferencePair]]] = {
    "build": ("dialogues", Dialogue),
    "binarize": ("pairs", PreferencePair),
}
"""The artifacts of a run that models are trained on: name, its table and the table's record."""
Questions = Mapping[str, Sequence[str]]
"""The questions of a benchmark: id of the question, its user turns."""


def trained_on(run: Run) -> list[str]:
    """The names of a run's artifacts that models are trained on."""
    return [name for name in SEARCHED if run.artifact(name)]


def sources(names: Iterable[str]) -> dict[str, Source]:
    """Those artifacts as inputs of a stage."""
    return {name: Source(artifact=name, stage=name) for name in names}


def settings(decontaminate: Decontaminate, names: Sequence[str]) -> dict[str, int]:
    """The settings that the result of the search depends on."""
    return {"ngram": decontaminate.ngram} if names else {}


def record_overlap(
    benchmark: str,
    questions: Questions,
    inputs: Iterable[Artifact | Path],
    decontaminate: Decontaminate,
    draft: Draft,
) -> None:
    """Search the training data, and write the result to the draft's metrics, with a note if anything was found."""
    artifacts = [source for source in inputs if isinstance(source, Artifact)]
    if not artifacts:
        return
    overlap = find_overlap(questions, artifacts, decontaminate.ngram)
    draft.metrics["contamination"] = overlap
    if overlap["hits"]:
        draft.notes.append(
            f"{overlap['hits']} of {overlap['questions']} questions of {benchmark} are in {overlap['rows']} "
            "training rows"
        )


def find_overlap(questions: Questions, artifacts: Iterable[Artifact], ngram: int) -> dict[str, object]:
    """Which questions are in a user turn of a training row: the whole turn, or an n-gram of its words.

    Returns `questions`, `hits` (how many of them were found), `rows` (training rows that contain one), `searched`,
    `ngram` and `by_question`: id of the question, the artifacts that contain it.
    """
    prompts: list[BenchmarkPrompt] = []  # named by the question's id, so that a match names its question
    for id, texts in questions.items():
        prompts += [BenchmarkPrompt(id, text) for text in texts]
    search = BenchmarkSearch(prompts, ngram)
    containing: dict[str, set[str]] = {}
    rows: Counter[str] = Counter()
    searched = []
    for artifact in artifacts:
        name = artifact.manifest.plan.name
        searched.append(name)
        table, record = SEARCHED[name]
        for _, turns in search_records(search, artifact.read(table, "train", record)):
            rows[name] += bool(turns)
            for turn in turns:
                containing.setdefault(turn.benchmark, set()).add(name)
    by_question = {question: sorted(names) for question, names in sorted(containing.items())}
    counts = {"questions": len(questions), "hits": len(containing), "rows": rows.total()}
    return {**counts, "searched": searched, "ngram": ngram, "by_question": by_question}
