"""The contract of a preference loss."""

from abc import ABC
from typing import ClassVar

from zephyrctl.contracts import PluginOptions


class PreferenceLoss(ABC):
    """A loss over pairs of a chosen and a rejected answer."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: PluginOptions) -> None:
        self.options = options
