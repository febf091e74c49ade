"""What a reader of the published model must know: the model card, whose every number is a manifest's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zephyrctl import templates
from zephyrctl.contracts import ModelBase
from zephyrctl.publishing import card_evidence
from zephyrctl.publishing.subject import TRAINING
from zephyrctl.recipe.loading import flatten
from zephyrctl.runs.manifest import FileEntry, Manifest

ZEPHYR_TURN = "'<|' + message['role'] + '|>"
"""What a chat template says that marks turns as Zephyr does."""


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

    `chain` holds the manifests behind the checkpoint, earliest first, `evaluations` those that judged it;
    what they do not say is left out. `chat_template` and `end_of_turn` are the tokenizer's, `curves` the paths of
    pictures beside the card, `waived` what spoke against publishing and was waived.
    """
    checkpoint = chain[-1]
    scored = [manifest for manifest in evaluations if manifest.metrics.get("scores")]
    evaluation = scored[-1] if scored else None
    hub_id = hub_id_of(base)
    everything = [*chain, *evaluations]
    return templates.render(
        "card/model.md.jinja",
        front_matter=_yaml(front_matter(recipe_name, chain, evaluation, base, evaluations)),
        model=f"{recipe_name}-{checkpoint.plan.name}",
        stages=[manifest.plan.stage for manifest in chain],
        base=f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{base.name}`",
        revision=base.revision if hub_id else None,
        chain=[_stage(manifest) for manifest in everything],
        trained=[_training(manifest) for manifest in chain if manifest.plan.stage in TRAINING],
        data=list(card_evidence.data_lines(chain)),
        licence=base.license,
        licence_warnings=list(card_evidence.licence_warnings(base, chain)),
        curves=[_curve(path) for path in curves],
        benchmarks=[_benchmark(one) for one in card_evidence.benchmarks(evaluations, checkpoint.plan.name)],
        waived=list(dict.fromkeys(map(_cell, waived))),
        judge=_judge(evaluation),
        scores=list(_scores(evaluation)),
        differences=list(_differences(evaluation)),
        pairwise=list(_pairwise(evaluation)),
        notes=list(dict.fromkeys(_sentence(note) for manifest in everything for note in manifest.notes)),
        marks_turns_like_zephyr=ZEPHYR_TURN in chat_template,
        end_of_turn=end_of_turn,
        zephyrctl=checkpoint.plan.zephyrctl,
        versions=[" ".join(pair) for pair in {**checkpoint.libraries, **checkpoint.plugins}.items()],
    )


def front_matter(
    recipe_name: str,
    chain: Sequence[Manifest],
    evaluation: Manifest | None,
    base: ModelBase,
    evaluations: Sequence[Manifest] = (),
) -> dict[str, Any]:
    """The card's metadata in the Hub's words; what is not known has no key."""
    method = "dpo" if any(manifest.plan.stage == "dpo" for manifest in chain) else "sft"
    values: dict[str, Any] = {
        "license": base.license,
        "base_model": hub_id_of(base),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": ["zephyrctl", "trl", method, "alignment"],
        "datasets": sorted(name for name, _ in card_evidence.datasets(chain)),
        "model-index": _model_index(
            f"{recipe_name}-{chain[-1].plan.name}", chain[-1].plan.name, evaluation, evaluations
        ),
    }
    return {key: value for key, value in values.items() if value}


def hub_id_of(base: ModelBase) -> str | None:
    """The base's Hub id, or None where it is a folder."""
    location = base.location()
    looks_like_one = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", location)
    return location if looks_like_one and not Path(location).exists() else None


def _yaml(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return text


def _model_index(
    model: str, checkpoint: str, evaluation: Manifest | None, evaluations: Sequence[Manifest]
) -> list[dict[str, Any]]:
    """The scores of this checkpoint alone, as the Hub's leaderboards read them."""
    task = {"type": "text-generation", "name": "Answering held-out prompts"}
    data = {"type": "held-out-prompts", "name": "Held-out prompts of the run"}
    found = list(_held_out(checkpoint, evaluation))
    results = [{"task": task, "dataset": data, "metrics": found}] if found else []
    for one in card_evidence.benchmarks(evaluations, checkpoint):
        figures = [
            {"type": "score", "name": f"{one['name']}, {row['name']}", "value": row["value"]} for row in one["rows"]
        ]
        name = one["name"]
        results.append(
            {
                "task": {"type": "text-generation", "name": "Text Generation"},
                "dataset": {"type": name.casefold().replace(" ", "-"), "name": name},
                "metrics": figures,
            }
        )
    return [{"name": model, "results": results}] if results else []


def _held_out(checkpoint: str, evaluation: Manifest | None) -> Iterator[dict[str, Any]]:
    score = dict(_metric(evaluation, "scores")).get(checkpoint, {}).get("mean")
    judge = _judge(evaluation)
    if score is None or judge is None:
        return
    by = f"by {judge['name']} ({'rules' if judge['rule_based'] else 'a model'})"
    yield {"type": "judge-score", "name": f"Score from 1 to 10 {by}", "value": score}
    for name, pair in _metric(evaluation, "pairwise"):
        winner, _, loser = name.partition("_over_")
        if winner == checkpoint and pair.get("win_rate") is not None:
            yield {"type": "win-rate", "name": f"Win rate over {loser} {by}", "value": pair["win_rate"]}


def _benchmark(one: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's figures as the card's table shows them."""
    rows = [
        {
            "name": _cell(row["name"]),
            "value": f"{row['value']:.2f}",
            "interval": _interval(row, ".2f"),
            "paper": "" if row["paper"] is None else f"{row['paper']:.2f}",
            "delta": "" if row["delta"] is None else f"{row['delta']:+.2f}",
        }
        for row in one["rows"]
    ]
    return {**one, "rows": rows, "has_paper": any(row["paper"] for row in rows)}


def _curve(path: str) -> dict[str, str]:
    stage, name = path.split("/")[-2:]
    return {"path": path, "about": f"{name.removesuffix('.svg').replace('-', ' ')} of {stage}"}


def _stage(manifest: Manifest) -> dict[str, str]:
    """One line of the chain: what a stage wrote and what it lost."""
    losses = [f"{_number(rows)} {_cell(cause)}" for cause, rows in manifest.dropped.items()]
    else_wrote = "a checkpoint" if manifest.plan.stage in TRAINING else "figures"
    return {
        "name": manifest.plan.name,
        "stage": manifest.plan.stage,
        "wrote": "; ".join(_row_counts(manifest.files)) or else_wrote,
        "lost": "; ".join(losses) or "nothing",
        "time": _duration(manifest.seconds),
        "cost": f"{manifest.cost_usd:.2f} USD" if manifest.cost_usd else "",
    }


def _row_counts(files: Mapping[str, FileEntry]) -> Iterator[str]:
    """`dialogues: 1,900 train, 100 test` for each folder of Parquet files."""
    tables: dict[str, dict[str, int]] = {}
    for name, entry in files.items():
        if entry.rows is not None:
            folder, _, file = name.rpartition("/")
            tables.setdefault(folder or "rows", {})[file.removesuffix(".parquet")] = entry.rows
    for folder, counts in tables.items():
        ordered = sorted(counts.items(), key=lambda item: (item[0] != "train", item[0]))
        yield f"{folder}: {', '.join(f'{_number(rows)} {split}' for split, rows in ordered)}"


def _training(manifest: Manifest) -> dict[str, Any]:
    """A training stage's settings and what it measured, as pairs to print."""
    measured = flatten(manifest.metrics)
    known = card_evidence.marks(flatten(manifest.plan.settings))
    return {
        "name": manifest.plan.name,
        "stage": manifest.plan.stage,
        "hardware": manifest.metrics.get("hardware"),
        "time": _duration(manifest.seconds),
        "settings": [
            (key, _value(value), known.get(key, "")) for key, value in flatten(manifest.plan.settings).items()
        ],
        "measured": [(key, _number(value)) for key, value in measured.items() if _is_number(value)],
    }


def _judge(evaluation: Manifest | None) -> dict[str, Any] | None:
    judge = (evaluation.metrics.get("judge") if evaluation else None) or {}
    return {"name": _cell(judge["name"]), "rule_based": bool(judge.get("rule_based"))} if "name" in judge else None


def _scores(evaluation: Manifest | None) -> Iterator[dict[str, str]]:
    for name, score in _metric(evaluation, "scores"):
        if "_minus_" not in name:
            n = _number(score["n"]) if score.get("n") is not None else ""
            yield {"name": name, "mean": f"{score['mean']:.2f}", "interval": _interval(score, ".2f"), "n": n}


def _differences(evaluation: Manifest | None) -> Iterator[dict[str, str]]:
    for name, score in _metric(evaluation, "scores"):
        better, minus, worse = name.partition("_minus_")
        if minus:
            interval = _interval(score, "+.2f")
            yield {"better": better, "worse": worse, "mean": f"{score['mean']:+.2f}", "interval": interval}


def _pairwise(evaluation: Manifest | None) -> Iterator[dict[str, str]]:
    for name, pair in _metric(evaluation, "pairwise"):
        winner, _, loser = name.partition("_over_")
        counts = [f"{_number(pair[key])} {key}" for key in ("wins", "losses", "draws") if key in pair]
        rate = f"{pair['win_rate']:.1%}" if pair.get("win_rate") is not None else ""
        won = {"winner": winner, "loser": loser, "rate": rate, "interval": _interval(pair, ".1%")}
        yield {**won, "counts": ", ".join(counts)}


def _metric(evaluation: Manifest | None, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, values in (evaluation.metrics.get(key) or {}).items() if evaluation else ():
        if values and (key != "scores" or values.get("mean") is not None):
            yield name, values


def _interval(values: Mapping[str, Any], form: str) -> str:
    low, high = values.get("low"), values.get("high")
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _value(value: Any) -> str:
    """A setting as a table shows it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(_value(part) for part in value)
    if isinstance(value, str) and "\n" in value.strip():
        return f"{len(value.strip().splitlines())} lines, in the manifest"
    return f"{value:.6g}" if isinstance(value, float) else _cell(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _sentence(note: str) -> str:
    """A note in one line; what follows its first line is what to make of it."""
    return _cell("; ".join(line.strip() for line in note.splitlines()))


def _cell(value: Any) -> str:
    """Text that breaks no table."""
    return " ".join(str(value).split()).replace("|", "\\|")
