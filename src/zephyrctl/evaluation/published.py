"""Read the scores that the paper prints in its Tables 1-3."""

from collections.abc import Mapping
from functools import cache
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from zephyrctl import templates

TABLES = "published.yaml"


class Figure(BaseModel):
    """One printed number: a score from 1 to 10 for MT-Bench, else per cent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(ge=0, le=100)
    error: float | None = Field(default=None, gt=0, description="standard error, if the paper prints one")
    by_authors: bool = Field(default=False, description="evaluated by the paper's authors, not by a leaderboard")


class PublishedRow(BaseModel):
    """One model of a table. A field that the paper does not state is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    size: str = ""
    align: str = ""
    figures: Mapping[str, Figure] = Field(description="by the name that `ScoreFigure.paper` has")


class PublishedTable(BaseModel):
    """One table of the paper, its rows in the paper's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    figures: tuple[str, ...] = Field(description="its columns, by the names that benchmarks use for the paper")
    has_mean: bool = Field(default=False, description="whether a last column states the mean of the others")
    is_ablation: bool = Field(default=False, description="whether its rows are ways to train one model")
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _rows_have_its_columns(self) -> Self:
        for row in self.rows:
            if unknown := row.figures.keys() - set(self.figures):
                raise ValueError(f"{row.model}: {', '.join(sorted(unknown))} is not a column of {self.name}")
        return self


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """The tables of the paper that contain scores."""
    return tuple(PublishedTable.model_validate(table) for table in yaml.safe_load(templates.read(TABLES))["tables"])


def published_table(name: str) -> PublishedTable:
    """One table by its name, such as `Table 1`. Raises KeyError for another name."""
    return {table.name: table for table in published_tables()}[name]


def where_printed(figures: Mapping[str, float]) -> tuple[PublishedTable, PublishedRow] | None:
    """The table and the row with these scores, which a recipe states; None if no row has them all."""
    for table in published_tables():
        for row in table.rows:
            values: dict[str, float] = {name: figure.value for name, figure in row.figures.items()}
            if figures and figures.items() <= values.items():
                return table, row
    return None
