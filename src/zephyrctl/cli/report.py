"""`zephyrctl report`: one HTML file that shows a run."""

from zephyrctl.cli.session import Session, with_session
from zephyrctl.publishing.report import FILE, write_report


@with_session
def report(session: Session) -> None:
    """Write the report of the run as one HTML file.

    It shows scores, benchmarks and a comparison with the paper, training curves, the answers, dropped data, and the
    provenance of each number.
    """
    loaded = session.load()
    run = session.open(loaded)
    if session.dry_run:
        path = str(run.path / FILE)
        session.screen.show({"dry_run": [{"name": "report", "writes": path}]}, f"report: would write {path}")
        return
    path = str(write_report(run, loaded.recipe))
    session.screen.show({"report": path}, path)
