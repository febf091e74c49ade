"""`zephyrctl plugins`: what can be swapped, and what with."""

import inspect
from typing import Annotated, Any

import typer
from rich.table import Table

from zephyrctl import plugins as loading
from zephyrctl.cli.screen import Screen


def plugins(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """List teachers, binarizers and model bases with their origin and options."""
    loaded = loading.load()
    result = {
        "plugins": [
            {
                "kind": offer.kind,
                "name": offer.name,
                "origin": offer.origin,
                "about": _about(offer),
                "options": offer.options,
            }
            for offer in loaded.offers
        ],
        "failures": loaded.failures,
    }
    screen = Screen(json, quiet=False)
    screen.show(result, _table(loaded))
    for name, reason in loaded.failures.items():
        screen.say(f"warning: the plugin {name!r} failed to load and is left out: {reason}")


def _table(loaded: loading.Plugins) -> Table:
    table = Table("kind", "name", "origin", "options", "what it is")
    for offer in loaded.offers:
        table.add_row(
            offer.kind,
            offer.name,
            offer.origin,
            ", ".join(map(_option, offer.options.items())),
            _about(offer),
        )
    return table


def _option(entry: tuple[str, Any]) -> str:
    name, schema = entry
    return f"{name}={schema['default']!r}" if schema.get("default") is not None else name


def _about(offer: loading.Offer) -> str:
    return (inspect.getdoc(offer.offered) or "").split("\n")[0]
