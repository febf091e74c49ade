"""Find, read and render the shipped templates."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zephyrctl.errors import ZephyrError

if TYPE_CHECKING:
    import jinja2


def folder() -> Path:
    """The templates folder: inside the installed package, or at the top of a source checkout.

    An editable install may leave a stale copy in site-packages, so the folder is found from this file.
    """
    package = Path(__file__).parent
    shipped = package / "templates"
    return shipped if shipped.is_dir() else package.parent.parent / "templates"


def path(name: str) -> Path:
    """The path of one template. Raises ZephyrError if it is missing."""
    template = folder() / name
    if not template.is_file():
        raise ZephyrError(f"the template {name!r} is missing from this installation", "install zephyrctl again")
    return template


def read(name: str) -> str:
    """The text of one template."""
    return path(name).read_text()


def render(name: str, **values: object) -> str:
    """A template filled with values. HTML is escaped, and a missing value is an error."""
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
