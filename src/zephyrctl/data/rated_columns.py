"""Rated prompts as columns: what scoring and pairing need of many prompts, and a record only when one is looked at.

With an object for each rating, most of the time of pairing went into making objects.
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

from zephyrctl.data.word_hashes import Positions
from zephyrctl.records import PreferencePair, RatedPrompt
from zephyrctl.runs.parquet import arrow_schema, read_columns

Values = npt.NDArray[np.float64]
MESSAGES = arrow_schema(PreferencePair).field("messages").type
READ_COLUMNS = frozenset({"id", "role", "content", "text", "model", "overall", "aspect", "value"})
"""The columns of rated prompts that are read. The others, rationales and critiques, are most of such a file."""


@dataclass(frozen=True)
class RatingColumns:
    """The ratings of the answers to some prompts, as flat arrays.

    Two prompts, of two answers and of one, with two, one and no ratings::

        answers  [2, 1]            answers of each prompt
        ratings  [2, 1, 0]         ratings of each answer
        aspects  [0, 1, 0]         aspect of each rating, as an index of names
        values   [4.0, nan, 3.0]   value of each rating
        names    ["helpfulness", "honesty"]
    """

    answers: Positions
    """How many answers each prompt has."""
    overall: Values
    """The overall score of each answer; NaN if there is none."""
    ratings: Positions
    """How many ratings each answer has."""
    aspects: Positions
    """The aspect of each rating, as an index of `names`."""
    values: Values
    """The value of each rating; NaN if it is missing."""
    names: Sequence[str]

    @classmethod
    def of(cls, prompts: Sequence[RatedPrompt]) -> Self:
        """The ratings of records."""
        # Each level in one flat list, in the order of the level above: prompts, their answers, the ratings of those.
        completions = [completion for rated in prompts for completion in rated.completions]
        ratings = [rating for completion in completions for rating in completion.ratings]
        names = list(dict.fromkeys(rating.aspect for rating in ratings))
        number = {name: index for index, name in enumerate(names)}
        return cls(
            answers=np.array([len(rated.completions) for rated in prompts], np.int64),
            overall=np.array([completion.overall for completion in completions], np.float64),
            ratings=np.array([len(completion.ratings) for completion in completions], np.int64),
            aspects=np.array([number[rating.aspect] for rating in ratings], np.int64),
            values=np.array([rating.value for rating in ratings], np.float64),
            names=names,
        )

    @classmethod
    def of_columns(cls, completions: pa.ListArray) -> Self:
        """The ratings of a column in the form of `RatedPrompt.completions`."""
        # `flatten` skips what null lists cover, as `_lengths` does, so that counts and flat arrays agree.
        answers = completions.flatten()
        lists = answers.field("ratings")
        ratings = lists.flatten()
        aspects = ratings.field("aspect").dictionary_encode()  # indices in order of appearance, as `of` numbers them
        return cls(
            answers=_lengths(completions),
            overall=answers.field("overall").to_numpy(zero_copy_only=False),
            ratings=_lengths(lists),
            aspects=aspects.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            values=ratings.field("value").to_numpy(zero_copy_only=False),
            names=aspects.dictionary.to_pylist(),
        )

    def missing(self) -> int:
        """How many ratings have no value."""
        return int(np.isnan(self.values).sum())


@dataclass(frozen=True)
class RatedBatch:
    """Some rated prompts as columns."""

    ids: Sequence[str]
    messages: pa.Array
    """The turns of each prompt."""
    texts: pa.Array
    """The text of each answer, prompt after prompt."""
    models: pa.Array
    """The model of each answer."""
    ratings: RatingColumns
    record: Callable[[int], RatedPrompt]
    """The whole prompt with this number in the batch."""

    @classmethod
    def of(cls, prompts: Sequence[RatedPrompt]) -> Self:
        """The columns of records."""
        answers = list(chain.from_iterable(rated.completions for rated in prompts))
        turns = [[message.model_dump() for message in rated.messages] for rated in prompts]
        return cls(
            ids=[rated.id for rated in prompts],
            messages=pa.array(turns, MESSAGES),
            texts=pa.array([answer.text for answer in answers], pa.string()),
            models=pa.array([answer.model for answer in answers], pa.string()),
            ratings=RatingColumns.of(prompts),
            record=prompts.__getitem__,
        )

    @classmethod
    def of_columns(cls, batch: pa.RecordBatch, record: Callable[[int], RatedPrompt]) -> Self:
        """The batch of columns in the form of `RatedPrompt`."""
        completions = batch.column("completions")
        answers = completions.flatten()
        return cls(
            ids=batch.column("id").to_pylist(),
            messages=batch.column("messages").cast(MESSAGES),
            texts=answers.field("text"),
            models=answers.field("model"),
            ratings=RatingColumns.of_columns(completions),
            record=record,
        )

    def __len__(self) -> int:
        return len(self.ids)


def read_rated(path: Path, group: int) -> Iterator[RatedBatch]:
    """The rated prompts of a row group in batches. Rationales and critiques are read only if a record is asked for."""
    # Both reads cut the row group into the same batches, so a batch's number and a row's position name one record.
    whole = cache(lambda: list(read_columns(path, groups=[group])))
    for number, batch in enumerate(read_columns(path, only=READ_COLUMNS, groups=[group])):
        yield RatedBatch.of_columns(batch, _record_reader(whole, number))


def _record_reader(whole: Callable[[], list[pa.RecordBatch]], number: int) -> Callable[[int], RatedPrompt]:
    """Reads all records of a batch when the first is asked for."""
    records = cache(lambda: [RatedPrompt.model_validate(row) for row in whole()[number].to_pylist()])
    return lambda index: records()[index]


def _lengths(lists: pa.ListArray) -> Positions:
    lengths: Positions = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
