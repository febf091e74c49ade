"""`data binarize`: preference pairs from rated answers; every prompt without one is counted by cause."""

import gc
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow as pa

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, NoPair, Picked
from zephyrctl.data import chunks, shapes
from zephyrctl.data.chunks import RawChunk
from zephyrctl.data.processes import ProcessPool, usable_cores
from zephyrctl.data.scores import MARKS, Marks, Scores, answers_of, check_weights, resolve, scores_of
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe import Binarize, Recipe
from zephyrctl.records import PreferencePair, RatedPrompt, Split, split_of
from zephyrctl.runs import ROWS_AT_ONCE, SPLITS, Artifact, Draft, arrow_schema, as_table, count_groups, read_columns
from zephyrctl.stages import Inputs, Source, Step

TIED = "tied scores"
"""What training counts pairs under whose scores are equal."""
SHARES_A_PROCESS = 4
"""Shares that pay for one more process: 16,000 prompts take 2 s, and a process takes one to start."""


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
    pairs: dict[Split, list[PreferencePair]] = {split: [] for split in SPLITS}
    with _without_garbage_collection():
        for split, prompts, marks in _batches(share, recipe, strategy.unread, tally):
            tally.aspects.update(marks.names)
            tally.noted["ratings_missing"] += marks.missing()
            scores = scores_of(marks, rules, tally.noted)
            for rated, its in zip(prompts, scores, strict=True):
                pairs[split] += pairs_of(rated, strategy, rules, recipe.seed, tally, its)
        schema = arrow_schema(PreferencePair)
        return Paired({split: as_table(rows, schema) for split, rows in pairs.items()}, tally)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Records hold no circles, and looking for some among a share of them takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def pairs_of(
    rated: RatedPrompt, strategy: Binarizer, rules: Binarize, seed: int, tally: Tally, scores: Scores | None = None
) -> Iterator[PreferencePair]:
    """The pairs of one prompt. The seed hangs on the prompt's id: order, workers and shards change no pair.

    `scores` are those of its answers, where they are known. A prompt without a pair is counted in `tally.lost`, a pair
    that is left out beside others in `tally.left_out`.
    """
    tally.noted["prompts"] += 1
    scored = answers_of(rated, rules, tally.noted, scores)
    picked = scored if isinstance(scored, NoPair) else strategy.pick(scored, Random(f"{seed}:{rated.id}"))
    if picked is None or isinstance(picked, NoPair):
        tally.lost[picked.cause if picked else "no preference"] += 1
        return
    made = [_pair(rated, one) for one in ([picked] if isinstance(picked, Picked) else picked)]
    causes = [_refused(pair, rules) for pair in made]
    usable = [pair for pair, cause in zip(made, causes, strict=True) if not cause]
    if usable:
        tally.noted["prompts_paired"] += 1
        tally.noted["pairs"] += len(usable)
        tally.left_out.update(cause for cause in causes if cause)
    else:
        tally.lost[next((cause for cause in causes if cause), "no preference")] += 1
    yield from usable


def unusable(pair: PreferencePair) -> str | None:
    """Why a pair's texts cannot teach a preference, or None."""
    if not pair.chosen.strip():
        return "empty chosen answer"
    if not pair.rejected.strip():
        return "empty rejected answer"
    if pair.chosen == pair.rejected:
        return "identical answers"
    return None


def _refused(pair: PreferencePair, rules: Binarize) -> str | None:
    """Why the recipe's policies leave a pair out, or None."""
    if rules.identical == "drop" and pair.chosen == pair.rejected:
        return unusable(pair) if rules.empty == "drop" else "identical answers"
    cause = unusable(pair)
    return cause if rules.empty == "drop" and cause != "identical answers" else None


def _pair(rated: RatedPrompt, picked: Picked) -> PreferencePair:
    chosen, rejected = picked.chosen, picked.rejected
    return PreferencePair(
        id=rated.id,
        messages=rated.messages,
        chosen=chosen.completion.text,
        rejected=rejected.completion.text,
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        chosen_model=chosen.completion.model,
        rejected_model=rejected.completion.model,
        chosen_place=chosen.place,
        rejected_place=rejected.place,
    )


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


def _batches(
    share: Group | RawChunk, recipe: Recipe, unread: Collection[str], tally: Tally
) -> Iterator[tuple[Split, Sequence[RatedPrompt], Marks]]:
    """The rated prompts of a share, some at a time, with their side; those of a file are split by the hash of their id.

    The ratings come as columns beside them, and are in the records only where the strategy reads them.
    """
    if isinstance(share, Group):
        rows = read_columns(share.path, without=unread, groups=[share.number])
        marks = read_columns(share.path, only=MARKS, groups=[share.number])
        for batch, marked in zip(rows, marks, strict=True):
            prompts = [RatedPrompt.model_validate(row) for row in batch.to_pylist()]
            yield share.split, prompts, Marks.of_columns(marked.column("completions"))
        return
    lines = ((where, row) for _, where, row in share.rows())
    read = shapes.each(lines, shapes.rated_prompt, recipe.skip_bad_rows, partial(_count, tally.bad_rows))
    while prompts := list(islice(read, ROWS_AT_ONCE)):
        for split in SPLITS:
            if here := [rated for rated in prompts if split_of(rated.id, recipe.build.test_share) == split]:
                yield split, here, Marks.of(here)


def _count(counter: "Counter[str]", cause: str) -> None:
    counter[cause] += 1


def _close(draft: Draft, tally: Tally, recipe: Recipe) -> None:
    """Every prompt is paired or lost; the rest is in the metrics."""
    check_weights(recipe.binarize, tally.aspects)
    for cause, rows in (tally.bad_rows + tally.lost).items():
        draft.lose(cause, rows)
    if not tally.noted["pairs"]:
        raise _nothing(draft, tally)
    always = dict.fromkeys(("prompts", "prompts_paired", "pairs", "ratings_missing"), 0)
    draft.metrics |= always | tally.noted
    if tally.left_out:
        draft.metrics["pairs_left_out"] = tally.left_out.total()
        causes = ", ".join(f"{pairs} x {cause}" for cause, pairs in sorted(tally.left_out.items()))
        draft.notes.append(f"pairs left out beside others of their prompt: {causes}")


def _nothing(draft: Draft, tally: Tally) -> ZephyrError:
    """The error where no prompt shows a preference: it says why not."""
    if not tally.noted["prompts"] and not draft.losses:
        return ZephyrError(
            "there is no rated prompt to pair", "give a file with at least one row, or rate some answers"
        )
    causes = [f"{rows} x {cause}" for cause, rows in draft.losses.items()]
    if missing := tally.noted["ratings_missing"]:
        causes.append(f"{missing} ratings missing")
    return ZephyrError(
        f"no prompt of {tally.noted['prompts']} shows a preference ({', '.join(causes)})",
        "rate the answers: zephyrctl data feedback",
    )
