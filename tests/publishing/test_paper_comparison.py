"""Our models among the paper's: sorted, marked, with the reasons why figures cannot be compared above them."""

from pathlib import Path

import pytest

from tests.publishing import runs_made
from tests.publishing.test_report import Page, ablation_run, whole_run
from zephyrctl.evaluation.published import published_table
from zephyrctl.publishing.paper_comparison import PaperTable, paper_comparison
from zephyrctl.publishing.report import render_report
from zephyrctl.publishing.reported_run import ReportedRun
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

MODELS = ["base", "ddpo", "dsft-1", "dsft-2", "ddpo-dsft"]


def tables(run: Run, recipe: Recipe | None = None) -> dict[str, PaperTable]:
    found = paper_comparison(ReportedRun(run, recipe, run.artifacts()))
    return {table.id: table for table in found.tables} if found else {}


def first_figures(table: PaperTable, column: int) -> list[float]:
    shown = [row.cells[column].score.strip("*") for row in table.rows]
    return [float(score) if score != "–" else float("-inf") for score in shown]


def test_ours_stand_among_the_papers_sorted_by_score(tmp_path: Path) -> None:
    run, recipe = ablation_run(tmp_path / "table-3")
    runs_made.make_benchmarks(run, MODELS, 16)
    found = tables(run, recipe)
    assert set(found) == {"paper-1", "paper-2", "paper-3"}
    for id, column in (("paper-1", 0), ("paper-2", 4)):
        table = found[id]
        figures = first_figures(table, column)
        assert figures == sorted(figures, reverse=True)
        paper = published_table(f"Table {id[-1]}").rows
        assert len(table.rows) == len(paper) + len(MODELS)
        assert [row.label for row in table.rows if row.name is None].count("Zephyr") == 1
        assert {row.name.key for row in table.rows if row.name} == set(MODELS)


def test_the_papers_errors_and_asterisks_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_mt_bench(run, ["dpo"], 16)
    (table,) = tables(run).values()
    zephyr, xwin = (
        next(row for row in table.rows if (row.label, row.kind) == which)
        for which in (("Zephyr", "7B dDPO"), ("Xwin-LM v0.1", "7B dPPO"))
    )
    assert [(cell.score, cell.interval) for cell in zephyr.cells] == [("7.34", ""), ("90.60", "± 1.03")]
    assert xwin.cells[0].score == "6.19*"
    mark = zephyr.cells[1].whisker
    assert mark and mark.low and mark.high and mark.low < mark.at < mark.high


def test_a_run_with_one_benchmark_is_sorted_by_that_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_alpaca_eval(run, ["dpo"], 16)
    (table,) = tables(run).values()
    assert table.sorted_by == "AlpacaEval"
    figures = first_figures(table, 1)
    assert figures == sorted(figures, reverse=True) and figures[-1] == float("-inf")


def test_table_3_lays_each_checkpoint_above_the_papers_row(tmp_path: Path) -> None:
    run, recipe = ablation_run(tmp_path / "table-3")
    runs_made.make_mt_bench(run, MODELS, 16)
    rows = tables(run, recipe)["paper-3"].rows
    assert [(row.label, row.kind) for row in rows[:2]] == [("dDPO - dSFT", "this run"), ("dDPO - dSFT", "paper, 7B")]
    assert rows[1].cells[1].interval == "± 1.63"
    assert len(rows) == 8
    assert "paper-3" not in tables(run, None)


@pytest.mark.parametrize("made", ["nothing", "arena"])
def test_without_the_papers_benchmarks_there_is_no_table(tmp_path: Path, made: str) -> None:
    run = whole_run(tmp_path / "run")
    if made == "arena":
        runs_made.make_arena(run, ["sft", "dpo"])
    assert tables(run) == {}
    assert "Comparison with the paper" not in Page(render_report(run, None)).text


def test_what_makes_figures_incomparable_stands_above_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_mt_bench(run, ["dpo"], 16)
    text = Page(render_report(run, None)).text
    banner = text.index("These scores are not directly comparable with the paper’s.")
    assert banner < text.index("MT-Bench: 13 references are corrected ones") < text.index("Zephyr 7B dDPO")
    runs_made.make_mt_bench(run, ["dpo"], 16, changes={"comparability": []})
    assert "not directly comparable" not in Page(render_report(run, None)).text


def test_a_model_that_lacks_a_task_has_no_mean_and_comes_last(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_open_llm(run, ["lacks-one", "has-all"])
    (table,) = tables(run).values()
    assert table.rows[-1].label == "lacks-one" and [cell.score for cell in table.rows[-1].cells[3:]] == ["–", "–"]
    whole = next(row for row in table.rows if row.label == "has-all")
    assert float(whole.cells[4].score) == pytest.approx(
        sum(float(cell.score) for cell in whole.cells[:4]) / 4, abs=0.01
    )
