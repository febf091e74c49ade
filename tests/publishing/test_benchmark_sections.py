"""What the report says of each benchmark: every figure with its interval, and nothing where a run recorded none."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.publishing import runs_made
from tests.publishing.test_report import Page, ablation_run
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.benchmark_sections import (
    MOST_POLYGONS,
    MOST_WIN_ROWS,
    BenchmarkSection,
    benchmark_sections,
)
from zephyrctl.publishing.report import render_report
from zephyrctl.publishing.reported_run import ReportedRun
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

MODELS = ["base", "ddpo", "dsft-1", "dsft-2", "ddpo-dsft"]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, Recipe]:
    run, recipe = ablation_run(tmp_path / "table-3")
    runs_made.make_benchmarks(run, MODELS, 16)
    return run, recipe


def read(run: Run, recipe: Recipe | None = None) -> list[BenchmarkSection]:
    return list(benchmark_sections(ReportedRun(run, recipe, run.artifacts())))


def test_every_benchmark_is_read_in_a_fixed_order(made: tuple[Run, Recipe]) -> None:
    found = read(*made)
    assert [one.title for one in found] == ["MT-Bench", "AlpacaEval", "Open LLM Leaderboard", "Arena"]
    assert [(one.table.axis is not None, one.table.are_bars) for one in found] == [
        (True, False),
        (True, True),
        (False, False),
        (True, False),
    ]
    assert all(len(one.table.rows) == len(MODELS) for one in found)
    assert [row.name.label for row in found[0].table.rows] == ["base", "dDPO - dSFT", "dSFT-1", "dSFT-2", "dDPO + dSFT"]


def test_the_page_shows_every_figure_and_who_judged(made: tuple[Run, Recipe]) -> None:
    run, recipe = made
    page = Page(render_report(run, recipe))
    metrics = {
        name: artifact.manifest.metrics
        for name in ("mt-bench", "alpaca-eval", "open-llm")
        if (artifact := run.artifact(name))
    }
    for model in MODELS:
        one = metrics["mt-bench"]["models"][model]
        for shown in (f"{one['score']:.2f}", f"[{one['low']:.2f}, {one['high']:.2f}]", f"{one['turn_2']:.2f}"):
            assert shown in page.text
        for category in one["categories"].values():
            assert category["score"] is None or f"{category['score']:.2f}" in page.text
        assert f"{metrics['alpaca-eval']['models'][model]['win_rate']:.2f} %" in page.text
        assert f"{metrics['open-llm']['models'][model]['mmlu_by_size']:.2f}" in page.text
    assert "remote (a-judge-0613)" in page.text and "offline by rules" in page.text
    assert "2 of 16 questions, in 31 rows; searched: build and binarize" in page.text
    assert "repeats, equal 0.55" in page.text


def test_a_radar_has_a_line_a_model_and_the_same_colours_as_every_picture(made: tuple[Run, Recipe]) -> None:
    found = read(*made)
    mt_bench = found[0]
    assert mt_bench.categories == runs_made.CATEGORIES
    assert mt_bench.radar and len(mt_bench.radar.polygons) == len(MODELS)
    inks = {(row.name.colour, row.name.dash) for row in mt_bench.table.rows}
    assert len(inks) == len(MODELS)
    assert (
        {row.name for row in mt_bench.table.rows}
        == {row.name for row in found[1].table.rows}
        == {row.name for row in found[3].table.rows}
    )
    assert not mt_bench.outlines[0].scores[4].score.strip("–"), "the first model has no score in coding"


def test_of_twelve_models_the_runs_own_and_the_best_are_drawn_first(tmp_path: Path) -> None:
    run, recipe = ablation_run(tmp_path / "many")
    outside = [f"outside-{number}" for number in range(10)]
    runs_made.make_mt_bench(run, ["dsft-1", *outside, "ddpo-dsft"], 16)
    (found,) = read(run, recipe)
    drawn = [one for one in found.outlines if one.is_drawn]
    assert len(drawn) == MOST_POLYGONS and {"dsft-1", "ddpo-dsft"} < {one.name.key for one in drawn}
    left_out = max(float(one.score) for one in found.outlines if not one.is_drawn)
    assert min(float(one.score) for one in drawn if one.name.key in outside) >= left_out
    assert len({(one.name.colour, one.name.dash) for one in found.outlines}) == 12


def test_few_matches_are_bars_and_many_are_a_matrix(tmp_path: Path) -> None:
    few, many = Run(tmp_path / "few"), Run(tmp_path / "many")
    runs_made.make_arena(few, MODELS[:3])
    runs_made.make_arena(many, MODELS)
    (bars,), (matrix,) = read(few), read(many)
    assert len(bars.matches) == MOST_WIN_ROWS and not bars.matrix
    assert not matrix.matches and len(matrix.matrix) == len(MODELS)
    rates = {name.key: [cell.rate if cell else None for cell in cells] for name, cells in matrix.matrix}
    order = list(rates)
    for row, left in enumerate(order):
        assert rates[left][row] is None
        for column, right in enumerate(order):
            if row != column:
                assert (rates[left][column] or 0) + (rates[right][row] or 0) == pytest.approx(100)


def test_ratings_come_best_first(made: tuple[Run, Recipe]) -> None:
    ratings = [row.mean or 0 for row in read(*made)[3].table.rows]
    assert ratings == sorted(ratings, reverse=True)


EMPTY: list[dict[str, Any]] = [
    {"models": {}},
    {"models": {"dpo": {"score": float("nan"), "win_rate": float("nan")}}},
    {"models": {"dpo": {"score": None, "win_rate": None, "categories": {"math": {"score": None, "win_rate": None}}}}},
]


@pytest.mark.parametrize("changes", EMPTY)
@pytest.mark.parametrize("make", [runs_made.make_mt_bench, runs_made.make_alpaca_eval])
def test_a_benchmark_without_figures_is_left_out(tmp_path: Path, make: Any, changes: dict[str, Any]) -> None:
    run = Run(tmp_path)
    make(run, ["dpo"], 3, changes)
    assert read(run) == []
    Page(render_report(run, None))


LEAST: list[dict[str, Any]] = [
    {"benchmark": "mt-bench", "models": {"dpo": {"score": 5.5}}},
    {
        "benchmark": "mt-bench",
        "models": {"dpo": {"score": 5.5, "categories": {"math": {"score": 4}, "law": {"score": 3}}}},
    },
    {"benchmark": "alpaca-eval", "models": {"dpo": {"win_rate": 88.0}}},
    {"benchmark": "alpaca-eval", "models": {"dpo": {"win_rate": 88.0, "standard_error": 1.0, "length_controlled": 70}}},
    {"benchmark": "open-llm", "models": {"dpo": {"arc": 60.0}}},
    {"benchmark": "arena", "ratings": {"dpo": {"rating": 1000}}, "matches": {}},
    {"benchmark": "another-one", "models": {"dpo": {"score": 1}}, "comparability": "none"},
]


@pytest.mark.parametrize("metrics", LEAST, ids=lambda metrics: str(metrics["benchmark"]))
def test_the_least_that_a_benchmark_may_record_makes_a_page(tmp_path: Path, metrics: dict[str, Any]) -> None:
    run = Run(tmp_path)
    runs_made.make_evaluated(run, str(metrics["benchmark"]), lambda draft: None, metrics)
    page = Page(render_report(run, None))
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"\b(None|nan)\b", page.text)
    assert ("the benchmark another-one is not installed" in page.text) is (metrics["benchmark"] == "another-one")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"benchmark": "mt-bench", "models": None}, "models"),
    ({"benchmark": "mt-bench", "models": {"dpo": None}}, "models.dpo"),
    ({"benchmark": "mt-bench", "models": {"dpo": {"score": "high"}}}, "models.dpo.score"),
    ({"benchmark": "alpaca-eval", "models": {"dpo": {"win_rate": "high"}}}, "models.dpo.win_rate"),
    ({"benchmark": "open-llm", "models": {"dpo": {"arc": 60.0, "intervals": {"arc": [None, 3]}}}}, "intervals.arc"),
    ({"benchmark": "arena", "ratings": {}, "matches": {"dpo_over_sft": {}}}, "matches.dpo_over_sft"),
]


@pytest.mark.parametrize(("metrics", "place"), BROKEN, ids=[place for _, place in BROKEN])
def test_a_result_that_is_broken_is_refused_by_name(tmp_path: Path, metrics: dict[str, Any], place: str) -> None:
    run = Run(tmp_path)
    runs_made.make_evaluated(run, "an-evaluation", lambda draft: None, metrics)
    with pytest.raises(ZephyrError, match=rf"an-evaluation .*{place}"):
        render_report(run, None)


def test_a_win_rate_without_an_interval_takes_that_of_its_standard_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    metrics = {"benchmark": "alpaca-eval", "models": {"dpo": {"win_rate": 50.0, "standard_error": 2.0}}}
    runs_made.make_evaluated(run, "alpaca-eval", lambda draft: None, metrics)
    (found,) = read(run)
    assert found.table.rows[0].cells[0].interval == "[46.08, 53.92]"
    assert found.table.caption == "Wins against the reference; a draw counts half."
    assert found.table.headings == ("Win rate",)


def test_a_run_with_benchmarks_only_begins_with_who_leads(tmp_path: Path) -> None:
    run = Run(tmp_path)
    runs_made.make_mt_bench(run, ["one", "two"], 16)
    artifact = run.artifact("mt-bench")
    assert artifact
    scores = {name: of["score"] for name, of in artifact.manifest.metrics["models"].items()}
    best = max(scores, key=lambda name: scores[name])
    assert f"{best} is best on MT-Bench: {scores[best]:.2f}" in Page(render_report(run, None)).text
