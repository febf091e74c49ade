"""Read the rows that a checkpoint is trained on, drop those that teach nothing, and write them for the worker."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from zephyrctl.data.binarize import TIED, unusable
from zephyrctl.data.decontaminate import training_rows as decontamination
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe.schema import Checkpoint, Recipe
from zephyrctl.records import Dialogue, Message, PreferencePair, Split
from zephyrctl.rows.files import rows_of
from zephyrctl.rows.published_rows import read_each, row_formats
from zephyrctl.runs.artifacts import SPLITS, Artifact, Draft
from zephyrctl.runs.parquet import write_parquet


def write_rows(recipe: Recipe, checkpoint: Checkpoint, source: Artifact | Path, draft: Draft) -> dict[Split, Path]:
    """The Parquet rows of each split, for the worker; dropped rows are counted in the draft.

    Raises ZephyrError if no row is left to train on.
    """
    if checkpoint.trains_on == "dialogues":
        assert isinstance(source, Artifact)
        return _dialogues(recipe, source, draft)
    rows: dict[Split, Path] = {}
    for split in SPLITS:
        pairs = usable_pairs(_pairs(source, split, recipe.skip_bad_rows, draft), draft, recipe.dpo.ties)
        if split == "train":
            pairs = decontamination.decontaminated_pairs(pairs, recipe.decontaminate, draft)
        path = draft.scratch / f"{split}.parquet"
        if checkpoint.trains_on == "pairs":
            count = write_parquet(path, pairs, PreferencePair)
        else:
            count = write_parquet(path, map(chosen_dialogue, pairs), Dialogue)
        if count:
            rows[split] = path
    if "train" not in rows:
        raise ZephyrError(
            f"no usable pair to train on ({draft.dropped})", "binarize more prompts, or see data feedback"
        )
    return rows


def usable_pairs(pairs: Iterable[PreferencePair], draft: Draft, ties: str = "drop") -> Iterator[PreferencePair]:
    """The pairs that show a preference. Identical texts, empty ones, and ties unless kept, are counted by cause."""
    for pair in pairs:
        cause = unusable(pair.chosen, pair.rejected)
        is_tied = pair.score_chosen is not None and pair.score_chosen == pair.score_rejected
        if not cause and is_tied and ties == "drop":
            cause = TIED
        if cause:
            draft.drop(cause)
        else:
            yield pair


def chosen_dialogue(pair: PreferencePair) -> Dialogue:
    """The chosen answer as a dialogue to imitate (dSFT-2 of the paper's Table 3)."""
    answered = [*pair.messages, Message(role="assistant", content=pair.chosen)]
    return Dialogue(id=pair.id, messages=answered, source="chosen")


def _dialogues(recipe: Recipe, build: Artifact, draft: Draft) -> dict[Split, Path]:
    decontamination.check_training_dialogues(build, recipe.decontaminate, draft)
    tables = {split: build.table("dialogues", split) for split in SPLITS if build.count("dialogues", split)}
    if "train" in tables:
        return tables
    raise ZephyrError(
        "no dialogue to train on: all are in the test split", "build more dialogues, or lower build.test_share"
    )


def _pairs(source: Artifact | Path, split: Split, skip_bad_rows: bool, draft: Draft) -> Iterator[PreferencePair]:
    """The pairs of one split. A file of pairs is for training only: whoever published it has split its prompts."""
    if isinstance(source, Artifact):
        yield from source.read("pairs", split, PreferencePair)
    elif split == "train":
        yield from read_each(rows_of(source), row_formats().preference_pair, skip_bad_rows, draft.drop)
