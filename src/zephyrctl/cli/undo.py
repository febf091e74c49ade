"""`zephyrctl data undo`: write the input as it was before some rules of `data build`."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from zephyrctl.cli.session import Session, with_session
from zephyrctl.data import undo as undoing
from zephyrctl.data.cleaning_rules import TRUECASE, UNANSWERED
from zephyrctl.disk import whole
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Split
from zephyrctl.runs.artifacts import SPLITS, Artifact

CHANGING = (TRUECASE, UNANSWERED)
"""The rules that change turns. Every other rule drops rows."""


@with_session
def undo(
    session: Session,
    rule: Annotated[
        list[str],
        typer.Option("--rule", help="Rule to undo, as `data build` prints it, or 'all'. Repeatable."),
    ],
    id: Annotated[str | None, typer.Option("--id", help="Undo rules for the row with this id only.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Write this split only: train or test.")] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Restore the teacher's prompts instead of the dialogues.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="File to write. Default: undone.jsonl in the run.")] = None,
) -> None:
    """Write the rows of `data build` as they were before a rule changed or dropped them.

    To build from the file: `zephyrctl data build --input FILE`, with the rule switched off in the recipe.
    """
    run = session.open(session.load())
    artifact = run.require("build", "zephyrctl data build")
    work = undoing.Undoing(undoing.find_rules(artifact, rule), id, Counter())
    lines = undoing.undo(artifact, work, "prompts" if prompts else "dialogues", _splits(split))
    path = out or run.path / "undone.jsonl"
    if out and out.exists() and not session.fresh:
        raise ZephyrError(f"{out} already exists", "give another --out, or --fresh to overwrite it")
    rows = sum(1 for _ in lines) if session.dry_run else _write(path, lines)
    session.screen.say(f"{rows} rows; undone: {_describe(work.restored)}")
    session.screen.show({"path": str(path), "rows": rows, "restored": dict(work.restored)}, str(path))


def rules_table(artifact: Artifact) -> list[Table]:
    """A table of what each rule of `data build` changed or dropped; no table if no rule did."""
    rules = artifact.manifest.metrics.get("rules")
    if not rules:
        return []
    table = Table("rule", Column("rows", justify="right"), "effect", box=SIMPLE_HEAD)
    for rule, rows in rules.items():
        table.add_row(rule, str(rows), "changed a turn" if rule in CHANGING else "dropped")
    return [table]


def _splits(split: str | None) -> tuple[Split, ...]:
    chosen: tuple[Split, ...] = tuple(name for name in SPLITS if split in (None, name))
    if not chosen:
        raise ZephyrError(f"there is no split {split!r}", "--split train or --split test")
    return chosen


def _write(path: Path, lines: Iterable[str]) -> int:
    """Write the lines and count them. If writing fails, no file is left."""
    rows = 0
    with whole(path) as part, part.open("w") as file:
        for line in lines:
            file.write(f"{line}\n")
            rows += 1
    return rows


def _describe(restored: "Counter[str]") -> str:
    return ", ".join(f"{count} x {rule}" for rule, count in sorted(restored.items())) or "nothing"
