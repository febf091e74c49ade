"""`zephyrctl report`: one HTML file that shows a run."""

from zephyrctl.cli.session import Session, with_session
from zephyrctl.publishing.report import write_report


@with_session
def report(session: Session) -> None:
    """Write the run's report: scores, benchmarks beside the paper, curves, answers, and where each number came from."""
    loaded = session.load()
    folder = session.open(loaded)
    if session.dry_run:
        target = str(folder.path / "report.html")
        session.screen.show({"dry_run": [{"name": "report", "writes": target}]}, f"report: would write {target}")
        return
    path = str(write_report(folder, loaded.recipe))
    session.screen.show({"report": path}, path)
