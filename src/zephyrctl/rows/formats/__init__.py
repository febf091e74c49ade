"""The contract of a row format."""

from abc import ABC
from typing import ClassVar

from zephyrctl.contracts import PluginOptions


class RowFormat(ABC):
    """A form in which data sets are published, and how its rows are read into records."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: PluginOptions) -> None:
        self.options = options
