"""The page of an audit: its figures and histograms, in one HTML file that needs nothing else."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyrctl import __version__, templates
from zephyrctl.data.audit import AuditCounts
from zephyrctl.disk import write_whole
from zephyrctl.publishing import charts

TONES = {"prompt": "base", "chosen": "dpo", "rejected": "rejected", "answer": "sft"}
MOST_BARS = 12
MOST_NAMED = 8
PLACES = ("rejected", "best", "worst")
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
    "answers_without_ratings": "Answers nobody rated",
    "overall_of_10_with_low_ratings": "Overall 10 with low ratings",
    "prompts_with_fewer_than_two_answers": "Prompts with fewer than two answers",
    "duplicate_prompts": "Prompts asked before",
    "duplicate_rows": "Rows said before",
    "near_duplicate_rows": "Rows nearly said before",
    "lower_cased_answers": "Lower-cased answers",
    "lower_cased_user_turns": "Lower-cased user turns",
    "refusal_openings": "Answers that open with a refusal or hedge",
    "benchmark_overlap": "Rows that hold a benchmark prompt",
    "bad_rows": "Rows that cannot be read",
}


def write_page(path: Path, name: str, seen: AuditCounts) -> None:
    """Write the page, whole or not at all."""
    write_whole(path, render_page(name, seen))


def render_page(name: str, seen: AuditCounts) -> str:
    """The page as HTML."""
    figures = seen.figures()
    return templates.render(
        "report/audit.html.jinja",
        title=name,
        version=__version__,
        figures=figures,
        shown=list(_shown(figures)),
        lengths=figures["lengths"],
        charts=[chart for chart in _charts(seen) if chart],
        lists=list(_lists(seen)),
        chances=[(name, p) for name in PLACES if (p := figures.get(f"{name}_places_p")) is not None],
        hits=seen.matches,
        overlap=figures["benchmark_overlap"],
        bad=figures["bad_rows_by_cause"],
    )


def _shown(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(heading, count, share) of the figures that this kind of file has."""
    for key, heading in HEADINGS.items():
        if key in figures:
            share = figures.get(f"{key}_share")
            yield heading, f"{figures[key]:,}", "" if share is None else f"{100 * share:.1f} %"


def _charts(seen: AuditCounts) -> Iterator[charts.BarChart | None]:
    if lengths := {name: one.characters for name, one in seen.lengths.items() if name != "prompt"}:
        series = [(name, TONES[name], values) for name, values in lengths.items()]
        yield _histogram("lengths", "Length of the answers", "characters", series)
    if prompts := seen.lengths.get("prompt"):
        yield _histogram("prompts", "Length of the user turns", "characters", [("user", "base", prompts.characters)])
    if seen.differences:
        series = [("pairs", "sft", seen.differences)]
        yield _histogram("difference", "Chosen minus rejected", "characters", series)
    if seen.score_steps:
        values = list(seen.score_steps.elements())
        yield _histogram(
            "scores", "Score of the chosen minus that of the rejected", "points", [("pairs", "dpo", values)]
        )
    places = {"rejected": seen.rejected_places, "best": seen.best_places, "worst": seen.worst_places}
    if known := {name: counts for name, counts in places.items() if counts}:
        yield _by_place(known)
    if seen.turns:
        turns = sorted(seen.turns)
        counts = [seen.turns[turn] for turn in turns]
        every = 1 + len(turns) // MOST_BARS
        yield charts.bar_chart("turns", "Turns", "turns", list(map(str, turns)), [("dialogues", "sft", counts)], every)


def _histogram(
    id: str, title: str, unit: str, series: Sequence[tuple[str, str, Sequence[float]]]
) -> charts.BarChart | None:
    edges = charts.bins([values for _, _, values in series])
    names = [label for _, label in charts.labelled(edges)][:-1]
    counted = [(name, tone, charts.binned(values, edges)) for name, tone, values in series]
    return charts.bar_chart(id, title, unit, names, counted, every=1 + len(names) // 6, named_at=0.0)


def _by_place(places: Mapping[str, "Counter[int]"]) -> charts.BarChart | None:
    last = max(place for counts in places.values() for place in counts)
    tones = {"rejected": "rejected", "best": "dpo", "worst": "rejected"}
    series = [(name, tones[name], [counts[place] for place in range(last + 1)]) for name, counts in places.items()]
    title = "Place of the answers among those of their prompt"
    return charts.bar_chart("places", title, "place", [str(place + 1) for place in range(last + 1)], series)


def _lists(seen: AuditCounts) -> Iterator[dict[str, Any]]:
    """Counts by name, which no axis has room for."""
    for id, title, counts in (
        ("refusals", "Refusals and hedges, by how they open", seen.refusals),
        ("languages", "Languages of the prompts", seen.languages),
    ):
        if common := counts.most_common(MOST_NAMED):
            most = common[0][1]
            rows = [{"name": name, "count": count, "width": round(100 * count / most, 1)} for name, count in common]
            others = counts.total() - sum(count for _, count in common)
            yield {"id": id, "title": title, "rows": rows, "others": others, "kinds": len(counts) - len(common)}
