"""`zephyrctl recipe`: show a recipe with where its values came from, compare two, print the schema, start your own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zephyrctl.cli.screen import Screen
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import loading

app = typer.Typer(help="Recipes: show, compare, start your own.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="Set a value: --set dpo.beta=0.05.")]
Name = Annotated[str | None, typer.Argument(help="Shipped recipe or YAML file; else zephyrctl.yaml, else tiny.")]


@app.command()
def show(name: Name = None, set_: Assignments = None, json: Json = False) -> None:
    """Print every value and where it came from."""
    loaded = loading.load(name, {}, set_ or [])
    table = Table("key", "value", "from")
    for key, value, origin in loaded.rows():
        table.add_row(key, str(value), origin)
    origins = {key: origin for key, _, origin in loaded.rows()}
    screen = Screen(json, quiet=False)
    for note in loaded.notes:
        screen.say(f"note: {note}")
    screen.show({"recipe": loaded.recipe.model_dump(mode="json"), "origins": origins}, table)


@app.command()
def diff(
    left: Annotated[str, typer.Argument(help="A recipe.")],
    right: Annotated[str, typer.Argument(help="Another recipe.")],
    json: Json = False,
) -> None:
    """Print the values in which two recipes differ."""
    found = loading.differences(loading.load(left, {}), loading.load(right, {}))
    table = Table("key", left, right)
    for key, mine, theirs in found:
        table.add_row(key, str(mine), str(theirs))
    Screen(json, quiet=False).show({key: [mine, theirs] for key, mine, theirs in found}, table)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    Screen(as_json=True, quiet=False).show(loading.schema())


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The shipped recipe to start from.")] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="Replace a zephyrctl.yaml that is there.")] = False,
) -> None:
    """Write zephyrctl.yaml into the working folder: a recipe of your own that extends a shipped one."""
    known = loading.shipped()
    if name not in known:
        raise ZephyrError(f"there is no shipped recipe {name!r}", f"one of: {', '.join(known)}")
    target = Path(loading.WORKING_FILE)
    if target.exists() and not force:
        raise ZephyrError(f"{target} is there already", "zephyrctl recipe init --force replaces it")
    target.write_text(
        f"# A recipe states what differs from the one it extends; `zephyrctl recipe show` prints the whole.\n"
        f"extends: {name}\n"
        f"name: {Path.cwd().name if _is_name(Path.cwd().name) else 'mine'}\n"
        f"# seed: 1\n# dpo:\n#   beta: 0.05\n"
    )
    Screen(as_json=False, quiet=False).show({}, f"{target} extends {name}; next: zephyrctl run")


def _is_name(text: str) -> bool:
    return bool(text) and all(letter.isalnum() or letter in "_.-" for letter in text)
