"""`data explain`: collect the history of one prompt: its source, answers, ratings, pairs, training and evaluation."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import pyarrow as pa
from pydantic import ValidationError

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer
from zephyrctl.data import chunks, lookup
from zephyrctl.data.answer_scores import resolve, scores_of
from zephyrctl.data.binarize import TIED, PairingCounts, pairs_of, unusable
from zephyrctl.data.lookup import TableRow, rows_of
from zephyrctl.data.rated_columns import RatedBatch
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.evaluation.judged_rows import ANSWERS, JUDGMENTS, AnswerRow, JudgmentRow
from zephyrctl.recipe.schema import Binarize
from zephyrctl.records import RatedPrompt, Split, prompt_id, split_of
from zephyrctl.rows.files import Raw
from zephyrctl.rows.published_rows import find_match, row_formats
from zephyrctl.rows.turns import is_text
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run
from zephyrctl.training.kinds import KINDS, training_kind

STAGES = ("build", "feedback", "binarize", "eval")
COUNTED = {"prompts", "prompts_paired", "pairs", "ratings_missing"}
"""Counts that every prompt has, which tell nothing about one prompt."""


class TrainingUse(TypedDict):
    """How one checkpoint used a prompt. The first three are None if it read other data than the run has now."""

    train: int | None
    """Rows of the prompt that it was trained on."""
    test: int | None
    """Rows of the prompt in its test loss."""
    left_out: list[str] | None
    """Why it left out the other rows of the prompt, a cause for each."""
    name: str
    stage: str
    data: str
    dropped: dict[str, int]
    """All rows that it dropped, by cause."""
    steps: float | None
    training_rows: float | None
    read: NotRequired[str]
    """The data that it read, if they are not the run's current data."""


@dataclass
class RowHistory:
    """Everything that a run knows about one prompt. Rows are as in its tables, with their `split`."""

    id: str
    run: str
    split: Split | None = None
    messages: list[Raw] = field(default_factory=list)
    source: Raw = field(default_factory=dict)
    """The source of `data build`, as the recipe states it."""
    rows: list[Raw] = field(default_factory=list)
    """The dialogues and prompts with this id, each with its `kind` and with `row`, its number in the input from 0."""
    changes: list[Raw] = field(default_factory=list)
    dropped: list[Raw] = field(default_factory=list)
    contamination: list[Raw] = field(default_factory=list)
    answers: list[Raw] = field(default_factory=list)
    """The completions in order, with their `mean_rating`, and their `score` by the rule that paired them."""
    judgments: list[Raw] = field(default_factory=list)
    failed: list[Raw] = field(default_factory=list)
    rule: Raw = field(default_factory=dict)
    """The settings of `data binarize`; empty if it has not been run."""
    pairs: list[Raw] = field(default_factory=list)
    cause: str | None = None
    """Why there is no pair."""
    noted: dict[str, int] = field(default_factory=dict)
    """Repaired scores, missing ratings and ties, as the stage counts them."""
    training: list[TrainingUse] = field(default_factory=list)
    evaluation: list[Raw] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know: stages that are missing, or that read an earlier version of their input."""


@dataclass(frozen=True)
class RunRecords:
    """The artifacts of a run, and the file of rated rows if `binarize` read one."""

    run: Run
    artifacts: Mapping[str, Artifact]
    trained: Sequence[Artifact]
    file: Path | None
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, run: Run) -> Self:
        """The records of a run. Raises ZephyrError if no data stage is finished."""
        found = {name: artifact for name in STAGES if (artifact := run.artifact(name))}
        if not set(found) - {"eval"}:
            raise ZephyrError(
                f"{run.path} has no finished data stage",
                f"zephyrctl data build --run {run.path}, or name another --run",
            )
        trained = [artifact for artifact in run.artifacts() if artifact.manifest.plan.stage in KINDS]
        file, notes = _rated_file(run, found.get("binarize"))
        return cls(run, found, trained, file, [*notes, *_stale(found)])

    def table_rows(self, stage: str, table: str, id: str) -> list[TableRow]:
        """The rows of a table that belong to an id, with their positions."""
        artifact = self.artifacts.get(stage)
        return list(rows_of(artifact, table, id)) if artifact else []

    def rows(self, stage: str, table: str, id: str) -> list[Raw]:
        """The rows of a table that belong to an id, each with its split."""
        return [{"split": row.split, **row.row} for row in self.table_rows(stage, table, id)]


def find(records: RunRecords, part: str) -> str:
    """The whole id that begins with `part`. Raises ZephyrError if there is none or several."""
    ids = chain.from_iterable(map(lookup.all_ids, records.artifacts.values()))
    in_file = pa.array([prompt_id(text) for text, _ in _of_file(records.file)] if records.file else [], pa.string())
    return lookup.whole_id(part.strip(), chain(ids, [in_file]))


def search(records: RunRecords, words: str) -> dict[str, str]:
    """The conversations in which the user says these words: id, user turn."""
    in_tables = chain.from_iterable(lookup.find_user_words(artifact, words) for artifact in records.artifacts.values())
    in_file = ((prompt_id(text), text) for text, _ in _of_file(records.file)) if records.file else ()
    matching = ((id, text) for id, text in in_file if words.casefold() in text.casefold())
    return dict(chain(in_tables, matching))


def explain(records: RunRecords, id: str) -> RowHistory:
    """The history of the prompt with this id."""
    history = RowHistory(id, str(records.run.path), notes=list(records.notes))
    _add_build(history, records)
    rated = _rated(history, records)
    _add_feedback(history, records, rated)
    if binarize := records.artifacts.get("binarize"):
        _add_pairing(history, records, rated, binarize)
    else:
        history.notes.append("`data binarize` has not been run: no answer was chosen yet")
    history.training = [_training(history, records, artifact) for artifact in records.trained]
    history.evaluation = _judged_answers(records, id)
    return history


def _judged_answers(records: RunRecords, id: str) -> list[Raw]:
    """Every model's answers to the prompt, each with its score, judge and the judge's words."""
    evaluation = records.artifacts.get("eval")
    if evaluation is None:
        return []
    table = JUDGMENTS if evaluation.table(JUDGMENTS, "test").is_file() else ANSWERS
    judgments = [JudgmentRow.model_validate(row.row) for row in records.table_rows("eval", table, id)]
    scores = {(row.model, row.turn): {"score": row.score, "judge": row.judge, "text": row.text} for row in judgments}
    answers = [(row.split, AnswerRow.model_validate(row.row)) for row in records.table_rows("eval", ANSWERS, id)]
    return [
        {"split": split, **answer.model_dump(), **scores.get((answer.model, answer.turn), {})}
        for split, answer in answers
    ]


def _add_build(history: RowHistory, records: RunRecords) -> None:
    build = records.artifacts.get("build")
    if not build:
        history.notes.append("`data build` has not been run here: the prompt came from a file or a published data set")
        return
    history.source = _without_limits(build.manifest.plan.settings.get("source", {}))
    for kind in ("prompts", "dialogues"):
        for row in records.table_rows("build", kind, history.id):
            order = lookup.row_at(build, f"order/{kind}", row) or {}
            history.rows.append({"kind": kind, "split": row.split, "row": order.get("row"), **row.row})
    history.changes = records.rows("build", "changes", history.id)
    history.dropped = records.rows("build", "dropped", history.id)
    history.contamination = records.rows("build", "contamination", history.id)
    _set_conversation(history, [*history.rows, *map(_dropped_conversation, history.dropped)])


def _set_conversation(history: RowHistory, rows: Sequence[Raw]) -> None:
    """Set the split and the conversation from the first rows that have them."""
    for row in rows:
        history.split = history.split or row.get("split")
        history.messages = history.messages or list(row.get("messages") or ())


def _dropped_conversation(dropped: Raw) -> Raw:
    """The split and the turns of a dropped row."""
    content = json.loads(dropped["content"])
    return {"split": dropped["split"], "messages": content.get("messages")}


def _rated(history: RowHistory, records: RunRecords) -> RatedPrompt | None:
    """The rated prompt, from the file that was binarized or from `data feedback`."""
    if records.file:
        row = next((row for text, row in _of_file(records.file) if prompt_id(text) == history.id), None)
        if row is None:
            return None
        binarize = records.artifacts["binarize"]
        rated = row_formats().rated_prompt(row, str(records.file))
        share = binarize.manifest.plan.settings.get("test_share")
        side = split_of(history.id, share) if share is not None else None
        _set_conversation(history, [{"split": side, "messages": [turn.model_dump() for turn in rated.messages]}])
        return rated
    rows = records.rows("feedback", "rated", history.id)
    _set_conversation(history, rows)
    try:
        return RatedPrompt.model_validate({key: value for key, value in rows[0].items() if key != "split"})
    except IndexError:
        return None
    except ValidationError:
        history.notes.append("its answers are of another version of zephyrctl, and this version cannot read them")
        return None


def _add_feedback(history: RowHistory, records: RunRecords, rated: RatedPrompt | None) -> None:
    for place, completion in enumerate(rated.completions if rated else ()):
        mean = completion.mean_rating()
        history.answers.append({"place": place, **completion.model_dump(), "mean_rating": mean, "score": None})
    if records.file:
        history.notes.append(
            f"its answers and ratings are from {records.file}: the calls of the rater are not recorded"
        )
        return
    history.judgments = records.rows("feedback", "judgments", history.id)
    history.failed = records.rows("feedback", "failed", history.id)
    _set_conversation(history, history.failed)
    if "feedback" not in records.artifacts:
        history.notes.append("`data feedback` has not been run: there are no answers and ratings yet")
    elif not rated and not history.failed:
        history.notes.append("`data feedback` has not used this prompt")


def _add_pairing(history: RowHistory, records: RunRecords, rated: RatedPrompt | None, binarize: Artifact) -> None:
    """Add the pairs, and apply the rule again to show the scores and why there is no pair."""
    settings = binarize.manifest.plan.settings
    history.rule = {key: settings[key] for key in ("seed", *Binarize.model_fields) if key in settings}
    rules = _resolved(history)
    history.pairs = records.rows("binarize", "pairs", history.id)
    _set_conversation(history, history.pairs)
    if not rated or not rules:
        return
    if not records.file and binarize.manifest.plan.inputs.get("rated") != records.artifacts["feedback"].content_hash:
        return
    try:
        strategy = plugins.load().binarizer(rules.strategy, rules.options)
    except ZephyrError as error:
        history.notes.append(f"cannot apply the rule again: {error}")
        return
    _apply_again(history, rated, rules, strategy)


def _resolved(history: RowHistory) -> Binarize | None:
    """The rule with `compat` spelled out, also in the history; None if this version cannot read it."""
    try:
        rules = resolve(Binarize.model_validate({key: value for key, value in history.rule.items() if key != "seed"}))
    except (ZephyrError, ValidationError):
        history.notes.append("the rule is of another version of zephyrctl, and this version cannot apply it")
        return None
    history.rule |= rules.model_dump(mode="json")
    return rules


def _apply_again(history: RowHistory, rated: RatedPrompt, rules: Binarize, strategy: Binarizer) -> None:
    """Add the scores by the rule and its cause. Draws are seeded by the id, so the pairs must be the same."""
    counts = PairingCounts()
    columns = RatedBatch.of([rated])
    pairs = pairs_of(columns, strategy, rules, history.rule["seed"], counts).to_pylist()
    (scores,) = scores_of(columns.ratings, rules, Counter())
    for answer, score in zip(history.answers, scores, strict=True):
        answer["score"] = score
    history.noted = {key: count for key, count in counts.noted.items() if count and key not in COUNTED}
    history.noted |= dict(counts.left_out)
    history.cause = next(iter(counts.dropped), None)
    if [_key(pair) for pair in pairs] != [_key(pair) for pair in history.pairs]:
        history.notes.append("the rule, applied again, gives other pairs than the table: has the strategy changed?")


def _key(pair: Raw) -> tuple[object, ...]:
    return pair["chosen"], pair["rejected"], pair["score_chosen"], pair["score_rejected"]


def _training(history: RowHistory, records: RunRecords, artifact: Artifact) -> TrainingUse:
    """How a checkpoint used the prompt: rows that it was trained on, rows for its test loss, or none."""
    plan, metrics = artifact.manifest.plan, artifact.manifest.metrics
    data = plan.settings.get("data", training_kind(plan.stage).default_data)
    source = records.artifacts.get("build" if data == "dialogues" else "binarize")
    splits, causes = _used_rows(history, artifact, data)
    usage: TrainingUse = {
        "name": plan.name,
        "stage": plan.stage,
        "data": data,
        "train": splits.count("train"),
        "test": splits.count("test"),
        "left_out": causes,
        "dropped": artifact.manifest.dropped,
        "steps": metrics.get("steps"),
        "training_rows": metrics.get("rows"),
    }
    if not source or plan.inputs.get("rows") != source.content_hash:
        other = artifact.manifest.input_paths.get("rows", "other rows")
        usage |= {"train": None, "test": None, "left_out": None, "read": other}
    return usage


def _used_rows(history: RowHistory, artifact: Artifact, data: str) -> tuple[list[str], list[str]]:
    """The split of each row of the prompt that a checkpoint used, and the cause for each that it left out."""
    if data == "dialogues":
        return [row["split"] for row in history.rows if row["kind"] == "dialogues"], []
    causes = [(pair["split"], _left_out(pair, artifact)) for pair in history.pairs]
    return [split for split, cause in causes if not cause], [cause for _, cause in causes if cause]


def _left_out(pair: Raw, artifact: Artifact) -> str | None:
    """Why training left out a pair. It left out ties if its manifest counts some."""
    cause = unusable(pair["chosen"], pair["rejected"])
    score = pair["score_chosen"]
    is_tie = score is not None and score == pair["score_rejected"]
    return cause or (TIED if is_tie and TIED in artifact.manifest.dropped else None)


def _rated_file(run: Run, binarize: Artifact | None) -> tuple[Path | None, list[str]]:
    """The file that was binarized, if it was a file and has not changed; and a note if it cannot be used."""
    named = binarize.manifest.input_paths.get("rated", "") if binarize else ""
    if not binarize or (run.path / named / "manifest.json").is_file() or named == "feedback":
        return None, []
    file = next((path for path in (run.path / named, Path(named)) if path.is_file()), None)
    if not file:
        return None, [f"binarize read {named}, which no longer exists: only the pairs are known"]
    if hash_file(file) != binarize.manifest.plan.inputs.get("rated"):
        return None, [f"binarize read {file}, which has changed since: only the pairs are known"]
    return file, []


def _stale(found: Mapping[str, Artifact]) -> Iterator[str]:
    """A note for each stage that read an earlier version of the stage before it."""
    for later, reads, earlier in (("feedback", "prompts", "build"), ("binarize", "rated", "feedback")):
        if later in found and earlier in found:
            manifest = found[later].manifest
            is_read = manifest.input_paths.get(reads) == earlier
            if is_read and manifest.plan.inputs[reads] != found[earlier].content_hash:
                yield f"{earlier} was rebuilt after {later} read it: they may contradict each other"


def _of_file(path: Path) -> Iterator[tuple[str, Raw]]:
    """(what the user says first, row) of each rated row of a file; rows whose prompt cannot be read are skipped."""
    formats = row_formats().rated
    for chunk in chunks.number_chunks(chunks.file_chunks(path)):
        for _, where, row in chunk.rows():
            if isinstance(row, dict) and (form := find_match(formats, row)):
                with contextlib.suppress(BadRow):
                    text = form.prompt_text(row, where)
                    if is_text(text):
                        yield text, row


def _without_limits(source: Mapping[str, object]) -> Raw:
    """The settings of a source without the limits of its teachers."""
    return {
        key: _without_limits(value) if isinstance(value, Mapping) else value
        for key, value in source.items()
        if key != "limits"
    }
