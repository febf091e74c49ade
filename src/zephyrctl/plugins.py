"""Load plugins, list the classes that they offer, and choose one by kind and name."""

import ast
import inspect
import os
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeGuard, TypeVar

import pluggy
from pydantic import JsonValue, ValidationError

from zephyrctl import __version__, builtin, hooks, plugin_files
from zephyrctl.contracts import PluginOptions
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.plugin_files import PluginFile

if TYPE_CHECKING:
    from zephyrctl.contracts import Binarizer, ModelBase, Teacher
    from zephyrctl.evaluation.benchmarks.contract import Benchmark
    from zephyrctl.rows.formats import RowFormat
    from zephyrctl.training.losses import PreferenceLoss

GROUP = "zephyrctl"
SECTION = b"[zephyrctl]"
"""The section of our group in a package's entry_points.txt."""
VERSION_VARIABLE = "zephyrctl_contract"
"""The variable in which a plugin's module may state the version of the contract that it is written for."""
BUILT_IN = "built in"


class ContractError(TypeError):
    """A plugin breaks its contract. `subject` is the class or function that does, if it is one of them."""

    def __init__(self, message: str, subject: object = None) -> None:
        super().__init__(message)
        self.subject = subject


class PluginClass(Protocol):
    """What the classes of every kind have in common."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]]

    def __init__(self, options: PluginOptions) -> None: ...


Contract = TypeVar("Contract")
Contract_co = TypeVar("Contract_co", covariant=True)


@dataclass(frozen=True)
class PluginKind(Generic[Contract_co]):
    """A kind of thing that plugins can add."""

    name: str
    hook: str
    module: str
    """The module of its contract. It is imported only if this kind is wanted: a plan needs no benchmark."""
    class_name: str

    @property
    def plural(self) -> str:
        """As `row formats`."""
        return self.hook.removeprefix(f"{GROUP}_").replace("_", " ")

    @cached_property
    def contract(self) -> type[Contract_co]:
        """The abstract class that every offered class of this kind must extend."""
        contract: type[Contract_co] = getattr(import_module(self.module), self.class_name)
        return contract


TEACHER: PluginKind["Teacher"] = PluginKind("teacher", "zephyrctl_teachers", "zephyrctl.contracts", "Teacher")
BINARIZER: PluginKind["Binarizer"] = PluginKind("binarizer", "zephyrctl_binarizers", "zephyrctl.contracts", "Binarizer")
MODEL_BASE: PluginKind["ModelBase"] = PluginKind(
    "model base", "zephyrctl_model_bases", "zephyrctl.contracts", "ModelBase"
)
BENCHMARK: PluginKind["Benchmark"] = PluginKind(
    "benchmark", "zephyrctl_benchmarks", "zephyrctl.evaluation.benchmarks.contract", "Benchmark"
)
LOSS: PluginKind["PreferenceLoss"] = PluginKind(
    "loss", "zephyrctl_losses", "zephyrctl.training.losses", "PreferenceLoss"
)
ROW_FORMAT: PluginKind["RowFormat"] = PluginKind(
    "row format", "zephyrctl_row_formats", "zephyrctl.rows.formats", "RowFormat"
)
KINDS: dict[str, PluginKind[object]] = {
    kind.name: kind for kind in (TEACHER, BINARIZER, MODEL_BASE, BENCHMARK, LOSS, ROW_FORMAT)
}


@dataclass(frozen=True)
class Offer:
    """One class that a plugin offers."""

    kind: str
    name: str
    origin: str
    """The package and its version, the plugin file, or `built in`."""
    offered: type[PluginClass]
    file: PluginFile | None = None
    """The plugin file that it is in, if it is in one."""

    @property
    def options(self) -> dict[str, dict[str, JsonValue]]:
        """The JSON schema of each option."""
        properties: dict[str, dict[str, JsonValue]] = self.offered.Options.model_json_schema().get("properties", {})
        return properties


@dataclass
class Plugins:
    """The classes that are built in or installed, and the reasons why some plugins failed to load.

    The built-in classes of a kind are imported when that kind is first asked for.
    """

    added: list[Offer] = field(default_factory=list)
    """What installed packages and plugin files offer, of every kind."""
    failures: dict[str, str] = field(default_factory=dict)
    """The reason by plugin."""
    versions: dict[str, str] = field(default_factory=dict)
    """The version by package, and the hash of its content by plugin file."""

    @property
    def offers(self) -> list[Offer]:
        """Everything of every kind, in the order of `KINDS`; built-in classes first."""
        return [offer for kind in KINDS for offer in self.offers_of_kind(kind)]

    def offers_of_kind(self, kind: str) -> list[Offer]:
        """Everything of one kind; built-in classes first."""
        return [*_built_in(kind), *(offer for offer in self.added if offer.kind == kind)]

    def names(self, kind: str) -> list[str]:
        """The names of one kind, each once, for messages and for completion in a shell."""
        return list(dict.fromkeys(offer.name for offer in self.offers_of_kind(kind)))

    def teacher(self, name: str, options: Mapping[str, object]) -> "Teacher":
        """The teacher of that name. Raises ZephyrError if the name is unknown or the options are wrong."""
        return self._create(TEACHER, name, options)

    def binarizer(self, name: str, options: Mapping[str, object]) -> "Binarizer":
        """The binarization strategy of that name."""
        return self._create(BINARIZER, name, options)

    def model_base(self, name: str, options: Mapping[str, object]) -> "ModelBase":
        """The model base of that name."""
        return self._create(MODEL_BASE, name, options)

    def benchmark(self, name: str, options: Mapping[str, object]) -> "Benchmark":
        """The benchmark of that name."""
        return self._create(BENCHMARK, name, options)

    def loss(self, name: str, options: Mapping[str, object]) -> "PreferenceLoss":
        """The preference loss of that name."""
        return self._create(LOSS, name, options)

    def row_formats(self) -> "list[RowFormat]":
        """Every row format, with default options; built-in formats first."""
        return [self._create(ROW_FORMAT, name, {}) for name in self.names(ROW_FORMAT.name)]

    def find(self, kind: str, name: str) -> Offer:
        """The offer of that kind and name. Raises ZephyrError if there is none, or if two plugins use the name."""
        matching = [offer for offer in self.offers_of_kind(kind) if offer.name == name]
        if len(matching) > 1:
            raise ZephyrError(_clash(matching), "uninstall or rename one of them")
        if not matching:
            raise ZephyrError(f"there is no {kind} {name!r}{self._failure_note()}", self._nearest(kind, name))
        return matching[0]

    def file_versions(self, names: Collection[str], reads_rows: bool) -> dict[str, str]:
        """The plugin files that a stage depends on, with the hashes of their content.

        `names` are the names that occur in its settings. `reads_rows` says that it reads rows from outside the run, of
        which every row format may be one.
        """
        used = [offer for offer in self.added if offer.name in names or (reads_rows and offer.kind == ROW_FORMAT.name)]
        return {offer.origin: offer.file.version for offer in used if offer.file}

    def warnings(self) -> Iterator[str]:
        """A sentence for each plugin that failed to load, and for each name that several plugins use.

        Neither stops a command that does not need them.
        """
        for name, reason in self.failures.items():
            yield f"the plugin {name!r} failed to load and is left out: {reason}"
        by_name: dict[tuple[str, str], list[Offer]] = {}
        for offer in self.offers:
            by_name.setdefault((offer.kind, offer.name), []).append(offer)
        yield from (_clash(offers) for offers in by_name.values() if len(offers) > 1)

    def _create(self, kind: PluginKind[Contract], name: str, options: Mapping[str, object]) -> Contract:
        offered = self.find(kind.name, name).offered
        try:
            plugin = offered(offered.Options.model_validate(dict(options)))
        except ValidationError as error:
            raise ZephyrError(
                f"wrong options for the {kind.name} {name!r}: {describe(error)}",
                _remedy(error, offered.Options.model_fields) or f"zephyrctl plugins lists the options of {name!r}",
            ) from None
        if not isinstance(plugin, kind.contract):
            raise TypeError(f"{offered!r} made {plugin!r}, which is not a {kind.class_name}")
        return plugin

    def _nearest(self, kind: str, name: str) -> str:
        names = self.names(kind)
        return did_you_mean(name, names, otherwise=f"one of: {', '.join(sorted(names))}")

    def _failure_note(self) -> str:
        failed = ", ".join(self.failures)
        return f" (zephyrctl plugins says why these failed to load: {failed})" if failed else ""


def describe(error: ValidationError) -> str:
    """A pydantic error in one line, without the values, which may contain keys."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        option = ".".join(str(part) for part in problem["loc"])
        parts.append(f"{option}: {problem['msg']}" if option else problem["msg"])
    return "; ".join(parts)


def _remedy(error: ValidationError, known: Iterable[str]) -> str:
    """The known option nearest to the first unknown one."""
    unknown = (str(problem["loc"][-1]) for problem in error.errors() if problem["type"] == "extra_forbidden")
    return did_you_mean(next(unknown, ""), known)


def _clash(offers: Sequence[Offer]) -> str:
    number = {2: "two"}.get(len(offers), str(len(offers)))
    origins = " and ".join(offer.origin for offer in offers)
    return f"{number} plugins offer the {offers[0].kind} {offers[0].name!r}: {origins}"


def load() -> Plugins:
    """The plugins of this process: built-in ones, installed packages with an entry point in our group, plugin files.

    Of a package that fails, nothing is loaded. Raises ZephyrError for a plugin file that fails: the recipe names it.
    """
    return _load(plugin_files.in_use())


def forget_loaded() -> None:
    """Make `load` look for plugins again, for example after one was installed while this process runs."""
    _load.cache_clear()


@cache
def _load(files: tuple[PluginFile, ...]) -> Plugins:
    plugins = Plugins()
    for entry in sorted(_entries(), key=lambda entry: (entry.name, entry.value)):
        _add_package(plugins, entry)
    for file in files:
        _add_file(plugins, file)
    return plugins


@cache
def _built_in(kind: str) -> tuple[Offer, ...]:
    return tuple(offers_of(builtin, BUILT_IN, (kind,)))


def _entries() -> Iterable[EntryPoint]:
    """The entry points of our group.

    Parsing the entry points of all packages takes 15 ms. To find out whether any package has our group takes 3.
    """
    return entry_points(group=GROUP) if any(map(_may_name_us, sys.path)) else ()


def _may_name_us(folder: str) -> bool:
    """Whether a package in this folder of sys.path has entry points of our group; True for an archive, which may."""
    try:
        with os.scandir(folder or ".") as entries:
            packages = [entry.path for entry in entries if entry.name.endswith("-info")]
    except OSError as error:
        return isinstance(error, NotADirectoryError)
    for package in packages:
        with suppress(OSError):
            if SECTION in Path(package, "entry_points.txt").read_bytes():
                return True
    return folder.endswith(".egg")


def _add_package(plugins: Plugins, entry: EntryPoint) -> None:
    """Add everything of one plugin; if any of it fails, add nothing but the reason."""
    distribution = entry.dist
    origin = f"{distribution.name} {distribution.version}" if distribution else entry.value
    try:
        plugins.added += list(offers_of(entry.load(), origin))
    except (Exception, SystemExit) as error:
        name = entry.name if entry.name not in plugins.failures else f"{entry.name} of {origin}"
        plugins.failures[name] = f"{origin}: {_other_version(entry) or _reason(error)}"
    else:
        if distribution:
            plugins.versions[distribution.name] = distribution.version


def _add_file(plugins: Plugins, file: PluginFile) -> None:
    """Add everything of one plugin file. Raises ZephyrError that names the file and the line if it fails."""
    origin = file.path.name if file.path.name not in plugins.versions else str(file.path)
    try:
        offers = list(offers_of(plugin_files.import_file(file), origin))
    except ZephyrError:
        raise
    except (Exception, SystemExit) as error:
        raise ZephyrError(
            f"{file.path}:{_line(error, file.path)}: {_reason(error)}",
            "fix that line, or leave the file out of `plugins` in the recipe",
        ) from None
    plugins.added += [replace(offer, file=file) for offer in offers]
    plugins.versions[origin] = file.version


def _line(error: BaseException, path: Path) -> int:
    """The line of a file at which an error arose, or the one of the class or function that it is about."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    if isinstance(error, ContractError) and (inspect.isclass(error.subject) or inspect.isfunction(error.subject)):
        with suppress(OSError, TypeError):
            return inspect.getsourcelines(error.subject)[1]
    lines = [frame.lineno or 1 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else 1


def offers_of(plugin: object, origin: str, kinds: Iterable[str] = tuple(KINDS)) -> Iterator[Offer]:
    """What a plugin's hooks return. Raises ContractError if it breaks the contract, and whatever its hooks raise.

    Each plugin has a plugin manager of its own, so that a broken one leaves nothing behind.
    """
    if difference := _difference(getattr(plugin, VERSION_VARIABLE, hooks.CONTRACT)):
        raise ContractError(difference)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    manager.register(plugin, origin)
    callers = manager.get_hookcallers(plugin)
    if not callers:
        names = " or ".join(_hooks())
        raise ContractError(f"it has no hook: mark {names} with zephyrctl.hooks.hookimpl")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        unknown = [caller for caller in callers if not caller.has_spec()]
        message = "; ".join(_misspelled(caller.name) for caller in unknown)
        raise ContractError(message, unknown[0].get_hookimpls()[0].function) from None
    for kind in (KINDS[name] for name in kinds):
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            yield from (Offer(kind.name, offered.name, origin, offered) for offered in _checked(kind, implementation))


def _checked(kind: PluginKind[object], implementation: pluggy.HookImpl) -> Iterator[type[PluginClass]]:
    """The classes that a hook returns, each checked against its contract."""
    returned: object = implementation.function()
    if not isinstance(returned, list | tuple):
        message = f"{kind.hook} returned {returned!r} and not a list of classes"
        raise ContractError(message, implementation.function)
    for offered in returned:
        if not _extends_contract(offered, kind):
            message = f"{kind.hook} returned {offered!r}, which is not a {kind.class_name}"
            raise ContractError(message, implementation.function)
        if missing := sorted(getattr(offered, "__abstractmethods__", ())):
            message = f"{offered.__name__} lacks what a {kind.class_name} must have: {', '.join(missing)}"
            raise ContractError(message, offered)
        if not isinstance(getattr(offered, "name", None), str):
            raise ContractError(f"{offered.__name__} has no name for recipes to choose it by", offered)
        options = getattr(offered, "Options", None)
        if not (isinstance(options, type) and issubclass(options, PluginOptions)):
            raise ContractError(f"{offered.__name__}.Options is not a PluginOptions", offered)
        options.model_json_schema()  # raises if an option has a type that no recipe could state
        yield offered


def _extends_contract(offered: object, kind: PluginKind[object]) -> TypeGuard[type[PluginClass]]:
    return isinstance(offered, type) and issubclass(offered, kind.contract)


def _hooks() -> list[str]:
    return [kind.hook for kind in KINDS.values()]


def _misspelled(hook: str) -> str:
    return ", ".join(filter(None, (f"there is no hook {hook!r}", did_you_mean(hook, _hooks()))))


def _difference(wanted: object) -> str:
    """The message for a plugin that is written for another version of the contract; empty if it is for ours."""
    if wanted == hooks.CONTRACT:
        return ""
    ours = f"this zephyrctl {__version__} has version {hooks.CONTRACT!r}"
    return f"it wants version {wanted!r} of the plugin contract, and {ours}: install the release that fits"


def _other_version(entry: EntryPoint) -> str:
    """The same message for a plugin that cannot be imported, read from its source.

    A plugin for a later version may import what this version does not have.
    """
    try:
        spec = find_spec(entry.module)
        source = Path(spec.origin).read_text() if spec and spec.origin else ""
        assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
        versions = [node.value for node in assignments if ast.unparse(node.targets[0]) == VERSION_VARIABLE]
        return _difference(ast.literal_eval(versions[-1])) if versions else ""
    except Exception:  # it is broken in another way, which the caller reports
        return ""


def _reason(error: BaseException) -> str:
    if isinstance(error, ContractError):
        return str(error)
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
