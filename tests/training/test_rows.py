"""Whether pairs that teach nothing are left out and counted, and what the worker reads is what was kept."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.rows_made import prompt, tiny, write_jsonl
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.weights import model_base
from zephyrctl.planning import plan
from zephyrctl.recipe.schema import Checkpoint, Recipe
from zephyrctl.records import Dialogue, PreferencePair
from zephyrctl.runs.artifacts import COMPLETE, Draft
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.parquet import read_parquet
from zephyrctl.runs.run import Run
from zephyrctl.token_contract import PROBES, TokenContract
from zephyrctl.training.launch import check_same_layout
from zephyrctl.training.prepared_rows import Prepared
from zephyrctl.training.results import RowReport
from zephyrctl.training.stage import TrainStage, describe_rows, report_rows
from zephyrctl.training.usable_rows import chosen_dialogue, usable_pairs, write_rows


def pair(
    text: str = "Why?",
    chosen: str = "good",
    rejected: str = "bad",
    scores: tuple[float | None, float | None] = (5.0, 1.0),
) -> PreferencePair:
    """A pair."""
    asked = prompt(text)
    return PreferencePair(
        id=asked.id,
        messages=asked.messages,
        chosen=chosen,
        rejected=rejected,
        score_chosen=scores[0],
        score_rejected=scores[1],
    )


GOOD = [pair(), pair(scores=(None, None)), pair(scores=(5.0, None)), pair(scores=(1.0, 5.0))]
BAD = {
    "empty chosen answer": [pair(chosen=""), pair(chosen=" \n", rejected=" \n", scores=(3, 3))],
    "empty rejected answer": [pair(rejected="\t")],
    "identical answers": [pair(rejected="good"), pair(rejected="good", scores=(3, 3)), pair(rejected="good")],
    "tied scores": [pair(scores=(3, 3)), pair(scores=(0, 0)), pair(scores=(4.5, 4.5)), pair(scores=(1, 1))],
}


@pytest.fixture
def draft(tmp_path: Path) -> Iterator[Draft]:
    """An open draft."""
    with Run(tmp_path).draft(Plan(name="dpo", stage="dpo", settings={}, inputs={}), {}, {}) as opened:
        yield opened


def test_every_pair_is_kept_or_counted_once(draft: Draft) -> None:
    rows = [*GOOD, *(row for bad in BAD.values() for row in bad)]
    kept = list(usable_pairs(rows[::-1], draft))
    assert kept == GOOD[::-1]
    assert draft.dropped == {cause: len(bad) for cause, bad in BAD.items()}
    assert len(kept) + sum(draft.dropped.values()) == len(rows)


def test_ties_are_kept_where_the_recipe_keeps_them(draft: Draft) -> None:
    rows = [*GOOD, *(row for bad in BAD.values() for row in bad)]
    assert list(usable_pairs(rows, draft, "keep")) == [*GOOD, *BAD["tied scores"]]
    assert draft.dropped == {cause: len(bad) for cause, bad in BAD.items() if cause != "tied scores"}


def test_a_chosen_answer_is_a_dialogue_to_imitate() -> None:
    made = chosen_dialogue(pair())
    assert [(turn.role, turn.content) for turn in made.messages] == [("user", "Why?"), ("assistant", "good")]
    assert made.id == pair().id


def binarized(run: Run, **sides: list[PreferencePair]) -> None:
    """A finished binarize artifact."""
    with run.draft(Plan(name="binarize", stage="binarize", settings={}, inputs={}), {}, {}) as draft:
        draft.write("pairs", "train", sides.get("train", []), PreferencePair)
        draft.write("pairs", "test", sides.get("test", []), PreferencePair)
        draft.finish()


def rows_for(draft: Draft, recipe: Recipe, data: str, **sides: list[PreferencePair]) -> dict[str, Path]:
    """What the worker reads: pairs, or chosen answers."""
    binarized(draft.run, **sides)
    stage = "dpo" if data == "pairs" else "sft"
    checkpoint = Checkpoint.model_validate({"stage": stage, "data": data})
    found = draft.run.artifact("binarize")
    assert found
    return {str(split): path for split, path in write_rows(recipe, checkpoint, found, draft).items()}


def test_the_worker_reads_the_usable_pairs_of_both_sides(draft: Draft) -> None:
    rows = rows_for(
        draft, tiny(), "pairs", train=[*GOOD, *BAD["tied scores"]], test=[GOOD[0], *BAD["identical answers"]]
    )
    assert list(read_parquet(rows["train"], PreferencePair)) == GOOD
    assert list(read_parquet(rows["test"], PreferencePair)) == GOOD[:1]
    assert draft.dropped == {"tied scores": 4, "identical answers": 3}


def test_the_worker_reads_chosen_answers_as_dialogues(draft: Draft) -> None:
    rows = rows_for(draft, tiny(), "chosen", train=[*GOOD, *BAD["empty chosen answer"]])
    assert list(read_parquet(rows["train"], Dialogue)) == [chosen_dialogue(row) for row in GOOD]
    assert set(rows) == {"train"}
    assert draft.dropped == {"empty chosen answer": 2}


def test_without_a_usable_pair_nothing_starts(draft: Draft) -> None:
    with pytest.raises(ZephyrError, match="no usable pair to train on") as caught:
        rows_for(draft, tiny(), "pairs", train=BAD["tied scores"], test=GOOD)
    assert "tied scores" in caught.value.problem


def test_a_file_of_pairs_is_all_training(draft: Draft, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Why {n}?", "chosen": "good", "rejected": "bad", "score_chosen": 5, "score_rejected": n}
        for n in range(8)
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    made = write_rows(tiny(), Checkpoint(stage="dpo"), file, draft)
    assert set(made) == {"train"}
    assert len(list(read_parquet(made["train"], PreferencePair))) == 7
    assert draft.dropped == {"tied scores": 1}


def test_rows_of_a_file_that_are_no_pairs_stop_or_are_counted(draft: Draft, tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "good", "rejected": "bad"}, {"prompt": "Why?", "chosen": "good"}]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ZephyrError, match=r"pairs\.jsonl:2: no known form of preference pair"):
        write_rows(tiny(), Checkpoint(stage="dpo"), file, draft)
    made = write_rows(tiny(skip_bad_rows=True), Checkpoint(stage="dpo"), file, draft)
    assert len(list(read_parquet(made["train"], PreferencePair))) == 1
    assert draft.dropped == {"no known form": 1}


def test_ties_are_kept_for_the_worker_where_the_recipe_says_so(draft: Draft) -> None:
    rows = rows_for(draft, tiny(dpo__ties="keep"), "pairs", train=[*GOOD, *BAD["tied scores"]])
    assert list(read_parquet(rows["train"], PreferencePair)) == [*GOOD, *BAD["tied scores"]]
    assert draft.dropped == {}


def dialogues(run: Run, train: int, test: int) -> None:
    """A finished build artifact."""
    rows = [chosen_dialogue(pair(f"Why {number}?")) for number in range(train + test)]
    with run.draft(Plan(name="build", stage="build", settings={}, inputs={}), {}, {}) as draft:
        draft.write("dialogues", "train", rows[:train], Dialogue)
        draft.write("dialogues", "test", rows[train:], Dialogue)
        draft.finish()


def test_dialogues_are_read_where_they_lie(draft: Draft) -> None:
    dialogues(draft.run, 3, 1)
    source = draft.run.artifact("build")
    assert source
    rows = write_rows(tiny(), Checkpoint(stage="sft"), source, draft)
    assert rows == {split: source.table("dialogues", split) for split in ("train", "test")}
    dialogues(draft.run, 3, 0)
    source = draft.run.artifact("build")
    assert source
    assert set(write_rows(tiny(), Checkpoint(stage="sft"), source, draft)) == {"train"}


def test_dialogues_that_all_lie_on_the_test_side_are_refused(draft: Draft) -> None:
    dialogues(draft.run, 0, 3)
    source = draft.run.artifact("build")
    assert source
    with pytest.raises(ZephyrError, match="no dialogue to train on") as caught:
        write_rows(tiny(), Checkpoint(stage="sft"), source, draft)
    assert "test_share" in caught.value.remedy


def prepared(folder: Path) -> Prepared:
    """Rows as the preparing worker leaves them, but for the rows themselves."""
    contract = TokenContract(
        chat_template="",
        special_tokens={},
        vocabulary=32,
        starts_with_bos=False,
        ends_with_eos=True,
        probes=tuple(None for _ in PROBES),
    )
    report = RowReport(rows_in=40, rows_kept=40, rows=40, tokens_in=4000, tokens_kept=4000, learnt_tokens=2000)
    return Prepared(folder, "key", contract, {"train": report})


def test_a_job_states_where_everything_lies(draft: Draft) -> None:
    recipe = tiny(seed=7, hardware__gpus=0, launch__processes=2)
    base = model_base(recipe)
    rows = prepared(draft.path.absolute())
    solution = plan.solve_with(recipe, "dpo", base, rows.reports["train"])
    job = TrainStage(recipe, "dpo").make_job(rows, solution, None, draft)
    assert job.kind == "dpo"
    assert (job.seed, job.settings, job.launch) == (7, recipe.dpo, recipe.launch)
    assert (job.model, job.test, job.steps) == (base.location(), None, 3)
    assert job.layout.world == 2
    assert job.deepspeed
    assert job.deepspeed["train_batch_size"] == recipe.dpo.global_batch
    assert all(path.is_absolute() for path in (job.train, job.model_folder, job.scratch))
    assert type(job).model_validate_json(job.model_dump_json()) == job


def test_what_becomes_of_the_rows_is_told_before_the_launch(draft: Draft) -> None:
    recipe = tiny(hardware__gpus=0)
    base = model_base(recipe)
    rows = prepared(draft.path.absolute())
    pq.write_table(pa.table({"length": pa.array([100] * 40, pa.int32())}), rows.folder / "train.parquet")
    solution = plan.solve_with(recipe, "dpo", base, rows.reports["train"])
    job = TrainStage(recipe, "dpo").make_job(rows, solution, None, draft)
    report = report_rows(rows, job)
    assert (report.rows_kept, report.tokens_kept, report.steps_an_epoch, report.steps) == (40, 4000, 3, 3)
    assert report.padding_share == 0
    line = describe_rows(report)
    assert "40 of 40 rows and 4,000 of 4,000 tokens kept (nothing dropped)" in line
    assert "3 steps per epoch, 3 in total" in line


def test_what_one_layout_began_another_does_not_go_on_with(draft: Draft) -> None:
    recipe = tiny(hardware__gpus=0)
    base = model_base(recipe)
    rows = prepared(draft.path.absolute())
    solution = plan.solve_with(recipe, "dpo", base, rows.reports["train"])
    job = TrainStage(recipe, "dpo").make_job(rows, solution, None, draft)
    path = draft.scratch / "job.json"
    check_same_layout(path, job)
    other = job.layout.model_copy(update={"processes": 2, "accumulation": 1, "micro_batch": 8, "zero_stage": 3})
    path.write_text(job.model_copy(update={"layout": other}).model_dump_json())
    check_same_layout(path, job)
    (draft.scratch / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (draft.scratch / "checkpoints" / "checkpoint-1" / COMPLETE).touch()
    with pytest.raises(ZephyrError, match=r"begun by 8 x 1 x 2 rows \(DeepSpeed ZeRO-3\)") as caught:
        check_same_layout(path, job)
    assert "--fresh" in caught.value.remedy


@pytest.mark.parametrize(
    ("changed", "sft_changes", "dpo_changes"),
    [
        ({"dpo__beta": 0.5}, False, True),
        ({"sft__epochs": 3}, True, False),
        ({"seed": 5}, True, True),
        ({"launch__threads": 2, "hardware__gpus": 0}, False, False),
        ({"sft__loss_budget": 0.5, "dpo__save_every": 3}, False, False),
        ({"launch__precision": "bf16"}, True, True),
        ({"eval__prompts": 5, "description": "other"}, False, False),
    ],
)
def test_a_checkpoint_hangs_on_its_own_settings_only(
    changed: dict[str, object], sft_changes: bool, dpo_changes: bool
) -> None:
    for name, changes in (("sft", sft_changes), ("dpo", dpo_changes)):
        assert (TrainStage(tiny(), name).settings != TrainStage(tiny(**changed), name).settings) is changes


def test_pairs_of_a_file_take_the_place_of_binarize(tmp_path: Path) -> None:
    reads = TrainStage(tiny(), "dpo", tmp_path / "pairs.jsonl").reads
    assert (str(reads["rows"]), str(reads["start"])) == (str(tmp_path / "pairs.jsonl"), "sft")
    assert str(TrainStage(tiny(), "dpo").reads["rows"]) == "binarize"
    assert {name: str(source) for name, source in TrainStage(tiny(), "sft").reads.items()} == {"rows": "build"}
