"""Whether an artifact appears whole or not at all, whatever happens, and whether rows come back as they went in."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.rows_made import open_draft, plan
from zephyrctl.errors import ZephyrError
from zephyrctl.records import (
    Completion,
    Dialogue,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    RatedPrompt,
    Rating,
    Record,
)
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import Plan, hash_file, hash_folder
from zephyrctl.runs.parquet import read_parquet, write_parquet
from zephyrctl.runs.run import Run

MESSAGES = [Message(role="user", content="Hé?\n“1”"), Message(role="assistant", content="")]
ROWS: dict[type[Record], list[Record]] = {
    Message: [*MESSAGES],
    Dialogue: [Dialogue(id="a", messages=MESSAGES, source="s"), Dialogue(id="b", messages=[], source="")],
    Prompt: [Prompt(id="a", messages=MESSAGES[:1], source="s")],
    Rating: [Rating(aspect="honesty", value=None), Rating(aspect="honesty", value=4.5, rationale="why")],
    Completion: [
        Completion(model="m", text=""),
        Completion(
            model="m",
            text="t",
            ratings=[Rating(aspect="a", value=None, spread=0.5, rater="r")],
            overall=10.0,
            critique="c",
        ),
    ],
    RatedPrompt: [
        RatedPrompt(id="a", messages=MESSAGES[:1], completions=[], source="s"),
        RatedPrompt(
            id="b",
            messages=[],
            completions=[Completion(model="m", text="t"), Completion(model="n", text="")],
            source="",
        ),
    ],
    Judgment: [
        Judgment(
            prompt_id="a", aspect="honesty", repeat=0, ask=1, order=[1, 0], values=[None, 4.5], text="x", rater="r"
        ),
        Judgment(prompt_id="b", aspect="critique", repeat=0, ask=0, order=[], values=[], text="", rater=""),
    ],
    PreferencePair: [
        PreferencePair(id="a", messages=MESSAGES[:1], chosen="x", rejected="y", score_chosen=None, score_rejected=None),
        PreferencePair(id="b", messages=[], chosen="", rejected="", score_chosen=4.25, score_rejected=-0.0),
    ],
}
"""Every record, each with what is easily lost: missing scores, empty lists and texts."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run."""
    return Run(tmp_path / "a run")


def finish(draft: Draft, text: str = "whole") -> Artifact:
    """An artifact of one file."""
    with draft:
        (draft.path / "file.txt").write_text(text)
        return draft.finish()


def visible(run: Run) -> set[str]:
    """The names in a run's folder that do not begin with a dot."""
    return {path.name for path in run.path.iterdir() if not path.name.startswith(".")}


def begun(run: Run, name: str = "build", **settings: object) -> Path:
    """An interrupted draft that holds work worth going on from."""
    with contextlib.suppress(KeyboardInterrupt), open_draft(run, name, **settings) as draft:
        (draft.scratch / "rows.journal").write_text('{"key": "a", "row": 1}\n')
        raise KeyboardInterrupt
    return draft.path


def kinds(of: type[Record]) -> Iterator[type[Record]]:
    """The records of the module that nothing else derives from."""
    own = [record for record in of.__subclasses__() if record.__module__ == Record.__module__]
    for record in own:
        yield from kinds(record)
    if not own:
        yield of


def test_the_records_tested_are_all_that_there_are() -> None:
    assert set(kinds(Record)) == set(ROWS)


def test_dropped_rows_of_an_older_manifest_are_read(run: Run) -> None:
    """They were called `losses`."""
    with open_draft(run, seed=3) as draft:
        draft.drop("empty answer", 2)
        path = draft.finish().path / "manifest.json"
    older = {{"dropped": "losses"}.get(key, key): value for key, value in json.loads(path.read_text()).items()}
    assert older["losses"] == {"empty answer": 2}
    path.write_text(json.dumps(older))
    found = run.artifact("build")
    assert found
    assert found.manifest.dropped == {"empty answer": 2}


def test_a_finished_artifact_has_its_manifest_and_nothing_of_the_work(run: Run) -> None:
    with open_draft(run, seed=3) as draft:
        (draft.scratch / "notes").write_text("gone later")
        draft.write("prompts", "train", ROWS[Prompt], Prompt)
        draft.drop("empty answer", 2)
        draft.drop("empty answer")
        draft.drop("nothing", 0)
        made = draft.finish()
    found = run.artifact("build")
    assert found
    assert found.manifest == made.manifest
    assert visible(run) == {"build"}
    assert {path.name for path in found.path.iterdir()} == {"prompts", "manifest.json"}
    assert found.manifest.dropped == {"empty answer": 3}
    assert found.count("prompts", "train") == 1
    assert found.count("prompts", "test") == 0
    assert list(found.read("prompts", "test", Prompt)) == []
    assert {name: hash_file(found.path / name) for name in found.manifest.files} == {
        name: entry.sha256 for name, entry in found.manifest.files.items()
    }


def test_an_exception_in_the_work_leaves_no_artifact(run: Run) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), open_draft(run) as draft:
        (draft.path / "half.txt").write_text("half")
        raise RuntimeError("in the middle")
    assert run.artifact("build") is None
    assert run.artifacts() == []
    assert visible(run) == set()


def test_an_exception_in_the_work_leaves_the_older_artifact_as_it_was(run: Run) -> None:
    before = finish(open_draft(run, seed=1), "older")
    content = hash_folder(before.path)
    with pytest.raises(RuntimeError, match="in the middle"), open_draft(run, seed=2) as draft:
        (draft.path / "file.txt").write_text("newer")
        raise RuntimeError("in the middle")
    after = run.artifact("build")
    assert after
    assert after.manifest == before.manifest
    assert hash_folder(after.path) == content


def test_a_replacement_takes_the_place_of_the_older_artifact(run: Run) -> None:
    older = finish(open_draft(run, seed=1), "older")
    newer = finish(open_draft(run, seed=2), "newer")
    assert (run.path / "build" / "file.txt").read_text() == "newer"
    assert newer.content_hash != older.content_hash
    assert visible(run) == {"build"}
    assert not (run.path / ".build.replaced").exists()


OPENING = """
import os, signal, sys
from pathlib import Path
from zephyrctl.runs import manifest
from zephyrctl.runs.run import Run
def open_draft():
    plan = manifest.Plan(name="build", stage="build", settings={"seed": 2}, inputs={})
    return Run(Path(sys.argv[1])).draft(plan, {}, {})
"""
KILLED_IN_THE_WORK = """
with open_draft() as draft:
    (draft.path / "file.txt").write_text("newer, and cut")
    (draft.scratch / "rows.journal").write_text("paid for")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_WHILE_HASHING = """
manifest.hash_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)
with open_draft() as draft:
    (draft.path / "file.txt").write_text("newer, and whole")
    (draft.scratch / "rows.journal").write_text("paid for")
    draft.finish()
"""
KILLED_BETWEEN_THE_RENAMES = """
draft = open_draft()
(draft.path / "file.txt").write_text("newer")
renames = []
def rename(path, target, rename=Path.rename):
    if renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(path)
    return rename(path, target)
Path.rename = rename
draft.finish()
"""


def killed(script: str, run: Run) -> None:
    """Run a script on the run in a process of its own, which kills itself."""
    command = [sys.executable, "-c", OPENING + script, str(run.path)]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert done.returncode == -9, done.stderr


def test_a_manifest_of_the_version_before_is_read(run: Run) -> None:
    """It states dropped rows as `losses`, and its artifact is the same plan's."""
    with open_draft(run, seed=1) as draft:
        draft.drop("empty answer", 2)
        made = draft.finish()
    path = made.path / "manifest.json"
    stated = json.loads(path.read_text())
    stated["losses"] = stated.pop("dropped")
    path.write_text(json.dumps(stated))
    found = run.unchanged(plan(seed=1))
    assert found
    assert found.manifest == made.manifest
    assert found.manifest.dropped == {"empty answer": 2}


def environment() -> dict[str, str]:
    """The environment of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("script", [KILLED_IN_THE_WORK, KILLED_WHILE_HASHING], ids=["working", "hashing"])
def test_a_kill_leaves_the_older_artifact_and_a_draft_that_resumes(run: Run, script: str) -> None:
    older = finish(open_draft(run, seed=1), "older")
    killed(script, run)
    found = run.artifact("build")
    assert found
    assert found.manifest == older.manifest
    assert [artifact.path.name for artifact in run.artifacts()] == ["build"]
    draft = open_draft(run, seed=2)
    assert draft.is_resumed
    assert (draft.scratch / "rows.journal").read_text() == "paid for"
    newer = finish(draft, "newer")
    assert (newer.path / "file.txt").read_text() == "newer"


def test_a_kill_between_the_two_renames_leaves_the_older_artifact(run: Run) -> None:
    older = finish(open_draft(run, seed=1), "older")
    killed(KILLED_BETWEEN_THE_RENAMES, run)
    assert not (run.path / "build").exists()
    found = run.artifact("build")
    assert found
    assert found.manifest == older.manifest
    assert (found.path / "file.txt").read_text() == "older"
    assert (finish(open_draft(run, seed=2), "newer").path / "file.txt").read_text() == "newer"


def test_a_reader_does_not_undo_a_replacement_that_goes_on(run: Run) -> None:
    older = finish(open_draft(run, seed=1), "older")
    with open_draft(run, seed=2):
        older.path.rename(run.path / ".build.replaced")
        assert run.artifact("build") is None
        assert (run.path / ".build.replaced").is_dir()
    assert run.artifact("build")


def test_no_reader_ever_sees_half_an_artifact(run: Run) -> None:
    finish(open_draft(run, seed=0), "0" * 100_000)
    seen: list[str] = []

    def read() -> None:
        with contextlib.suppress(FileNotFoundError):  # the file may go while it is opened; it is never half
            seen.append((run.path / "build" / "file.txt").read_text())

    def watch(until: threading.Event) -> None:
        while not until.wait(0.001):
            read()

    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(over,))
    watcher.start()
    for seed in range(1, 10):
        finish(open_draft(run, seed=seed), str(seed) * 100_000)
    over.set()
    watcher.join()
    read()
    assert {(len(text), len(set(text))) for text in seen} == {(100_000, 1)}


def test_a_draft_of_the_same_plan_resumes_and_adds_up_its_time(run: Run) -> None:
    with contextlib.suppress(KeyboardInterrupt), open_draft(run, seed=1) as draft:
        (draft.scratch / "rows.journal").write_text("paid for")
        time.sleep(0.05)
        raise KeyboardInterrupt
    with open_draft(run, seed=1) as draft:
        assert draft.is_resumed
        assert (draft.scratch / "rows.journal").read_text() == "paid for"
        assert draft.finish().manifest.seconds >= 0.05


def test_a_draft_without_work_worth_keeping_never_stands_in_the_way(run: Run) -> None:
    with contextlib.suppress(KeyboardInterrupt), open_draft(run, seed=1) as draft:
        (draft.path / "file.txt").write_text("half")
        raise KeyboardInterrupt
    with open_draft(run, seed=2) as draft:
        assert not draft.is_resumed
        assert not (draft.path / "file.txt").exists()


def test_a_draft_of_another_plan_is_refused_by_what_differs(run: Run) -> None:
    begun(run, seed=1, training={"beta": 0.1, "epochs": 1})
    with pytest.raises(ZephyrError) as caught:
        open_draft(run, seed=1, training={"beta": 0.5, "epochs": 1})
    assert "training.beta: 0.1 -> 0.5" in caught.value.problem
    assert "epochs" not in caught.value.problem
    assert "--fresh" in caught.value.remedy


def test_a_refused_draft_stays_free_for_who_comes_next(run: Run) -> None:
    begun(run, seed=1)
    with pytest.raises(ZephyrError, match="begun with other settings") as caught:
        open_draft(run, seed=2)
    with open_draft(run, seed=1) as draft:
        assert draft.is_resumed
    assert caught.value.remedy


def test_fresh_discards_what_was_begun(run: Run) -> None:
    begun(run, seed=1)
    with run.draft(plan(seed=2), {}, {}, fresh=True) as draft:
        assert not draft.is_resumed
        assert list(draft.scratch.iterdir()) == []
    with run.draft(plan(seed=2), {}, {}, fresh=True) as draft:
        assert not draft.is_resumed


def test_a_changed_input_is_named(run: Run) -> None:
    old = Plan(name="sft", stage="sft", settings={}, inputs={"rows": "1" * 64})
    new = Plan(name="sft", stage="sft", settings={}, inputs={"rows": "2" * 64, "start": "3" * 64})
    assert [line.partition(":")[0] for line in new.changes(old)] == ["input rows", "input start"]
    assert new.changes(new) == []


@pytest.mark.parametrize("damage", ["", "{", "null"])
def test_a_damaged_time_of_earlier_attempts_costs_only_that_time(run: Run, damage: str) -> None:
    (begun(run) / "spent.json").write_text(damage)
    assert finish(open_draft(run)).manifest.seconds < 60


def test_two_cannot_work_on_one_artifact_at_once(run: Run) -> None:
    with open_draft(run):
        with pytest.raises(ZephyrError, match="another zephyrctl is working on 'build'"):
            open_draft(run)
        with open_draft(run, "feedback"):
            pass
    with open_draft(run):
        pass


def test_a_lock_of_another_process_holds_until_it_ends(run: Run) -> None:
    script = OPENING + "with open_draft():\n    print('held', flush=True)\n    sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, run.path], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ZephyrError, match="another zephyrctl"):
        open_draft(run)
    holder.kill()
    holder.communicate()
    with open_draft(run):
        pass


def test_the_manifest_is_written_after_all_files(run: Run) -> None:
    artifact = finish(open_draft(run))
    written = (artifact.path / "manifest.json").stat().st_mtime_ns
    assert all((artifact.path / name).stat().st_mtime_ns <= written for name in artifact.manifest.files)


def test_a_draft_with_a_manifest_is_no_artifact_yet(run: Run) -> None:
    done = finish(open_draft(run))
    draft = begun(run, "feedback")
    (draft / "manifest.json").write_text((done.path / "manifest.json").read_text())
    assert run.artifact("feedback") is None
    assert [artifact.path.name for artifact in run.artifacts()] == ["build"]


def test_artifacts_come_oldest_first(run: Run) -> None:
    for name in ("b", "a"):
        artifact = finish(open_draft(run, name))
        late = artifact.manifest.model_copy(update={"finished_at": f"2030-01-0{1 if name == 'b' else 2}T00:00:00"})
        (artifact.path / "manifest.json").write_text(late.model_dump_json())
    assert [artifact.path.name for artifact in run.artifacts()] == ["b", "a"]


def test_only_the_same_plan_is_unchanged(run: Run) -> None:
    finish(open_draft(run, seed=1, share=0.25))
    assert run.unchanged(plan(seed=1, share=0.25))
    assert run.unchanged(plan(seed=2, share=0.25)) is None
    assert run.unchanged(plan("feedback", seed=1, share=0.25)) is None
    assert run.unchanged(plan(seed=1, share=0.25).model_copy(update={"zephyrctl": "0.0.1"})) is None


def test_what_is_not_there_is_asked_for_by_its_command(run: Run) -> None:
    with pytest.raises(ZephyrError) as caught:
        run.require("sft", "zephyrctl sft")
    assert caught.value.problem == f"{run.path} has no finished 'sft'"
    assert caught.value.remedy == f"zephyrctl sft --run {run.path}"


@pytest.mark.parametrize("damage", ["", "{", "null", '{"plan": 1}'])
def test_a_damaged_manifest_names_its_file(run: Run, damage: str) -> None:
    artifact = finish(open_draft(run))
    (artifact.path / "manifest.json").write_text(damage)
    with pytest.raises(ZephyrError) as caught:
        run.artifact("build")
    assert str(artifact.path / "manifest.json") in caught.value.problem
    assert str(artifact.path) in caught.value.remedy


def test_a_hash_changes_with_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("1")
    before = hash_folder(tmp_path)
    os.utime(tmp_path / "inner" / "a", (0, 0))
    assert hash_folder(tmp_path) == before
    (tmp_path / "inner" / "a").write_text("2")
    changed = hash_folder(tmp_path)
    (tmp_path / "inner" / "a").rename(tmp_path / "inner" / "b")
    assert len({before, changed, hash_folder(tmp_path)}) == 3


def test_the_content_of_an_artifact_is_names_and_bytes_and_not_its_plan(run: Run) -> None:
    hashes = []
    for number, (name, text) in enumerate([("a", "1"), ("a", "1"), ("b", "1"), ("a", "2")]):
        with open_draft(run, seed=number) as draft:
            (draft.path / name).write_text(text)
            (draft.path / "last").write_text("same")
            hashes.append(draft.finish().content_hash)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_paths_inside_a_run_are_named_from_the_run(run: Run, tmp_path: Path) -> None:
    assert run.relative(run.path / "build") == "build"
    assert run.relative(tmp_path / "rows.jsonl") == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("record", ROWS, ids=lambda record: str(record.__name__))
def test_every_record_survives_parquet(tmp_path: Path, record: type[Record]) -> None:
    path = tmp_path / "rows.parquet"
    assert write_parquet(path, ROWS[record], record) == len(ROWS[record])
    assert list(read_parquet(path, record)) == ROWS[record]
    assert write_parquet(path, [], record) == 0
    assert list(read_parquet(path, record)) == []
    assert pq.ParquetFile(path).metadata.num_rows == 0


def test_many_rows_are_written_in_groups_and_in_order(tmp_path: Path) -> None:
    rows = [Message(role="user", content=str(number)) for number in range(9001)]
    assert write_parquet(tmp_path / "rows.parquet", iter(rows), Message) == 9001
    assert list(read_parquet(tmp_path / "rows.parquet", Message)) == rows
    assert pq.ParquetFile(tmp_path / "rows.parquet").metadata.num_row_groups == 3


@pytest.mark.slow
def test_datasets_reads_every_record_as_it_is(tmp_path: Path) -> None:
    import datasets

    for record, rows in ROWS.items():
        path = tmp_path / f"{record.__name__}.parquet"
        write_parquet(path, rows, record)
        cache = str(tmp_path / "cache")
        read = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        assert [record.model_validate(row) for row in read] == rows


def test_rows_that_fail_in_the_middle_leave_no_artifact(run: Run) -> None:
    def rows() -> Iterator[Message]:
        yield MESSAGES[0]
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"), open_draft(run) as draft:
        draft.write("rows", "train", rows(), Message)
    assert run.artifact("build") is None


def test_a_full_disk_says_so_and_leaves_the_older_artifact(small_disk: Callable[[str], Path]) -> None:
    run = Run(small_disk("64k") / "run")
    older = finish(open_draft(run, seed=1), "older")
    noise = [Message(role="user", content=os.urandom(500).hex()) for _ in range(200)]
    with pytest.raises(OSError, match="No space left") as caught, open_draft(run, seed=2) as draft:
        (draft.scratch / "rows.journal").write_text("paid for")
        draft.write("rows", "train", noise, Message)
    assert caught.value.errno == 28
    found = run.artifact("build")
    assert found
    assert found.manifest == older.manifest
    (draft.path / "rows" / "train.parquet").unlink()
    with open_draft(run, seed=2) as draft:
        assert draft.is_resumed
        assert (draft.scratch / "rows.journal").read_text() == "paid for"
        draft.write("rows", "train", noise[:3], Message)
        assert draft.finish().count("rows", "train") == 3


def test_a_draft_begun_on_a_full_disk_is_begun_anew_once_there_is_space(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    run = Run(disk / "run")
    run.path.mkdir()
    filler = disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(b"0" * 100_000)
    with pytest.raises(OSError, match="No space left"):
        open_draft(run, seed=1)
    filler.unlink()
    assert finish(open_draft(run, seed=1)).path.is_dir()


def test_a_run_below_a_file_is_an_error_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as caught:
        open_draft(Run(tmp_path / "file"))
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_without_the_right_to_write_is_an_error_of_the_path(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        open_draft(Run(tmp_path / "run"))
    tmp_path.chmod(0o700)


def test_a_manifest_names_libraries_and_plugins(run: Run) -> None:
    with run.draft(plan(), {"rows": run.path / "feedback"}, {"zephyrctl-example": "1.2"}) as draft:
        manifest = draft.finish().manifest
    assert manifest.plugins == {"zephyrctl-example": "1.2"}
    assert manifest.input_paths == {"rows": "feedback"}
    assert {"pydantic", "typer"} <= set(manifest.libraries)
    assert json.loads((run.path / "build" / "manifest.json").read_text())["plan"]["stage"] == "build"
