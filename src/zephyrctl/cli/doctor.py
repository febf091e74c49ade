"""`zephyrctl doctor`: check this machine and print a remedy for each problem."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from zephyrctl.cli.screen import Screen, plain
from zephyrctl.doctor.examine import examine
from zephyrctl.doctor.finding import Finding

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def doctor(
    run: Annotated[str, typer.Option("--run", help="Folder of runs, or of one run. Its disk is checked.")] = "runs",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check machine, drivers, library versions, FlashAttention, disk, memory, network and Hub login.

    Exits with 1 if something would stop the usual `zephyrctl run`. Notes do not.
    """
    found = examine(Path(run), os.environ)
    problems = [finding for finding in found if finding.state == "problem"]
    screen = Screen(json, quiet=False)
    screen.show({"findings": [asdict(finding) for finding in found], "problems": len(problems)}, *lines(found))
    if problems:
        raise typer.Exit(1)


def lines(found: Sequence[Finding]) -> Iterator[Text]:
    """The findings as lines of text, each remedy below its finding, and a count by state at the end."""
    width = max(len(finding.part) for finding in found)
    for finding in found:
        word, style = MARKS[finding.state]
        yield Text.assemble((f"{word:>7}", style), f"  {finding.part:<{width}}  {plain(finding.what)}")
        if finding.remedy:
            yield Text.assemble(" " * (width + 11), ("try: ", "bold"), plain(finding.remedy))
    count = {state: sum(finding.state == state for finding in found) for state in MARKS}
    yield Text(f"{count['ok']} ok, {count['note']} notes, {count['problem']} problems")
