"""The hooks through which plugins enter: entry-point group `zephyrctl`, one hook per kind of thing to swap."""

import pluggy

from zephyrctl.contracts import Binarizer, ModelBase, Teacher

CONTRACT = "1"
"""The version of the hooks and of `zephyrctl.contracts`; it rises where a plugin that was written for it would break.

A plugin's module may state the one that it is written for: `zephyrctl_contract = "1"`.
"""

hookspec = pluggy.HookspecMarker("zephyrctl")
hookimpl = pluggy.HookimplMarker("zephyrctl")


@hookspec
def zephyrctl_teachers() -> list[type[Teacher]]:  # type: ignore[empty-body]
    """Teachers that this plugin brings."""


@hookspec
def zephyrctl_binarizers() -> list[type[Binarizer]]:  # type: ignore[empty-body]
    """Binarization strategies that this plugin brings."""


@hookspec
def zephyrctl_model_bases() -> list[type[ModelBase]]:  # type: ignore[empty-body]
    """Model bases that this plugin brings."""
