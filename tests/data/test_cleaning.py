"""Whether every row is mended, kept once and searched as the recipe says, with ledgers by which all can be undone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import dialogues as generator
from tests.conftest import Command
from tests.data.rows_made import Stop, open_draft, tiny, write_jsonl
from zephyrctl.data import build
from zephyrctl.data.cleaning import CleaningPlan
from zephyrctl.data.cleaning_rules import DroppedRow, TurnChange
from zephyrctl.data.decontaminate.search import ContaminatedTurn
from zephyrctl.data.process_pool import ProcessPool
from zephyrctl.data.undo import find_rules
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.progress import Silence
from zephyrctl.recipe.schema import Files, Recipe
from zephyrctl.records import Dialogue, Record, prompt_id, split_of
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.runs.manifest import Plan, hash_folder
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform

ASKED = "Name the three tallest towers that were built of wood before steel."


def over(*paths: Path, **values: Any) -> Recipe:
    """A recipe that reads files, with every rule switched on."""
    source = {"kind": "files", "paths": [str(path) for path in paths]}
    clean = {"truecase": True, "openings": generator.OPENINGS}
    rules = {"build__clean": clean, "build__duplicates": {"near": 0.8}, "build__test_share": generator.TEST_SHARE}
    return tiny(build__source=source, **{**rules, **values})


def against(path: Path, **values: Any) -> dict[str, Any]:
    """The section that searches for a benchmark."""
    return {"decontaminate": {"against": [str(path)], "ngram": 8, **values}}


def made(folder: Path, recipe: Recipe) -> Artifact:
    """The artifact of the build step in a run of its own."""
    return perform(Run(folder), build.BuildStage(recipe)).artifact


def table(artifact: Artifact, name: str, record: type[Record]) -> list[Any]:
    """The rows of both sides of a table."""
    return [row for split in SPLITS for row in artifact.read(name, split, record)]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(*texts: str) -> dict[str, Any]:
    """A row of turns."""
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}


def side_of(text: str) -> str:
    """The side of a prompt where a third is held out."""
    return split_of(prompt_id(text), 0.3)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 rows in UltraChat's form with known faults."""
    path = tmp_path_factory.mktemp("generated") / "rows.jsonl"
    generator.write(path, 1500)
    return path


@pytest.fixture(scope="module")
def cleaned(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What becomes of them."""
    recipe = over(generated, **against(generator.beside(generated, "benchmark.jsonl")))
    return made(tmp_path_factory.mktemp("cleaned"), recipe)


def test_every_rule_finds_all_that_there_is_and_no_more(cleaned: Artifact, generated: Path) -> None:
    counts = json.loads(generator.beside(generated, "counts.json").read_text())
    rows = counts.pop("rows")
    assert len(counts) == 8 and all(counts.values())
    assert cleaned.manifest.metrics["rules"] == counts
    lost = sum(count for rule, count in counts.items() if rule not in ("truecase", "unanswered"))
    assert cleaned.manifest.metrics["rows"] == rows
    assert cleaned.manifest.metrics["dialogues"] == rows - lost == len(table(cleaned, "dialogues", Dialogue))
    told = {cause: count for cause, count in cleaned.manifest.dropped.items() if not cause.startswith("last user")}
    assert sum(told.values()) == lost


def test_ledgers_tell_each_change_and_each_drop(cleaned: Artifact) -> None:
    kept = {row.origin: row for row in table(cleaned, "dialogues", Dialogue)}
    changes = table(cleaned, "changes", TurnChange)
    assert {change.rule for change in changes} == {"truecase", "unanswered"}
    for change in changes:
        assert change.after is None or (change.before.lower() == change.after.lower() and change.before != change.after)
    dropped = table(cleaned, "dropped", DroppedRow)
    assert not {json.loads(row.content)["origin"] for row in dropped} & kept.keys()
    for row in dropped:
        is_copy = row.rule.startswith("duplicates.")
        assert (row.like in kept or row.like in {json.loads(other.content)["origin"] for other in dropped}) == is_copy
        if is_copy:
            assert int(row.like.rpartition(":")[2]) < int(json.loads(row.content)["origin"].rpartition(":")[2])
            assert row.similarity == 1 if row.rule == "duplicates.exact" else 0.8 <= (row.similarity or 0) < 1


def test_hits_are_told_with_both_texts(cleaned: Artifact, generated: Path) -> None:
    asked = {row["turns"][0] for row in lines(generator.beside(generated, "benchmark.jsonl"))}
    hits = table(cleaned, "contamination", ContaminatedTurn)
    assert {hit.kind for hit in hits} == {"exact", "normalised", "ngram"}
    for hit in hits:
        assert hit.benchmark_text in asked
        assert (hit.text == hit.benchmark_text) == (hit.kind == "exact")
        assert hit.benchmark_text.lower().rstrip("?") in hit.text.lower()
        assert (len(hit.ngram.split()) == 8) == (hit.kind == "ngram")
    dropped = {row.id for row in table(cleaned, "dropped", DroppedRow) if row.rule == "decontaminate"}
    assert {hit.id for hit in hits} == dropped


def test_all_undone_is_the_input_again(cleaned: Artifact, generated: Path, zephyrctl: Command) -> None:
    outcome = zephyrctl("data", "undo", "--run", cleaned.path.parent, "--rule", "all", "--out", "back.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["restored"] == cleaned.manifest.metrics["rules"]
    rows = [row["data"] for row in lines(generated)]
    back = [[turn["content"] for turn in row["messages"]] for row in lines(Path("back.jsonl"))]
    assert back == rows


@pytest.mark.slow
def test_neither_shares_nor_processes_change_a_byte(cleaned: Artifact, generated: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        recipe = over(generated, **against(generator.beside(generated, "benchmark.jsonl")), build__processes=processes)
        with open_draft(Run(tmp_path / str(processes))) as draft, ProcessPool(processes) as pool:
            assert isinstance(recipe.build.source, Files)
            build.clean_files(recipe.build.source, CleaningPlan.of(recipe), draft, Silence(), pool, chunk_bytes=400_000)
            tables = [path for path in sorted(draft.path.rglob("*.parquet")) if ".scratch" not in path.parts]
            assert {str(path.relative_to(draft.path)): pq.read_table(path) for path in tables} == {
                name: pq.read_table(cleaned.path / name) for name in cleaned.manifest.files
            }
            assert draft.metrics == cleaned.manifest.metrics
            assert draft.dropped == cleaned.manifest.dropped


def test_a_rule_is_undone_alone_or_for_one_row(tmp_path: Path, zephyrctl: Command) -> None:
    rows = [said("where is it then?", "Here."), said("what is it then?", "This."), said("What is it then?", "This.")]
    rows += [said("Why so?", "I don't have opinions.")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    artifact = made(tmp_path / "run", over(path, build__duplicates={"exact": True}))
    assert artifact.manifest.metrics["rules"] == {"truecase": 2, "duplicates.exact": 1, "openings.opinions": 1}

    def undone(*arguments: str) -> list[str]:
        outcome = zephyrctl("data", "undo", "--run", tmp_path / "run", *arguments)
        assert outcome.code == 0, outcome.err
        return [row["messages"][0]["content"] for row in lines(Path(outcome.out.strip()))]

    assert undone("--rule", "truecase") == ["where is it then?", "what is it then?"]
    assert undone("--rule", "exact") == ["Where is it then?", "What is it then?", "What is it then?"]
    assert undone("--rule", "opinions") == ["Where is it then?", "What is it then?", "Why so?"]
    first = next(change.id for change in table(artifact, "changes", TurnChange) if "where" in change.before)
    assert undone("--rule", "truecase", "--id", first) == ["where is it then?", "What is it then?"]
    both = [undone("--rule", "all", "--split", split) for split in SPLITS]
    assert sorted(both[0] + both[1]) == sorted(row["messages"][0]["content"] for row in rows)


def test_a_rule_of_an_older_run_is_found_by_either_name(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.draft(Plan(name="build", stage="build", settings={}, inputs={}), {}, {}) as draft:
        draft.metrics["rules"] = {"asked-before": 2, "truecase": 1}
        older = draft.finish()
    for name in ("asked-before", "duplicates.prompts", "prompts"):
        assert find_rules(older, [name]) == ["asked-before"]
    with run.draft(Plan(name="build", stage="build", settings={}, inputs={}), {}, {}) as draft:
        draft.metrics["rules"] = {"duplicates.prompts": 2}
        assert find_rules(draft.finish(), ["asked-before"]) == ["duplicates.prompts"]


def test_what_was_undone_can_be_built_again(tmp_path: Path, zephyrctl: Command) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [said("where is it then?", "Here."), said("Why?", "As it is.")])
    made(tmp_path / "run", over(path))
    assert zephyrctl("data", "undo", "--run", tmp_path / "run", "--rule", "truecase", "--out", "back.jsonl").code == 0
    outcome = zephyrctl("data", "build", "--input", "back.jsonl", "--run", tmp_path / "again", "--json")
    assert outcome.code == 0, outcome.err
    again = Run(tmp_path / "again").artifact("build")
    assert again
    assert {row.messages[0].content for row in table(again, "dialogues", Dialogue)} == {"where is it then?", "Why?"}
    refused = zephyrctl("data", "undo", "--run", tmp_path / "run", "--rule", "truecase", "--out", "back.jsonl")
    assert refused.code == 1 and "already exists" in refused.err
    unknown = zephyrctl("data", "undo", "--run", tmp_path / "run", "--rule", "truecas")
    assert unknown.code == 1 and "did you mean 'truecase'" in unknown.err


def test_bad_rows_that_were_skipped_come_back_as_they_were(tmp_path: Path, zephyrctl: Command) -> None:
    path = tmp_path / "rows.jsonl"
    bad = ['{"messages": [], "n": NaN}', '{"instruction": "\\ud800", "output": "a"}', '{"instruction": "Why?"}']
    none = ['{"instruction": "Wh', "nothing", "[1, 2]"]
    path.write_text("\n".join([json.dumps(said("a", "b")), *bad, "", *none, json.dumps(said("c", "d"))]))
    artifact = made(tmp_path / "run", over(path, skip_bad_rows=True))
    losses = {"not JSON": 2, "not an object": 1, "no answer to the last user turn": 1}
    assert artifact.manifest.dropped.items() >= losses.items()
    assert artifact.manifest.metrics["rules"] == {"bad-row": 6}
    assert zephyrctl("data", "undo", "--run", tmp_path / "run", "--rule", "bad-row", "--out", "back.jsonl").code == 0
    back = Path("back.jsonl").read_text().splitlines()
    assert len(back) == 8
    assert [str(json.loads(line)) for line in back[1:4]] == [str(json.loads(line)) for line in bad]
    assert back[4:7] == none


def test_a_line_that_is_no_text_is_skipped_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(said("a", "b")).encode(), b'{"instruction": "\xff"}', b"{}"]))
    artifact = made(tmp_path / "run", over(path, skip_bad_rows=True))
    assert artifact.manifest.dropped == {"not UTF-8 text": 1, "no known form": 1}


@pytest.mark.parametrize("form", ["json", "parquet", "lines.json", "bom.jsonl"])
def test_every_form_of_file_brings_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = [said(f"Question {number}?", f"Answer {number}.") for number in range(1500)]
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    elif form == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\ufeff" * (form == "bom.jsonl") + "".join(json.dumps(row) + "\n" for row in rows))
    artifact = made(tmp_path / "run", over(path))
    kept = {row.messages[0].content: row.origin for row in table(artifact, "dialogues", Dialogue)}
    assert kept.keys() == {f"Question {number}?" for number in range(1500)}
    separator = ":" if "lines" in form or "bom" in form else " row "
    assert kept["Question 1234?"] == f"{path}{separator}1235"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_first_bad_line_is_named_in_whichever_share_it_is(tmp_path: Path, processes: int) -> None:
    written = [json.dumps(said(f"Question {number}?", "Yes.")) for number in range(400)]
    for place, fault, expected in (
        (301, '{"messages": []}', r"rows\.jsonl:301: no turns"),
        (302, "nothing", r"rows\.jsonl:301: no turns"),
        (201, "{", r"rows\.jsonl:201: this is not JSON: .* \(column 2\)"),
        (200, "[1]", r"rows\.jsonl:200: a row must be an object"),
    ):
        written[place - 1] = fault
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join([*written, "{}"]))
        recipe = over(path, build__processes=processes)
        assert isinstance(recipe.build.source, Files)
        with (
            open_draft(Run(tmp_path / f"run {place}")) as draft,
            ProcessPool(processes) as pool,
            pytest.raises(ZephyrError, match=expected),
        ):
            build.clean_files(recipe.build.source, CleaningPlan.of(recipe), draft, Silence(), pool, chunk_bytes=2000)


def test_bytes_that_are_no_text_are_told_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(said("a", "b")).encode() + b"\n"
    path.write_bytes(line * 3 + b'{"instruction": "\xff"}\n')
    with pytest.raises(ZephyrError, match=rf"is not UTF-8 text \(byte {3 * len(line) + 17}\)"):
        made(tmp_path / "run", over(path))


@pytest.mark.parametrize("on_hit", ["drop", "keep", "refuse"])
def test_a_hit_is_dropped_kept_or_refused(tmp_path: Path, on_hit: str) -> None:
    rows = [said(f"Question {number}?", "Yes.") for number in range(30)]
    trained = next(n for n in range(30) if side_of(f"Question {n}?") == "train")
    rows[trained] = said(f"Question {trained}?", "Yes.", f"so, {ASKED.upper()}", "The first.")
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    benchmark = write_jsonl(tmp_path / "question.jsonl", [{"turns": [ASKED]}])
    recipe = over(path, **against(benchmark, on_hit=on_hit), build__test_share=0.3)
    if on_hit == "refuse":
        with pytest.raises(GateError) as caught:
            made(tmp_path / "run", recipe)
        assert caught.value.exit_code == 3
        assert ASKED in caught.value.problem and ASKED.upper() in caught.value.problem
        assert f"rows.jsonl:{trained + 1} turn 2" in caught.value.problem
        assert Run(tmp_path / "run").artifact("build") is None
        return
    artifact = made(tmp_path / "run", recipe)
    assert [hit.turn for hit in table(artifact, "contamination", ContaminatedTurn)] == [2]
    assert artifact.manifest.metrics["dialogues"] == 29 + (on_hit == "keep")
    assert artifact.manifest.metrics["contaminated"]["rows"] == 1
    assert len(artifact.manifest.notes) == (on_hit == "keep")
    assert artifact.manifest.dropped == (
        {} if on_hit == "keep" else {"training rows that contain a benchmark prompt": 1}
    )


def test_what_the_test_side_asks_is_not_said_in_training(tmp_path: Path) -> None:
    held_out = next(text for n in range(30) if side_of(text := f"Question {n} of many?") == "test")
    trained = [text for n in range(30) if side_of(text := f"Other {n}?") == "train"][:2]
    rows = [said(held_out, "Yes."), said(trained[0], "Yes.", f"{held_out.upper()}!", "Yes."), said(trained[1], "No.")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for is_searched, expected in ((True, 2), (False, 3)):
        values = {"decontaminate": {"held_out": is_searched}, "build__test_share": 0.3}
        artifact = made(tmp_path / f"run {is_searched}", over(path, **values))
        assert len(table(artifact, "dialogues", Dialogue)) == expected


def test_another_benchmark_makes_the_stage_run_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [said(f"Question {number}?", "Yes.") for number in range(9)])
    benchmark = write_jsonl(tmp_path / "question.jsonl", [{"turns": [ASKED]}])
    recipe = over(path, **against(benchmark))
    run = Run(tmp_path / "run")
    assert perform(run, build.BuildStage(recipe)).is_new
    assert not perform(run, build.BuildStage(recipe)).is_new
    assert not perform(run, build.BuildStage(over(path, **against(benchmark), build__processes=2))).is_new
    write_jsonl(benchmark, [{"turns": ["Another?"]}])
    assert perform(run, build.BuildStage(recipe)).is_new


def test_an_interrupted_cleaning_starts_over_and_comes_to_the_same(
    cleaned: Artifact, generated: Path, tmp_path: Path
) -> None:
    recipe = over(generated, **against(generator.beside(generated, "benchmark.jsonl")))
    run = Run(tmp_path / "run")
    for after in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            perform(run, build.BuildStage(recipe), Stop(after))
    assert perform(run, build.BuildStage(recipe)).artifact.content_hash == cleaned.content_hash
    assert hash_folder(run.path / "build" / "dialogues") == hash_folder(cleaned.path / "dialogues")


def children(process: int) -> list[int]:
    """The processes that a process started and that still run."""
    listed = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_leaves_no_process(tmp_path: Path, ending: signal.Signals) -> None:
    path = tmp_path / "rows.jsonl"
    generator.write(path, 6000)
    command = [sys.executable, "-m", "zephyrctl", "data", "build", "--input", str(path), "--set", "build.processes=2"]
    process = subprocess.Popen([*command, "-q"], cwd=tmp_path, stderr=subprocess.PIPE)
    scratch = tmp_path / "runs" / "tiny" / ".build.unfinished" / ".scratch" / "shards"
    while not list(scratch.glob("*.arrow")) and process.poll() is None:
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(ending)
    process.wait(20)
    until = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert process.returncode == (130 if ending != signal.SIGKILL else -9)
    again = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["metrics"]["rows"] == 6000


def is_running(process: int) -> bool:
    """True for a process that is neither gone nor waiting to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
