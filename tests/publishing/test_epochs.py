"""Figure 3 of a run: accuracy over epochs of dDPO, and scores by epochs with dSFT at none."""

import json
from pathlib import Path

from tests.publishing import runs_made
from tests.publishing.test_report import make_data, make_dpo, make_eval, make_sft
from zephyrctl.publishing.epochs import MOST_CHECKPOINTS, STRETCHES, epoch_charts
from zephyrctl.publishing.reported_run import ReportedRun
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run


def epochs_run(path: Path, trained: tuple[int, ...] = (1, 2, 3)) -> Run:
    """One dSFT, and a dDPO from it for each number of epochs, judged on held-out prompts and MT-Bench."""
    run = Run(path)
    data = make_data(run)
    sft = make_sft(run, "sft", data["build"])
    made = [make_dpo(run, f"dpo-{n}", [data["binarize"], sft], 380 * n, epochs=n, start="sft") for n in trained]
    make_eval(run, {"sft": 5.62, **{f"dpo-{n}": 6.9 + n / 3 for n in trained}}, [], [data["build"], sft, *made])
    runs_made.make_mt_bench(run, ["sft", *(f"dpo-{n}" for n in trained)], 16)
    return run


def of(run: Run) -> ReportedRun:
    return ReportedRun(run, None, run.artifacts())


def test_scores_go_by_the_epochs_that_each_checkpoint_was_trained(tmp_path: Path) -> None:
    found = epoch_charts(of(epochs_run(tmp_path)))
    assert found and [one.chart.title for one in found.scores] == ["Held-out score", "MT-Bench score"]
    for score in found.scores:
        assert [(row.name.key, row.epochs) for row in score.rows] == [
            ("sft", "0"),
            ("dpo-1", "1"),
            ("dpo-2", "2"),
            ("dpo-3", "3"),
        ]
        (line,) = score.chart.lines
        across = [x for x, _ in line.dots]
        assert across == sorted(across) and across[0] == score.chart.left and across[-1] == score.chart.right
        assert [x for x, _, _ in line.intervals] == across
        assert all(high < y < low for (_, y), (_, low, high) in zip(line.dots, line.intervals, strict=True))


def test_accuracy_is_drawn_twice_for_each_checkpoint_and_averaged(tmp_path: Path) -> None:
    found = epoch_charts(of(epochs_run(tmp_path)))
    assert found and found.accuracy and not found.left_out
    assert [line.label for line in found.accuracy.lines[:2]] == ["dpo-1, training", "dpo-1, held out"]
    assert [line.dash for line in found.accuracy.lines] == [0, 1] * 3
    assert all(len(line.path.split("L")) <= STRETCHES for line in found.accuracy.lines)
    ends = [max(float(place.split(",")[0]) for place in line.path[1:].split(" L")) for line in found.accuracy.lines]
    assert ends[0] < ends[2] < ends[4] <= found.accuracy.right


def test_the_first_step_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    steps = [{"step": step, "epoch": step / 4, "rewards/accuracies": 0.0 if step == 1 else 0.9} for step in range(1, 5)]
    with run.draft(Plan(name="dpo", stage="dpo", settings={"dpo": {"epochs": 1}}, inputs={}), {}, {}) as draft:
        (draft.path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        draft.finish()
    found = epoch_charts(of(run))
    assert found and found.accuracy
    (line,) = found.accuracy.lines
    assert len(line.dots) == 3 and len({y for _, y in line.dots}) == 1


def test_of_many_checkpoints_those_with_the_most_epochs_are_drawn(tmp_path: Path) -> None:
    found = epoch_charts(of(epochs_run(tmp_path, (1, 2, 3, 4, 5, 6))))
    assert found and found.accuracy and found.left_out == 6 - MOST_CHECKPOINTS
    assert found.accuracy.lines[0].label == "dpo-3, training"
    assert len(found.scores[0].rows) == 7


def test_epochs_add_up_over_a_chain_and_each_start_has_its_own_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    data = make_data(run)
    first, second = make_sft(run, "sft", data["build"]), make_sft(run, "sft-2", data["build"])
    make_dpo(run, "once", [data["binarize"], first], epochs=1, start="sft")
    make_dpo(run, "again", [data["binarize"], first], epochs=2, start="once")
    make_dpo(run, "other", [data["binarize"], second], epochs=1, start="sft-2")
    make_eval(run, {"sft": 5, "sft-2": 5.5, "once": 6, "again": 7, "other": 5.2}, [], [])
    found = epoch_charts(of(run))
    assert found
    (score,) = found.scores
    assert [line.label for line in score.chart.lines] == ["from dSFT", "from sft-2"]
    assert [(row.name.key, row.epochs) for row in score.rows] == [
        ("sft", "0"),
        ("once", "1"),
        ("again", "3"),
        ("sft-2", "0"),
        ("other", "1"),
    ]


def test_a_run_that_was_cut_by_steps_goes_by_its_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    settings = {"dpo": {"epochs": 3, "max_steps": 2}}
    with run.draft(Plan(name="dpo", stage="dpo", settings=settings, inputs={}), {}, {}) as draft:
        (draft.path / "metrics.jsonl").write_text(
            '{"step": 2, "epoch": 0.1, "rewards/accuracies": 0.5}\n{"epoch": 0.2}\n'
        )
        draft.metrics = {"reward_accuracy": 0.75}
        draft.finish()
    found = epoch_charts(of(run))
    assert found and found.accuracy and not found.scores
    held_out = found.accuracy.lines[1]
    assert held_out.dots[0][0] == found.accuracy.right


def test_one_score_or_no_dpo_makes_no_picture(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    data = make_data(run)
    make_dpo(run, "dpo", [data["binarize"]], epochs=1)
    make_eval(run, {"dpo": 5.0}, [], [])
    found = epoch_charts(of(run))
    assert found and not found.scores
    other = Run(tmp_path / "none")
    make_sft(other, "sft", make_data(other)["build"])
    assert epoch_charts(of(other)) is None
