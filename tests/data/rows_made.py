"""Small recipes, plans and rows for tests of the stages."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyrctl import plugins
from zephyrctl.contracts import Teacher
from zephyrctl.plugins import Offer
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import ASPECTS, Completion, Message, Prompt, RatedPrompt, Rating, prompt_id
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run


def tiny(**overrides: Any) -> Recipe:
    """The recipe `tiny` with other values: `build__test_share=0.5` for `build.test_share`."""
    return loading.load("tiny", {key.replace("__", "."): value for key, value in overrides.items()}).recipe


def plan(name: str = "build", **settings: Any) -> Plan:
    """A plan without inputs."""
    return Plan(name=name, stage="build", settings=settings, inputs={})


def open_draft(run: Run, name: str = "build", **settings: Any) -> Draft:
    """A draft of such a plan."""
    return run.draft(plan(name, **settings), {}, {})


def prompt(text: str, *later: str) -> Prompt:
    """A prompt of one user turn, or of several with answers between them."""
    messages = [Message(role="user", content=text)]
    for turn in later:
        messages += [Message(role="assistant", content="Yes."), Message(role="user", content=turn)]
    return Prompt(id=prompt_id(text), messages=messages, source="test")


def rated(text: str, *answers: tuple[str, float | None]) -> RatedPrompt:
    """A prompt whose answers have the same rating in every aspect."""
    return RatedPrompt(
        id=prompt_id(text),
        messages=[Message(role="user", content=text)],
        completions=[
            Completion(model=f"model {place}", text=answer, ratings=[Rating(aspect=a, value=mark) for a in ASPECTS])
            for place, (answer, mark) in enumerate(answers)
        ],
        source="test",
    )


def ultrafeedback_row(instruction: str, answers: Mapping[str, Any], as_list: bool = False) -> dict[str, Any]:
    """A row in UltraFeedback's nested form; `answers` maps each text to the mark of all four aspects."""
    marks = {text: {"Rating": mark, "Rationale": "because"} for text, mark in answers.items()}
    return {
        "source": "evol_instruct",
        "instruction": instruction,
        "models": [f"model-{place}" for place in range(len(answers))],
        "completions": [
            {
                "model": f"model-{place}",
                "response": text,
                "annotations": {aspect: [marks[text]] if as_list else marks[text] for aspect in ASPECTS},
                "overall_score": 7.0,
            }
            for place, text in enumerate(answers)
        ],
    }


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file of the rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextlib.contextmanager
def offered(*teachers: type[Teacher]) -> Iterator[None]:
    """Offer teachers of the tests beside the installed ones."""
    offers = plugins.load().added
    added = [Offer("teacher", teacher.name, "tests", teacher) for teacher in teachers]
    offers += added
    try:
        yield
    finally:
        for offer in added:
            offers.remove(offer)


class Stop:
    """A watcher that interrupts the work after so many steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def say(self, line: str) -> None:
        """Drop the sentence."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Count down."""
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def measure(self, values: Mapping[str, float]) -> None:
        """Drop the figures."""
