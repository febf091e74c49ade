"""Find the benchmark figures that the paper prints: their headings and scales, and its numbers for Zephyr-7B."""

from zephyrctl.evaluation.published import published_tables
from zephyrctl.evaluation.results import ScoreFigure
from zephyrctl.publishing.benchmark_figures import paper_headings

ZEPHYR = ("Zephyr", "7B")
"""The model and the size in the rows of the paper's own model."""


def paper_figure(key: str) -> ScoreFigure | None:
    """The figure that the paper's tables call by this name; None if no installed benchmark has it."""
    return next((figure for name, figure, _ in paper_headings() if name == key), None)


def paper_heading(key: str) -> str:
    """The heading of a figure that the paper prints, such as `AlpacaEval, %`."""
    return next((heading for name, _, heading in paper_headings() if name == key), key.replace("_", " "))


def zephyr_score(key: str) -> float | None:
    """The paper's number for Zephyr-7B; None if it prints none."""
    rows = [row for table in published_tables() for row in table.rows if (row.model, row.size) == ZEPHYR]
    return next((row.figures[key].value for row in rows if key in row.figures), None)
