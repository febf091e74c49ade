"""The built-in teachers, binarizers and model bases, registered through the hooks like anybody's.

Each hook imports its own: a plan wants a base, and no teacher with its network.
"""

from zephyrctl.contracts import Binarizer, ModelBase, Teacher
from zephyrctl.hooks import hookimpl


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`offline`, `openai` and `transformers`."""
    from zephyrctl.builtin.openai import OpenAITeacher
    from zephyrctl.builtin.transformers import TransformersTeacher
    from zephyrctl.tiny.teacher import OfflineTeacher

    return [OfflineTeacher, OpenAITeacher, TransformersTeacher]


@hookimpl
def zephyrctl_binarizers() -> list[type[Binarizer]]:
    """The paper's and the field's strategies, and the published set's rule with its defect."""
    from zephyrctl.builtin import binarizers

    return [
        binarizers.RandomRejected,
        binarizers.HighestLowest,
        binarizers.Notus,
        binarizers.Margin,
        binarizers.AllPairs,
        binarizers.ZephyrV1,
    ]


@hookimpl
def zephyrctl_model_bases() -> list[type[ModelBase]]:
    """`mistral-7b`, `tiny-mistral` and `huggingface`."""
    from zephyrctl.builtin import bases

    return [bases.Mistral7B, bases.TinyMistral, bases.HuggingFace]
