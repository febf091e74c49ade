"""`data binarize`: preference pairs from rated answers; every prompt without one is counted by cause."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zephyrctl import plugins
from zephyrctl.contracts import Asked, Binarizer, NoPair, Picked
from zephyrctl.data import chunks
from zephyrctl.data.answer_scores import answers_by, check_weights, resolve, scores_of
from zephyrctl.data.chunks import RawChunk
from zephyrctl.data.process_pool import ProcessPool, usable_cores
from zephyrctl.data.rated_columns import Rated, read_rated
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Binarize, Recipe
from zephyrctl.records import PreferencePair, Split, split_of
from zephyrctl.rows.published_rows import read_each, row_formats
from zephyrctl.runs.artifacts import SPLITS, Artifact, Draft
from zephyrctl.runs.parquet import ROWS_PER_READ, arrow_schema, count_groups
from zephyrctl.stages import Inputs, Source, Step

TIED = "tied scores"
"""What training counts pairs under whose scores are equal."""
SCHEMA = arrow_schema(PreferencePair)
BLANK = r"^[\s\pZ\pC]*$"
"""Of every text that `str.strip` empties, and of few others."""
SHARES_A_PROCESS = 8
"""Shares that pay for one more process: 32,000 prompts take 2 s, and a process takes one to start."""


@dataclass
class Tally:
    """What became of the prompts: each is paired or lost for a cause, and what else there is to know is `noted`."""

    noted: "Counter[str]" = field(default_factory=Counter)
    lost: "Counter[str]" = field(default_factory=Counter)
    left_out: "Counter[str]" = field(default_factory=Counter)
    """Pairs that are left out beside others of their prompt."""
    bad_rows: "Counter[str]" = field(default_factory=Counter)
    aspects: set[str] = field(default_factory=set)

    def add(self, other: "Tally") -> None:
        """Count what another process did."""
        self.noted.update(other.noted)
        self.lost.update(other.lost)
        self.left_out.update(other.left_out)
        self.bad_rows.update(other.bad_rows)
        self.aspects |= other.aspects


@dataclass(frozen=True)
class Group:
    """One row group of one side of the rated prompts."""

    path: Path
    split: Split
    number: int


@dataclass(frozen=True)
class Paired:
    """The pairs of one share, by side, and what became of its prompts."""

    pairs: Mapping[Split, pa.Table]
    tally: Tally


def step(recipe: Recipe, input_file: Path | None = None, processes: int | None = None) -> Step:
    """The binarize step: over the rated prompts of `feedback`, or over a file in UltraFeedback's form.

    The number of processes changes no byte of the result; without one it is at most a process a core.
    """

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        tally = Tally()
        shares = list(_shares(inputs["rated"]))
        count = min(usable_cores(), len(shares) // SHARES_A_PROCESS) if processes is None else processes
        pair = partial(pair_up, recipe)
        pool = ProcessPool(count, pair)
        writers = {split: draft.writer("pairs", split, PreferencePair) for split in SPLITS}
        with pool, writers["train"], writers["test"]:
            for number, paired in enumerate(pool.map(pair, shares), 1):
                tally.add(paired.tally)
                for split, table in paired.pairs.items():
                    writers[split].add_table(table)
                progress.advance(number, len(shares), "parts paired")
        _close(draft, tally, recipe)

    return Step(
        name="binarize",
        stage="binarize",
        does=f"pair the answers of each prompt by {_describe(recipe.binarize)}",
        settings={"seed": recipe.seed, **recipe.binarize.model_dump(mode="json")}
        | ({"test_share": recipe.build.test_share, "skip_bad_rows": recipe.skip_bad_rows} if input_file else {}),
        reads={"rated": Source(path=input_file) if input_file else Source(artifact="feedback", stage="feedback")},
        work=work,
        check=lambda: _check(recipe),
    )


def pair_up(recipe: Recipe, share: Group | RawChunk) -> Paired:
    """The pairs of one share of the rated prompts. Raises BadRow for a row that cannot be used, unless skipped."""
    rules, strategy = _rules(recipe)
    tally = Tally()
    pairs: dict[Split, list[pa.Table]] = {split: [SCHEMA.empty_table()] for split in SPLITS}
    for split, rated in _batches(share, recipe, tally):
        pairs[split].append(pairs_of(rated, strategy, rules, recipe.seed, tally))
    return Paired({split: pa.concat_tables(tables).combine_chunks() for split, tables in pairs.items()}, tally)


def pairs_of(rated: Rated, strategy: Binarizer, rules: Binarize, seed: int, tally: Tally) -> pa.Table:
    """The pairs of some prompts. Each seed hangs on the prompt's id: order, workers and shards change no pair.

    A prompt without a pair is counted in `tally.lost`, a pair that is left out beside others in `tally.left_out`.
    """
    scores = scores_of(rated.marks, rules, tally.noted)
    tally.aspects.update(rated.marks.names)
    tally.noted += Counter(prompts=len(rated), ratings_missing=rated.marks.missing())
    picked: list[tuple[int, Picked]] = []
    for place, (id, its) in enumerate(zip(rated.ids, scores, strict=True)):
        found = answers_by(its, Asked(partial(rated.record, place)), rules, tally.noted)
        choice = found if isinstance(found, NoPair) else strategy.pick(found, Random(f"{seed}:{id}"))
        if isinstance(choice, NoPair):
            tally.lost[choice.cause] += 1
        elif isinstance(choice, Picked):
            picked.append((place, choice))
        elif choice:
            picked += [(place, one) for one in choice]
        else:
            tally.lost["no preference"] += 1
    table = _table(rated, picked)
    is_usable = _sift([place for place, _ in picked], _causes(table, rules), tally)
    return table.filter(pa.array(is_usable, pa.bool_()))


def unusable(chosen: str, rejected: str) -> str | None:
    """Why two texts cannot teach a preference, or None."""
    if not chosen.strip():
        return "empty chosen answer"
    if not rejected.strip():
        return "empty rejected answer"
    if chosen == rejected:
        return "identical answers"
    return None


def _table(rated: Rated, picked: Sequence[tuple[int, Picked]]) -> pa.Table:
    """The pairs as columns, cut out of those of the prompts."""
    prompts = np.array([place for place, _ in picked], np.int64)
    first = (np.cumsum(rated.marks.answers) - rated.marks.answers)[prompts]
    columns: dict[str, Any] = {"id": [rated.ids[place] for place in prompts.tolist()]}
    columns["messages"] = rated.messages.take(pa.array(prompts))
    ends = {"chosen": [one.chosen for _, one in picked], "rejected": [one.rejected for _, one in picked]}
    for name, answers in ends.items():
        places = [answer.place for answer in answers]
        at = pa.array(first + np.array(places, np.int64))
        columns |= {name: rated.texts.take(at), f"{name}_model": rated.models.take(at), f"{name}_place": places}
        columns[f"score_{name}"] = [answer.score for answer in answers]
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _causes(pairs: pa.Table, rules: Binarize) -> list[str | None]:
    """Why the recipe's policies leave each pair out, or None."""
    chosen, rejected = pairs["chosen"], pairs["rejected"]
    blank = pc.or_(pc.match_substring_regex(chosen, BLANK), pc.match_substring_regex(rejected, BLANK))
    causes: list[str | None] = [None] * len(pairs)
    for place in pc.indices_nonzero(pc.or_(blank, pc.equal(chosen, rejected))).to_pylist():
        causes[place] = _refused(chosen[place].as_py(), rejected[place].as_py(), rules)
    return causes


def _refused(chosen: str, rejected: str, rules: Binarize) -> str | None:
    """Why the recipe's policies leave a pair out, or None."""
    if rules.identical == "drop" and chosen == rejected:
        return unusable(chosen, rejected) if rules.empty == "drop" else "identical answers"
    cause = unusable(chosen, rejected)
    return cause if rules.empty == "drop" and cause != "identical answers" else None


def _sift(prompts: Sequence[int], causes: Sequence[str | None], tally: Tally) -> list[bool]:
    """Which pairs are usable; counted by their prompts, which stand side by side."""
    for _, group in groupby(zip(prompts, causes, strict=True), key=itemgetter(0)):
        its = [cause for _, cause in group]
        refused = [cause for cause in its if cause]
        if len(refused) < len(its):
            tally.noted["prompts_paired"] += 1
            tally.noted["pairs"] += len(its) - len(refused)
            tally.left_out.update(refused)
        else:
            tally.lost[refused[0]] += 1
    return [cause is None for cause in causes]


def _rules(recipe: Recipe) -> tuple[Binarize, Binarizer]:
    rules = resolve(recipe.binarize)
    return rules, plugins.load().binarizer(rules.strategy, rules.options)


def _check(recipe: Recipe) -> None:
    _rules(recipe)


def _describe(rules: Binarize) -> str:
    if rules.compat:
        return f"the published rule {rules.compat!r}"
    scores = {"mean": "mean rating", "weights": "weighted mean", "overall": "overall score, mended"}
    return f"the strategy {rules.strategy!r} on the {scores.get(rules.score, 'overall score, as published')}"


def _shares(source: "Artifact | Path") -> Iterator[Group | RawChunk]:
    """What is paired at once: row groups, or chunks of a file."""
    if isinstance(source, Path):
        yield from chunks.numbered(chunks.of_file(source))
        return
    for split in SPLITS:
        path = source.table("rated", split)
        yield from (Group(path, split, number) for number in range(count_groups(path)))


def _batches(share: Group | RawChunk, recipe: Recipe, tally: Tally) -> Iterator[tuple[Split, Rated]]:
    """The rated prompts of a share, some at a time, with their side; a file's are split by the hash of their ids."""
    if isinstance(share, Group):
        yield from ((share.split, rated) for rated in read_rated(share.path, share.number))
        return
    lines = ((where, row) for _, where, row in share.rows())
    read = read_each(lines, row_formats().rated_prompt, recipe.skip_bad_rows, partial(_count, tally.bad_rows))
    while prompts := list(islice(read, ROWS_PER_READ)):
        for split in SPLITS:
            if here := [rated for rated in prompts if split_of(rated.id, recipe.build.test_share) == split]:
                yield split, Rated.of(here)


def _count(counter: "Counter[str]", cause: str) -> None:
    counter[cause] += 1


def _close(draft: Draft, tally: Tally, recipe: Recipe) -> None:
    """Every prompt is paired or lost; the rest is in the metrics."""
    check_weights(recipe.binarize, tally.aspects)
    for cause, rows in (tally.bad_rows + tally.lost).items():
        draft.drop(cause, rows)
    if not tally.noted["pairs"]:
        raise _nothing(draft, tally, resolve(recipe.binarize))
    always = dict.fromkeys(("prompts", "prompts_paired", "pairs", "ratings_missing"), 0)
    draft.metrics |= always | tally.noted
    if tally.left_out:
        draft.metrics["pairs_left_out"] = tally.left_out.total()
        causes = ", ".join(f"{pairs} x {cause}" for cause, pairs in sorted(tally.left_out.items()))
        draft.notes.append(f"pairs left out beside others of their prompt: {causes}")


def _nothing(draft: Draft, tally: Tally, rules: Binarize) -> ZephyrError:
    """The error where no prompt shows a preference: it says why not."""
    if not tally.noted["prompts"] and not draft.dropped:
        return ZephyrError(
            "there is no rated prompt to pair", "give a file with at least one row, or rate some answers"
        )
    causes = [f"{rows} x {cause}" for cause, rows in draft.dropped.items()]
    if missing := tally.noted["ratings_missing"]:
        causes.append(f"{missing} ratings missing")
    problem = f"no prompt of {tally.noted['prompts']} shows a preference ({', '.join(causes)})"
    if rules.score.startswith("overall"):
        return ZephyrError(
            problem, "overall scores are read: published UltraFeedback has them, and --set feedback.critique=true asks"
        )
    return ZephyrError(problem, "rate the answers: zephyrctl data feedback")
