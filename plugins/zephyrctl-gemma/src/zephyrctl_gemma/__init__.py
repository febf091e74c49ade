"""The model base `gemma-2-9b`: Gemma 2 9B with its family's chat template, whose turns end with `<end_of_turn>`."""

from pathlib import Path

from pydantic import Field

from zephyrctl.builtin.bases import sizes_of_folder
from zephyrctl.contracts import ModelBase, PluginOptions, Sizes
from zephyrctl.hooks import hookimpl

zephyrctl_contract = "1"

STOP = "<end_of_turn>"
"""What ends a turn; the base's own end of text, `<eos>`, ends a document."""


class Gemma2(ModelBase):
    """Gemma 2 9B, or another one of its family in a folder."""

    class Options(PluginOptions):
        """Options of `gemma-2-9b`."""

        folder: str | None = Field(default=None, description="a copy on this machine, or a model of another size")
        revision: str = Field(default="main", description="Hub revision to pin")

    name = "gemma-2-9b"

    def location(self) -> str:
        """The folder, or the Hub id."""
        return self.options.folder or "google/gemma-2-9b"

    def sizes(self) -> Sizes:
        """As published: 9,241,705,984 parameters; of a folder as it says."""
        if self.options.folder:
            return sizes_of_folder(Path(self.options.folder))
        return Sizes(
            parameters=9_241_705_984,
            width=3584,
            layers=42,
            feed_forward=14336,
            key_value_width=2048,
            vocabulary=256_000,
        )

    @property
    def revision(self) -> str | None:
        """The pinned revision; a folder has none."""
        return None if self.options.folder else str(self.options.revision)

    @property
    def license(self) -> str:
        """In the Hub's words."""
        return "gemma"

    def chat_template(self) -> str:
        """The family's turns; an answer carries loss up to and with `<end_of_turn>`."""
        return Path(__file__).with_name("chat_template.jinja").read_text()


@hookimpl
def zephyrctl_model_bases() -> list[type[ModelBase]]:
    """`gemma-2-9b`."""
    return [Gemma2]
