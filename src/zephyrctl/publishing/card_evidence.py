"""What a model card says beside its stages: data and licences, whose settings these are, benchmarks and the paper."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from zephyrctl import templates
from zephyrctl.contracts import ModelBase
from zephyrctl.evaluation.published import PublishedRow, published_tables
from zephyrctl.recipe.loading import flatten, load
from zephyrctl.runs.manifest import Manifest

PAPER, HANDBOOK, OWN = "paper", "handbook", "yours"
SHIPPED = {PAPER: "zephyr-7b-beta", HANDBOOK: "zephyr-7b-handbook"}
"""Whose settings they are: the recipe that states them as published."""
ZEPHYR = ("Zephyr", "7B")
COLUMNS = {"arc": "ARC", "hellaswag": "HellaSwag", "mmlu": "MMLU", "truthfulqa": "TruthfulQA"}


def marks(settings: Mapping[str, Any]) -> dict[str, str]:
    """Setting: who published this very value, for what the shipped recipes of the paper and the handbook state too."""
    found = {}
    for key, value in settings.items():
        stating = {name: values for name, values in _published().items() if values.get(key) is not None}
        if stating:
            same = [name for name, values in stating.items() if values[key] == value]
            found[key] = " and ".join(same) or OWN
    return found


def datasets(chain: Sequence[Manifest]) -> list[tuple[str, str | None]]:
    """The Hub's data sets behind a model, each with the revision that was pinned."""
    found: dict[str, str | None] = {}
    for manifest in chain:
        settings = manifest.plan.settings
        source = settings.get("source") or {}
        if source.get("kind") == "hub" and isinstance(source.get("dataset"), str):
            found[source["dataset"]] = source.get("revision")
        if isinstance(settings.get("published"), str):
            found[settings["published"]] = settings.get("published_revision")
    return list(found.items())


def data_lines(chain: Sequence[Manifest]) -> Iterator[str]:
    """Where the data came from and what was done to it, a sentence each."""
    for name, revision in datasets(chain):
        pinned = f"at revision `{revision}`" if revision else "with no revision pinned"
        licence = _licences()["datasets"].get(name)
        yield f"`{name}` {pinned}, {f'licence {licence}' if licence else 'whose licence is not known here'}"
    for manifest in chain:
        settings = manifest.plan.settings
        source = settings.get("source") or {}
        if source.get("kind") and source["kind"] != "hub":
            yield f"`{manifest.plan.name}`: {source['kind']}{_by(source)}"
        if teachers := _teachers(settings):
            yield f"`{manifest.plan.name}` asked {', '.join(f'`{name}`' for name in teachers)}"
        clean = settings.get("clean") or {}
        rules = [*(["truecasing"] if clean.get("truecase") else []), *(clean.get("openings") or {})]
        if rules:
            yield f"`{manifest.plan.name}` cleaned by {', '.join(rules)}"
        searched = settings.get("decontaminate") or {}
        if searched.get("against"):
            files, rule = len(searched["against"]), searched["on_hit"]
            yield f"`{manifest.plan.name}` searched {files} benchmark files; the rule for a hit is {rule}"


def licence_warnings(base: ModelBase, chain: Sequence[Manifest]) -> Iterator[str]:
    """What about licences somebody should look at before they pass the model on."""
    known = _licences()
    for name, _ in datasets(chain):
        licence = known["datasets"].get(name)
        if licence is None:
            yield f"the licence of `{name}` is not known here: look at its page"
        elif any(part in licence for part in known["not_for_sale"]) and "-nc" not in base.license:
            yield f"`{name}` is {licence}, which forbids commercial use, and the base is {base.license}: they clash"
        elif any(part in licence for part in known["share_alike"]) and licence != base.license:
            yield f"`{name}` is {licence}, which asks for the same licence, and the base is {base.license}: they clash"
    asked = [name for manifest in chain for name in _teachers(manifest.plan.settings) if name != "offline"]
    if asked:
        yield "the terms of the models that wrote or rated the data say what may be trained on their words"


def benchmarks(evaluations: Sequence[Manifest], checkpoint: str) -> Iterator[dict[str, Any]]:
    """Every benchmark that scored the checkpoint: figures with intervals, judge, what it cannot be compared with."""
    for manifest in evaluations:
        metrics = manifest.metrics
        kind = metrics.get("benchmark")
        one = (metrics.get("models") or metrics.get("ratings") or {}).get(checkpoint)
        if kind in _READ and one:
            yield {
                "name": _TITLES[kind],
                "rows": [row for row in _READ[kind](one) if row["value"] is not None],
                "judge": _judge(metrics.get("judge") or {}),
                "remarks": [str(line) for line in metrics.get("comparability") or ()],
                "overlap": _overlap(metrics.get("contamination") or {}),
            }


def _published() -> dict[str, dict[str, Any]]:
    return {name: _settings(recipe) for name, recipe in SHIPPED.items()}


@cache
def _settings(recipe: str) -> dict[str, Any]:
    made = load(recipe, {}).recipe
    return flatten({"sft": made.sft.model_dump(mode="json"), "dpo": made.dpo.model_dump(mode="json")})


@cache
def _licences() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(templates.read("licences.yaml"))
    return read


def _teachers(settings: Mapping[str, Any]) -> list[str]:
    """The models that a stage asked, by what they are called."""
    source = settings.get("source") or {}
    asked = [source.get(role) for role in ("teacher", "assistant", "user")]
    asked += [*(settings.get("completers") or []), settings.get("rater")]
    names = [(one.get("options") or {}).get("model") or one.get("name") for one in asked if isinstance(one, Mapping)]
    return list(dict.fromkeys(str(name) for name in names if name))


def _by(source: Mapping[str, Any]) -> str:
    teacher = (source.get("teacher") or source.get("assistant") or {}).get("name")
    return f" by `{teacher}`" if teacher else ""


def _judge(judge: Mapping[str, Any]) -> str:
    if not judge:
        return ""
    if judge.get("rule_based"):
        return f"`{judge.get('name')}`, fixed rules and not a language model"
    return ", ".join(f"`{name}`" for name in judge.get("models") or [judge.get("name")])


def _overlap(found: Mapping[str, Any]) -> str:
    if not found:
        return "the training data was not searched for its questions"
    searched = ", ".join(found.get("searched") or ())
    return f"{found['hits']} of {found['questions']} questions are in the training data ({searched})"


def _mt_bench(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _row("score, 1 to 10", one.get("score"), one.get("low"), one.get("high"), "mt_bench")
    for name, interval in (one.get("intervals") or {}).items():
        low, high = interval or (None, None)
        yield _row(name.replace("_", " "), one.get(name), low, high)
    for name, category in (one.get("categories") or {}).items():
        yield _row(name, category.get("score"), category.get("low"), category.get("high"))


def _alpaca_eval(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _row("win rate, %", one.get("win_rate"), one.get("low"), one.get("high"), "alpaca_eval")
    low, high = one.get("length_controlled_low"), one.get("length_controlled_high")
    yield _row("at equal length, %", one.get("length_controlled"), low, high)


def _open_llm(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    intervals = one.get("intervals") or {}
    for name, title in COLUMNS.items():
        low, high = intervals.get(name) or (None, None)
        yield _row(f"{title}, %", one.get(name), low, high, name)


def _arena(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _row("rating", one.get("rating"), one.get("low"), one.get("high"))


def _row(name: str, value: float | None, low: float | None, high: float | None, published: str = "") -> dict[str, Any]:
    """A figure, and where the paper prints one for Zephyr the paper's and how far ours is above it."""
    paper = _of_paper(published) if published else None
    delta = None if paper is None or value is None else value - paper
    return {"name": name, "value": value, "low": low, "high": high, "paper": paper, "delta": delta}


def _of_paper(benchmark: str) -> float | None:
    rows: list[PublishedRow] = [row for table in published_tables() for row in table.rows]
    figures = [row.figures for row in rows if (row.model, row.size) == ZEPHYR]
    return next((of[benchmark].value for of in figures if benchmark in of), None)  # type: ignore[index]


_READ = {"mt-bench": _mt_bench, "alpaca-eval": _alpaca_eval, "open-llm": _open_llm, "arena": _arena}
_TITLES = {"mt-bench": "MT-Bench", "alpaca-eval": "AlpacaEval", "open-llm": "Open LLM Leaderboard", "arena": "Arena"}
