"""Describe a model's data, licences and settings for its card, from the manifests behind it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import yaml
from pydantic import BaseModel, ConfigDict

from zephyrctl import templates
from zephyrctl.contracts import ModelBase
from zephyrctl.publishing.stage_settings import SourceSettings, StageSettings
from zephyrctl.recipe.loading import flatten, load
from zephyrctl.runs.manifest import Manifest
from zephyrctl.training.kinds import KINDS

PUBLISHERS = {"paper": "zephyr-7b-beta", "handbook": "zephyr-7b-handbook"}
"""Who published settings: the shipped recipe that states them."""
OWN = "yours"
RULE_BASED = "offline"
"""The teacher of the tiny world, whose words have no terms of use."""


class Licences(BaseModel):
    """Known licences of data sets, and the parts of a licence's name that restrict what may be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: dict[str, str]
    non_commercial: list[str]
    share_alike: list[str]


def setting_sources(settings: Mapping[str, object]) -> dict[str, str]:
    """Setting: who published this value, such as `paper and handbook`, or `yours`.

    Settings that neither the paper's nor the handbook's recipe states are left out.
    """
    sources = {}
    for key, value in settings.items():
        stated = {name: values[key] for name, values in _published_settings().items() if values.get(key) is not None}
        if stated:
            sources[key] = " and ".join(name for name, published in stated.items() if published == value) or OWN
    return sources


def data_sets(chain: Sequence[Manifest]) -> dict[str, str | None]:
    """The Hub's data sets behind a model, each with the revision that was pinned."""
    return dict(pair for manifest in chain for pair in StageSettings.of(manifest.plan).data_sets())


def data_lines(chain: Sequence[Manifest]) -> Iterator[str]:
    """Where the data came from and what was done to it, one line each."""
    for name, revision in data_sets(chain).items():
        pinned = f"at revision `{revision}`" if revision else "with no revision pinned"
        licence = _licences().datasets.get(name)
        yield f"`{name}` {pinned}, {f'licence {licence}' if licence else 'of unknown licence'}"
    for manifest in chain:
        name, settings = manifest.plan.name, StageSettings.of(manifest.plan)
        if settings.source.kind and settings.source.kind != "hub":
            yield f"`{name}`: {settings.source.kind}{_by_teacher(settings.source)}"
        if teachers := settings.teachers():
            yield f"`{name}` asked {', '.join(f'`{teacher}`' for teacher in teachers)}"
        rules = [*(["truecasing"] if settings.clean.truecase else []), *settings.clean.openings]
        if rules:
            yield f"`{name}` cleaned by {', '.join(rules)}"
        if files := settings.decontaminate.against:
            on_hit = settings.decontaminate.on_hit
            yield f"`{name}` searched {len(files)} benchmark files; what happened to rows that contain one: {on_hit}"


def licence_warnings(base: ModelBase, chain: Sequence[Manifest]) -> Iterator[str]:
    """What somebody should check about licences before they pass the model on."""
    known = _licences()
    conflict = f"and the base is {base.license}: they conflict"
    for name in data_sets(chain):
        licence = known.datasets.get(name)
        if licence is None:
            yield f"the licence of `{name}` is unknown: see its page"
        elif any(part in licence for part in known.non_commercial) and "-nc" not in base.license:
            yield f"`{name}` is {licence}, which forbids commercial use, {conflict}"
        elif any(part in licence for part in known.share_alike) and licence != base.license:
            yield f"`{name}` is {licence}, which requires the same licence, {conflict}"
    teachers = {name for manifest in chain for name in StageSettings.of(manifest.plan).teachers()}
    if teachers - {RULE_BASED}:
        yield "the terms of use of the models that wrote or rated the data may restrict training on their output"


def _by_teacher(source: SourceSettings) -> str:
    teacher = source.teacher or source.assistant
    return f" by `{teacher.name}`" if teacher and teacher.name else ""


def _published_settings() -> dict[str, dict[str, object]]:
    return {publisher: _recipe_settings(recipe) for publisher, recipe in PUBLISHERS.items()}


@cache
def _recipe_settings(name: str) -> dict[str, object]:
    """The settings of every kind of training, with dotted names."""
    recipe = load(name, {}).recipe
    sections = {kind.section: recipe.training_section(kind.name).model_dump(mode="json") for kind in KINDS.values()}
    return flatten(sections)


@cache
def _licences() -> Licences:
    return Licences.model_validate(yaml.safe_load(templates.read("licences.yaml")))
