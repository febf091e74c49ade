"""`zephyrctl eval fetch`: download the files of benchmarks into the cache, each pinned to its hash."""

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
    benchmarks: Annotated[
        list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="Benchmarks to fetch. Default: all.")
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="Replace scheme and host in every address with this."),
    ] = None,
) -> None:
    """Fetch questions, judge prompts and references of benchmarks. Files in the cache are not fetched again."""
    known = list(protocols())
    names = benchmarks or known
    if unknown := [name for name in names if name not in known]:
        remedy = did_you_mean(unknown[0], known, f"one of: {', '.join(known)}")
        raise UsageError(f"there is no benchmark {unknown[0]!r} to fetch", remedy)
    if session.dry_run:
        expected = [row for name in names for row in _pinned(name)]
        session.screen.show({"dry_run": expected}, *(f"{row['url']} -> {row['path']}" for row in expected))
        return
    fetched = {name: fetch_all([name], mirror) for name in names}
    rows = [
        {"benchmark": name, "file": asset.name, "path": str(asset.path), "sha256": asset.sha256}
        for name, assets in fetched.items()
        for asset in assets
    ]
    table = Table("benchmark", "file", "sha256", "path")
    for row in rows:
        table.add_row(row["benchmark"], row["file"], row["sha256"][:16], row["path"])
    session.screen.show({"files": rows}, table)


def _pinned(benchmark: str) -> list[dict[str, Any]]:
    """Each file of a benchmark: from which address, to which path, and whether it is in the cache."""
    rows = []
    for name, file in protocols()[benchmark].files.items():
        path = cached(file)
        rows.append({"benchmark": benchmark, "file": name, "url": file.url, "path": str(path), "there": path.is_file()})
    return rows
