"""How each training went: its loss, accuracy, margins and rewards over steps, and its first loss against ln 2."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.errors import ZephyrError
from zephyrctl.publishing import charts
from zephyrctl.publishing.measured import real
from zephyrctl.publishing.number_format import anchor, duration, number
from zephyrctl.publishing.subject import Name, Subject
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Manifest

LN_2 = math.log(2)

Log = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curves:
    """How one training went; `first_loss` holds a sentence and whether it is as it must be."""

    name: Name
    facts: tuple[tuple[str, str], ...]
    first_loss: tuple[str, bool] | None
    charts: tuple[charts.LineChart, ...]


def curves(subject: Subject, artifact: Artifact) -> Curves:
    """The facts and charts of one checkpoint. Raises ZephyrError where its metric log is damaged."""
    manifest = artifact.manifest
    name = subject.name(manifest.plan.name)
    log = metric_log(artifact)
    draw = _dpo_charts if manifest.plan.stage == "dpo" else _sft_charts
    drawn = tuple(chart for chart in draw(anchor(name.key), log) if chart)
    first = _first_loss(manifest) if manifest.plan.stage == "dpo" else None
    return Curves(name, tuple(_training_facts(manifest)), first, drawn)


def drawn(artifact: Artifact) -> list[charts.LineChart]:
    """The charts of one training, for whoever shows them by themselves."""
    draw = _dpo_charts if artifact.manifest.plan.stage == "dpo" else _sft_charts
    return [chart for chart in draw(artifact.manifest.plan.name, metric_log(artifact)) if chart]


def metric_log(artifact: Artifact) -> list[dict[str, Any]]:
    """The lines of a checkpoint's metric log; nothing where there is none. Raises ZephyrError where one is damaged."""
    return list(_lines(artifact.path / "metrics.jsonl"))


def points(log: Iterable[Mapping[str, Any]], key: str, along: str = "step") -> list[charts.Point]:
    """The (step, value) of all lines that have both."""
    found = ((real(line.get(along)), real(line.get(key))) for line in log)
    return [(place, value) for place, value in found if place is not None and value is not None]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line) if line.strip() else None
        except ValueError:
            raise ZephyrError(f"{path}:{place} is not JSON", f"remove {path.parent} and run that stage again") from None
        if isinstance(values, dict):
            yield values


def _sft_charts(id: str, log: Log) -> Iterator[charts.LineChart | None]:
    yield charts.line_chart(f"{id}-loss", "Loss", _twice(log, "loss", "sft"))
    yield charts.line_chart(
        f"{id}-rate", "Learning rate", [charts.Series("learning rate", "sft", points(log, "learning_rate"))], bounds=[0]
    )


def _dpo_charts(id: str, log: Log) -> Iterator[charts.LineChart | None]:
    loss = _twice(log, "loss", "dpo")
    yield charts.line_chart(f"{id}-loss", "Loss", loss, reference=(LN_2, "ln 2"), bounds=[0])
    accuracies = _twice(log, "rewards/accuracies", "dpo")
    yield charts.line_chart(f"{id}-accuracy", "Reward accuracy", accuracies, bounds=[0, 1])
    yield charts.line_chart(f"{id}-margin", "Reward margin", _twice(log, "rewards/margins", "dpo"), bounds=[0])
    rewards = [
        charts.Series("chosen", "dpo", points(log, "rewards/chosen")),
        charts.Series("rejected", "rejected", points(log, "rewards/rejected")),
    ]
    yield charts.line_chart(f"{id}-reward", "Rewards", rewards, bounds=[0])


def _twice(log: Log, key: str, tone: str) -> list[charts.Series]:
    return [
        charts.Series("training", tone, points(log, key)),
        charts.Series("held out", "held-out", points(log, f"eval_{key}")),
    ]


def _training_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    metrics = {key: real(value) for key, value in manifest.metrics.items()}
    if (steps := metrics.get("steps")) is not None:
        yield "Steps", f"{steps:,.0f}"
    if (loss := metrics.get("train_loss")) is not None:
        yield "Training loss", number(loss, places=4)
    if (loss := metrics.get("eval_loss")) is not None:
        yield "Held-out loss", number(loss, places=4)
    if (accuracy := metrics.get("reward_accuracy")) is not None:
        yield "Held-out reward accuracy", f"{100 * accuracy:.1f} %"
    if (margin := metrics.get("reward_margin")) is not None:
        yield "Held-out reward margin", number(margin, "+", places=4)
    yield "Wall time", duration(manifest.seconds)


def _first_loss(manifest: Manifest) -> tuple[str, bool] | None:
    """The first DPO loss against ln 2, which it is wherever policy and reference start as the same model."""
    first = real(manifest.metrics.get("first_loss"))
    if first is None:
        return None
    gap = abs(first - LN_2)
    said = f"First loss {first:.4f} against ln 2 = {LN_2:.4f}"
    if gap <= 1e-4:
        return f"{said}: equal within 0.0001, so policy and reference began as one model.", True
    if gap <= 1e-2:
        return f"{said}: {gap:.4f} apart, which rounding in bf16 allows.", True
    return f"{said}: {gap:.4f} apart. Policy and reference did not begin as one model.", False
