"""Whether rows that are about to be trained on hold what a benchmark asks, and what the recipe says of that."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from zephyrctl.data.cleaning_rules import CONTAMINATED, LOSSES
from zephyrctl.data.decontaminate.search import Hit, Search, read_benchmarks
from zephyrctl.errors import GateError
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Dialogue, PreferencePair
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import hash_file

Asked = TypeVar("Asked", bound=PreferencePair | Dialogue)
AT_ONCE = 256
SHOWN = 3
CAUSE = LOSSES[CONTAMINATED]


def settings(recipe: Recipe) -> dict[str, object]:
    """What a stage's result depends on, beside those files."""
    if not recipe.decontaminate.against:
        return {}
    return {"decontaminate": recipe.decontaminate.model_dump(mode="json", include={"against", "ngram", "on_hit"})}


def pairs_without_hits(pairs: Iterable[PreferencePair], recipe: Recipe, draft: Draft) -> Iterator[PreferencePair]:
    """The pairs that may be trained on; others are dropped and counted, or kept and noted.

    Raises GateError at the first hit where the recipe refuses it.
    """
    if not recipe.decontaminate.against:
        yield from pairs
        return
    kept: Counter[str] = Counter()
    for pair, hit in _search(pairs, recipe):
        if hit is None or recipe.decontaminate.on_hit == "keep":
            kept[CAUSE] += hit is not None
            yield pair
        elif recipe.decontaminate.on_hit == "drop":
            draft.drop(CAUSE)
        else:
            raise _refusal(1, [hit], "set decontaminate.on_hit to drop or keep, or remove that pair")
    _note(kept[CAUSE], draft)


def check_dialogues(build: Artifact, recipe: Recipe, draft: Draft) -> None:
    """Raises GateError where training dialogues hold what a benchmark asks, unless the recipe keeps such rows.

    They are not searched again where `data build` left out hits of the same files by the same rule.
    """
    if not recipe.decontaminate.against or _is_searched(build, recipe):
        return
    rows = build.read("dialogues", "train", Dialogue)
    hits = [hit for _, hit in _search(rows, recipe) if hit is not None]
    if hits and recipe.decontaminate.on_hit != "keep":
        raise _refusal(len(hits), hits, "build the dialogues again: zephyrctl data build")
    _note(len(hits), draft)


def _is_searched(build: Artifact, recipe: Recipe) -> bool:
    plan = build.manifest.plan
    done = plan.settings.get("decontaminate", {})
    files = {hash_file(Path(path)) for path in recipe.decontaminate.against}
    is_same = done.get("ngram") == recipe.decontaminate.ngram and files <= set(plan.inputs.values())
    return is_same and done.get("on_hit") != "keep"


def _search(rows: Iterable[Asked], recipe: Recipe) -> Iterator[tuple[Asked, Hit | None]]:
    """Every row with the first hit in what its user says."""
    search = Search(read_benchmarks(recipe.decontaminate.against), recipe.decontaminate.ngram)
    remaining = iter(rows)
    while some := list(islice(remaining, AT_ONCE)):
        yield from zip(some, _first_hits(some, search), strict=True)


def _first_hits(rows: Sequence[PreferencePair | Dialogue], search: Search) -> list[Hit | None]:
    asked = [
        (place, turn, message.content)
        for place, row in enumerate(rows)
        for turn, message in enumerate(row.messages)
        if message.role == "user"
    ]
    found: list[Hit | None] = [None] * len(rows)
    for number, match in search.find([text for _, _, text in asked]):
        place, turn, text = asked[number]
        if found[place] is None:
            origin = getattr(rows[place], "origin", "")
            found[place] = Hit(id=rows[place].id, row=origin, turn=turn, text=text, **vars(match))
    return found


def _refusal(rows: int, hits: Sequence[Hit], remedy: str) -> GateError:
    shown = "; ".join(map(str, hits[:SHOWN]))
    return GateError(f"{rows} training row{'s' * (rows > 1)} hold what eval asks: {shown}", remedy)


def _note(rows: int, draft: Draft) -> None:
    if rows:
        draft.metrics["contaminated"] = rows
        draft.notes.append(f"{rows} training rows hold what eval asks and are kept (decontaminate.on_hit: keep)")
