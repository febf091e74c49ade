"""`zephyrctl data audit`: the figures of a file, as a table, JSON or a page, held against the recipe's gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zephyrctl.cli.session import Session, with_session
from zephyrctl.data import audit as auditing
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.publishing.audit_page import write_page
from zephyrctl.recipe.loading import flatten

SHOWN = 8


@with_session
def audit(
    session: Session,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Dialogues, rated answers or pairs; or a stage's folder.")
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Benchmark prompts to search the file for; may be given again."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with histograms.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="FIGURE=MOST", help="Exit 3 where a figure is more; may be given again."),
    ] = None,
) -> None:
    """Look at a file of dialogues, rated answers or pairs, without any call: ties, repeats, length bias, refusals."""
    recipe = session.load().recipe
    gates = {**recipe.audit.gates, **dict(map(_gate, gate or []))}
    searched = [*map(Path, recipe.decontaminate.against), *(against or [])]
    if session.dry_run:
        files = [str(file) for file in auditing.files_of(path)]
        session.screen.show(
            {"dry_run": {"reads": files}}, f"would look at {', '.join(files)}, and write {html or 'nothing'}"
        )
        return
    with session.screen.watch("audit") as watcher:
        seen = auditing.audit(path, searched, recipe.decontaminate.ngram or 8, watcher)
    figures = seen.figures()
    failed = list(auditing.failed_gates(figures, gates))
    told = {**figures, "gates": gates, "gates_failed": [name for name, _ in failed]}
    if html:
        write_page(html, path.name, seen)
        session.screen.say(f"audit: wrote {html}")
    session.screen.show(told, _table(figures))
    if failed:
        raise GateError(
            f"{path}: " + "; ".join(f"{name} is {value:g}, at most {gates[name]:g}" for name, value in failed),
            "mend the data, or change audit.gates in the recipe",
        )


def _gate(text: str) -> tuple[str, float]:
    name, equals, most = text.partition("=")
    try:
        return name.strip(), float(most)
    except ValueError:
        problem = f"--gate {text!r} is no gate" if equals else f"--gate {text!r} lacks its limit"
        raise ZephyrError(problem, "write it as --gate ties_share=0.15") from None


def _table(figures: Mapping[str, Any]) -> Table:
    """Counts with their shares beside them; long lists by their first entries."""
    table = Table("figure", "count", "share")
    for name, value in figures.items():
        if name.endswith("_share") or value is None or value == {} or value == []:
            continue
        if isinstance(value, Mapping):
            table.add_row(name, _short(flatten(value)), "")
        elif not isinstance(value, list):
            share = figures.get(f"{name}_share")
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value), _percent(share))
    return table


def _short(values: Mapping[str, Any]) -> str:
    shown = [f"{name} {value}" for name, value in list(values.items())[:SHOWN]]
    return ", ".join(shown) + (f", and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
