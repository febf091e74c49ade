"""Restore the input as it was before some rules of `data build`, from the ledgers of what they changed and dropped."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter

from zephyrctl.data import cleaning_rules
from zephyrctl.data.cleaning_rules import FORMER_NAMES, DroppedRow, InputRow, Kind, TurnChange
from zephyrctl.data.shards import row_json
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.records import Dialogue, Split, prompt_id
from zephyrctl.rows.files import Raw
from zephyrctl.runs.artifacts import SPLITS, Artifact

ALL = "all"


@dataclass
class Undoing:
    """Which rules are undone, for all rows or for one, and how often each was."""

    rules: Collection[str]
    id: str | None
    restored: "Counter[str]"

    def covers(self, entry: TurnChange | DroppedRow) -> bool:
        """True if this row of a ledger is to be undone."""
        return entry.rule in self.rules and self.id in (None, entry.id)


def find_rules(artifact: Artifact, names: Sequence[str]) -> list[str]:
    """The rules of an artifact by name: the whole name or its last part; 'all' means every rule.

    An older artifact may use a former name of a rule; both names find it. Raises ZephyrError for a rule that changed
    and dropped nothing there.
    """
    known = list(artifact.manifest.metrics.get("rules", {}))
    if ALL in names:
        return known
    rules = []
    for name in names:
        wanted = FORMER_NAMES.get(name, name)
        matching = [rule for rule in known if wanted in _names_of(rule)]
        if len(matching) != 1:
            listed = ", ".join(known) or "none"
            remedy = did_you_mean(name, known, otherwise=f"rules that changed or dropped a row: {listed}")
            raise ZephyrError(f"no rule {name!r} changed or dropped a row of {artifact.path}", remedy)
        rules += matching
    return rules


def undo(
    artifact: Artifact, undoing: Undoing, kind: Kind = "dialogues", splits: Sequence[Split] = SPLITS
) -> Iterator[str]:
    """The rows of the artifact as lines of JSON, in the order of the input, as if the rules had not been applied.

    Rows that other rules dropped stay dropped. A bad row is returned as it was read; every other row has the form of
    `dialogues`, with the id of its restored prompt.
    """
    sides = [_restored_rows(artifact, split, kind, undoing) for split in splits]
    return (line for _, line in merge(*sides, key=itemgetter(0)))


def _names_of(rule: str) -> set[str]:
    """The names that find a rule."""
    current = FORMER_NAMES.get(rule, rule)
    return {current, current.rpartition(".")[2]}


def _restored_rows(artifact: Artifact, split: Split, kind: Kind, undoing: Undoing) -> Iterator[tuple[int, str]]:
    """(number in the input, row) of one split, in order: the kept rows and the restored ones."""
    order = artifact.read(f"order/{kind}", split, InputRow)
    dialogues = artifact.read(kind, split, Dialogue)
    kept = ((place.row, row, None) for place, row in zip(order, dialogues, strict=True))
    ledger = (entry for entry in artifact.read("dropped", split, DroppedRow) if entry.kind == kind)
    dropped = ((entry.row, None, entry) for entry in ledger)
    changes = _ChangesByRow(entry for entry in artifact.read("changes", split, TurnChange) if entry.kind == kind)
    for number, row, entry in merge(kept, dropped, key=itemgetter(0)):
        undone = [change for change in changes.of(number) if undoing.covers(change)]
        if entry and not undoing.covers(entry):
            continue
        if entry:
            undoing.restored[entry.rule] += 1
        undoing.restored.update(change.rule for change in undone)
        if row:
            yield number, row_json(_undo_changes(row.model_dump(), undone))
        elif entry and undone:
            yield number, row_json(_undo_changes(json.loads(entry.content), undone))
        elif entry:
            yield number, entry.content


class _ChangesByRow:
    """The changes of each row. The ledger is read once, so rows must be asked for in order."""

    def __init__(self, changes: Iterable[TurnChange]) -> None:
        self._groups = groupby(changes, key=attrgetter("row"))
        self._next: tuple[int, list[TurnChange]] | None = (-1, [])

    def of(self, row: int) -> list[TurnChange]:
        """The changes of a row."""
        while self._next and self._next[0] < row:
            group = next(self._groups, None)
            self._next = (group[0], list(group[1])) if group else None
        return self._next[1] if self._next and self._next[0] == row else []


def _undo_changes(content: Raw, changes: Sequence[TurnChange]) -> Raw:
    """A row before its changes; the last change is undone first."""
    if not changes:
        return content
    turns = content["messages"]
    for change in reversed(changes):
        if change.rule == cleaning_rules.UNANSWERED:
            turns.append({"role": "user", "content": change.before})
        else:
            turns[change.turn]["content"] = change.before
    first = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
    return {**content, "id": prompt_id(first)}
