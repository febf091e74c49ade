"""Load a recipe: its file over the recipes that it extends, under the command's options and `--set`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, JsonValue, ValidationError

from zephyrctl import templates
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.recipe.renamed import rename_keys
from zephyrctl.recipe.schema import Checkpoint, Recipe, Section

WORKING_FILE = "zephyrctl.yaml"
OPTION = "option"
ASSIGNMENT = "--set"


@dataclass(frozen=True)
class Layer:
    """Values of a recipe from one place; a higher layer replaces the values of the layers below."""

    origin: str
    """The name of a recipe, as `recipe tiny` or `mine.yaml`; or `option`, or `--set`."""
    values: dict[str, JsonValue]
    folder: Path = Path()
    """What the paths of plugin files are relative to."""
    is_own: bool = True
    """True for what the user named: a file, an option, `--set`. False for a recipe that another recipe extends."""

    @property
    def is_recipe(self) -> bool:
        """False for options and `--set`."""
        return self.origin not in (OPTION, ASSIGNMENT)


class Loaded:
    """A recipe, the layer that each of its values came from, and the plugin files that it lists."""

    def __init__(
        self,
        recipe: Recipe,
        origins: dict[str, str],
        plugin_files: Sequence[Path] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.recipe = recipe
        self.origins = origins
        self.plugin_files = plugin_files
        self.notes = notes
        """What the user should change, such as a key by its old name."""

    def rows(self) -> list[tuple[str, JsonValue, str]]:
        """Every value as (dotted key, value, origin); a published source is named beside the recipe's own layer."""
        published = self.recipe.sources
        rows = []
        for key, value in flatten(self.recipe.model_dump(mode="json", exclude={"sources"})).items():
            origin = self.origins.get(key, "default")
            if origin.startswith("recipe ") and (source := _covering(published, key)):
                origin = f"{origin} ({source})"
            rows.append((key, value, origin))
        return rows


def load(name: str | None, overrides: Mapping[str, object], assignments: Iterable[str] = ()) -> Loaded:
    """The recipe: a shipped one or a file, over the recipes that it extends, under options and `--set a.b=c`.

    Without a name it is `zephyrctl.yaml` in the working folder, or else the embedded `tiny`.
    Raises ZephyrError for a missing file, broken YAML, an unknown key or a value out of bounds.
    """
    layers = _recipe_layers(name or (WORKING_FILE if Path(WORKING_FILE).is_file() else "tiny"))
    layers.append(Layer(OPTION, _nest({key: value for key, value in overrides.items() if value is not None})))
    layers += [Layer(ASSIGNMENT, _nest(dict([_assignment(text)]))) for text in assignments]
    merged: dict[str, JsonValue] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []
    for given in layers:
        values, renamed = rename_keys(given.origin, given.values)
        layer = replace(given, values=values)
        notes += renamed
        if "checkpoints" in layer.values and layer.is_recipe:
            merged.pop("checkpoints", None)  # an ordered chain: a recipe that states one replaces it whole
        merged = _merge(merged, layer.values)
        origins |= dict.fromkeys(flatten(layer.values), layer.origin)
        kept = flatten(merged)
        origins = {key: origin for key, origin in origins.items() if key in kept}
    named = [layer.origin for layer in layers if layer.is_recipe][-1]
    recipe = _validate(merged, origins, named)
    return Loaded(recipe, origins, _plugin_files(recipe, layers, named), notes)


def _plugin_files(recipe: Recipe, layers: Sequence[Layer], named: str) -> list[Path]:
    """The plugin files by path.

    Raises ZephyrError if a recipe that the user did not name lists them: to extend a recipe of somebody else must not
    run code of theirs.
    """
    if not recipe.plugins:
        return []
    layer = next(layer for layer in reversed(layers) if "plugins" in layer.values)
    if not layer.is_own:
        listed = ", ".join(str(layer.folder / path) for path in recipe.plugins)
        raise ZephyrError(
            f"{layer.origin} lists plugin files, and only your own recipe may do so: {listed}",
            f"if you trust their code, list them in {named} too: plugins: [{listed}]",
        )
    return [layer.folder / path for path in recipe.plugins]


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted((templates.folder() / "recipes").glob("*.yaml"))}


def schema() -> dict[str, object]:
    """The JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def differences(left: Loaded, right: Loaded) -> list[tuple[str, JsonValue, JsonValue]]:
    """The keys whose values differ, as (key, left, right); None if one side has no such key."""
    mine, theirs = ({key: value for key, value, _ in side.rows()} for side in (left, right))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    return [(key, mine.get(key), theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _recipe_layers(name: str, extending: tuple[str, ...] = (), folder: Path = Path()) -> list[Layer]:
    """The recipe and those that it extends, the lowest first; a file is looked for beside the one that extends it."""
    path = _locate(name, folder)
    if str(path) in extending:
        raise ZephyrError(f"{path}: 'extends' goes in a circle", "let one recipe of the circle extend nothing")
    values = _read(path)
    parent = values.pop("extends", None)
    origin = f"recipe {name}" if name in shipped() else str(name)
    below = _recipe_layers(str(parent), (*extending, str(path)), path.parent) if parent else []
    return [*below, Layer(origin, values, path.parent, is_own=not extending and name not in shipped())]


def _locate(name: str, folder: Path) -> Path:
    known = shipped()
    if name in known:
        return known[name]
    if (folder / name).is_file():
        return folder / name
    remedy = did_you_mean(name, known, otherwise=f"a file, or one of: {', '.join(known)}")
    raise ZephyrError(f"there is no recipe {name!r}", remedy)


def _read(path: Path) -> dict[str, JsonValue]:
    try:
        values = yaml.load(path.read_text(), yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ZephyrError(f"{path}:{line}: this is not YAML: {error.problem}", "fix that line") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ZephyrError(f"{path} is not text", "a recipe is a YAML file") from None
    if not isinstance(values, dict):
        raise ZephyrError(f"{path} contains no recipe", "zephyrctl recipe init tiny writes one to start from")
    return values


def _assignment(text: str) -> tuple[str, JsonValue]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ZephyrError(f"--set {text!r} is not an assignment", "write it as --set dpo.beta=0.1")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ZephyrError(f"--set {text!r}: the value is not YAML", "quote it") from None


def _nest(flat: Mapping[str, object]) -> dict[str, JsonValue]:
    """Dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _merge(below: Mapping[str, JsonValue], above: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Deep merge, except that a plugin or source chosen by another name brings none of the old one's options."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_choice(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_choice(below: Mapping[str, JsonValue], above: Mapping[str, JsonValue]) -> bool:
    return all(above.get(key, below.get(key)) == below.get(key) for key in ("name", "kind"))


def _validate(values: dict[str, JsonValue], origins: Mapping[str, str], recipe: str) -> Recipe:
    """The recipe; an error names the layer that its key came from, and the recipe if no layer gave it."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(
            str(step) for step in problem["loc"] if step not in ("self-instruct", "dialogues", "files", "hub")
        )
        origin = next((layer for given, layer in origins.items() if f"{given}.".startswith(f"{key}.")), recipe)
        if problem["type"] == "extra_forbidden":
            raise ZephyrError(f"{origin}: unknown key {key!r}", _nearest_key(key)) from None
        if problem["type"] == "missing":
            raise ZephyrError(f"{origin}: {key!r} is missing", f"add {key}, or start from `extends: tiny`") from None
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
        shown = f"{key}{given}: {message}" if key else message
        raise ZephyrError(f"{origin}: {shown}", "zephyrctl recipe schema shows what is allowed") from None


def _nearest_key(key: str) -> str:
    section, _, rest = key.partition(".")
    of_its_checkpoint = [f"{section}.{rest.partition('.')[0]}.{field}" for field in Checkpoint.model_fields]
    known = [*known_keys(), *(of_its_checkpoint if section == "checkpoints" else ())]
    return did_you_mean(key, known, otherwise="zephyrctl recipe schema lists the keys", cutoff=0.5)


def known_keys() -> list[str]:
    """Every dotted key that a recipe may have."""
    return sorted(_keys(Recipe))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in section_types(field.annotation):
            yield from _keys(part, f"{prefix}{name}.")


def section_types(annotation: object) -> Iterable[type[Section]]:
    """The sections that a field of this type may contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        if getattr(annotation, "__origin__", None) not in (list, dict):
            yield from section_types(argument)


def _covering(published: Mapping[str, str], key: str) -> str | None:
    """The source given for a key or for the nearest section above it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if source := published.get(".".join(parts[:length])):
            return source
    return None
