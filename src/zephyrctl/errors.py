"""What goes wrong in a way that the user can mend, and the exit code that says so."""

import difflib
from collections.abc import Iterable


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


class BadRow(ZephyrError):
    """A row that cannot be used.

    `cause` is the words it is counted under where such rows are skipped, `line` what was read where that is no row.
    """

    def __init__(
        self, where: str, cause: str, details: str = "", line: str = "", remedy: str = "mend or remove that row"
    ) -> None:
        super().__init__(
            f"{where}: {details or cause}", f"{remedy}, or give --skip-bad-rows to leave such rows out and count them"
        )
        self.cause = cause
        self.line = line
        self._given = where, cause, details, line, remedy

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, ...]]:
        """It travels between processes in the place of a row."""
        return type(self), self._given


class CallFailed(ZephyrError):
    """One call to a teacher that brought no reply; who asked decides whether to try again.

    `cause` is the few words it is counted under; `may_pass` says that another try may help, `wait` how many seconds the
    server asks to wait first; `is_fatal` that no other call to this teacher can succeed either (a wrong key, a wrong
    address); `may_be_paid` that the server may have done the work; `is_unreached` that nobody listened at all.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        cause: str,
        may_pass: bool = False,
        wait: float | None = None,
        is_fatal: bool = False,
        may_be_paid: bool = False,
        is_unreached: bool = False,
    ) -> None:
        super().__init__(problem, remedy)
        self.cause = cause
        self.may_pass = may_pass
        self.wait = wait
        self.is_fatal = is_fatal
        self.may_be_paid = may_be_paid
        self.is_unreached = is_unreached


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The remedy for a word that nobody knows: the nearest one that is known, else what to do otherwise.

    `cutoff` is how alike the two must be, from 0 to 1.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise
