"""Load plugins, list what they bring, and choose one by name."""

import ast
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from zephyrctl import __version__, builtin, hooks
from zephyrctl.contracts import Binarizer, ModelBase, PluginOptions, Teacher
from zephyrctl.errors import ZephyrError, did_you_mean

GROUP = "zephyrctl"
HEADING = b"[zephyrctl]"
"""Of our group in a package's entry_points.txt."""
KINDS = {
    "teacher": "zephyrctl_teachers",
    "binarizer": "zephyrctl_binarizers",
    "model base": "zephyrctl_model_bases",
}
STATED = "zephyrctl_contract"
"""The name under which a plugin's module states the version of the contract that it is written for."""
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
            raise ZephyrError(_clash(found), "uninstall one of them")
        if not found:
            raise ZephyrError(f"there is no {kind} {name!r}{self._failure_note()}", self._nearest(kind, name))
        return found[0]

    def warnings(self) -> Iterator[str]:
        """A sentence for each plugin that failed to load, and for each name that several bring: none stops a command
        that needs neither."""
        for name, reason in self.failures.items():
            yield f"the plugin {name!r} failed to load and is left out: {reason}"
        by_name: dict[tuple[str, str], list[Offer]] = {}
        for offer in self.offers:
            by_name.setdefault((offer.kind, offer.name), []).append(offer)
        yield from (_clash(found) for found in by_name.values() if len(found) > 1)

    def _make(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        offered = self.find(kind, name).offered
        try:
            return offered(offered.Options.model_validate(dict(options)))
        except ValidationError as error:
            raise ZephyrError(
                f"the {kind} {name!r} refuses its options: {describe(error)}",
                _remedy(error, offered.Options.model_fields) or f"zephyrctl plugins shows what {name!r} takes",
            ) from None

    def _nearest(self, kind: str, name: str) -> str:
        names = [offer.name for offer in self.offers if offer.kind == kind]
        return did_you_mean(name, names, otherwise=f"one of: {', '.join(sorted(names))}")

    def _failure_note(self) -> str:
        failed = ", ".join(self.failures)
        return f" (zephyrctl plugins says why these failed to load: {failed})" if failed else ""


def describe(error: ValidationError) -> str:
    """A pydantic error in one line, without the values (they may hold keys)."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(step) for step in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else problem["msg"])
    return "; ".join(parts)


def _remedy(error: ValidationError, known: Iterable[str]) -> str:
    """The nearest known option for the first unknown one."""
    unknown = (str(problem["loc"][-1]) for problem in error.errors() if problem["type"] == "extra_forbidden")
    return did_you_mean(next(unknown, ""), known)


def _clash(found: Sequence[Offer]) -> str:
    number = {2: "two"}.get(len(found), str(len(found)))
    origins = " and ".join(offer.origin for offer in found)
    return f"{number} plugins bring the {found[0].kind} {found[0].name!r}: {origins}"


@cache
def load(kinds: tuple[str, ...] = tuple(KINDS)) -> Plugins:
    """Built-ins first, then every installed package with an entry point in the group, by the same door.

    Of the built-ins only those of `kinds` are imported; a package brings everything or, where it fails, nothing.
    """
    plugins = Plugins(list(offers_of(builtin, "built in", kinds)))
    for entry in sorted(_entries(), key=lambda entry: (entry.name, entry.value)):
        _add(plugins, entry)
    return plugins


def _entries() -> Iterable[EntryPoint]:
    """The entry points of our group. Parsing those of all packages takes 15 ms, and looking whether there is one 3."""
    return entry_points(group=GROUP) if any(map(_may_name_us, sys.path)) else ()


def _may_name_us(place: str) -> bool:
    """Whether a package at this place of sys.path has entry points of our group; True for an archive, which may."""
    try:
        with os.scandir(place or ".") as found:
            packages = [entry.path for entry in found if entry.name.endswith("-info")]
    except OSError as error:
        return isinstance(error, NotADirectoryError)
    for package in packages:
        with suppress(OSError):
            if HEADING in Path(package, "entry_points.txt").read_bytes():
                return True
    return place.endswith(".egg")


def _add(plugins: Plugins, entry: EntryPoint) -> None:
    """Everything of one plugin, or nothing: what fails is kept as the reason."""
    distribution = entry.dist
    origin = f"{distribution.name} {distribution.version}" if distribution else entry.value
    try:
        plugins.offers += list(offers_of(entry.load(), origin))
    except (Exception, SystemExit) as error:
        name = entry.name if entry.name not in plugins.failures else f"{entry.name} of {origin}"
        plugins.failures[name] = f"{origin}: {_other_version(entry) or _reason(error)}"
    else:
        if distribution:
            plugins.versions[distribution.name] = distribution.version


def offers_of(plugin: Any, origin: str, kinds: Iterable[str] = tuple(KINDS)) -> Iterator[Offer]:
    """What a plugin's hooks return. Raises TypeError where it breaks the contract, and whatever its hooks raise.

    Each plugin has a manager of its own, so that a broken one leaves nothing behind.
    """
    if difference := _difference(getattr(plugin, STATED, hooks.CONTRACT)):
        raise TypeError(difference)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    manager.register(plugin, origin)
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise TypeError(f"it has no hook: mark {' or '.join(KINDS.values())} with zephyrctl.hooks.hookimpl")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        raise TypeError("; ".join(_misspelled(caller.name) for caller in callers if not caller.has_spec())) from None
    for kind in kinds:
        for implementation in getattr(manager.hook, KINDS[kind]).get_hookimpls():
            yield from (Offer(kind, offered.name, origin, offered) for offered in _checked(kind, implementation))


def _checked(kind: str, implementation: pluggy.HookImpl) -> Iterator[type[Any]]:
    """The classes that a hook returns, each of them held against its contract."""
    hook, contract = KINDS[kind], CONTRACTS[kind]
    returned = implementation.function()
    if not isinstance(returned, list | tuple):
        raise TypeError(f"{hook} returned {returned!r} and not a list of classes")
    for offered in returned:
        if not (isinstance(offered, type) and issubclass(offered, contract)):
            raise TypeError(f"{hook} returned {offered!r}, which is no {contract.__name__}")
        if missing := sorted(getattr(offered, "__abstractmethods__", ())):
            raise TypeError(f"{offered.__name__} lacks what a {contract.__name__} must have: {', '.join(missing)}")
        if not isinstance(getattr(offered, "name", None), str):
            raise TypeError(f"{offered.__name__} has no name by which a recipe could choose it")
        options = getattr(offered, "Options", None)
        if not (isinstance(options, type) and issubclass(options, PluginOptions)):
            raise TypeError(f"{offered.__name__}.Options is no PluginOptions")
        options.model_json_schema()  # raises where an option has a type that no recipe could state
        yield offered


def _misspelled(hook: str) -> str:
    return ", ".join(filter(None, (f"there is no hook {hook!r}", did_you_mean(hook, KINDS.values()))))


def _difference(wanted: object) -> str:
    """That a plugin is written for another version of the contract than this one; empty where it is not."""
    if wanted == hooks.CONTRACT:
        return ""
    here = f"this zephyrctl {__version__} has version {hooks.CONTRACT!r}"
    return f"it wants version {wanted!r} of the plugin contract, and {here}: install the release that fits"


def _other_version(entry: EntryPoint) -> str:
    """The same of a plugin that could not be loaded, read from its source: what it imports may not be there yet."""
    try:
        found = find_spec(entry.module)
        source = Path(found.origin).read_text() if found and found.origin else ""
        assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        stated = [node for node in assigned if ast.unparse(node.targets[0]) == STATED]
        return _difference(ast.literal_eval(stated[-1].value)) if stated else ""
    except Exception:  # it is broken in another way, which is said
        return ""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
