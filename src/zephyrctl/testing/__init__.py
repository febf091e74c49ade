"""Checks for authors of plugins: whether a class keeps the contract of its kind.

A check takes a function that returns a new instance, and raises `Breach`, an AssertionError that says what is wrong. It
works in any test framework and imports none::

    def test_it_keeps_the_contract() -> None:
        check_binarizer(lambda: Shortest(Shortest.Options()))
"""

from zephyrctl.testing.benchmarks import check_benchmark
from zephyrctl.testing.binarizers import check_binarizer, rated
from zephyrctl.testing.losses import check_loss
from zephyrctl.testing.model_bases import check_model_base, end_of_turn, write_tokenizer
from zephyrctl.testing.plugin_classes import Breach, check_plugin, require
from zephyrctl.testing.row_formats import check_row_format
from zephyrctl.testing.teachers import check_teacher

__all__ = [
    "Breach",
    "check_benchmark",
    "check_binarizer",
    "check_loss",
    "check_model_base",
    "check_plugin",
    "check_row_format",
    "check_teacher",
    "end_of_turn",
    "rated",
    "require",
    "write_tokenizer",
]
