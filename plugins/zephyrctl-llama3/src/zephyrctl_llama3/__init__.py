"""The model base `llama-3.1-8b`: Llama 3.1 8B with its family's chat template, whose turns end with `<|eot_id|>`."""

from pathlib import Path

from pydantic import Field

from zephyrctl.builtin.bases import sizes_of_folder
from zephyrctl.contracts import ModelBase, PluginOptions, Sizes
from zephyrctl.hooks import hookimpl

zephyrctl_contract = "1"

STOP = "<|eot_id|>"
"""What ends a turn; the base's own end of text, `<|end_of_text|>`, ends a document."""


class Llama31(ModelBase):
    """Llama 3.1 8B, or another one of its family in a folder."""

    class Options(PluginOptions):
        """Options of `llama-3.1-8b`."""

        folder: str | None = Field(default=None, description="a copy on this machine, or a model of another size")
        revision: str = Field(default="main", description="Hub revision to pin")

    name = "llama-3.1-8b"

    def location(self) -> str:
        """The folder, or the Hub id."""
        return self.options.folder or "meta-llama/Llama-3.1-8B"

    def sizes(self) -> Sizes:
        """As published: 8,030,261,248 parameters; of a folder as it says."""
        if self.options.folder:
            return sizes_of_folder(Path(self.options.folder))
        return Sizes(
            parameters=8_030_261_248,
            width=4096,
            layers=32,
            feed_forward=14336,
            key_value_width=1024,
            vocabulary=128_256,
        )

    @property
    def revision(self) -> str | None:
        """The pinned revision; a folder has none."""
        return None if self.options.folder else str(self.options.revision)

    @property
    def license(self) -> str:
        """In the Hub's words."""
        return "llama3.1"

    def chat_template(self) -> str:
        """The family's turns; an answer carries loss up to and with `<|eot_id|>`."""
        return Path(__file__).with_name("chat_template.jinja").read_text()


@hookimpl
def zephyrctl_model_bases() -> list[type[ModelBase]]:
    """`llama-3.1-8b`."""
    return [Llama31]
