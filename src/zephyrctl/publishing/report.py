"""One HTML file that shows what a run came to, and from which artifact each number came.

Everything is read from manifests, metric logs and judged answers; what a run lacks is said to be missing.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from zephyrctl import __version__, templates
from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.layers import flatten
from zephyrctl.publishing import charts
from zephyrctl.recipe import Recipe
from zephyrctl.runs import Artifact, Manifest, Run

FILE = "report.html"
LN_2 = math.log(2)
SAMPLES = 3
LONG_ANSWER = 600
STAGES = ("build", "feedback", "binarize", "sft", "dpo", "eval")
TRAINING = ("sft", "dpo")
SCORE_AXIS = charts.scale_over([1, 4, 7, 10])
READS = {
    "feedback": {"prompts"},
    "binarize": {"rated"},
    "sft": {"dialogues", "pairs"},
    "dpo": {"pairs"},
    "eval": {"prompts"},
}
"""The tables that a stage takes from its inputs, where it has inputs with a table of that name."""
BENCHMARKS = {
    "mt_bench": "MT-Bench",
    "alpaca_eval": "AlpacaEval, win %",
    "arc": "ARC",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "truthfulqa": "TruthfulQA",
}


@dataclass(frozen=True)
class Estimate:
    """A mean or a rate with its 95 % interval, over `n` prompts; what was not recorded is None."""

    mean: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Name:
    """How a checkpoint is shown."""

    key: str
    label: str
    tone: str
    anchor: str | None


@dataclass(frozen=True)
class ScoreRow:
    """One checkpoint of a score table."""

    name: Name
    mean: float
    score: str
    interval: str
    n: str
    mark: charts.Whisker
    published: tuple[str, ...]


@dataclass(frozen=True)
class DifferenceRow:
    """Two checkpoints compared on the same prompts."""

    left: Name
    right: Name
    estimate: Estimate
    score: str
    interval: str
    n: str
    mark: charts.Whisker


@dataclass(frozen=True)
class WinRow:
    """Two checkpoints whose answers were laid side by side before the judge; shares are per cent."""

    left: Name
    right: Name
    rate: str
    interval: str
    counts: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Answer:
    """What one checkpoint said, and its score; `more` is the whole text where `text` is its beginning."""

    name: Name
    text: str
    more: str
    score: str
    reason: str


@dataclass(frozen=True)
class Turn:
    """What was asked (role, text) and every checkpoint's answer to it."""

    asked: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Sheet:
    """All that one evaluation found."""

    anchor: str
    title: str
    judge: str
    is_rule_based: bool
    rows: tuple[ScoreRow, ...]
    differences: tuple[DifferenceRow, ...]
    difference_axis: charts.Scale | None
    wins: tuple[WinRow, ...]
    benchmarks: tuple[str, ...]
    orders: tuple[str, ...]
    notes: tuple[str, ...]
    samples: tuple[tuple[str, tuple[Turn, ...]], ...]
    prompts: int


@dataclass(frozen=True)
class Curves:
    """How one training went; `first_loss` holds a sentence and whether it is as it must be."""

    name: Name
    facts: tuple[tuple[str, str], ...]
    first_loss: tuple[str, bool] | None
    charts: tuple[charts.LineChart, ...]


@dataclass(frozen=True)
class Flow:
    """One step of the run: done, with its artifact, or still missing."""

    name: str
    tone: str
    anchor: str | None
    note: str


@dataclass(frozen=True)
class LossRow:
    """What went into a stage, what it dropped and what it wrote."""

    name: str
    tone: str
    anchor: str
    taken: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    written: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """One artifact as the last section shows it."""

    anchor: str
    name: str
    stage: str
    tone: str
    finished: str
    seconds: str
    cost: str
    hash: str
    inputs: tuple["Input", ...]
    files: tuple[tuple[str, str, str, str], ...]
    settings: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    plugins: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    """What an artifact was made from; `is_stale` where that has been made anew since."""

    name: str
    path: str
    hash: str
    anchor: str | None
    is_stale: bool


@dataclass
class Subject:
    """A run with its recipe, and how its checkpoints are called."""

    run: Run
    recipe: Recipe | None
    named: dict[str, Artifact]

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts in the order of the work: the recipe's, or that of the usual stages."""
        order = [name for name, _ in self.expected()]
        late = len(order)
        return sorted(
            self.named.values(),
            key=lambda one: order.index(name) if (name := one.manifest.plan.name) in order else late,
        )

    def name(self, key: str) -> Name:
        """A checkpoint's label (the recipe's, else dSFT and dDPO for `sft` and `dpo`), colour and anchor."""
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        usual = {"sft": "dSFT", "dpo": "dDPO"}.get(key, key)
        label = checkpoint.label if checkpoint and checkpoint.label else usual
        artifact = self.named.get(key)
        return Name(key, label, self.tone(key), _anchor(key) if artifact else None)

    def tone(self, key: str) -> str:
        """The kind of a checkpoint: base, sft or dpo."""
        if artifact := self.named.get(key):
            return artifact.manifest.plan.stage
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        return checkpoint.stage if checkpoint else "base"

    def published(self, key: str) -> dict[str, float]:
        """The paper's figures for a checkpoint."""
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        return checkpoint.published if checkpoint else {}

    def ordered(self, keys: Iterable[str]) -> list[str]:
        """The base first, then the recipe's checkpoints in its order, then the others as they come."""
        order = ["base", *(self.recipe.checkpoints if self.recipe else TRAINING)]
        return sorted(keys, key=lambda key: order.index(key) if key in order else len(order))

    def of_stage(self, *stages: str) -> list[Artifact]:
        """The artifacts of these stages, in the order of the work."""
        return [artifact for artifact in self.artifacts if artifact.manifest.plan.stage in stages]

    def expected(self) -> Iterator[tuple[str, str]]:
        """The (name, stage) of all that a whole run has: the recipe's, or one of each usual stage."""
        if self.recipe is None:
            found = [(name, artifact.manifest.plan.stage) for name, artifact in self.named.items()]
            for stage in STAGES:
                yield from [pair for pair in found if pair[1] == stage] or [(stage, stage)]
            return
        checkpoints = self.recipe.checkpoints
        needs_pairs = any(one.stage == "dpo" or one.data in ("chosen", "pairs") for one in checkpoints.values())
        yield from ((stage, stage) for stage in (STAGES[:3] if needs_pairs else STAGES[:1]))
        yield from ((name, one.stage) for name, one in checkpoints.items())
        yield "eval", "eval"


def render_report(run: Run, recipe: Recipe | None) -> str:
    """The report as one HTML document that needs nothing beside it.

    `recipe` gives labels, the paper's figures and the list of what is still to come; without it the usual
    stages are expected. Raises ZephyrError where the run has no finished artifact or a damaged metric log.
    """
    artifacts = run.artifacts()
    if not artifacts:
        raise ZephyrError(f"{run.path} has nothing to report yet", f"zephyrctl run --run {run.path}")
    subject = Subject(run, recipe, {artifact.manifest.plan.name: artifact for artifact in artifacts})
    sheets = tuple(sheet for artifact in subject.of_stage("eval") if (sheet := _sheet(subject, artifact)))
    flow = tuple(_flow(subject))
    return templates.render(
        "report/report.html.jinja",
        title=run.path.resolve().name,
        verdict=_verdict(subject, sheets, flow),
        description=recipe.description if recipe else "",
        facts=tuple(_facts(subject)),
        rule_judges=tuple(dict.fromkeys(sheet.judge for sheet in sheets if sheet.is_rule_based)),
        stale=tuple(_stale(subject)),
        flow=flow,
        missing=tuple(step.name for step in flow if not step.anchor),
        command=f"zephyrctl run --run {run.path}",
        sheets=sheets,
        score_axis=SCORE_AXIS,
        curves=tuple(_curves(subject, artifact) for artifact in subject.of_stage(*TRAINING)),
        losses=tuple(_loss_rows(subject)),
        origins=tuple(_origin(subject, artifact) for artifact in subject.artifacts),
        version=__version__,
    )


def write_report(run: Run, recipe: Recipe | None) -> Path:
    """Write `report.html` into the run's folder, whole or not at all, and return its path."""
    path = run.path / FILE
    write_whole(path, render_report(run, recipe))
    return path


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    manifests = [artifact.manifest for artifact in subject.artifacts]
    if recipe := subject.recipe:
        yield "Recipe", recipe.name
        yield "Base", recipe.base.name
        yield "Seed", str(recipe.seed)
    yield "Wall time", _duration(sum(manifest.seconds for manifest in manifests))
    if cost := sum(manifest.cost_usd for manifest in manifests):
        yield "Cost", f"{cost:,.2f} USD"
    yield "Last change", _moment(max(manifest.finished_at for manifest in manifests))


def _verdict(subject: Subject, sheets: Sequence[Sheet], flow: Sequence[Flow]) -> str:
    judged = [sheet for sheet in sheets if sheet.differences] or list(sheets)
    if not judged:
        done = _listed([step.name for step in flow if step.anchor])
        return f"Nothing has been judged yet; what has finished is {done}."
    sheet = judged[-1]
    judge = "the rule-based judge’s score" if sheet.is_rule_based else "the judge’s score"
    if sheet.differences:
        return _compared(_headline(subject, sheet.differences), judge)
    best = max(sheet.rows, key=lambda row: row.mean)
    return f"{best.name.label} has the highest mean of {judge}: {best.score} {best.interval}".rstrip() + "."


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
        return f"{one} raised {judge} by {_number(found.mean)} {row.interval} over {other}{prompts}."
    if found.high < 0:
        interval = _interval(-found.high, -found.low)
        return f"{one} lowered {judge} by {_number(-found.mean)} {interval} against {other}{prompts}."
    return f"{one} and {other} cannot be told apart{prompts}: {judge} differs by {row.score} {row.interval}."


def _flow(subject: Subject) -> Iterator[Flow]:
    steps = dict(subject.expected()) | {one.manifest.plan.name: one.manifest.plan.stage for one in subject.artifacts}
    for name, stage in steps.items():
        if artifact := subject.named.get(name):
            yield Flow(name, stage, _anchor(name), _duration(artifact.manifest.seconds))
        else:
            yield Flow(name, stage, None, "missing")


def _sheet(subject: Subject, artifact: Artifact) -> Sheet | None:
    """What an evaluation found; None where its manifest has no scores of checkpoints."""
    metrics = artifact.manifest.metrics
    found = {key: estimate for key, value in _mapping(metrics.get("scores")).items() if (estimate := _estimate(value))}
    keys = subject.ordered(key for key in found if "_minus_" not in key)
    if not keys:
        return None
    benchmarks = list(dict.fromkeys(figure for key in keys for figure in subject.published(key)))
    rows = tuple(_score_row(subject, key, found[key], benchmarks) for key in keys)
    paired = {key: found[key] for key in found if "_minus_" in key}
    axis = charts.scale(
        reach for one in paired.values() for reach in (one.mean, one.low, one.high) if reach is not None
    )
    judge = _mapping(metrics.get("judge"))
    answers = _answers(artifact)
    return Sheet(
        anchor=_anchor(artifact.manifest.plan.name),
        title=artifact.manifest.plan.name,
        judge=str(judge.get("name", "not recorded")),
        is_rule_based=judge.get("rule_based") is True,
        rows=rows,
        differences=tuple(_difference_row(subject, key, one, axis) for key, one in paired.items()),
        difference_axis=axis if paired else None,
        wins=tuple(_win_rows(subject, _mapping(metrics.get("pairwise")))),
        benchmarks=tuple(_benchmark(figure) for figure in benchmarks),
        orders=tuple(_orders(subject, rows, benchmarks)),
        notes=(*_unparsed(metrics.get("unparsed")), *artifact.manifest.notes),
        samples=tuple(_samples(subject, answers)),
        prompts=len({row.get("prompt_id") for row in answers}),
    )


def _score_row(subject: Subject, key: str, found: Estimate, benchmarks: Sequence[str]) -> ScoreRow:
    published = subject.published(key)
    return ScoreRow(
        name=subject.name(key),
        mean=found.mean,
        score=_number(found.mean),
        interval=_interval(found.low, found.high),
        n=_count(found.n),
        mark=charts.whisker(SCORE_AXIS, found.mean, found.low, found.high),
        published=tuple(_number(published[figure]) if figure in published else "–" for figure in benchmarks),
    )


def _difference_row(subject: Subject, key: str, found: Estimate, axis: charts.Scale) -> DifferenceRow:
    left, _, right = key.partition("_minus_")
    return DifferenceRow(
        left=subject.name(left),
        right=subject.name(right),
        estimate=found,
        score=_number(found.mean, "+"),
        interval=_interval(found.low, found.high, "+" if found.mean < 0 or (found.low or 0) < 0 else ""),
        n=_count(found.n),
        mark=charts.whisker(axis, found.mean, found.low, found.high),
    )


def _win_rows(subject: Subject, pairwise: Mapping[str, Any]) -> Iterator[WinRow]:
    for key, value in pairwise.items():
        left, over, right = key.partition("_over_")
        rate, low, high = (_real(_mapping(value).get(name)) for name in ("win_rate", "low", "high"))
        if not over or rate is None:
            continue
        counts = {name: int(_real(_mapping(value).get(name)) or 0) for name in ("wins", "draws", "losses")}
        total = sum(counts.values())
        shares = tuple((name, f"{n:,}", 100 * n / total) for name, n in counts.items()) if total else ()
        interval = "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"
        yield WinRow(subject.name(left), subject.name(right), f"{100 * rate:.1f} %", interval, shares)


def _orders(subject: Subject, rows: Sequence[ScoreRow], benchmarks: Sequence[str]) -> Iterator[str]:
    """How far our order of checkpoints is the paper's, benchmark by benchmark."""
    for figure in benchmarks:
        both = [
            (row.mean, subject.published(row.name.key)[figure])
            for row in rows
            if figure in subject.published(row.name.key)
        ]
        pairs = [(one, other) for place, one in enumerate(both) for other in both[place + 1 :] if one[1] != other[1]]
        same = sum((one[0] - other[0]) * (one[1] - other[1]) > 0 for one, other in pairs)
        if pairs:
            benchmark = _benchmark(figure).partition(",")[0]
            yield f"{benchmark}: {same} of {len(pairs)} pairs in the paper’s order"


def _benchmark(figure: str) -> str:
    return BENCHMARKS.get(figure, figure.replace("_", " "))


def _unparsed(count: Any) -> Iterator[str]:
    if isinstance(count, int) and count:
        yield f"{count:,} judgements could not be read and are left out."


def _answers(artifact: Artifact) -> list[dict[str, Any]]:
    path = artifact.table("answers", "test")
    return list(pq.read_table(path).to_pylist()) if path.is_file() else []


def _samples(subject: Subject, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[Turn, ...]]]:
    """The first prompts by id, which is a hash: as good as drawn by lot, and the same in every report."""
    by_prompt: dict[str, dict[int, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        turns = by_prompt.setdefault(str(row.get("prompt_id")), {})
        turns.setdefault(int(row.get("turn") or 1), {})[str(row.get("checkpoint"))] = row
    for prompt in sorted(by_prompt)[:SAMPLES]:
        turns = by_prompt[prompt]
        shown = [_turn(subject, turns[turn], is_first=turn == min(turns)) for turn in sorted(turns)]
        yield prompt[:8], tuple(shown)


def _turn(subject: Subject, answers: Mapping[str, Mapping[str, Any]], is_first: bool) -> Turn:
    keys = subject.ordered(answers)
    messages = answers[keys[0]].get("messages") or []
    asked = messages if is_first else messages[-1:]
    return Turn(
        asked=tuple((str(message["role"]), str(message["content"])) for message in asked),
        answers=tuple(_answer(subject.name(key), answers[key]) for key in keys),
    )


def _answer(name: Name, row: Mapping[str, Any]) -> Answer:
    text = str(row.get("answer") or "").strip()
    is_long = len(text) > LONG_ANSWER
    score = _real(row.get("score"))
    return Answer(
        name=name,
        text=f"{text[:LONG_ANSWER].rstrip()} …" if is_long else text,
        more=text if is_long else "",
        score="no score" if score is None else _number(score),
        reason=str(row.get("reason") or "").strip(),
    )


def _curves(subject: Subject, artifact: Artifact) -> Curves:
    manifest = artifact.manifest
    name = subject.name(manifest.plan.name)
    log = list(_log(artifact.path / "metrics.jsonl"))
    draw = _dpo_charts if manifest.plan.stage == "dpo" else _sft_charts
    drawn = tuple(chart for chart in draw(_anchor(name.key), log) if chart)
    first = _first_loss(manifest) if manifest.plan.stage == "dpo" else None
    return Curves(name, tuple(_training_facts(manifest)), first, drawn)


def _sft_charts(id: str, log: Sequence[Mapping[str, Any]]) -> Iterator[charts.LineChart | None]:
    yield charts.line_chart(f"{id}-loss", "Loss", _twice(log, "loss", "sft"))
    yield charts.line_chart(
        f"{id}-rate",
        "Learning rate",
        [charts.Series("learning rate", "sft", _points(log, "learning_rate"))],
        bounds=[0],
    )


def _dpo_charts(id: str, log: Sequence[Mapping[str, Any]]) -> Iterator[charts.LineChart | None]:
    loss = _twice(log, "loss", "dpo")
    yield charts.line_chart(f"{id}-loss", "Loss", loss, reference=(LN_2, "ln 2"), bounds=[0])
    accuracies = _twice(log, "rewards/accuracies", "dpo")
    yield charts.line_chart(f"{id}-accuracy", "Reward accuracy", accuracies, bounds=[0, 1])
    yield charts.line_chart(f"{id}-margin", "Reward margin", _twice(log, "rewards/margins", "dpo"), bounds=[0])
    rewards = [
        charts.Series("chosen", "dpo", _points(log, "rewards/chosen")),
        charts.Series("rejected", "rejected", _points(log, "rewards/rejected")),
    ]
    yield charts.line_chart(f"{id}-reward", "Rewards", rewards, bounds=[0])


def _twice(log: Sequence[Mapping[str, Any]], key: str, tone: str) -> list[charts.Series]:
    return [
        charts.Series("training", tone, _points(log, key)),
        charts.Series("held out", "held-out", _points(log, f"eval_{key}")),
    ]


def _points(log: Iterable[Mapping[str, Any]], key: str) -> list[charts.Point]:
    found = ((_real(line.get("step")), _real(line.get(key))) for line in log)
    return [(step, value) for step, value in found if step is not None and value is not None]


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metric log; nothing where there is none."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line) if line.strip() else None
        except ValueError:
            raise ZephyrError(
                f"{path}:{number} is not JSON", f"remove {path.parent} and run that stage again"
            ) from None
        if isinstance(values, dict):
            yield values


def _training_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    metrics = {key: _real(value) for key, value in manifest.metrics.items()}
    if (steps := metrics.get("steps")) is not None:
        yield "Steps", f"{steps:,.0f}"
    if (loss := metrics.get("train_loss")) is not None:
        yield "Training loss", _number(loss, places=4)
    if (loss := metrics.get("eval_loss")) is not None:
        yield "Held-out loss", _number(loss, places=4)
    if (accuracy := metrics.get("reward_accuracy")) is not None:
        yield "Held-out reward accuracy", f"{100 * accuracy:.1f} %"
    if (margin := metrics.get("reward_margin")) is not None:
        yield "Held-out reward margin", _number(margin, "+", places=4)
    yield "Wall time", _duration(manifest.seconds)


def _first_loss(manifest: Manifest) -> tuple[str, bool] | None:
    """The first DPO loss against ln 2, which it is wherever policy and reference start as the same model."""
    first = _real(manifest.metrics.get("first_loss"))
    if first is None:
        return None
    gap = abs(first - LN_2)
    said = f"First loss {first:.4f} against ln 2 = {LN_2:.4f}"
    if gap <= 1e-4:
        return f"{said}: equal within 0.0001, so policy and reference began as one model.", True
    if gap <= 1e-2:
        return f"{said}: {gap:.4f} apart, which rounding in bf16 allows.", True
    return f"{said}: {gap:.4f} apart. Policy and reference did not begin as one model.", False


def _loss_rows(subject: Subject) -> Iterator[LossRow]:
    for artifact in subject.artifacts:
        manifest, plan = artifact.manifest, artifact.manifest.plan
        taken, written = tuple(_taken(subject, manifest)), tuple(_tables(manifest))
        if taken or written or manifest.losses:
            dropped = sorted(manifest.losses.items(), key=lambda item: -item[1])
            counts = tuple((cause, f"{count:,}") for cause, count in dropped)
            yield LossRow(plan.name, plan.stage, _anchor(plan.name), taken, counts, written)


def _taken(subject: Subject, manifest: Manifest) -> Iterator[str]:
    reads = READS.get(manifest.plan.stage, set())
    sources = {one.path: one for path in manifest.input_paths.values() if (one := _source(subject, path))}
    for artifact in sources.values():
        yield from list(_tables(artifact.manifest, reads)) or _tables(artifact.manifest)


def _tables(manifest: Manifest, only: Iterable[str] = ()) -> Iterator[str]:
    """The row counts of an artifact's tables, such as `pairs: 900 train, 100 test`."""
    wanted, tables = set(only), dict[str, list[str]]()
    for file, entry in manifest.files.items():
        if entry.rows is not None:
            path = PurePosixPath(file)
            table, split = (str(path.parent), path.stem) if path.parent.name else (path.stem, "rows")
            tables.setdefault(table, []).append(f"{entry.rows:,} {split}")
    for table, counts in tables.items():
        if not wanted or table in wanted:
            yield f"{table}: {', '.join(reversed(counts))}"


def _origin(subject: Subject, artifact: Artifact) -> Origin:
    manifest, plan = artifact.manifest, artifact.manifest.plan
    return Origin(
        anchor=_anchor(plan.name),
        name=plan.name,
        stage=plan.stage,
        tone=plan.stage,
        finished=_moment(manifest.finished_at),
        seconds=_duration(manifest.seconds),
        cost=f"{manifest.cost_usd:,.2f} USD" if manifest.cost_usd else "",
        hash=manifest.content_hash,
        inputs=tuple(_inputs(subject, manifest)),
        files=tuple(
            (name, entry.sha256, f"{entry.rows:,}" if entry.rows is not None else "–", _size(entry.bytes))
            for name, entry in manifest.files.items()
        ),
        settings=_listing(plan.settings),
        metrics=_listing(manifest.metrics),
        versions=(("zephyrctl", plan.zephyrctl), *manifest.libraries.items()),
        plugins=tuple(manifest.plugins.items()),
        notes=tuple(manifest.notes),
    )


def _inputs(subject: Subject, manifest: Manifest) -> Iterator[Input]:
    for name, content in manifest.plan.inputs.items():
        path = manifest.input_paths.get(name, "")
        source = _source(subject, path)
        anchor = _anchor(source.manifest.plan.name) if source else None
        # A stage may be keyed by a part of an artifact; only the hash of a whole one can be compared.
        is_whole = source is not None and path == source.manifest.plan.name
        yield Input(name, path, content, anchor, is_whole and source is not None and source.content_hash != content)


def _stale(subject: Subject) -> Iterator[str]:
    for artifact in subject.artifacts:
        names = [one.path for one in _inputs(subject, artifact.manifest) if one.is_stale]
        if names:
            yield f"{artifact.manifest.plan.name} was made from an earlier {_listed(names)}"


def _source(subject: Subject, path: str) -> Artifact | None:
    """The artifact of this run that an input path lies in."""
    return subject.named.get(path.partition("/")[0])


def _listing(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in flatten(values).items()
    )


def _estimate(value: Any) -> Estimate | None:
    values = _mapping(value)
    mean, low, high, n = (_real(values.get(key)) for key in ("mean", "low", "high", "n"))
    return None if mean is None else Estimate(mean, low, high, None if n is None else int(n))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _real(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _number(value: float, sign: str = "", places: int = 2) -> str:
    """A fixed number of decimals and a true minus sign; what rounds to zero has no sign."""
    rounded = round(value, places) + 0.0
    return f"{rounded:{sign if rounded else ''}.{places}f}".replace("-", "−")


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"[{_number(low, sign)}, {_number(high, sign)}]"


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if moment.tzinfo else text


def _size(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 99.5 else f"{size:.1f} {units[0]}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _anchor(name: str) -> str:
    return "artifact-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)
