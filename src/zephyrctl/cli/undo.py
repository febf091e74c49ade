"""`zephyrctl data undo`: the input again, without what some rules of `data build` did to it."""

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
"""The rules that change turns; every other leaves rows out."""


@with_session
def undo(
    session: Session,
    rule: Annotated[
        list[str],
        typer.Option("--rule", help="Rule to undo, as the table of `data build` names it, or 'all'; may be repeated."),
    ],
    id: Annotated[str | None, typer.Option("--id", help="Undo it for the row of this id only.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Write this side only: train or test.")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="The prompts that a teacher made, not the dialogues.")] = (
        False
    ),
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else undone.jsonl in the run.")] = None,
) -> None:
    """Write the rows of `data build` as they were before a rule changed or dropped them.

    The file can be built again: `zephyrctl data build --input FILE`, with the rule switched off in the recipe.
    """
    run = session.open(session.load())
    artifact = run.require("build", "zephyrctl data build")
    work = undoing.Undoing(undoing.find_rules(artifact, rule), id, Counter())
    lines = undoing.undo(artifact, work, "prompts" if prompts else "dialogues", _sides(split))
    path = out or run.path / "undone.jsonl"
    if out and out.exists() and not session.fresh:
        raise ZephyrError(f"{out} is there already", "give another --out, or --fresh to write over it")
    rows = sum(1 for _ in lines) if session.dry_run else _write(path, lines)
    session.screen.say(f"undone in {rows} rows: {_told(work.restored)}")
    session.screen.show({"path": str(path), "rows": rows, "restored": dict(work.restored)}, str(path))


def rules_table(artifact: Artifact) -> list[Table]:
    """What each rule of `data build` changed or left out, as a table; none where no rule did anything."""
    rules = artifact.manifest.metrics.get("rules")
    if not rules:
        return []
    table = Table("rule", Column("rows", justify="right"), "did", box=SIMPLE_HEAD)
    for rule, rows in rules.items():
        table.add_row(rule, str(rows), "changed a turn" if rule in CHANGING else "left out")
    return [table]


def _sides(split: str | None) -> tuple[Split, ...]:
    chosen: tuple[Split, ...] = tuple(side for side in SPLITS if split in (None, side))
    if not chosen:
        raise ZephyrError(f"there is no side {split!r}", "--split train or --split test")
    return chosen


def _write(path: Path, lines: Iterable[str]) -> int:
    """Write the lines; the file is there whole or not at all."""
    rows = 0
    with whole(path) as part, part.open("w") as file:
        for line in lines:
            file.write(f"{line}\n")
            rows += 1
    return rows


def _told(restored: "Counter[str]") -> str:
    return ", ".join(f"{count} x {rule}" for rule, count in sorted(restored.items())) or "nothing"
