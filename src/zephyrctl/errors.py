"""Errors that the user can fix, and their exit codes."""

import difflib
from collections.abc import Iterable


class ZephyrError(Exception):
    """A problem that the user can fix: one sentence that names it, and one that says what to do next.

    Every other exception is a bug and keeps its traceback.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(ZephyrError):
    """The command line is wrong (exit 2)."""

    exit_code = 2


class GateError(ZephyrError):
    """The work is done, but a quality gate of the recipe failed (exit 3)."""

    exit_code = 3


class Interrupted(ZephyrError):
    """The user stopped the command. The draft is kept, and the same command resumes it (exit 130)."""

    exit_code = 130


class BadRow(ZephyrError):
    """A row that cannot be used.

    `cause` is what it is counted under if bad rows are skipped. `line` is the text that was read, if it is not a row.
    """

    def __init__(
        self, where: str, cause: str, details: str = "", line: str = "", remedy: str = "fix or remove that row"
    ) -> None:
        super().__init__(
            f"{where}: {details or cause}", f"{remedy}, or give --skip-bad-rows to drop such rows and count them"
        )
        self.cause = cause
        self.line = line
        self._given = where, cause, details, line, remedy

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, ...]]:
        """Worker processes return it in place of a row."""
        return type(self), self._given


class CallFailed(ZephyrError):
    """A call to a teacher got no reply; the caller decides whether to try again.

    - `cause`: a few words that it is counted under
    - `may_pass`: another attempt may succeed
    - `wait`: seconds that the server asks to wait before it
    - `is_fatal`: no other call to this teacher can succeed (wrong key, wrong address)
    - `may_be_paid`: the server may have done the work
    - `is_unreached`: no server listened
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
    """The remedy for an unknown word: the nearest known word, or else `otherwise`.

    `cutoff` is how similar the two must be, from 0 to 1.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise
