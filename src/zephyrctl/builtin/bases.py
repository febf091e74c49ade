"""The built-in model bases: Mistral-7B, the embedded tiny one, and any Hub id or folder."""

import json
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from zephyrctl.contracts import ModelBase, PluginOptions, Sizes
from zephyrctl.errors import ZephyrError


class Mistral7B(ModelBase):
    """Mistral-7B-v0.1, the base of the paper."""

    class Options(PluginOptions):
        """Options of `mistral-7b`."""

        revision: str = Field(default="main", description="Hub revision to pin")

    name = "mistral-7b"

    def location(self) -> str:
        """The Hub id."""
        return "mistralai/Mistral-7B-v0.1"

    def sizes(self) -> Sizes:
        """As published: 7,241,732,096 parameters."""
        return Sizes(
            parameters=7_241_732_096,
            width=4096,
            layers=32,
            feed_forward=14336,
            key_value_width=1024,
            vocabulary=32000,
        )

    @property
    def revision(self) -> str | None:
        """The pinned revision."""
        revision: str = self.options.revision
        return revision

    @property
    def license(self) -> str:
        """Apache-2.0."""
        return "apache-2.0"


class TinyMistral(ModelBase):
    """The embedded base: a Mistral of under 2 M parameters that has read the tiny world's raw text and cannot chat."""

    name = "tiny-mistral"

    def location(self) -> str:
        """A folder of the installed package; `zephyrctl.tiny.make_base` is the script that made it."""
        return str(Path(__file__).parents[1] / "tiny" / "base")

    def sizes(self) -> Sizes:
        """Read from its configuration and weights."""
        return sizes_of_folder(Path(self.location()))

    @property
    def license(self) -> str:
        """The project's own."""
        return "apache-2.0"


class HuggingFace(ModelBase):
    """Any causal model of the Hub or in a local folder."""

    class Options(PluginOptions):
        """Options of `huggingface`."""

        model: str = Field(description="Hub id or folder")
        revision: str | None = Field(default=None, description="Hub revision to pin")
        license: str = Field(default="unknown", description="license of the weights, as the Hub names it")
        sizes: Sizes | None = Field(default=None, description="shape, for a Hub id; that of a folder is read")
        trust_remote_code: str | None = Field(
            default=None, description="the model's name again, if Python code in its repository may run"
        )

        @model_validator(mode="after")
        def _code_is_trusted_by_name(self) -> Self:
            if self.trust_remote_code not in (None, self.model):
                raise ValueError(f"trust_remote_code: {self.trust_remote_code!r} is not the model, {self.model!r}")
            return self

    name = "huggingface"

    def location(self) -> str:
        """The id or folder of the options."""
        model: str = self.options.model
        return model

    def sizes(self) -> Sizes:
        """From the folder's configuration, or as the options state them."""
        stated: Sizes | None = self.options.sizes
        if stated:
            return stated
        if Path(self.location()).is_dir():
            return sizes_of_folder(Path(self.location()))
        raise ZephyrError(
            f"the shape of {self.location()} is not known before a download",
            "state it: --set base.options.sizes={parameters: ..., width: ..., ...}, or give a local folder",
        )

    @property
    def revision(self) -> str | None:
        """The pinned revision."""
        revision: str | None = self.options.revision
        return revision

    @property
    def trusts_code(self) -> bool:
        """True if `trust_remote_code` repeats the model's name."""
        return self.options.trust_remote_code is not None

    @property
    def license(self) -> str:
        """As the options state it."""
        license: str = self.options.license
        return license


def sizes_of_folder(folder: Path) -> Sizes:
    """The shape of a saved model, from config.json and the safetensors headers.

    Raises ZephyrError if the folder has no such model.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_width = config.get("head_dim") or config["hidden_size"] // heads
        # Without `num_key_value_heads` every head has keys and values of its own (multi-head attention).
        return Sizes(
            parameters=sum(_parameters(path) for path in folder.glob("*.safetensors")),
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            feed_forward=config["intermediate_size"],
            key_value_width=config.get("num_key_value_heads", heads) * head_width,
            vocabulary=config["vocab_size"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ZephyrError(
            f"{folder} contains no model that can be read: {error!r}",
            "give a folder with config.json and safetensors weights",
        ) from None


def _parameters(path: Path) -> int:
    """The number of values in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is not a safetensors file, perhaps a Git LFS pointer")
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total
