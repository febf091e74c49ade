"""Render a run as one HTML file: its scores, curves and answers, and the artifact that each number came from.

Everything is read from manifests, metric logs and judged answers; the report says what is missing.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl import __version__, templates
from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.answer_browser import answer_browser
from zephyrctl.publishing.benchmark_sections import BenchmarkSection, benchmark_sections
from zephyrctl.publishing.curves import training_curves
from zephyrctl.publishing.epochs import epoch_charts
from zephyrctl.publishing.held_out_scores import SCORE_AXIS, DifferenceRow, HeldOutScores, held_out_scores
from zephyrctl.publishing.number_format import anchor, duration, interval, join_words, number, utc_minute
from zephyrctl.publishing.paper_comparison import paper_comparison
from zephyrctl.publishing.provenance import provenance, stage_rows, stale_artifacts
from zephyrctl.publishing.reported_run import TRAINING, ReportedRun
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

FILE = "report.html"
SCRIPT = "report/answer_browser.js"


@dataclass(frozen=True)
class StageBox:
    """One stage at the top of the report: finished, with a link to its artifact, or missing."""

    name: str
    kind: str
    anchor: str | None
    note: str


def render_report(run: Run, recipe: Recipe | None) -> str:
    """The report as one HTML document that loads nothing else.

    `recipe` gives labels, the paper's figures and the list of stages; without it one of each usual stage is expected.
    Raises ZephyrError if the run has no finished artifact, or a damaged result or metric log.
    """
    artifacts = run.artifacts()
    if not artifacts:
        raise ZephyrError(f"{run.path} has nothing to report yet", f"zephyrctl run --run {run.path}")
    reported = ReportedRun(run, recipe, artifacts)
    held_out = tuple(held_out_scores(reported))
    benchmarks = tuple(benchmark_sections(reported))
    stages = tuple(_stages(reported))
    answers = answer_browser(reported)
    script = templates.read(SCRIPT) if answers else ""
    return templates.render(
        "report/report.html.jinja",
        title=run.path.resolve().name,
        summary=_summary(reported, held_out, benchmarks, stages),
        description=recipe.description if recipe else "",
        facts=tuple(_facts(reported)),
        rule_judges=_rule_judges(held_out, benchmarks),
        stale_artifacts=tuple(stale_artifacts(reported)),
        stages=stages,
        missing=tuple(stage.name for stage in stages if not stage.anchor),
        command=f"zephyrctl run --run {run.path}",
        held_out=held_out,
        score_axis=SCORE_AXIS,
        benchmarks=benchmarks,
        unknown_benchmarks=tuple(_unknown_benchmarks(reported)),
        paper_comparison=paper_comparison(reported),
        trainings=tuple(training_curves(reported, artifact) for artifact in reported.of_stage(*TRAINING)),
        epochs=epoch_charts(reported),
        answers=answers,
        stage_rows=tuple(stage_rows(reported)),
        provenance=tuple(provenance(reported)),
        script=script,
        script_source=f"'sha256-{_digest(script)}'" if script else "'none'",
        version=__version__,
    )


def write_report(run: Run, recipe: Recipe | None) -> Path:
    """Write `report.html` into the run's folder and return its path; an interrupted write leaves no half page."""
    path = run.path / FILE
    write_whole(path, render_report(run, recipe))
    return path


def _digest(script: str) -> str:
    """The hash by which the page's content security policy allows this script and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(run: ReportedRun) -> Iterator[tuple[str, str]]:
    manifests = [artifact.manifest for artifact in run.artifacts]
    if recipe := run.recipe:
        yield "Recipe", recipe.name
        yield "Base", recipe.base.name
        yield "Seed", str(recipe.seed)
    yield "Wall time", duration(sum(manifest.seconds for manifest in manifests))
    if cost := sum(manifest.cost_usd for manifest in manifests):
        yield "Cost", f"{cost:,.2f} USD"
    yield "Last change", utc_minute(max(manifest.finished_at for manifest in manifests))


def _rule_judges(held_out: Sequence[HeldOutScores], benchmarks: Sequence[BenchmarkSection]) -> tuple[str, ...]:
    judged: list[HeldOutScores | BenchmarkSection] = [*held_out, *benchmarks]
    return tuple(dict.fromkeys(scores.judge for scores in judged if scores.is_rule_based))


def _unknown_benchmarks(run: ReportedRun) -> Iterator[str]:
    for artifact in run.unknown_benchmarks:
        name = artifact.manifest.metrics["benchmark"]
        yield f"{artifact.manifest.plan.name}: the benchmark {name} is not installed, so its scores are not shown"


def _stages(run: ReportedRun) -> Iterator[StageBox]:
    present = {artifact.manifest.plan.name: artifact.manifest.plan.stage for artifact in run.artifacts}
    for name, kind in {**dict(run.expected()), **present}.items():
        if artifact := run.named.get(name):
            yield StageBox(name, kind, anchor(name), duration(artifact.manifest.seconds))
        else:
            yield StageBox(name, kind, None, "missing")


def _summary(
    run: ReportedRun,
    held_out: Sequence[HeldOutScores],
    benchmarks: Sequence[BenchmarkSection],
    stages: Sequence[StageBox],
) -> str:
    """The first sentence of the report: the main comparison, else the best model, else what has finished."""
    judged = [scores for scores in held_out if scores.differences] or list(held_out)
    if not judged:
        finished = join_words([stage.name for stage in stages if stage.anchor])
        return _best_on_benchmark(benchmarks) or f"Nothing has been judged yet; finished: {finished}."
    scores = judged[-1]
    judge = "the rule-based judge’s score" if scores.is_rule_based else "the judge’s score"
    if scores.differences:
        return _describe(_main_comparison(run, scores.differences), judge)
    best = max(scores.rows, key=lambda row: row.mean)
    return f"{best.name.label} has the highest mean of {judge}: {best.score} {best.interval}".rstrip() + "."


def _best_on_benchmark(benchmarks: Sequence[BenchmarkSection]) -> str:
    """The best model on the first benchmark that has a main figure; empty if there is none."""
    for section in benchmarks:
        scored = [(row.mean, row) for row in section.table.rows if row.mean is not None]
        if section.has_main_figure and scored:
            _, best = max(scored, key=lambda pair: pair[0])
            return f"{best.name.label} is best on {section.title}: {best.cells[0].text}."
    return ""


def _main_comparison(run: ReportedRun, rows: Sequence[DifferenceRow]) -> DifferenceRow:
    """The comparison that the recipe is about: a model trained on pairs and what it started from, else the last."""

    def weight(row: DifferenceRow) -> tuple[bool, bool]:
        # Both models are trained, and only the left one on pairs.
        shows_pairs = run.is_trained_on_pairs(row.left.key) and not run.is_trained_on_pairs(row.right.key)
        checkpoint = run.recipe.checkpoints.get(row.left.key) if run.recipe else None
        is_own_start = checkpoint is not None and checkpoint.start == row.right.key
        return shows_pairs and row.right.kind in TRAINING, is_own_start

    return max(reversed(rows), key=weight)


def _describe(row: DifferenceRow, judge: str) -> str:
    left, right, difference = row.left.label, row.right.label, row.estimate
    prompts = f" on {difference.n:,} held-out prompts" if difference.n else " on held-out prompts"
    if difference.low is None or difference.high is None:
        return f"{left} changed {judge} by {row.score} against {right}{prompts}; no interval was recorded."
    if difference.low > 0:
        return f"{left} raised {judge} by {number(difference.mean)} {row.interval} over {right}{prompts}."
    if difference.high < 0:
        ends = interval(-difference.high, -difference.low)
        return f"{left} lowered {judge} by {number(-difference.mean)} {ends} against {right}{prompts}."
    return f"{left} and {right} cannot be told apart{prompts}: {judge} differs by {row.score} {row.interval}."
