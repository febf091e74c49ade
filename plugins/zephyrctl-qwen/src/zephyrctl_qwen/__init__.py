"""The model base `qwen2.5-7b`: Qwen2.5 7B with its family's chat template, whose turns end with `<|im_end|>`."""

from pathlib import Path

from pydantic import Field

from zephyrctl.builtin.bases import sizes_of_folder
from zephyrctl.contracts import ModelBase, PluginOptions, Sizes
from zephyrctl.hooks import hookimpl

zephyrctl_contract = "1"

STOP = "<|im_end|>"
"""What ends a turn; the base's own end of text, `<|endoftext|>`, ends a document."""


class Qwen25(ModelBase):
    """Qwen2.5 7B, or another one of its family in a folder."""

    class Options(PluginOptions):
        """Options of `qwen2.5-7b`."""

        folder: str | None = Field(default=None, description="a copy on this machine, or a model of another size")
        revision: str = Field(default="main", description="Hub revision to pin")

    name = "qwen2.5-7b"

    def location(self) -> str:
        """The folder, or the Hub id."""
        return self.options.folder or "Qwen/Qwen2.5-7B"

    def sizes(self) -> Sizes:
        """As published: 7,615,616,512 parameters; of a folder as it says."""
        if self.options.folder:
            return sizes_of_folder(Path(self.options.folder))
        return Sizes(
            parameters=7_615_616_512,
            width=3584,
            layers=28,
            feed_forward=18944,
            key_value_width=512,
            vocabulary=152_064,
        )

    @property
    def revision(self) -> str | None:
        """The pinned revision; a folder has none."""
        return None if self.options.folder else str(self.options.revision)

    @property
    def license(self) -> str:
        """In the Hub's words."""
        return "apache-2.0"

    def chat_template(self) -> str:
        """The family's turns; an answer carries loss up to and with `<|im_end|>`."""
        return Path(__file__).with_name("chat_template.jinja").read_text()


@hookimpl
def zephyrctl_model_bases() -> list[type[ModelBase]]:
    """`qwen2.5-7b`."""
    return [Qwen25]
