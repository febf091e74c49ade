"""The hooks through which plugins enter: entry-point group `zephyrctl`, one hook per kind of thing to swap."""

import pluggy

from zephyrctl.contracts import Binarizer, ModelBase, Teacher

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
