"""Check what a plugin's hooks return, and report what breaks a contract."""

import re
from abc import ABC

from pydantic import BaseModel

from zephyrctl import plugins


class Breach(AssertionError):
    """A class breaks its contract."""


def require(claim: bool, otherwise: str) -> None:
    """Raise Breach with this message if a claim is false."""
    if not claim:
        raise Breach(otherwise)


def check_plugin(module: object) -> None:
    """Check what a plugin's hooks return: classes with a name, a docstring, and a description of every option."""
    try:
        offers = list(plugins.offers_of(module, "the plugin"))
    except TypeError as error:
        raise Breach(str(error)) from None
    require(bool(offers), "its hooks return no class")
    for offer in offers:
        check_class(offer.offered)


def check_class(offered: type[plugins.PluginClass]) -> None:
    """Check a class's name, its docstring, the descriptions of its options, and that it hides no private method."""
    name = getattr(offered, "name", None)
    require(isinstance(name, str), f"{offered.__name__} has no name")
    require(
        bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", str(name))), f"the name {name!r} is not in small-letters-and-dashes"
    )
    require(
        bool((offered.__dict__.get("__doc__") or "").strip()), f"{offered.__name__} has no docstring to be listed with"
    )
    contract = next(kind.contract for kind in plugins.KINDS.values() if issubclass(offered, kind.contract))
    own = {member for member in vars(contract) if member[:2] != "__"}
    written = {member for kind in _below(offered, contract) for member in vars(kind)}
    taken = [member for member in sorted(own & written) if member.startswith("_") and member != "_abc_impl"]
    require(not taken, f"{', '.join(taken)}: the contract uses that name itself, so give yours another")
    options: type[BaseModel] = offered.Options
    silent = [option for option, field in options.model_fields.items() if not field.description]
    require(not silent, f"options of {name!r} without a description: {', '.join(silent)}")


def _below(offered: type, contract: type) -> list[type]:
    """The classes that an offered one is made of, without its contract."""
    return [parent for parent in offered.__mro__ if parent not in (contract, ABC, object)]
