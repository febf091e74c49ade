"""Search the rows that are about to be trained on for benchmark prompts, and do what the recipe says."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from zephyrctl.data.cleaning_rules import CAUSES, CONTAMINATED
from zephyrctl.data.decontaminate.search import BenchmarkSearch, ContaminatedTurn, read_benchmarks, search_records
from zephyrctl.errors import GateError
from zephyrctl.recipe.schema import Decontaminate
from zephyrctl.records import Dialogue, PreferencePair
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import hash_file

TrainingRow = TypeVar("TrainingRow", bound=PreferencePair | Dialogue)
SHOWN = 3
"""Contaminated turns that an error quotes."""
CAUSE = CAUSES[CONTAMINATED]


def settings(decontaminate: Decontaminate) -> dict[str, object]:
    """The settings that a training's result depends on, besides the benchmark files themselves."""
    if not decontaminate.against:
        return {}
    return {"decontaminate": decontaminate.model_dump(mode="json", include={"against", "ngram", "on_hit"})}


def decontaminated_pairs(
    pairs: Iterable[PreferencePair], decontaminate: Decontaminate, draft: Draft
) -> Iterator[PreferencePair]:
    """The pairs that may be trained on. Contaminated ones are dropped and counted, or kept and noted.

    Raises GateError at the first contaminated pair if the recipe says `refuse`.
    """
    if not decontaminate.against:
        yield from pairs
        return
    kept: Counter[str] = Counter()
    for pair, turn in _search(pairs, decontaminate):
        if turn is None or decontaminate.on_hit == "keep":
            kept[CAUSE] += turn is not None
            yield pair
        elif decontaminate.on_hit == "drop":
            draft.drop(CAUSE)
        else:
            raise _refusal(1, [turn], "set decontaminate.on_hit to drop or keep, or remove that pair")
    _note_kept(kept[CAUSE], draft)


def check_training_dialogues(build: Artifact, decontaminate: Decontaminate, draft: Draft) -> None:
    """Raise GateError if training dialogues contain a benchmark prompt, unless the recipe keeps such rows.

    They are not searched again if `data build` has dropped the matches of the same files by the same rule.
    """
    if not decontaminate.against or _is_searched(build, decontaminate):
        return
    dialogues = build.read("dialogues", "train", Dialogue)
    turns = [turn for _, turn in _search(dialogues, decontaminate) if turn is not None]
    if turns and decontaminate.on_hit != "keep":
        raise _refusal(len(turns), turns, "build the dialogues again: zephyrctl data build")
    _note_kept(len(turns), draft)


def _is_searched(build: Artifact, decontaminate: Decontaminate) -> bool:
    plan = build.manifest.plan
    used = plan.settings.get("decontaminate", {})
    files = {hash_file(Path(path)) for path in decontaminate.against}
    is_same = used.get("ngram") == decontaminate.ngram and files <= set(plan.inputs.values())
    return is_same and used.get("on_hit") != "keep"


def _search(
    rows: Iterable[TrainingRow], decontaminate: Decontaminate
) -> Iterator[tuple[TrainingRow, ContaminatedTurn | None]]:
    """Every row with its first contaminated turn."""
    search = BenchmarkSearch(read_benchmarks(decontaminate.against), decontaminate.ngram)
    return ((row, next(iter(turns), None)) for row, turns in search_records(search, rows))


def _refusal(rows: int, turns: Sequence[ContaminatedTurn], remedy: str) -> GateError:
    quoted = "; ".join(map(str, turns[:SHOWN]))
    claim = "training row contains" if rows == 1 else "training rows contain"
    return GateError(f"{rows} {claim} a benchmark prompt: {quoted}", remedy)


def _note_kept(rows: int, draft: Draft) -> None:
    if rows:
        draft.metrics["contaminated"] = rows
        draft.notes.append(f"{rows} {CAUSE} and are kept (decontaminate.on_hit: keep)")
