"""`data binarize`: make preference pairs from rated answers, and count every prompt without a pair by its cause."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, LazyPrompt, NoPair, Picked
from zephyrctl.data import chunks
from zephyrctl.data.answer_scores import answers_by, check_weights, resolve, scores_of
from zephyrctl.data.chunks import RawChunk
from zephyrctl.data.process_pool import ProcessPool, usable_cores
from zephyrctl.data.rated_columns import RatedBatch, read_rated
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Binarize, Recipe
from zephyrctl.records import PreferencePair, Split, split_of
from zephyrctl.rows.published_rows import read_each, row_formats
from zephyrctl.runs.artifacts import SPLITS, Artifact, Draft
from zephyrctl.runs.parquet import ROWS_PER_READ, arrow_schema, count_groups
from zephyrctl.stages import Inputs, Source, Stage

TIED = "tied scores"
"""The cause under which training drops pairs of equal scores."""
SCHEMA = arrow_schema(PreferencePair)
BLANK = r"^[\s\pZ\pC]*$"
"""Matches every text that `str.strip` empties, and few others: those are looked at again in Python."""
CHUNKS_FOR_A_PROCESS = 8
"""Chunks that are worth one more process: 8 x 4,096 prompts take 2 s, and a process takes 1 s to start."""


@dataclass
class PairingCounts:
    """What became of the prompts: each is either paired or dropped for a cause."""

    noted: "Counter[str]" = field(default_factory=Counter)
    """Prompts, pairs, missing ratings, ties and repaired scores: the metrics of the stage."""
    dropped: "Counter[str]" = field(default_factory=Counter)
    """Prompts without a pair, by cause."""
    left_out: "Counter[str]" = field(default_factory=Counter)
    """Pairs that are dropped while another pair of their prompt is kept, by cause."""
    bad_rows: "Counter[str]" = field(default_factory=Counter)
    aspects: set[str] = field(default_factory=set)

    def add(self, other: "PairingCounts") -> None:
        """Add the counts of another chunk."""
        self.noted.update(other.noted)
        self.dropped.update(other.dropped)
        self.left_out.update(other.left_out)
        self.bad_rows.update(other.bad_rows)
        self.aspects |= other.aspects


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group of one split of the rated prompts."""

    path: Path
    split: Split
    number: int


@dataclass(frozen=True)
class PairingSettings:
    """What the pairs depend on."""

    binarize: Binarize
    seed: int
    test_share: float
    skip_bad_rows: bool

    @classmethod
    def of(cls, recipe: Recipe) -> "PairingSettings":
        """The settings of a recipe."""
        return cls(recipe.binarize, recipe.seed, recipe.build.test_share, recipe.skip_bad_rows)


@dataclass(frozen=True)
class ChunkPairs:
    """The pairs of one chunk by split, and the counts of its prompts."""

    pairs: Mapping[Split, pa.Table]
    counts: PairingCounts


class BinarizeStage(Stage):
    """The stage `binarize`: over the rated prompts of `feedback`, or over a file of rated rows.

    The number of processes changes no byte of the result. By default there is at most one for each core.
    """

    def __init__(self, recipe: Recipe, input_file: Path | None = None, processes: int | None = None) -> None:
        self.pairing = PairingSettings.of(recipe)
        self.processes = processes
        self.name = self.stage = "binarize"
        self.does = f"pair the answers of each prompt by {_describe(recipe.binarize)}"
        self.settings = {"seed": recipe.seed, **recipe.binarize.model_dump(mode="json")}
        self.reads = {"rated": Source(artifact="feedback", stage="feedback")}
        if input_file:
            self.settings |= {"test_share": recipe.build.test_share, "skip_bad_rows": recipe.skip_bad_rows}
            self.reads = {"rated": Source(path=input_file)}

    def check(self) -> None:
        """Raise ZephyrError if the strategy is unknown or the settings contradict each other."""
        _rules(self.pairing.binarize)

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Pair the answers and write the pairs."""
        counts = PairingCounts()
        parts = list(_chunks(inputs["rated"]))
        processes = self.processes
        if processes is None:
            processes = min(usable_cores(), len(parts) // CHUNKS_FOR_A_PROCESS)
        pair = partial(pair_chunk, self.pairing)
        pool = ProcessPool(processes, pair)
        writers = {split: draft.writer("pairs", split, PreferencePair) for split in SPLITS}
        with pool, writers["train"], writers["test"]:
            for number, paired in enumerate(pool.map(pair, parts), 1):
                counts.add(paired.counts)
                for split, table in paired.pairs.items():
                    writers[split].add_table(table)
                progress.advance(number, len(parts), "parts paired")
        _write_counts(draft, counts, self.pairing.binarize)


def pair_chunk(settings: PairingSettings, chunk: RowGroup | RawChunk) -> ChunkPairs:
    """The pairs of one chunk of the rated prompts. Raises BadRow for a bad row, unless such rows are skipped."""
    rules, strategy = _rules(settings.binarize)
    counts = PairingCounts()
    pairs: dict[Split, list[pa.Table]] = {split: [SCHEMA.empty_table()] for split in SPLITS}
    for split, rated in _batches(chunk, settings, counts):
        pairs[split].append(pairs_of(rated, strategy, rules, settings.seed, counts))
    joined = {split: pa.concat_tables(tables).combine_chunks() for split, tables in pairs.items()}
    return ChunkPairs(joined, counts)


def pairs_of(rated: RatedBatch, strategy: Binarizer, rules: Binarize, seed: int, counts: PairingCounts) -> pa.Table:
    """The pairs of some prompts, as columns of PreferencePair.

    The random draws of a prompt are seeded by its id, so that order, workers and chunks change no pair. A prompt
    without a pair is counted in `counts.dropped`, a pair that is dropped beside others in `counts.left_out`.
    """
    scores = scores_of(rated.ratings, rules, counts.noted)
    counts.aspects.update(rated.ratings.names)
    counts.noted += Counter(prompts=len(rated), ratings_missing=rated.ratings.missing())
    picked: list[tuple[int, Picked]] = []
    for number, (id, prompt_scores) in enumerate(zip(rated.ids, scores, strict=True)):
        # Most strategies look at scores only. The prompt's record, with all its texts, is read if one asks for it.
        answers = answers_by(prompt_scores, LazyPrompt(partial(rated.record, number)), rules, counts.noted)
        choice = answers if isinstance(answers, NoPair) else strategy.pick(answers, Random(f"{seed}:{id}"))
        if isinstance(choice, NoPair):
            counts.dropped[choice.cause] += 1
        elif isinstance(choice, Picked):
            picked.append((number, choice))
        elif choice:
            picked += [(number, pair) for pair in choice]
        else:
            counts.dropped["no preference"] += 1
    table = _pair_table(rated, picked)
    is_kept = _count_pairs([number for number, _ in picked], _causes(table, rules), counts)
    return table.filter(pa.array(is_kept, pa.bool_()))


def unusable(chosen: str, rejected: str) -> str | None:
    """Why two texts show no preference, or None if they do."""
    if not chosen.strip():
        return "empty chosen answer"
    if not rejected.strip():
        return "empty rejected answer"
    if chosen == rejected:
        return "identical answers"
    return None


def _pair_table(rated: RatedBatch, picked: Sequence[tuple[int, Picked]]) -> pa.Table:
    """The picked pairs as columns, taken from the columns of the prompts and of their answers.

    The answers of all prompts are in one flat list: those of prompt i begin at the sum of the counts before i.
    """
    prompts = np.array([number for number, _ in picked], np.int64)
    first_answers = (np.cumsum(rated.ratings.answers) - rated.ratings.answers)[prompts]
    columns: dict[str, object] = {"id": [rated.ids[number] for number in prompts.tolist()]}
    columns["messages"] = rated.messages.take(pa.array(prompts))
    sides = {"chosen": [pair.chosen for _, pair in picked], "rejected": [pair.rejected for _, pair in picked]}
    for name, answers in sides.items():
        places = [answer.place for answer in answers]
        indices = pa.array(first_answers + np.array(places, np.int64))
        columns[name] = rated.texts.take(indices)
        columns[f"{name}_model"] = rated.models.take(indices)
        columns[f"{name}_place"] = places
        columns[f"score_{name}"] = [answer.score for answer in answers]
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _causes(pairs: pa.Table, rules: Binarize) -> list[str | None]:
    """Why the recipe drops each pair, or None."""
    chosen, rejected = pairs["chosen"], pairs["rejected"]
    # Arrow finds the few pairs that are worth a look; only their texts become Python strings.
    is_blank = pc.or_(pc.match_substring_regex(chosen, BLANK), pc.match_substring_regex(rejected, BLANK))
    causes: list[str | None] = [None] * len(pairs)
    for number in pc.indices_nonzero(pc.or_(is_blank, pc.equal(chosen, rejected))).to_pylist():
        causes[number] = _cause(chosen[number].as_py(), rejected[number].as_py(), rules)
    return causes


def _cause(chosen: str, rejected: str, rules: Binarize) -> str | None:
    """Why the recipe drops a pair, or None: `identical` and `empty` are decided by a setting each."""
    if rules.identical == "drop" and chosen == rejected:
        return unusable(chosen, rejected) if rules.empty == "drop" else "identical answers"
    cause = unusable(chosen, rejected)
    return cause if rules.empty == "drop" and cause != "identical answers" else None


def _count_pairs(prompts: Sequence[int], causes: Sequence[str | None], counts: PairingCounts) -> list[bool]:
    """Which pairs are kept. Pairs of one prompt are adjacent, and a prompt whose pairs are all dropped is dropped."""
    for _, group in groupby(zip(prompts, causes, strict=True), key=itemgetter(0)):
        of_prompt = [cause for _, cause in group]
        dropped = [cause for cause in of_prompt if cause]
        if len(dropped) < len(of_prompt):
            counts.noted["prompts_paired"] += 1
            counts.noted["pairs"] += len(of_prompt) - len(dropped)
            counts.left_out.update(dropped)
        else:
            counts.dropped[dropped[0]] += 1
    return [cause is None for cause in causes]


def _rules(binarize: Binarize) -> tuple[Binarize, Binarizer]:
    rules = resolve(binarize)
    return rules, plugins.load().binarizer(rules.strategy, rules.options)


def _describe(rules: Binarize) -> str:
    if rules.compat:
        return f"the published rule {rules.compat!r}"
    scores = {"mean": "mean rating", "weights": "weighted mean", "overall": "repaired overall score"}
    return f"the strategy {rules.strategy!r} on the {scores.get(rules.score, 'overall score as published')}"


def _chunks(source: "Artifact | Path") -> Iterator[RowGroup | RawChunk]:
    """The parts that are paired one after another: row groups of an artifact, or chunks of a file."""
    if isinstance(source, Path):
        yield from chunks.number_chunks(chunks.file_chunks(source))
        return
    for split in SPLITS:
        path = source.table("rated", split)
        yield from (RowGroup(path, split, number) for number in range(count_groups(path)))


def _batches(
    chunk: RowGroup | RawChunk, settings: PairingSettings, counts: PairingCounts
) -> Iterator[tuple[Split, RatedBatch]]:
    """Batches of rated prompts with their split; the prompts of a file are split by the hash of their ids."""
    if isinstance(chunk, RowGroup):
        yield from ((chunk.split, rated) for rated in read_rated(chunk.path, chunk.number))
        return
    rows = ((where, row) for _, where, row in chunk.rows())
    read = read_each(rows, row_formats().rated_prompt, settings.skip_bad_rows, partial(_count, counts.bad_rows))
    while prompts := list(islice(read, ROWS_PER_READ)):
        for split in SPLITS:
            if in_split := [rated for rated in prompts if split_of(rated.id, settings.test_share) == split]:
                yield split, RatedBatch.of(in_split)


def _count(counter: "Counter[str]", cause: str) -> None:
    counter[cause] += 1


def _write_counts(draft: Draft, counts: PairingCounts, binarize: Binarize) -> None:
    """Write the counts into the draft. Raises ZephyrError if there is no pair."""
    check_weights(binarize, counts.aspects)
    for cause, rows in (counts.bad_rows + counts.dropped).items():
        draft.drop(cause, rows)
    if not counts.noted["pairs"]:
        raise _no_pair_error(draft, counts, resolve(binarize))
    always = dict.fromkeys(("prompts", "prompts_paired", "pairs", "ratings_missing"), 0)
    draft.metrics |= always | counts.noted
    if counts.left_out:
        draft.metrics["pairs_left_out"] = counts.left_out.total()
        causes = ", ".join(f"{pairs} x {cause}" for cause, pairs in sorted(counts.left_out.items()))
        draft.notes.append(f"dropped pairs of prompts that have other pairs: {causes}")


def _no_pair_error(draft: Draft, counts: PairingCounts, rules: Binarize) -> ZephyrError:
    """The error if no prompt shows a preference, with the causes."""
    if not counts.noted["prompts"] and not draft.dropped:
        return ZephyrError(
            "there is no rated prompt to pair", "give a file with at least one row, or rate some answers"
        )
    causes = [f"{rows} x {cause}" for cause, rows in draft.dropped.items()]
    if missing := counts.noted["ratings_missing"]:
        causes.append(f"{missing} missing ratings")
    problem = f"no prompt of {counts.noted['prompts']} shows a preference ({', '.join(causes)})"
    if rules.score.startswith("overall"):
        remedy = (
            "overall scores are needed: published UltraFeedback has them; --set feedback.critique=true asks for them"
        )
        return ZephyrError(problem, remedy)
    return ZephyrError(problem, "rate the answers: zephyrctl data feedback")
