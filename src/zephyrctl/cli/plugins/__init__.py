"""`zephyrctl plugins`: list all plugins, and write a package to start a new one from."""

from zephyrctl.cli.plugins.listing import plugins
from zephyrctl.cli.plugins.new import new

plugins.command()(new)

__all__ = ["plugins"]
