"""Complete names in the shell. What it needs is cheap to import: no stage and no model."""

from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """The shipped recipes whose names start with these letters."""
    from zephyrctl.recipe import loading

    return [name for name in loading.shipped() if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """The runs in runs/ whose names start with these letters."""
    return sorted(path.name for path in Path("runs").glob("*") if path.is_dir() and path.name.startswith(incomplete))


def checkpoints(incomplete: str) -> list[str]:
    """The base and the checkpoints of this folder's recipe; none if the recipe is broken."""
    from zephyrctl.errors import ZephyrError
    from zephyrctl.recipe import loading

    try:
        known = loading.load(None, {}).recipe.checkpoints
    except ZephyrError:
        return []
    return [name for name in ("base", *known) if name.startswith(incomplete)]


def benchmarks(incomplete: str) -> list[str]:
    """The installed benchmarks that begin so, and the held-out evaluation."""
    from zephyrctl import plugins

    names = ["eval", *plugins.load().names(plugins.BENCHMARK.name)]
    return [name for name in names if name.startswith(incomplete)]
