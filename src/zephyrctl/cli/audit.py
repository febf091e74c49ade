"""`zephyrctl data audit`: show the figures of a file as a table, JSON or an HTML page, and check them against gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from zephyrctl.cli.session import Session, with_session
from zephyrctl.data import audit as auditing
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.publishing.audit_page import HEADINGS, write_page
from zephyrctl.recipe.loading import flatten

SHOWN = 8
"""Entries of a figure with many values that the table shows; --json has all."""
TITLES = HEADINGS | {
    "rows": "Rows",
    "form": "Form of the rows",
    "keys": "Rows with each key",
    "bad_rows_by_cause": "Unreadable rows by cause",
    "turns": "Dialogues by number of turns",
    "length_difference_median": "Median length of chosen minus rejected, in characters",
    "rejected_places": "Positions of the rejected answers",
    "rejected_places_p": "Chance of such positions without bias",
    "best_places": "Positions of the best answers",
    "best_places_p": "Chance of such positions without bias",
    "worst_places": "Positions of the worst answers",
    "worst_places_p": "Chance of such positions without bias",
    "ratings": "Ratings",
    "mean_rating": "Mean rating of each aspect",
    "near_duplicates_sought_in": "Rows searched for near duplicates",
    "refusal_openings_by_phrase": "Refusals and hedges by phrase",
    "lengths": "Lengths",
    "languages": "Languages of the prompts",
    "languages_sampled": "Prompts whose language was identified",
    "benchmark_prompts": "Benchmark prompts searched for",
    "benchmark_overlap_by_kind": "These rows by kind of match",
}
"""What the table calls each figure of the report."""


@with_session
def audit(
    session: Session,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="File of dialogues, rated answers or pairs, or the folder of a finished data stage."
        ),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="File of benchmark prompts to search the rows for. Repeatable."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write an HTML page with histograms here.")] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="FIGURE=MOST",
            help="Exit with 3 if a figure, named as in --json, is larger than this. Repeatable.",
        ),
    ] = None,
) -> None:
    """Measure a file of dialogues, rated answers or pairs: ties, duplicates, length bias, refusals. Makes no calls."""
    recipe = session.load().recipe
    gates = {**recipe.audit.gates, **dict(map(_gate, gate or []))}
    benchmarks = [*map(Path, recipe.decontaminate.against), *(against or [])]
    if session.dry_run:
        files = [str(file) for file in auditing.files_of(path)]
        session.screen.show(
            {"dry_run": {"reads": files}}, f"would read {', '.join(files)} and write {html or 'nothing'}"
        )
        return
    with session.screen.watch("audit") as watcher:
        report = auditing.audit(path, benchmarks, recipe.decontaminate.ngram or 8, watcher)
    figures = report.figures()
    failed = list(auditing.failed_gates(figures, gates))
    if html:
        write_page(html, path.name, report)
        session.screen.say(f"audit: wrote {html}")
    as_json = {**figures, "gates": gates, "gates_failed": [name for name, _ in failed]}
    session.screen.show(as_json, _table(figures))
    if failed:
        raise GateError(
            f"{path}: " + "; ".join(f"{name} is {value:g}, at most {gates[name]:g}" for name, value in failed),
            "fix the data, or raise the limit: --gate, or audit.gates in the recipe",
        )


def _gate(text: str) -> tuple[str, float]:
    name, equals, most = text.partition("=")
    try:
        return name.strip(), float(most)
    except ValueError:
        problem = f"--gate {text!r}: the limit is not a number" if equals else f"--gate {text!r} has no limit"
        raise ZephyrError(problem, "write it like this: --gate ties_share=0.15") from None


def _table(figures: Mapping[str, object]) -> Table:
    """Each figure with its count and share. Figures with many values are cut; those without a value are left out."""
    table = Table("figure", Column("count", overflow="fold"), Column("share", justify="right"))
    for name, value in figures.items():
        if name.endswith("_share") or isinstance(value, list) or value is None or value == {}:
            continue
        table.add_row(TITLES[name], _shown(value), _percent(figures.get(f"{name}_share")))
    return table


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return _short(flatten(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(values: Mapping[str, object]) -> str:
    shown = [f"{name} {value}" for name, value in list(values.items())[:SHOWN]]
    more = f", and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(shown) + more


def _percent(share: object) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, float) else ""
