"""Rated prompts as columns: what scoring and pairing need of many at once, and a record only for who looks at one.

An object a rating takes most of the time that pairing takes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zephyrctl.data.word_hashes import Places
from zephyrctl.records import PreferencePair, RatedPrompt
from zephyrctl.runs.parquet import arrow_schema, read_columns

Values = npt.NDArray[np.float64]
MESSAGES = arrow_schema(PreferencePair).field("messages").type
LOOKED_AT = frozenset({"id", "role", "content", "text", "model", "overall", "aspect", "value"})
"""The columns of rated prompts that are read; rationales and critiques are most of such a file."""


@dataclass(frozen=True)
class Marks:
    """The ratings of the answers to some prompts."""

    answers: Places
    """How many answers each prompt has."""
    overall: Values
    """Overall score of each answer; NaN where there is none."""
    ratings: Places
    """How many ratings each answer has."""
    aspects: Places
    """Aspect of each rating, as a place in `names`."""
    values: Values
    """Value of each rating; NaN where there is none."""
    names: Sequence[str]

    @classmethod
    def of(cls, prompts: Sequence[RatedPrompt]) -> Self:
        """The ratings of records."""
        completions = [completion for rated in prompts for completion in rated.completions]
        ratings = [rating for completion in completions for rating in completion.ratings]
        names = list(dict.fromkeys(rating.aspect for rating in ratings))
        number = {name: place for place, name in enumerate(names)}
        return cls(
            np.array([len(rated.completions) for rated in prompts], np.int64),
            np.array([completion.overall for completion in completions], np.float64),
            np.array([len(completion.ratings) for completion in completions], np.int64),
            np.array([number[rating.aspect] for rating in ratings], np.int64),
            np.array([rating.value for rating in ratings], np.float64),
            names,
        )

    @classmethod
    def of_columns(cls, completions: pa.ListArray) -> Self:
        """The ratings of a column of answers in the form of `RatedPrompt.completions`, texts or not."""
        answers = completions.flatten()
        lists = answers.field("ratings")
        ratings = lists.flatten()
        aspects = ratings.field("aspect").dictionary_encode()
        return cls(
            _lengths(completions),
            answers.field("overall").to_numpy(zero_copy_only=False),
            _lengths(lists),
            aspects.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            ratings.field("value").to_numpy(zero_copy_only=False),
            aspects.dictionary.to_pylist(),
        )

    def missing(self) -> int:
        """How many ratings have no value."""
        return int(np.isnan(self.values).sum())


@dataclass(frozen=True)
class Rated:
    """Some rated prompts."""

    ids: Sequence[str]
    messages: pa.Array
    """The turns of each prompt."""
    texts: pa.Array
    """The text of each answer, prompt after prompt."""
    models: pa.Array
    """The model of each answer."""
    marks: Marks
    record: Callable[[int], RatedPrompt]
    """The whole prompt at a place."""

    @classmethod
    def of(cls, prompts: Sequence[RatedPrompt]) -> Self:
        """Those of records."""
        answers = list(chain.from_iterable(rated.completions for rated in prompts))
        turns = [[message.model_dump() for message in rated.messages] for rated in prompts]
        return cls(
            [rated.id for rated in prompts],
            pa.array(turns, MESSAGES),
            pa.array([answer.text for answer in answers], pa.string()),
            pa.array([answer.model for answer in answers], pa.string()),
            Marks.of(prompts),
            prompts.__getitem__,
        )

    @classmethod
    def of_columns(cls, batch: pa.RecordBatch, record: Callable[[int], RatedPrompt]) -> Self:
        """Those of columns in the form of `RatedPrompt`."""
        completions = batch.column("completions")
        answers = completions.flatten()
        return cls(
            batch.column("id").to_pylist(),
            batch.column("messages").cast(MESSAGES),
            answers.field("text"),
            answers.field("model"),
            Marks.of_columns(completions),
            record,
        )

    def __len__(self) -> int:
        return len(self.ids)


def read_rated(path: Path, group: int) -> Iterator[Rated]:
    """The rated prompts of a row group, some at a time; the columns that few look at are read where somebody does."""
    whole = cache(lambda: list(read_columns(path, groups=[group])))
    for number, batch in enumerate(read_columns(path, only=LOOKED_AT, groups=[group])):
        yield Rated.of_columns(batch, _reader(whole, number))


def _reader(whole: Callable[[], list[pa.RecordBatch]], number: int) -> Callable[[int], RatedPrompt]:
    """Reads the records of a batch, all of them where one is looked at."""
    records = cache(lambda: [RatedPrompt.model_validate(row) for row in whole()[number].to_pylist()])
    return lambda place: records()[place]


def _lengths(lists: pa.ListArray) -> Places:
    lengths: Places = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
