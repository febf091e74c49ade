"""The paper's tables: every row is there, its figures are possible, and what recipes state is printed in them."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from zephyrctl import templates
from zephyrctl.evaluation.published import PublishedTable, published_table, published_tables, where_printed
from zephyrctl.recipe import loading

RECIPES = sorted((templates.folder() / "recipes").glob("*.yaml"))


def test_every_table_has_the_papers_rows() -> None:
    assert {table.name: len(table.rows) for table in published_tables()} == {"Table 1": 14, "Table 2": 11, "Table 3": 4}
    for table in published_tables():
        assert len({(row.model, row.size, row.align) for row in table.rows}) == len(table.rows)


def test_figures_are_possible_and_errors_those_of_805_questions() -> None:
    for table in published_tables():
        for row in table.rows:
            for name, figure in row.figures.items():
                assert figure.value <= (10 if name == "mt_bench" else 100)
                if figure.error is not None:
                    expected = (figure.value * (100 - figure.value) / 805) ** 0.5
                    assert name == "alpaca_eval" and figure.error == pytest.approx(expected, rel=0.15)


def test_zephyr_leads_the_models_of_its_size() -> None:
    for name in ("Table 1", "Table 2"):
        small = [row for row in published_table(name).rows if row.size == "7B"]
        (zephyr,) = [row for row in small if row.model == "Zephyr"]
        for figure, printed in zephyr.figures.items():
            others = [row.figures[figure].value for row in small if row is not zephyr and figure in row.figures]
            assert others and printed.value > max(others)


def test_what_recipes_state_is_printed_somewhere() -> None:
    stated = [
        checkpoint.published
        for path in RECIPES
        for checkpoint in loading.load(path.stem, {}).recipe.checkpoints.values()
        if checkpoint.published
    ]
    assert len(stated) >= 5
    assert all(where_printed(figures) for figures in stated)
    assert where_printed({"mt_bench": 7.35}) is None and where_printed({}) is None


def test_a_table_refuses_what_it_does_not_know() -> None:
    row = {"model": "A", "figures": {"gsm8k": {"value": 10}}}
    with pytest.raises(ValidationError):
        PublishedTable.model_validate({"name": "Table 9", "title": "", "figures": ["arc"], "rows": [row]})
    with pytest.raises(KeyError):
        published_table("Table 9")


@pytest.mark.real
def test_every_figure_is_printed_in_the_paper(real_data: Path) -> None:
    paper = real_data.parent / "paper" / "zephyr-2310.16944.txt"
    if not paper.is_file():
        pytest.skip("the paper's text does not lie beside the data")
    lines = [_plain(line) for line in paper.read_text().splitlines()]
    for table in published_tables():
        for row in table.rows:
            names = (row.align,) if table.name == "Table 3" else (row.model, row.size, row.align)
            start = _plain("".join(names))
            printed = [f"{figure.value:.2f}" for figure in row.figures.values()]
            printed += [f"{figure.error:.2f}" for figure in row.figures.values() if figure.error]
            found = [line for line in lines if line.startswith(start)]
            assert any(all(figure in line for figure in printed) for line in found), (table.name, row.model)


def _plain(text: str) -> str:
    """Letters, digits and points only."""
    return re.sub(r"[^\w.]|_", "", text)
