"""`zephyrctl eval fetch`: bring the texts of benchmarks into the cache, each pinned to its hash."""

from typing import Annotated, Any

import typer
from rich.table import Table

from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import UsageError, did_you_mean
from zephyrctl.evaluation.assets import cached, protocols
from zephyrctl.evaluation.assets import fetch as fetch_all


@with_session
def fetch(
    session: Session,
    benchmarks: Annotated[list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="Which; else all.")] = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="Takes the place of scheme and host in every address."),
    ] = None,
) -> None:
    """Fetch questions, judge prompts and references of benchmarks; what is there and whole is not fetched again."""
    known = list(protocols())
    names = benchmarks or known
    if unknown := [name for name in names if name not in known]:
        remedy = did_you_mean(unknown[0], known, f"one of: {', '.join(known)}")
        raise UsageError(f"there is no benchmark {unknown[0]!r} to fetch", remedy)
    if session.dry_run:
        told = [row for name in names for row in _would(name)]
        session.screen.show({"dry_run": told}, *(f"{row['url']} -> {row['path']}" for row in told))
        return
    found = {name: fetch_all([name], mirror) for name in names}
    rows = [
        {"benchmark": name, "file": one.name, "path": str(one.path), "sha256": one.sha256}
        for name, assets in found.items()
        for one in assets
    ]
    table = Table("benchmark", "file", "sha256", "lies at")
    for row in rows:
        table.add_row(row["benchmark"], row["file"], row["sha256"][:16], row["path"])
    session.screen.show({"files": rows}, table)


def _would(benchmark: str) -> list[dict[str, Any]]:
    files = protocols()[benchmark].files
    return [
        {"benchmark": benchmark, "file": name, "url": one.url, "path": str(cached(one)), "there": cached(one).is_file()}
        for name, one in files.items()
    ]
