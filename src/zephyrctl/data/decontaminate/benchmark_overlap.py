"""Which questions of a benchmark the training data of a run holds, which belongs beside every score."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from zephyrctl.data.decontaminate.search import BenchmarkPrompt, Search
from zephyrctl.evaluation.questions import Question
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Dialogue, PreferencePair
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import Source

SEARCHED: Mapping[str, tuple[str, type[Dialogue] | type[PreferencePair]]] = {
    "build": ("dialogues", Dialogue),
    "binarize": ("pairs", PreferencePair),
}
"""Artifact of a run: its table that is trained on."""
AT_ONCE = 256


def trained_on(run: Run) -> list[str]:
    """The artifacts of a run whose rows were trained on."""
    return [name for name in SEARCHED if run.artifact(name)]


def sources(names: Iterable[str]) -> dict[str, Source]:
    """What a step reads to search them."""
    return {name: Source(artifact=name, stage=name) for name in names}


def settings(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """What the search depends on, beside what it reads."""
    return {"ngram": recipe.decontaminate.ngram} if names else {}


def tell(
    benchmark: str, questions: Sequence[Question], inputs: Iterable[Artifact | Path], recipe: Recipe, draft: Draft
) -> None:
    """Search, and put what was found into the draft: its metrics, and a note where there is any."""
    artifacts = [one for one in inputs if isinstance(one, Artifact)]
    if not artifacts:
        return
    found = search(questions, artifacts, recipe.decontaminate.ngram)
    draft.metrics["contamination"] = found
    if found["hits"]:
        draft.notes.append(
            f"{found['hits']} of {found['questions']} questions of {benchmark} are in {found['rows']} training rows"
        )


def search(questions: Sequence[Question], artifacts: Iterable[Artifact], ngram: int) -> dict[str, Any]:
    """How many questions, and which, are said by the user of a training row: whole, or by an n-gram of words.

    Returns `questions`, `hits` (questions that were found), `rows` (training rows that hold one), `searched`, `ngram`
    and `by_question`: question: the artifacts that hold it.
    """
    prompts = [BenchmarkPrompt(question.id, text) for question in questions for text in question.turns]
    found = Search(prompts, ngram)
    holders: dict[str, set[str]] = {}
    rows: Counter[str] = Counter()
    searched = []
    for artifact in artifacts:
        name = artifact.manifest.plan.name
        searched.append(name)
        for hits in _hits(artifact, found):
            rows[name] += 1
            for question in hits:
                holders.setdefault(question, set()).add(name)
    return {
        "questions": len(questions),
        "hits": len(holders),
        "rows": rows.total(),
        "searched": searched,
        "ngram": ngram,
        "by_question": {question: sorted(names) for question, names in sorted(holders.items())},
    }


def _hits(artifact: Artifact, found: Search) -> Iterator[set[str]]:
    """The questions that each training row holds, for rows that hold one."""
    table, record = SEARCHED[artifact.manifest.plan.name]
    remaining = iter(artifact.read(table, "train", record))
    while some := list(islice(remaining, AT_ONCE)):
        said = [(place, text) for place, row in enumerate(some) for text in row.user_turns()]
        hits: dict[int, set[str]] = {}
        for number, match in found.find([text for _, text in said]):
            hits.setdefault(said[number][0], set()).add(match.benchmark)
        yield from hits.values()
