"""The hooks by which plugins add to zephyrctl: entry-point group `zephyrctl`, one hook for each kind of thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:  # a contract is imported only if its kind is wanted: see `zephyrctl.plugins`
    from zephyrctl.contracts import Binarizer, ModelBase, Teacher
    from zephyrctl.evaluation.benchmarks.contract import Benchmark
    from zephyrctl.rows.formats import RowFormat
    from zephyrctl.training.losses import PreferenceLoss

CONTRACT = "1"
"""The version of the hooks and contracts; it rises when a plugin that was written for it would break.

A plugin's module may state the version that it is written for: `zephyrctl_contract = "1"`.
"""

hookspec = pluggy.HookspecMarker("zephyrctl")
hookimpl = pluggy.HookimplMarker("zephyrctl")


@hookspec
def zephyrctl_teachers() -> list[type[Teacher]]:  # type: ignore[empty-body]
    """The teachers of this plugin."""


@hookspec
def zephyrctl_binarizers() -> list[type[Binarizer]]:  # type: ignore[empty-body]
    """The binarization strategies of this plugin."""


@hookspec
def zephyrctl_model_bases() -> list[type[ModelBase]]:  # type: ignore[empty-body]
    """The model bases of this plugin."""


@hookspec
def zephyrctl_benchmarks() -> list[type[Benchmark]]:  # type: ignore[empty-body]
    """The benchmarks of this plugin."""


@hookspec
def zephyrctl_losses() -> list[type[PreferenceLoss]]:  # type: ignore[empty-body]
    """The preference losses of this plugin."""


@hookspec
def zephyrctl_row_formats() -> list[type[RowFormat]]:  # type: ignore[empty-body]
    """The row formats of this plugin: forms in which data sets are published."""
