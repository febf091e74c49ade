"""Write files atomically, and lock work against other processes."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from zephyrctl.errors import ZephyrError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it replaces the file, and if anything fails it is removed."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it exists whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def lock(path: Path, work: str) -> TextIO:
    """Keep other processes from some work, named as in "is working on 'dpo'", while the returned file is open.

    Raises ZephyrError if another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ZephyrError(f"another zephyrctl {work} in {path.parent}", "wait for it, or give another --run") from None
    return file
