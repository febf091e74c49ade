"""Where the shipped templates lie, and how one is read or rendered."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyrctl.errors import ZephyrError

if TYPE_CHECKING:
    import jinja2


def folder() -> Path:
    """The templates folder: inside the installed package, or at the top of a source checkout.

    An editable install may leave a stale copy in site-packages, so the package's own place is asked.
    """
    package = Path(__file__).parent
    shipped = package / "templates"
    return shipped if shipped.is_dir() else package.parent.parent / "templates"


def path(name: str) -> Path:
    """The path of one template. Raises ZephyrError where the installation lacks it."""
    found = folder() / name
    if not found.is_file():
        raise ZephyrError(f"the template {name!r} is missing from this installation", "install zephyrctl again")
    return found


def read(name: str) -> str:
    """The text of one template."""
    return path(name).read_text()


def render(name: str, **values: Any) -> str:
    """A template filled with values; HTML is escaped, and a value that is missing is an error."""
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder()),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
