"""`zephyrctl recipe`: show a recipe and the origin of its values, compare two, print the schema, start a new one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zephyrctl.cli.screen import Screen
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import loading

app = typer.Typer(help="Show and compare recipes, and start your own.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Set a value, as in --set dpo.beta=0.05. Repeatable.")
]
Name = Annotated[
    str | None, typer.Argument(help="Name of a shipped recipe, or a YAML file. Default: zephyrctl.yaml, else tiny.")
]


@app.command()
def show(name: Name = None, set_: Assignments = None, json: Json = False) -> None:
    """Print every value of a recipe and where it comes from."""
    loaded = loading.load(name, {}, set_ or [])
    table = Table("key", "value", "origin")
    for key, value, origin in loaded.rows():
        table.add_row(key, str(value), origin)
    origins = {key: origin for key, _, origin in loaded.rows()}
    screen = Screen(json, quiet=False)
    for note in loaded.notes:
        screen.say(f"note: {note}")
    screen.show({"recipe": loaded.recipe.model_dump(mode="json"), "origins": origins}, table)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    right: Annotated[str, typer.Argument(help="The recipe to compare it with.")],
    json: Json = False,
) -> None:
    """Print the values that differ between two recipes."""
    differing = loading.differences(loading.load(left, {}), loading.load(right, {}))
    table = Table("key", left, right)
    for key, mine, theirs in differing:
        table.add_row(key, str(mine), str(theirs))
    Screen(json, quiet=False).show({key: [mine, theirs] for key, mine, theirs in differing}, table)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    Screen(as_json=True, quiet=False).show(loading.schema())


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the shipped recipe to extend.")] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing zephyrctl.yaml.")] = False,
) -> None:
    """Write zephyrctl.yaml in the working folder: a recipe of your own that extends a shipped one."""
    known = loading.shipped()
    if name not in known:
        raise ZephyrError(f"there is no shipped recipe {name!r}", f"one of: {', '.join(known)}")
    target = Path(loading.WORKING_FILE)
    if target.exists() and not force:
        raise ZephyrError(f"{target} already exists", "zephyrctl recipe init --force overwrites it")
    target.write_text(
        f"# A recipe states only what differs from the one it extends. `zephyrctl recipe show` prints every value.\n"
        f"extends: {name}\n"
        f"name: {Path.cwd().name if _is_name(Path.cwd().name) else 'mine'}\n"
        f"# seed: 1\n# dpo:\n#   beta: 0.05\n"
    )
    Screen(as_json=False, quiet=False).show({}, f"{target} extends {name}; next: zephyrctl run")


def _is_name(text: str) -> bool:
    return bool(text) and all(letter.isalnum() or letter in "_.-" for letter in text)
