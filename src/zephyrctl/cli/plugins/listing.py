"""`zephyrctl plugins` without a subcommand: list all plugins."""

import inspect
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import typer

from zephyrctl import plugin_files
from zephyrctl import plugins as loading
from zephyrctl.cli.screen import Screen
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.recipe import loading as recipes

plugins = typer.Typer(invoke_without_command=True)


@plugins.callback()
def list_all(
    context: typer.Context, json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """List every plugin with its kind, origin and options."""
    if context.invoked_subcommand is None:
        _show(json)
    elif json:
        command = context.invoked_subcommand
        raise UsageError(f"put --json after {command!r}", f"zephyrctl plugins {command} ... --json")


def _show(json: bool) -> None:
    screen = Screen(json, quiet=False)
    try:
        plugin_files.use(recipes.load(None, {}).plugin_files)
        loaded = loading.load()
    except ZephyrError as error:
        screen.say(f"warning: {error.problem}")
        plugin_files.use([])
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
    screen.show(result, *_lines(loaded))
    for line in loaded.warnings():
        screen.say(f"warning: {line}")


def _lines(loaded: loading.Plugins) -> Iterator[str]:
    for kind, offers in groupby(loaded.offers, _kind):
        yield loading.KINDS[kind].plural
        for offer in offers:
            yield f"  {offer.name}  ({offer.origin})  {_about(offer)}"
            yield from (f"      {_option(name, schema)}" for name, schema in offer.options.items())


def _kind(offer: loading.Offer) -> str:
    return offer.kind


def _option(name: str, schema: dict[str, Any]) -> str:
    value = f"{name} = {schema['default']!r}" if schema.get("default") is not None else name
    return f"{value}: {schema.get('description', '')}".rstrip(": ")


def _about(offer: loading.Offer) -> str:
    return (inspect.getdoc(offer.offered) or "").split("\n")[0]
