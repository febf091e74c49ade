"""The contract of a benchmark."""

from abc import ABC
from typing import ClassVar

from zephyrctl.contracts import PluginOptions


class Benchmark(ABC):
    """A benchmark: questions, how they are answered and judged, and how the scores are summarized."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: PluginOptions) -> None:
        self.options = options
