"""What goes wrong in a way that the user can mend, and the exit code that says so."""


class ZephyrError(Exception):
    """A problem that the user can mend: one sentence that names it, one that says what to do next.

    Everything else is a bug and keeps its traceback.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(ZephyrError):
    """The command line itself is wrong (exit 2)."""

    exit_code = 2


class GateError(ZephyrError):
    """The work was done and a quality gate of the recipe refuses its result (exit 3)."""

    exit_code = 3


class Interrupted(ZephyrError):
    """The user stopped the command; the draft is kept and the same command resumes it (exit 130)."""

    exit_code = 130
