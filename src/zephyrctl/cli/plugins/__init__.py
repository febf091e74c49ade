"""`zephyrctl plugins`: what can be swapped and what with, and a package to start one's own plugin from."""

from zephyrctl.cli.plugins.listing import plugins
from zephyrctl.cli.plugins.new import new

plugins.command()(new)

__all__ = ["plugins"]
