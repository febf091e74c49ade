"""The built-in plugins: they enter through the same hooks as the plugins of others.

Each hook imports what it returns and no more: a plan needs a model base, but no teacher with its network.
Benchmarks, losses and row formats are in the rooms that they belong to, and are named here by module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zephyrctl.hooks import hookimpl

if TYPE_CHECKING:
    from zephyrctl.contracts import Binarizer, ModelBase, Teacher
    from zephyrctl.evaluation.benchmarks.contract import Benchmark
    from zephyrctl.rows.formats import RowFormat
    from zephyrctl.training.losses import PreferenceLoss

BENCHMARKS: tuple[str, ...] = (
    "zephyrctl.evaluation.benchmarks.mt_bench:MtBench",
    "zephyrctl.evaluation.benchmarks.alpaca_eval:AlpacaEval",
    "zephyrctl.evaluation.benchmarks.open_llm:OpenLlm",
    "zephyrctl.evaluation.benchmarks.arena:Arena",
    "zephyrctl.evaluation.benchmarks.ifeval:IfEval",
)
"""The built-in benchmarks as `module:Class`, in the order in which they are listed."""
LOSSES: tuple[str, ...] = (
    "zephyrctl.builtin.losses:Sigmoid",
    "zephyrctl.builtin.losses:SigmoidNorm",
    "zephyrctl.builtin.losses:Hinge",
    "zephyrctl.builtin.losses:Ipo",
    "zephyrctl.builtin.losses:ExoPair",
    "zephyrctl.builtin.losses:NcaPair",
    "zephyrctl.builtin.losses:Robust",
    "zephyrctl.builtin.losses:BcoPair",
    "zephyrctl.builtin.losses:SppoHard",
    "zephyrctl.builtin.losses:Aot",
    "zephyrctl.builtin.losses:AotUnpaired",
    "zephyrctl.builtin.losses:ApoZero",
    "zephyrctl.builtin.losses:ApoDown",
    "zephyrctl.builtin.losses:DiscoPop",
    "zephyrctl.builtin.losses:Imitation",
)
"""The built-in preference losses, likewise."""
ROW_FORMATS: tuple[str, ...] = (
    "zephyrctl.builtin.row_formats:Messages",
    "zephyrctl.builtin.row_formats:ShareGPT",
    "zephyrctl.builtin.row_formats:UltraChat",
    "zephyrctl.builtin.row_formats:Alpaca",
    "zephyrctl.builtin.row_formats:PromptText",
    "zephyrctl.builtin.row_formats:UltraFeedback",
    "zephyrctl.builtin.row_formats:PairAfterConversation",
    "zephyrctl.builtin.row_formats:PairAfterMessages",
    "zephyrctl.builtin.row_formats:PairOfDialogues",
    "zephyrctl.builtin.row_formats:PairOfTexts",
)
"""The built-in row formats, likewise, in the order in which they are tried on a row."""


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`offline`, `openai` and `transformers`."""
    from zephyrctl.builtin.openai import OpenAITeacher
    from zephyrctl.builtin.transformers import TransformersTeacher
    from zephyrctl.tiny.teacher import OfflineTeacher

    return [OfflineTeacher, OpenAITeacher, TransformersTeacher]


@hookimpl
def zephyrctl_binarizers() -> list[type[Binarizer]]:
    """The strategies of the paper and of the field, and the rule of the published set with its defect."""
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


@hookimpl
def zephyrctl_benchmarks() -> list[type[Benchmark]]:
    """The benchmarks named in `BENCHMARKS`."""
    return [_import_class(path) for path in BENCHMARKS]


@hookimpl
def zephyrctl_losses() -> list[type[PreferenceLoss]]:
    """The losses named in `LOSSES`."""
    return [_import_class(path) for path in LOSSES]


@hookimpl
def zephyrctl_row_formats() -> list[type[RowFormat]]:
    """The row formats named in `ROW_FORMATS`."""
    return [_import_class(path) for path in ROW_FORMATS]


def _import_class(path: str) -> type:
    """The class at `module:Class`. Its kind is checked with that of every plugin."""
    module, _, name = path.partition(":")
    imported: type = getattr(import_module(module), name)
    return imported
