"""Whether the row formats of an installed plugin are read by every command that reads published rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shell
from tests.data.rows_made import write_jsonl
from tests.plugins.packages import install, python_path

FORUM = '''
"""Row formats of a forum: threads, threads with votes, and questions with a better and a worse reply."""

from zephyrctl.hooks import hookimpl
from zephyrctl.records import ASPECTS, Completion, Message, RatedPrompt, Rating, prompt_id
from zephyrctl.rows.formats import DialogueFormat, PairFormat, RatedFormat


class Thread(DialogueFormat):
    """A thread: whoever opened it is the user."""

    name = "forum-thread"
    title = "the forum's `thread`"
    keys = frozenset({"thread"})
    example = {"thread": [{"by": "ann", "post": "Hi?"}, {"by": "bob", "post": "Hello."}]}

    def matches(self, row):
        return isinstance(row.get("thread"), list)

    def turns(self, row):
        opened = row["thread"][0]["by"]
        return [("user" if turn["by"] == opened else "assistant", turn["post"]) for turn in row["thread"]]


class Votes(RatedFormat):
    """A question with replies that have votes."""

    name = "forum-votes"
    title = "the forum's `topic` and `replies`"
    keys = frozenset({"topic", "replies"})
    example = {"topic": "Hi?", "replies": [{"by": "bob", "post": "Hello.", "stars": 5}]}

    def matches(self, row):
        return "topic" in row and isinstance(row.get("replies"), list)

    def read(self, row, where):
        return RatedPrompt(
            id=prompt_id(row["topic"]),
            messages=[Message(role="user", content=row["topic"])],
            completions=[
                Completion(
                    model=reply["by"],
                    text=reply["post"],
                    ratings=[Rating(aspect=aspect, value=reply["stars"]) for aspect in ASPECTS],
                )
                for reply in row["replies"]
            ],
            source="forum",
        )


class Better(PairFormat):
    """A question with a better and a worse reply."""

    name = "forum-better"
    title = "the forum's `topic`, `better` and `worse`"
    keys = frozenset({"topic", "better", "worse"})
    example = {"topic": "Hi?", "better": "Hello.", "worse": "No."}

    def matches(self, row):
        return "better" in row and "worse" in row

    def prompt_turns(self, row):
        return [("user", row["topic"])]

    def answers(self, row):
        return row["better"], row["worse"]


@hookimpl
def zephyrctl_row_formats():
    return [Thread, Votes, Better]
'''
ROWS: dict[str, list[dict[str, Any]]] = {
    "threads": [
        {"thread": [{"by": "ann", "post": f"Why {number}?"}, {"by": "bob", "post": f"Because of {number}."}]}
        for number in range(40)
    ],
    "votes": [
        {
            "topic": f"Why {number}?",
            "replies": [{"by": "bob", "post": "So.", "stars": 5}, {"by": "cy", "post": "No.", "stars": 1}],
        }
        for number in range(20)
    ],
    "better": [
        {"topic": f"Why {number}?", "better": f"Because of {number}.", "worse": "I do not know."}
        for number in range(16)
    ],
}


@pytest.fixture(scope="module")
def forum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package."""
    return install(tmp_path_factory.mktemp("forum"), "zephyrctl-forum", FORUM)


def write(folder: Path, name: str) -> str:
    """The name of a file of rows in a folder."""
    return write_jsonl(folder / f"{name}.jsonl", ROWS[name]).name


def test_build_reads_the_dialogues_of_a_plugin_in_this_process_and_in_others(forum: Path, tmp_path: Path) -> None:
    command = ["data", "build", "--input", write(tmp_path, "threads"), "--json"]
    one = shell(command, tmp_path, PYTHONPATH=python_path(forum))
    assert one.code == 0, one.err
    assert one.json["metrics"]["dialogues"] == 40
    several = [*command, "--set", "build.processes=2", "--fresh"]
    rows = ROWS["threads"] * 3000  # more than one chunk of 8 MB, so that processes share the work
    write_jsonl(tmp_path / "threads.jsonl", rows)
    other = shell(several, tmp_path, PYTHONPATH=python_path(forum))
    assert other.code == 0, other.err
    assert other.json["metrics"]["dialogues"] == 40


def test_binarize_and_feedback_read_the_rated_prompts_of_a_plugin(forum: Path, tmp_path: Path) -> None:
    votes = write(tmp_path, "votes")
    paired = shell(["data", "binarize", "--input", votes, "--json"], tmp_path, PYTHONPATH=python_path(forum))
    assert paired.code == 0, paired.err
    assert paired.json["metrics"]["pairs"] == 20
    told = shell(["data", "explain", "--text", "Why 7?", "--json"], tmp_path, PYTHONPATH=python_path(forum))
    assert told.code == 0, told.err
    assert [answer["model"] for answer in told.json["answers"]] == ["bob", "cy"]
    rated = ["data", "feedback", "--recipe", "tiny", "--input", votes, "--json"]
    collected = shell(rated, tmp_path, PYTHONPATH=python_path(forum))
    assert collected.code == 0, collected.err
    assert collected.json["metrics"]["prompts"] == 20


@pytest.mark.parametrize(("name", "form"), [("threads", "dialogues"), ("votes", "rated prompts"), ("better", "pairs")])
def test_audit_reads_every_form_of_a_plugin(forum: Path, tmp_path: Path, name: str, form: str) -> None:
    outcome = shell(["data", "audit", write(tmp_path, name), "--json"], tmp_path, PYTHONPATH=python_path(forum))
    assert outcome.code == 0, outcome.err
    assert (outcome.json["form"], outcome.json["rows"]) == (form, len(ROWS[name]))


def test_errors_list_the_forms_of_a_plugin_beside_the_built_in_ones(forum: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Why?"}) + "\n")
    outcome = shell(["data", "build", "--input", "rows.jsonl"], tmp_path, PYTHONPATH=python_path(forum))
    assert outcome.code == 1
    assert "the forum's `thread`, `messages`, ShareGPT's `conversations`" in " ".join(outcome.err.split())


@pytest.mark.slow
def test_dpo_trains_on_the_pairs_of_a_plugin(forum: Path, small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_run, folder)
    command = ["dpo", "--pairs", write(folder, "better"), "--set", "dpo.max_steps=2", "--json"]
    outcome = shell(command, folder, PYTHONPATH=python_path(forum))
    assert outcome.code == 0, outcome.err
    assert outcome.json["metrics"]["rows"] == 16
