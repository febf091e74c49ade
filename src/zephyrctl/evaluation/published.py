"""Read the scores that the paper prints in its Tables 1-3."""

from collections.abc import Mapping
from functools import cache
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import templates

TABLES = "published.yaml"

PaperColumn = Literal["mt_bench", "alpaca_eval", "arc", "hellaswag", "mmlu", "truthfulqa"]
"""The columns of the paper's tables."""


class Figure(BaseModel):
    """One printed number: a score from 1 to 10 for MT-Bench, per cent elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(ge=0, le=100)
    error: float | None = Field(default=None, gt=0, description="standard error, if the paper prints one")
    by_authors: bool = Field(default=False, description="evaluated by the paper's authors, not by a leaderboard")


class PublishedRow(BaseModel):
    """One model of a table; what the paper does not state is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    size: str = ""
    align: str = ""
    figures: Mapping[PaperColumn, Figure] = Field(description="by the name that `ScoreFigure.paper` has")


class PublishedTable(BaseModel):
    """One table of the paper, in its order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    rows: tuple[PublishedRow, ...]


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All tables of the paper that state scores."""
    return tuple(PublishedTable.model_validate(table) for table in yaml.safe_load(templates.read(TABLES))["tables"])


def published_table(name: str) -> PublishedTable:
    """One table by its name, such as `Table 1`. Raises KeyError for another name."""
    return {table.name: table for table in published_tables()}[name]


def where_printed(figures: Mapping[str, float]) -> tuple[PublishedTable, PublishedRow] | None:
    """The table and the row with exactly these scores, as a recipe states them; None if there is none."""
    for table in published_tables():
        for row in table.rows:
            values: dict[str, float] = {name: figure.value for name, figure in row.figures.items()}
            if figures and figures.items() <= values.items():
                return table, row
    return None
