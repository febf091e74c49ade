"""`zephyrctl data audit`: the figures of a data file, as a table, JSON or a page, checked against gates."""

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
"""Entries of a long list that the table shows."""


@with_session
def audit(
    session: Session,
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file of dialogues, rated answers or pairs, or the folder of a stage."),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="File of benchmark prompts to search for. Can be repeated."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page with histograms.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="FIGURE=MOST", help="Exit with 3 if a figure is greater. Can be repeated."),
    ] = None,
) -> None:
    """Report ties, duplicates, length bias and refusals in a file of dialogues, rated answers or pairs; no calls."""
    recipe = session.load().recipe
    gates = {**recipe.audit.gates, **dict(map(_gate, gate or []))}
    searched = [*map(Path, recipe.decontaminate.against), *(against or [])]
    if session.dry_run:
        files = [str(file) for file in auditing.files_of(path)]
        session.screen.show(
            {"dry_run": {"reads": files}}, f"would read {', '.join(files)} and write {html or 'nothing'}"
        )
        return
    with session.screen.watch("audit") as watcher:
        result = auditing.audit(path, searched, recipe.decontaminate.ngram or 8, watcher)
    figures = result.figures()
    failed = list(auditing.failed_gates(figures, gates))
    if html:
        write_page(html, path.name, result)
        session.screen.say(f"audit: wrote {html}")
    values = {**figures, "gates": gates, "gates_failed": [name for name, _ in failed]}
    session.screen.show(values, _table(figures))
    if failed:
        problems = [f"{name} is {value:g}, at most {gates[name]:g}" for name, value in failed]
        raise GateError(f"{path}: {'; '.join(problems)}", "fix the data, or change audit.gates in the recipe")


def _gate(text: str) -> tuple[str, float]:
    name, equals, most = text.partition("=")
    try:
        return name.strip(), float(most)
    except ValueError:
        problem = f"--gate {text!r} is not a gate" if equals else f"--gate {text!r} has no limit"
        raise ZephyrError(problem, "write it as --gate ties_share=0.15") from None


def _table(figures: Mapping[str, Any]) -> Table:
    """Counts with their shares; long lists by their first entries."""
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
