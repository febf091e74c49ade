"""One HTML file that shows what a run came to, and from which artifact each number came.

Everything is read from manifests, metric logs and judged answers; what a run lacks is said to be missing.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl import __version__, templates
from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.answer_browser import side_by_side
from zephyrctl.publishing.benchmark_scores import AlpacaEval, MtBench, Reading, readings
from zephyrctl.publishing.curves import curves
from zephyrctl.publishing.epochs import epochs
from zephyrctl.publishing.held_out_scores import SCORE_AXIS, DifferenceRow, Sheet, sheet
from zephyrctl.publishing.number_format import anchor, duration, interval, listed, moment, number
from zephyrctl.publishing.paper_comparison import beside_paper
from zephyrctl.publishing.provenance import loss_rows, origins, stale
from zephyrctl.publishing.subject import TRAINING, Subject
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

FILE = "report.html"
SCRIPT = "report/answers.js"


@dataclass(frozen=True)
class Flow:
    """One step of the run: done, with its artifact, or still missing."""

    name: str
    tone: str
    anchor: str | None
    note: str


def render_report(run: Run, recipe: Recipe | None) -> str:
    """The report as one HTML document that needs nothing beside it.

    `recipe` gives labels, the paper's figures and the list of what is still to come; without it the usual
    stages are expected. Raises ZephyrError where the run has no finished artifact or a damaged metric log.
    """
    artifacts = run.artifacts()
    if not artifacts:
        raise ZephyrError(f"{run.path} has nothing to report yet", f"zephyrctl run --run {run.path}")
    subject = Subject(run, recipe, artifacts)
    sheets = tuple(one for artifact in subject.of_stage("eval") if (one := sheet(subject, artifact)))
    benchmarks = tuple(readings(subject))
    flow = tuple(_flow(subject))
    answers = side_by_side(subject)
    script = templates.read(SCRIPT) if answers else ""
    return templates.render(
        "report/report.html.jinja",
        title=run.path.resolve().name,
        verdict=_verdict(subject, sheets, benchmarks, flow),
        description=recipe.description if recipe else "",
        facts=tuple(_facts(subject)),
        rule_judges=_rule_judges(sheets, benchmarks),
        stale=tuple(stale(subject)),
        flow=flow,
        missing=tuple(step.name for step in flow if not step.anchor),
        command=f"zephyrctl run --run {run.path}",
        sheets=sheets,
        score_axis=SCORE_AXIS,
        benchmarks=benchmarks,
        beside=beside_paper(subject),
        curves=tuple(curves(subject, artifact) for artifact in subject.of_stage(*TRAINING)),
        epochs=epochs(subject),
        answers=answers,
        losses=tuple(loss_rows(subject)),
        origins=tuple(origins(subject)),
        script=script,
        script_source=f"'sha256-{_digest(script)}'" if script else "'none'",
        version=__version__,
    )


def write_report(run: Run, recipe: Recipe | None) -> Path:
    """Write `report.html` into the run's folder, whole or not at all, and return its path."""
    path = run.path / FILE
    write_whole(path, render_report(run, recipe))
    return path


def _digest(script: str) -> str:
    """The hash by which the page's policy lets this very script run and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    manifests = [artifact.manifest for artifact in subject.artifacts]
    if recipe := subject.recipe:
        yield "Recipe", recipe.name
        yield "Base", recipe.base.name
        yield "Seed", str(recipe.seed)
    yield "Wall time", duration(sum(manifest.seconds for manifest in manifests))
    if cost := sum(manifest.cost_usd for manifest in manifests):
        yield "Cost", f"{cost:,.2f} USD"
    yield "Last change", moment(max(manifest.finished_at for manifest in manifests))


def _rule_judges(sheets: Sequence[Sheet], benchmarks: Sequence[Reading]) -> tuple[str, ...]:
    judges = [sheet.judge for sheet in sheets if sheet.is_rule_based]
    judges += [one.head.judge for one in benchmarks if one.head.is_rule_based]
    return tuple(dict.fromkeys(judges))


def _flow(subject: Subject) -> Iterator[Flow]:
    steps = dict(subject.expected()) | {one.manifest.plan.name: one.manifest.plan.stage for one in subject.artifacts}
    for name, stage in steps.items():
        if artifact := subject.named.get(name):
            yield Flow(name, stage, anchor(name), duration(artifact.manifest.seconds))
        else:
            yield Flow(name, stage, None, "missing")


def _verdict(subject: Subject, sheets: Sequence[Sheet], benchmarks: Sequence[Reading], flow: Sequence[Flow]) -> str:
    judged = [one for one in sheets if one.differences] or list(sheets)
    if not judged:
        return _best_of(benchmarks) or (
            f"Nothing has been judged yet; what has finished is {listed([step.name for step in flow if step.anchor])}."
        )
    found = judged[-1]
    judge = "the rule-based judge’s score" if found.is_rule_based else "the judge’s score"
    if found.differences:
        return _compared(_headline(subject, found.differences), judge)
    best = max(found.rows, key=lambda row: row.mean)
    return f"{best.name.label} has the highest mean of {judge}: {best.score} {best.interval}".rstrip() + "."


def _best_of(benchmarks: Sequence[Reading]) -> str:
    """Who leads on the first benchmark that scores one model at a time; nothing where there is none."""
    for found in benchmarks:
        if isinstance(found, MtBench):
            best = max(found.rows, key=lambda row: row.mean)
            return f"{best.name.label} comes first on MT-Bench: {best.score} {best.interval}".rstrip() + "."
        if isinstance(found, AlpacaEval):
            first = max(found.rows, key=lambda row: row.mark.at)
            return f"{first.name.label} comes first on AlpacaEval: {first.rate} {first.interval}".rstrip() + "."
    return ""


def _headline(subject: Subject, rows: Sequence[DifferenceRow]) -> DifferenceRow:
    """The comparison that the recipe is about: DPO against the SFT it started from, else the last one."""

    def weight(row: DifferenceRow) -> tuple[bool, bool]:
        checkpoint = subject.recipe.checkpoints.get(row.left.key) if subject.recipe else None
        is_own_start = checkpoint is not None and checkpoint.start == row.right.key
        return row.left.tone == "dpo" and row.right.tone == "sft", is_own_start

    return max(reversed(rows), key=weight)


def _compared(row: DifferenceRow, judge: str) -> str:
    one, other, found = row.left.label, row.right.label, row.estimate
    prompts = f" on {found.n:,} held-out prompts" if found.n else " on held-out prompts"
    if found.low is None or found.high is None:
        return f"{one} changed {judge} by {row.score} against {other}{prompts}; no interval was recorded."
    if found.low > 0:
        return f"{one} raised {judge} by {number(found.mean)} {row.interval} over {other}{prompts}."
    if found.high < 0:
        reach = interval(-found.high, -found.low)
        return f"{one} lowered {judge} by {number(-found.mean)} {reach} against {other}{prompts}."
    return f"{one} and {other} cannot be told apart{prompts}: {judge} differs by {row.score} {row.interval}."
