"""Render the model card of a published model; every number in it comes from a manifest."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import JsonValue

from zephyrctl import templates
from zephyrctl.contracts import ModelBase
from zephyrctl.evaluation.results import HeldOutResult
from zephyrctl.publishing import card_data, card_scores
from zephyrctl.publishing.card_text import duration, join_lines, one_line, plain_number, setting_value
from zephyrctl.publishing.reported_run import TRAINING
from zephyrctl.recipe.loading import flatten
from zephyrctl.runs.manifest import FileEntry, Manifest
from zephyrctl.training.kinds import KINDS, RowForm

ZEPHYR_TURN = "'<|' + message['role'] + '|>"
"""The part of a chat template that marks turns as Zephyr does."""
METHODS: dict[RowForm, str] = {
    "dialogues": "fine-tuned on dialogues",
    "pairs": "trained on which of two answers is preferred",
}
"""What a kind of training does, by the form of its rows."""


@dataclass(frozen=True)
class CardStage:
    """One stage behind the model: what it wrote and what it dropped."""

    name: str
    stage: str
    wrote: str
    dropped: str
    time: str
    cost: str


@dataclass(frozen=True)
class CardSetting:
    """A setting, its value, and who published this value."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class CardTraining:
    """The settings of a training, and what it measured."""

    name: str
    hardware: str
    time: str
    settings: tuple[CardSetting, ...]
    measured: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CardCurve:
    """A picture of a curve."""

    path: str
    description: str


def render_card(
    recipe_name: str,
    chain: Sequence[Manifest],
    evaluations: Sequence[Manifest],
    base: ModelBase,
    chat_template: str = "",
    end_of_turn: str | None = None,
    curves: Sequence[str] = (),
    waived: Sequence[str] = (),
) -> str:
    """The model card of the last manifest of `chain`, in Markdown with the Hub's YAML front matter.

    `chain` contains the manifests behind the checkpoint, earliest first, `evaluations` those that judged it; what they
    do not state is left out. `chat_template` and `end_of_turn` are the tokenizer's, `curves` the paths of pictures
    beside the card, `waived` the problems that were found and waived. Raises ZephyrError if a result is damaged.
    """
    checkpoint = chain[-1]
    everything = [*chain, *evaluations]
    stages = [manifest.plan.stage for manifest in chain]
    kinds = [KINDS[stage] for stage in KINDS if stage in stages]
    hub_id = hub_id_of(base)
    held_out = card_scores.held_out_result(evaluations)
    return templates.render(
        "card/model.md.jinja",
        front_matter=_yaml(front_matter(recipe_name, chain, held_out, base, evaluations)),
        model=f"{recipe_name}-{checkpoint.plan.name}",
        base=f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{base.name}`",
        revision=base.revision if hub_id else None,
        methods=[f"{METHODS[kind.rows]} ({kind.title})" for kind in kinds],
        has_feedback="feedback" in stages,
        learned_from_feedback="feedback" in stages and any(kind.rows == "pairs" for kind in kinds),
        chain=[_stage(manifest) for manifest in everything],
        trainings=[_training(manifest) for manifest in chain if manifest.plan.stage in TRAINING],
        data=list(card_data.data_lines(chain)),
        licence=base.license,
        licence_warnings=list(card_data.licence_warnings(base, chain)),
        curves=[_curve(path) for path in curves],
        held_out=card_scores.held_out_card(held_out),
        benchmarks=list(card_scores.benchmark_cards(evaluations, checkpoint.plan.name)),
        waived=list(dict.fromkeys(map(one_line, waived))),
        notes=list(dict.fromkeys(join_lines(note) for manifest in everything for note in manifest.notes)),
        marks_turns_like_zephyr=ZEPHYR_TURN in chat_template,
        end_of_turn=end_of_turn,
        zephyrctl=checkpoint.plan.zephyrctl,
        versions=[" ".join(pair) for pair in {**checkpoint.libraries, **checkpoint.plugins}.items()],
    )


def front_matter(
    recipe_name: str,
    chain: Sequence[Manifest],
    held_out: HeldOutResult | None,
    base: ModelBase,
    evaluations: Sequence[Manifest] = (),
) -> dict[str, JsonValue]:
    """The card's metadata by the Hub's names; what is unknown has no key."""
    stages = {manifest.plan.stage for manifest in chain}
    trained = [kind for kind in KINDS if kind in stages]
    checkpoint = chain[-1].plan.name
    index = _model_index(f"{recipe_name}-{checkpoint}", checkpoint, held_out, evaluations)
    values: dict[str, JsonValue] = {
        "license": base.license,
        "base_model": hub_id_of(base),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": ["zephyrctl", "trl", *trained[-1:], "alignment"],
        "datasets": [*sorted(card_data.data_sets(chain))],
        "model-index": index,
    }
    return {key: value for key, value in values.items() if value}


def hub_id_of(base: ModelBase) -> str | None:
    """The base's Hub id, or None if it is a folder."""
    location = base.location()
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", location)
    return location if looks_like_one and not Path(location).exists() else None


def _yaml(values: Mapping[str, JsonValue]) -> str:
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
    return text


def _model_index(
    model: str, checkpoint: str, held_out: HeldOutResult | None, evaluations: Sequence[Manifest]
) -> list[JsonValue]:
    """The scores of this checkpoint, as the Hub's leaderboards read them."""
    results: list[JsonValue] = []
    if metrics := list(_held_out_metrics(checkpoint, held_out)):
        results.append(
            {
                "task": {"type": "text-generation", "name": "Answering held-out prompts"},
                "dataset": {"type": "held-out-prompts", "name": "Held-out prompts of the run"},
                "metrics": metrics,
            }
        )
    for benchmark in card_scores.benchmark_cards(evaluations, checkpoint):
        figures: list[JsonValue] = [
            {"type": "score", "name": f"{benchmark.name}, {figure.name}", "value": figure.value}
            for figure in benchmark.figures
        ]
        results.append(
            {
                "task": {"type": "text-generation", "name": "Text Generation"},
                "dataset": {"type": benchmark.name.casefold().replace(" ", "-"), "name": benchmark.name},
                "metrics": figures,
            }
        )
    return [{"name": model, "results": results}] if results else []


def _held_out_metrics(checkpoint: str, held_out: HeldOutResult | None) -> Iterator[JsonValue]:
    if held_out is None or held_out.judge is None or checkpoint not in held_out.scores:
        return
    judge = one_line(held_out.judge.name)
    by = f"by {judge} ({'rules' if held_out.judge.rule_based else 'a model'})"
    yield {"type": "judge-score", "name": f"Score from 1 to 10 {by}", "value": held_out.scores[checkpoint].mean}
    for match in card_scores.held_out_card(held_out).matches:
        if match.winner == checkpoint:
            yield {"type": "win-rate", "name": f"Win rate over {match.loser} {by}", "value": match.win_rate}


def _curve(path: str) -> CardCurve:
    stage, name = path.split("/")[-2:]
    return CardCurve(path, f"{name.removesuffix('.svg').replace('-', ' ')} of {stage}")


def _stage(manifest: Manifest) -> CardStage:
    dropped = [f"{plain_number(rows)} {one_line(cause)}" for cause, rows in manifest.dropped.items()]
    without_rows = "a checkpoint" if manifest.plan.stage in TRAINING else "scores"
    return CardStage(
        name=manifest.plan.name,
        stage=manifest.plan.stage,
        wrote="; ".join(_row_counts(manifest.files)) or without_rows,
        dropped="; ".join(dropped) or "nothing",
        time=duration(manifest.seconds),
        cost=f"{manifest.cost_usd:.2f} USD" if manifest.cost_usd else "",
    )


def _row_counts(files: Mapping[str, FileEntry]) -> Iterator[str]:
    """`dialogues: 1,900 train, 100 test` for each folder of Parquet files."""
    tables: dict[str, dict[str, int]] = {}
    for name, entry in files.items():
        if entry.rows is not None:
            folder, _, file = name.rpartition("/")
            tables.setdefault(folder or "rows", {})[file.removesuffix(".parquet")] = entry.rows
    for folder, counts in tables.items():
        ordered = sorted(counts.items(), key=lambda item: (item[0] != "train", item[0]))
        yield f"{folder}: {', '.join(f'{plain_number(rows)} {split}' for split, rows in ordered)}"


def _training(manifest: Manifest) -> CardTraining:
    settings = flatten(manifest.plan.settings)
    sources = card_data.setting_sources(settings)
    # Every number that the manifest states, also those that only some kinds of training measure.
    measured = [(name, value) for name, value in flatten(manifest.metrics).items() if _is_number(value)]
    return CardTraining(
        name=manifest.plan.name,
        hardware=str(manifest.metrics["hardware"]) if "hardware" in manifest.metrics else "",
        time=duration(manifest.seconds),
        settings=tuple(CardSetting(key, setting_value(value), sources.get(key, "")) for key, value in settings.items()),
        measured=tuple((name, plain_number(value)) for name, value in measured),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
