"""Events that a worker sends to the command: JSON lines that the first rank appends to a file."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.warm_workers import die_with_parent


class Events:
    """The event file of a job."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "events.jsonl"
        self.is_mine = os.environ.get("RANK", "0") == "0"

    def send(self, event: str, **values: object) -> None:
        """Append one event, if this is the first rank."""
        if self.is_mine:
            self.write(event, **values)

    def write(self, event: str, **values: object) -> None:
        """Append one event from any rank."""
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


def run(work: Callable[[Path], None]) -> None:
    """Do a worker's work on the job file named on the command line.

    An error that the user can fix is sent as an event, and a bug keeps its traceback; both end the process with 1.
    """
    die_with_parent()
    job = Path(sys.argv[1])
    try:
        work(job)
    except ZephyrError as error:
        Events(job.parent).write("error", problem=error.problem, remedy=error.remedy)
        os._exit(1)  # the other ranks wait in a collective: exit at once, and the launcher ends them
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
