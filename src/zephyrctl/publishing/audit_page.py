"""Render an audit as one HTML file with its figures and histograms."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl import __version__, templates
from zephyrctl.data.audit import AuditCounts
from zephyrctl.disk import write_whole
from zephyrctl.publishing import charts

COLOURS = {"prompt": "base", "chosen": "dpo", "rejected": "rejected", "answer": "sft"}
MOST_BARS = 12
MOST_NAMED = 8
POSITIONS = ("rejected", "best", "worst")
"""Answers whose position among those of their prompt is tested for being uniform."""
HEADINGS = {
    "ties": "Equal scores",
    "ties_of_all": "All answers tied",
    "identical": "Identical texts",
    "empty_chosen": "Empty chosen texts",
    "empty_rejected": "Empty rejected texts",
    "empty_answers": "Empty answers",
    "scores_missing": "Pairs without scores",
    "score_disagreements": "Scores that contradict ratings or the choice",
    "longer_chosen": "Longer text chosen",
    "longer_best": "Best answer longer than the worst",
    "ratings_missing": "Missing ratings",
    "answers_without_ratings": "Answers without ratings",
    "overall_of_10_with_low_ratings": "Overall 10 with low ratings",
    "prompts_with_fewer_than_two_answers": "Prompts with fewer than two answers",
    "duplicate_prompts": "Duplicate prompts",
    "duplicate_rows": "Duplicate rows",
    "near_duplicate_rows": "Near-duplicate rows",
    "lower_cased_answers": "Lower-case answers",
    "lower_cased_user_turns": "Lower-case user turns",
    "refusal_openings": "Answers that begin with a refusal or a hedge",
    "benchmark_overlap": "Rows that contain a benchmark prompt",
    "bad_rows": "Rows that cannot be read",
}


@dataclass(frozen=True)
class CountRow:
    """A name with its count, and the width of its bar in per cent of the longest."""

    name: str
    count: int
    width: float


@dataclass(frozen=True)
class NamedCounts:
    """The most common names with their counts; `others` is the total count of the `kinds` that are left out."""

    id: str
    title: str
    rows: tuple[CountRow, ...]
    others: int
    kinds: int


def write_page(path: Path, name: str, audit: AuditCounts) -> None:
    """Write the page; an interrupted write leaves no half page."""
    write_whole(path, render_page(name, audit))


def render_page(name: str, audit: AuditCounts) -> str:
    """The page as HTML."""
    figures = audit.figures()
    return templates.render(
        "report/audit.html.jinja",
        title=name,
        version=__version__,
        figures=figures,
        shown=list(_shown(figures)),
        lengths=figures["lengths"],
        charts=[chart for chart in _charts(audit) if chart],
        lists=list(_lists(audit)),
        chances=[(name, p) for name in POSITIONS if (p := figures.get(f"{name}_places_p")) is not None],
        hits=audit.matches,
        overlap=figures["benchmark_overlap"],
        bad=figures["bad_rows_by_cause"],
    )


def _shown(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(heading, count, share) of the figures that this kind of file has."""
    for key, heading in HEADINGS.items():
        if key in figures:
            share = figures.get(f"{key}_share")
            yield heading, f"{figures[key]:,}", "" if share is None else f"{100 * share:.1f} %"


def _charts(audit: AuditCounts) -> Iterator[charts.BarChart | None]:
    if lengths := {name: one.characters for name, one in audit.lengths.items() if name != "prompt"}:
        series = [(name, COLOURS[name], values) for name, values in lengths.items()]
        yield _histogram("lengths", "Length of the answers", "characters", series)
    if prompts := audit.lengths.get("prompt"):
        yield _histogram("prompts", "Length of the user turns", "characters", [("user", "base", prompts.characters)])
    if audit.differences:
        series = [("pairs", "sft", audit.differences)]
        yield _histogram("difference", "Chosen minus rejected", "characters", series)
    if audit.score_steps:
        values = list(audit.score_steps.elements())
        yield _histogram(
            "scores", "Score of the chosen minus that of the rejected", "points", [("pairs", "dpo", values)]
        )
    places = {"rejected": audit.rejected_places, "best": audit.best_places, "worst": audit.worst_places}
    if known := {name: counts for name, counts in places.items() if counts}:
        yield _by_place(known)
    if audit.turns:
        turns = sorted(audit.turns)
        counts = [audit.turns[turn] for turn in turns]
        every = 1 + len(turns) // MOST_BARS
        yield charts.bar_chart("turns", "Turns", "turns", list(map(str, turns)), [("dialogues", "sft", counts)], every)


def _histogram(
    id: str, title: str, unit: str, series: Sequence[tuple[str, str, Sequence[float]]]
) -> charts.BarChart | None:
    edges = charts.bins([values for _, _, values in series])
    names = [label for _, label in charts.labelled(edges)][:-1]
    counted = [(name, colour, charts.count_in_bins(values, edges)) for name, colour, values in series]
    return charts.bar_chart(id, title, unit, names, counted, every=1 + len(names) // 6, label_at=0.0)


def _by_place(places: Mapping[str, "Counter[int]"]) -> charts.BarChart | None:
    last = max(place for counts in places.values() for place in counts)
    colours = {"rejected": "rejected", "best": "dpo", "worst": "rejected"}
    series = [(name, colours[name], [counts[place] for place in range(last + 1)]) for name, counts in places.items()]
    title = "Position of the answers among those of their prompt"
    return charts.bar_chart("places", title, "place", [str(place + 1) for place in range(last + 1)], series)


def _lists(audit: AuditCounts) -> Iterator[NamedCounts]:
    """Counts by name, whose names are too long for the axis of a chart."""
    for id, title, counts in (
        ("refusals", "Refusals and hedges, by how they begin", audit.refusals),
        ("languages", "Languages of the prompts", audit.languages),
    ):
        if common := counts.most_common(MOST_NAMED):
            most = common[0][1]
            rows = tuple(CountRow(name, count, round(100 * count / most, 1)) for name, count in common)
            others = counts.total() - sum(count for _, count in common)
            yield NamedCounts(id, title, rows, others, len(counts) - len(common))
