"""Names that a shell is offered for a value: cheap ones, found without a model or a stage."""

from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """The shipped recipes that begin so."""
    from zephyrctl.recipe import loading

    return [name for name in loading.shipped() if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """The runs below runs/ that begin so."""
    return sorted(path.name for path in Path("runs").glob("*") if path.is_dir() and path.name.startswith(incomplete))


def checkpoints(incomplete: str) -> list[str]:
    """The checkpoints of the recipe of this folder that begin so, and the base; none where the recipe is broken."""
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
