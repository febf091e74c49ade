"""Whether questions that training data holds are found, and by which artifact."""

from pathlib import Path

from zephyrctl.data.decontaminate.benchmark_overlap import find_overlap
from zephyrctl.records import Dialogue, Message, PreferencePair, prompt_id
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

LONG = "Tell me which of the seven hills of Rome was settled first and by whom"


def said(text: str) -> list[Message]:
    """A user's turn and an answer."""
    return [Message(role="user", content=text), Message(role="assistant", content="Yes.")]


def artifacts(folder: Path, dialogues: list[str], pairs: list[str]) -> list[Artifact]:
    """Finished artifacts with these user turns on their training side."""
    run = Run(folder)
    with run.draft(Plan(name="build", stage="build", settings={}, inputs={}), {}, {}) as draft:
        rows = [Dialogue(id=prompt_id(text), messages=said(text), source="s") for text in dialogues]
        draft.write("dialogues", "train", rows, Dialogue)
        build = draft.finish()
    with run.draft(Plan(name="binarize", stage="binarize", settings={}, inputs={}), {}, {}) as draft:
        made = [
            PreferencePair(
                id=prompt_id(text),
                messages=said(text)[:1],
                chosen="a",
                rejected="b",
                score_chosen=2,
                score_rejected=1,
            )
            for text in pairs
        ]
        draft.write("pairs", "train", made, PreferencePair)
        binarize = draft.finish()
    return [build, binarize]


def test_whole_questions_and_shared_words_are_found_with_where_they_are(tmp_path: Path) -> None:
    questions = {
        "1": ("What is asked?", "And then?"),
        "2": (LONG,),
        "3": ("Something that nobody trained on, at all, whatever it may be",),
    }
    dialogues = ["what is ASKED", f"Dear friend, {LONG.lower()}, please", "nothing of the kind"]
    found = find_overlap(questions, artifacts(tmp_path, dialogues, [LONG]), ngram=8)
    assert found == {
        "questions": 3,
        "hits": 2,
        "rows": 3,
        "searched": ["build", "binarize"],
        "ngram": 8,
        "by_question": {"1": ["build"], "2": ["binarize", "build"]},
    }


def test_nothing_shared_is_no_hit(tmp_path: Path) -> None:
    found = find_overlap({"1": (LONG,)}, artifacts(tmp_path, ["else"], []), ngram=8)
    assert (found["hits"], found["rows"], found["by_question"]) == (0, 0, {})
