"""What the input was before some rules of `data build` changed it or left rows out: their ledgers, read backwards."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter

from zephyrctl.data import cleaning_rules
from zephyrctl.data.cleaning_rules import Change, Dropped, Kind, Place
from zephyrctl.data.shards import row_json
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.records import Dialogue, Split, prompt_id
from zephyrctl.rows.files import Raw
from zephyrctl.runs.artifacts import SPLITS, Artifact

ALL = "all"


@dataclass
class Undoing:
    """Which rules are undone, for which row, and how often each was."""

    rules: Collection[str]
    id: str | None
    restored: "Counter[str]"

    def covers(self, entry: Change | Dropped) -> bool:
        """True where the entry of a ledger is to be undone."""
        return entry.rule in self.rules and self.id in (None, entry.id)


def find_rules(artifact: Artifact, names: Sequence[str]) -> list[str]:
    """The rules of an artifact by their names, whole or by the last part; 'all' is each.

    Raises ZephyrError for a rule that changed and dropped nothing there.
    """
    known = list(artifact.manifest.metrics.get("rules", {}))
    if ALL in names:
        return known
    found = []
    for name in names:
        meant = [rule for rule in known if name in (rule, rule.rpartition(".")[2])]
        if len(meant) != 1:
            remedy = did_you_mean(name, known, otherwise=f"rules that did: {', '.join(known) or 'none'}")
            raise ZephyrError(f"no rule {name!r} changed or dropped a row of {artifact.path}", remedy)
        found += meant
    return found


def undo(
    artifact: Artifact, undoing: Undoing, kind: Kind = "dialogues", splits: Sequence[Split] = SPLITS
) -> Iterator[str]:
    """The rows of the artifact as lines of JSON, in the order of the input, as if the rules had not been there.

    Rows that other rules dropped stay away. A bad row comes back as it was read, every other in the form of
    `dialogues`, with the id of its restored prompt.
    """
    sides = [_rows(artifact, split, kind, undoing) for split in splits]
    return (line for _, line in merge(*sides, key=itemgetter(0)))


def _rows(artifact: Artifact, split: Split, kind: Kind, undoing: Undoing) -> Iterator[tuple[int, str]]:
    """(number in the input, row) of one side, in order: what was kept, and what is brought back."""
    order = artifact.read(f"order/{kind}", split, Place)
    kept = ((place.row, row, None) for place, row in zip(order, artifact.read(kind, split, Dialogue), strict=True))
    ledger = (entry for entry in artifact.read("dropped", split, Dropped) if entry.kind == kind)
    dropped = ((entry.row, None, entry) for entry in ledger)
    changes = _Changes(entry for entry in artifact.read("changes", split, Change) if entry.kind == kind)
    for number, row, entry in merge(kept, dropped, key=itemgetter(0)):
        changed = [change for change in changes.of(number) if undoing.covers(change)]
        if entry and not undoing.covers(entry):
            continue
        if entry:
            undoing.restored[entry.rule] += 1
        undoing.restored.update(change.rule for change in changed)
        if entry and not changed:
            yield number, entry.content
        else:
            content = row.model_dump() if row else json.loads(entry.content if entry else "")
            yield number, row_json(_before(content, changed))


class _Changes:
    """The changes by row, read once and in order."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._groups = groupby(changes, key=attrgetter("row"))
        self._next: tuple[int, list[Change]] | None = (-1, [])

    def of(self, row: int) -> list[Change]:
        """What was changed in a row; rows are asked for in order."""
        while self._next and self._next[0] < row:
            found = next(self._groups, None)
            self._next = (found[0], list(found[1])) if found else None
        return self._next[1] if self._next and self._next[0] == row else []


def _before(content: Raw, changes: Sequence[Change]) -> Raw:
    """A row before its changes, the last of them undone first."""
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
