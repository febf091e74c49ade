"""Load plugins, list what they bring, and choose one by name."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from zephyrctl import builtin, hooks
from zephyrctl.contracts import Binarizer, ModelBase, Teacher
from zephyrctl.errors import ZephyrError

GROUP = "zephyrctl"
KINDS = {
    "teacher": "zephyrctl_teachers",
    "binarizer": "zephyrctl_binarizers",
    "model base": "zephyrctl_model_bases",
}
CONTRACTS: dict[str, type] = {"teacher": Teacher, "binarizer": Binarizer, "model base": ModelBase}


@dataclass(frozen=True)
class Offer:
    """One class that a plugin brings."""

    kind: str
    name: str
    origin: str
    offered: type[Any]

    @property
    def options(self) -> dict[str, Any]:
        """The JSON schema of its options."""
        model: type[BaseModel] = self.offered.Options
        properties: dict[str, Any] = model.model_json_schema().get("properties", {})
        return properties


@dataclass
class Plugins:
    """Everything that the installed plugins bring, and the ones that failed to load with the reason."""

    offers: list[Offer] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def teacher(self, name: str, options: Mapping[str, Any]) -> Teacher:
        """The teacher of that name. Raises ZephyrError for an unknown name or options."""
        made: Teacher = self._make("teacher", name, options)
        return made

    def binarizer(self, name: str, options: Mapping[str, Any]) -> Binarizer:
        """The binarization strategy of that name."""
        made: Binarizer = self._make("binarizer", name, options)
        return made

    def model_base(self, name: str, options: Mapping[str, Any]) -> ModelBase:
        """The model base of that name."""
        made: ModelBase = self._make("model base", name, options)
        return made

    def find(self, kind: str, name: str) -> Offer:
        """The one offer of that kind and name; two plugins that claim it are an error that names both."""
        found = [offer for offer in self.offers if offer.kind == kind and offer.name == name]
        if len(found) > 1:
            origins = " and ".join(offer.origin for offer in found)
            raise ZephyrError(f"two plugins bring the {kind} {name!r}: {origins}", "uninstall one of them")
        if not found:
            raise ZephyrError(f"there is no {kind} {name!r}{self._failure_note()}", self._nearest(kind, name))
        return found[0]

    def _make(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        offered = self.find(kind, name).offered
        try:
            return offered(offered.Options.model_validate(dict(options)))
        except ValidationError as error:
            raise ZephyrError(
                f"the {kind} {name!r} refuses its options: {describe(error)}",
                f"zephyrctl plugins shows what {name!r} takes",
            ) from None

    def _nearest(self, kind: str, name: str) -> str:
        names = [offer.name for offer in self.offers if offer.kind == kind]
        near = difflib.get_close_matches(name, names, n=1)
        return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(sorted(names))}"

    def _failure_note(self) -> str:
        return f" (plugins that failed to load: {', '.join(self.failures)})" if self.failures else ""


def describe(error: ValidationError) -> str:
    """A pydantic error in one line, without the values (they may hold keys)."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(step) for step in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    return "; ".join(parts)


@cache
def load() -> Plugins:
    """Built-ins first, then every installed package with an entry point in the group, by the same door."""
    plugins = Plugins()
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    _register(plugins, manager, builtin, "built in")
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _load_entry(plugins, manager, entry)
    return plugins


def _load_entry(plugins: Plugins, manager: pluggy.PluginManager, entry: EntryPoint) -> None:
    distribution = entry.dist
    origin = f"{distribution.name} {distribution.version}" if distribution else entry.value
    try:
        _register(plugins, manager, entry.load(), origin)
    except Exception as error:
        plugins.failures[entry.name] = f"{origin}: {type(error).__name__}: {error}"
    else:
        if distribution:
            plugins.versions[distribution.name] = distribution.version


def _register(plugins: Plugins, manager: pluggy.PluginManager, module: Any, origin: str) -> None:
    manager.register(module, origin)
    try:
        manager.check_pending()
        plugins.offers += list(_offers(manager, module, origin))
    except Exception:
        manager.unregister(module)
        raise


def _offers(manager: pluggy.PluginManager, module: Any, origin: str) -> Iterator[Offer]:
    for kind, hook in KINDS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin is not module:
                continue
            for offered in implementation.function():
                if not (isinstance(offered, type) and issubclass(offered, CONTRACTS[kind])):
                    raise TypeError(f"{hook} returned {offered!r}, which is no {CONTRACTS[kind].__name__}")
                name: str = getattr(offered, "name", offered.__name__)
                yield Offer(kind, name, origin, offered)
