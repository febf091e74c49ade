"""What the public benchmarks found: MT-Bench by category, AlpacaEval's win rates, leaderboard tasks, arena ratings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zephyrctl.publishing import charts
from zephyrctl.publishing.held_out_scores import (
    SCORE_AXIS,
    DifferenceRow,
    ScoreRow,
    WinRow,
    difference_rows,
    score_row,
    win_rows,
)
from zephyrctl.publishing.measured import Estimate, around, estimate, mapping, real, words
from zephyrctl.publishing.number_format import ABSENT, anchor, count, interval, listed, number
from zephyrctl.publishing.paper_comparison import ACADEMIC, with_interval
from zephyrctl.publishing.radar import Radar, radar
from zephyrctl.publishing.subject import Name, Subject
from zephyrctl.runs.artifacts import Artifact

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
MOST_POLYGONS = 5
"""How many models of a radar are drawn at first; the others are there to be ticked."""
MOST_BARS = 3
"""How many matches are drawn as bars; more of them are a matrix."""
WIN_AXIS = charts.scale_over([0, 25, 50, 75, 100])
GONE = {
    "unparsed": "whose judgment could not be read",
    "out_of_range": "rated outside 1 to 10",
    "missing": "not answered or not judged",
    "duplicates": "judged more than once, the last one counts",
}


@dataclass(frozen=True)
class Head:
    """What stands above the figures of any benchmark."""

    kind: str
    title: str
    anchor: str
    judge: str
    is_rule_based: bool
    facts: tuple[tuple[str, str], ...]
    judge_quality: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """One model of a radar; `scores` stand in the order of the categories, each with its interval."""

    name: Name
    score: str
    is_drawn: bool
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MtBench:
    """Scores, their categories as a radar, and paired differences."""

    head: Head
    rows: tuple[ScoreRow, ...]
    axis: charts.Scale
    categories: tuple[str, ...]
    outlines: tuple[Outline, ...]
    radar: Radar | None
    differences: tuple[DifferenceRow, ...]
    difference_axis: charts.Scale | None


@dataclass(frozen=True)
class WinBar:
    """One model against the reference: its win rate, and the length-controlled one where there is one."""

    name: Name
    rate: str
    interval: str
    mark: charts.Whisker
    controlled: str
    controlled_interval: str
    controlled_mark: charts.Whisker | None
    counts: str
    length: str
    categories: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class AlpacaEval:
    """Win rates against one reference."""

    head: Head
    reference: str
    rows: tuple[WinBar, ...]
    axis: charts.Scale
    is_controlled: bool


@dataclass(frozen=True)
class OpenLlm:
    """Leaderboard tasks in per cent: (figure, interval) of each column."""

    head: Head
    columns: tuple[str, ...]
    rows: tuple[tuple[Name, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class Arena:
    """Ratings, and who beat whom: as bars where there are few matches, else as a matrix of win rates in per cent."""

    head: Head
    rows: tuple[ScoreRow, ...]
    axis: charts.Scale | None
    matches: tuple[WinRow, ...]
    matrix: tuple[tuple[Name, tuple[tuple[float, str] | None, ...]], ...]


Reading = MtBench | AlpacaEval | OpenLlm | Arena


def readings(subject: Subject) -> Iterator[Reading]:
    """What every benchmark of a run found, in a fixed order; one that has no figures is left out."""
    for kind, read in (
        ("mt-bench", _mt_bench),
        ("alpaca-eval", _alpaca_eval),
        ("open-llm", _open_llm),
        ("arena", _arena),
    ):
        for artifact in subject.benchmarks(kind):
            reading = read(subject, artifact)
            if reading.rows:
                yield reading


def _head(artifact: Artifact, title: str) -> Head:
    metrics = artifact.manifest.metrics
    judge = mapping(metrics.get("judge"))
    return Head(
        kind=str(metrics["benchmark"]),
        title=title,
        anchor=anchor(artifact.manifest.plan.name),
        judge=str(judge.get("name") or ""),
        is_rule_based=judge.get("rule_based") is True,
        facts=tuple(_facts(metrics)),
        judge_quality=tuple(_quality(mapping(metrics.get("judge_quality")))),
        notes=words(artifact.manifest.notes),
    )


def _facts(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    judge = mapping(metrics.get("judge"))
    if judge.get("name"):
        models = [model for model in words(judge.get("models")) if model != judge["name"]]
        told = " by rules" if judge.get("rule_based") is True else f" ({listed(models)})" if models else ""
        yield "Judge", f"{judge['name']}{told}"
    if contamination := mapping(metrics.get("contamination")):
        yield "Overlap with training data", _overlap(contamination)


def _quality(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured of the judge itself, each figure with its name in words."""
    for part, values in found.items():
        for name, value in mapping(values).items():
            read = real(value)
            said = str(value) if read is None else f"{read:,.3g}" if read != int(read) else count(read)
            yield f"{part}, {name}".replace("_", " "), said


def _overlap(found: Mapping[str, Any]) -> str:
    questions, hits, rows = (real(found.get(name)) for name in ("questions", "hits", "rows"))
    searched = words(found.get("searched"))
    if hits is None or not searched:
        return "not searched"
    of = f"{'none' if not hits else count(hits)} of {count(questions)} questions"
    without = [
        f"{name} {number(score)}"
        for name, value in mapping(found.get("scores_without_them")).items()
        if (score := real(value)) is not None
    ]
    scores = f"; without them: {listed(without)}" if without else ""
    return f"{of}{f', in {count(rows)} rows' if hits and rows else ''}; searched: {listed(searched)}{scores}"


def _models(subject: Subject, artifact: Artifact, found: str = "models") -> list[tuple[str, Mapping[str, Any]]]:
    models = mapping(artifact.manifest.metrics.get(found))
    return [(key, mapping(models[key])) for key in subject.ordered(models)]


def _gone(models: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """A sentence for each cause that took or doubled judgments, over all models."""
    for cause, said in GONE.items():
        total = sum(real(of.get(cause)) or 0 for _, of in models)
        if total:
            yield f"{count(total)} {'answer' if total == 1 else 'answers'} {said}."


def _mt_bench(subject: Subject, artifact: Artifact) -> MtBench:
    models = _models(subject, artifact)
    scored = [(key, of, read) for key, of in models if (read := estimate(of, "score"))]
    found = {name: None for _, of in models for name in mapping(of.get("categories"))}
    known = [name for name in CATEGORIES if name in found]
    categories = (*known, *(name for name in found if name not in CATEGORIES))
    outlines = tuple(_outlines(subject, scored, categories))
    differences, axis = difference_rows(subject, mapping(artifact.manifest.metrics.get("differences")))
    head = _head(artifact, "MT-Bench")
    return MtBench(
        head=replace(head, notes=(*_gone(models), *head.notes)),
        rows=tuple(
            score_row(
                subject,
                key,
                Estimate(read.mean, read.low, read.high, None if (n := real(of.get("rated"))) is None else int(n)),
                more=[_decimal(of.get("turn_1")), _decimal(of.get("turn_2"))],
            )
            for key, of, read in scored
        ),
        axis=SCORE_AXIS,
        categories=categories,
        outlines=outlines,
        radar=radar(categories, [_category_means(of, categories) for _, of, _ in scored]),
        differences=differences,
        difference_axis=axis,
    )


def _category_means(of: Mapping[str, Any], categories: Sequence[str]) -> dict[str, float | None]:
    found = mapping(of.get("categories"))
    return {name: real(mapping(found.get(name)).get("score")) for name in categories}


def _outlines(
    subject: Subject, scored: Sequence[tuple[str, Mapping[str, Any], Estimate]], categories: Sequence[str]
) -> Iterator[Outline]:
    """Every model; the run's own and then the best are drawn at first."""
    ranked = sorted(scored, key=lambda one: (subject.name(one[0]).anchor is None, -one[2].mean))
    drawn = {key for key, _, _ in ranked[:MOST_POLYGONS]}
    for key, of, read in scored:
        found = mapping(of.get("categories"))
        cells = tuple(_cell(estimate(found.get(name), "score")) for name in categories)
        yield Outline(subject.name(key), number(read.mean), key in drawn, cells)


def _cell(found: Estimate | None) -> tuple[str, str]:
    return (ABSENT, "") if found is None else (number(found.mean), interval(found.low, found.high))


def _decimal(value: Any, places: int = 2) -> str:
    read = real(value)
    return ABSENT if read is None else number(read, places=places)


def _alpaca_eval(subject: Subject, artifact: Artifact) -> AlpacaEval:
    models = _models(subject, artifact)
    rows = tuple(_win_bar(subject, key, of, read) for key, of in models if (read := estimate(of, "win_rate")))
    missing = sum(real(of.get("missing")) or 0 for _, of in models)
    head = _head(artifact, "AlpacaEval")
    notes = (f"{count(missing)} comparisons have no preference that could be read.",) if missing else ()
    reference = artifact.manifest.metrics.get("reference")
    return AlpacaEval(
        head=replace(head, notes=(*notes, *head.notes)),
        reference=str(reference or "the reference"),
        rows=rows,
        axis=WIN_AXIS,
        is_controlled=any(row.controlled for row in rows),
    )


def _win_bar(subject: Subject, key: str, of: Mapping[str, Any], found: Estimate) -> WinBar:
    if found.low is None:
        found = around(found.mean, real(of.get("standard_error")))
    controlled = _controlled(of)
    length, reference = real(of.get("mean_length")), real(of.get("reference_length"))
    return WinBar(
        name=subject.name(key),
        rate=f"{number(found.mean)} %",
        interval=interval(found.low, found.high),
        mark=charts.whisker(WIN_AXIS, found.mean, found.low, found.high),
        controlled=f"{number(controlled.mean)} %" if controlled else "",
        controlled_interval=interval(controlled.low, controlled.high) if controlled else "",
        controlled_mark=charts.whisker(WIN_AXIS, controlled.mean, controlled.low, controlled.high)
        if controlled
        else None,
        counts=_counts(of),
        length=f"{count(length)} : {count(reference)}" if length is not None else ABSENT,
        categories=tuple(_by_dataset(of)),
    )


def _controlled(of: Mapping[str, Any]) -> Estimate | None:
    rate = real(of.get("length_controlled"))
    low, high = (real(of.get(f"length_controlled_{end}")) for end in ("low", "high"))
    return None if rate is None else Estimate(rate, low, high, None)


def _counts(of: Mapping[str, Any]) -> str:
    found = [(name, real(of.get(name))) for name in ("wins", "draws", "losses")]
    return " · ".join(f"{count(n)} {name}" for name, n in found if n is not None)


def _by_dataset(of: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, value in mapping(of.get("categories")).items():
        if read := estimate(value, "win_rate"):
            yield str(name), f"{number(read.mean, places=1)} %", interval(read.low, read.high, places=1)


def _open_llm(subject: Subject, artifact: Artifact) -> OpenLlm:
    models = _models(subject, artifact)
    figures = (*ACADEMIC[:3], "mmlu_by_size", ACADEMIC[3])
    return OpenLlm(
        head=_head(artifact, "Open LLM Leaderboard"),
        columns=("ARC", "HellaSwag", "MMLU, mean of subjects", "MMLU, by size", "TruthfulQA"),
        rows=tuple(
            (subject.name(key), tuple(_cell(with_interval(of, figure)) for figure in figures)) for key, of in models
        ),
    )


def _arena(subject: Subject, artifact: Artifact) -> Arena:
    found = [(key, read) for key, of in _models(subject, artifact, "ratings") if (read := estimate(of, "rating"))]
    found.sort(key=lambda pair: -pair[1].mean)
    reached = [value for _, one in found for value in (one.mean, one.low, one.high) if value is not None]
    axis = charts.scale_over(charts.round_numbers(min(reached), max(reached), 4)) if reached else None
    matches = mapping(artifact.manifest.metrics.get("matches"))
    rows = tuple(win_rows(subject, matches))
    keys = [key for key, _ in found]
    head = _head(artifact, "Arena")
    notes = (*words(artifact.manifest.metrics.get("comparability")), *head.notes)
    return Arena(
        head=replace(head, notes=notes),
        rows=tuple(_rating(subject, key, one, axis) for key, one in found if axis),
        axis=axis,
        matches=rows if len(rows) <= MOST_BARS else (),
        matrix=tuple(_matrix(subject, keys, matches)) if len(rows) > MOST_BARS else (),
    )


def _rating(subject: Subject, key: str, found: Estimate, axis: charts.Scale) -> ScoreRow:
    row = score_row(subject, key, found, axis)
    return replace(row, score=number(found.mean, places=0), interval=interval(found.low, found.high, places=0))


def _matrix(
    subject: Subject, keys: Sequence[str], matches: Mapping[str, Any]
) -> Iterator[tuple[Name, tuple[tuple[float, str] | None, ...]]]:
    """The win rate of each row's model over each column's, and what is said of it; None where they never met."""
    for left in keys:
        yield subject.name(left), tuple(_met(subject, left, right, matches) for right in keys)


def _met(subject: Subject, left: str, right: str, matches: Mapping[str, Any]) -> tuple[float, str] | None:
    rate = real(mapping(matches.get(f"{left}_over_{right}")).get("win_rate"))
    if rate is None and (turned := real(mapping(matches.get(f"{right}_over_{left}")).get("win_rate"))) is not None:
        rate = 1 - turned
    if rate is None:
        return None
    return 100 * rate, f"{subject.name(left).label} over {subject.name(right).label}: {100 * rate:.1f} %"
