"""Whether model bases know their place, their licence and their size, and say what is wrong with a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from zephyrctl import plugins
from zephyrctl.builtin.bases import TinyMistral, sizes_of_folder
from zephyrctl.contracts import PluginOptions, Sizes
from zephyrctl.errors import ZephyrError

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
}


def save(folder: Path, config: dict[str, Any], *shapes: list[list[int]]) -> Path:
    """A folder with a configuration, and one safetensors file for each list of tensor shapes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for number, tensors in enumerate(shapes):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        header |= {f"tensor {place}": {"dtype": "F32", "shape": shape} for place, shape in enumerate(tensors)}
        text = json.dumps(header).encode()
        (folder / f"model-{number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


def huggingface(**options: Any) -> Any:
    """The base for any model."""
    return plugins.load().model_base("huggingface", options)


def test_code_that_comes_with_a_model_is_trusted_by_its_name_alone() -> None:
    assert not huggingface(model="an-org/a-model").trusts_code
    assert huggingface(model="an-org/a-model", trust_remote_code="an-org/a-model").trusts_code
    with pytest.raises(ZephyrError, match="is not the model"):
        huggingface(model="an-org/a-model", trust_remote_code="true")


def parameters(sizes: Sizes, tied: bool) -> int:
    """What a Mistral of this shape must have: attention, three feed-forward matrices and two norms a layer."""
    attention = 2 * sizes.width * (sizes.width + sizes.key_value_width)
    layer = attention + 3 * sizes.width * sizes.feed_forward + 2 * sizes.width
    return sizes.vocabulary * sizes.width * (1 if tied else 2) + sizes.layers * layer + sizes.width


def test_mistral_7b_is_what_was_published() -> None:
    """Its parameters follow from its shape, to the last one."""
    base = plugins.load().model_base("mistral-7b", {})
    assert base.sizes().parameters == parameters(base.sizes(), tied=False) == 7_241_732_096
    assert (base.location(), base.revision, base.license) == ("mistralai/Mistral-7B-v0.1", "main", "apache-2.0")
    assert plugins.load().model_base("mistral-7b", {"revision": "abc"}).revision == "abc"


def test_the_embedded_base_is_in_the_package() -> None:
    """Under 2 M parameters, and as many as its shape says."""
    base = TinyMistral(PluginOptions())
    assert Path(base.location(), "config.json").is_file()
    sizes = base.sizes()
    assert sizes.parameters < 2_000_000
    assert sizes.parameters in (parameters(sizes, tied=True), parameters(sizes, tied=False))
    assert (base.revision, base.license) == (None, "apache-2.0")


def test_a_folder_is_read(tmp_path: Path) -> None:
    """The shape from config.json, the parameters from the headers of all weight files."""
    folder = save(tmp_path / "model", CONFIG, [[10, 8], [8]], [[8, 8], []])
    base = huggingface(model=str(folder), license="mit")
    assert base.sizes() == Sizes(
        parameters=80 + 8 + 64 + 1, width=8, layers=2, feed_forward=16, key_value_width=4, vocabulary=10
    )
    assert (base.location(), base.license, base.revision) == (str(folder), "mit", None)


@pytest.mark.parametrize(
    ("change", "width"),
    [({"num_key_value_heads": None}, 8), ({"head_dim": 16}, 32), ({"head_dim": None}, 4), ({}, 4)],
)
def test_the_width_of_keys_and_values(tmp_path: Path, change: dict[str, Any], width: int) -> None:
    """Without key-value heads there are as many as heads; without a head size it follows from the width."""
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None or key == "head_dim"}
    assert sizes_of_folder(save(tmp_path / "model", config, [[1]])).key_value_width == width


@pytest.mark.parametrize(
    "broken",
    [
        *("no folder", "no config", "half a config", "no weights", "no JSON", "cut weights"),
        "a list",
        "an LFS pointer",
    ],
)
def test_a_folder_that_holds_no_model(tmp_path: Path, broken: str) -> None:
    """Is named with what to give instead."""
    folder = tmp_path / "model"
    if broken != "no folder":
        config = {"hidden_size": 8} if broken == "half a config" else CONFIG
        save(folder, config, *([] if broken == "no weights" else [[[10, 8]]]))
    if broken == "no config":
        (folder / "config.json").unlink()
    if broken in ("no JSON", "a list"):
        (folder / "config.json").write_text("[]" if broken == "a list" else "{")
    if broken == "cut weights":
        (folder / "model-0.safetensors").write_bytes((10**6).to_bytes(8, "little") + b'{"tensor')
    if broken == "an LFS pointer":
        (folder / "model-0.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ZephyrError) as caught:
        sizes_of_folder(folder)
    assert str(folder) in caught.value.problem
    assert "config.json and safetensors" in caught.value.remedy


def test_a_hub_id_needs_its_shape_stated() -> None:
    """As nothing is downloaded to plan a run; a stated shape is taken, and a wrong key in it is named."""
    with pytest.raises(ZephyrError, match=r"the shape of org/model is not known before a download"):
        huggingface(model="org/model").sizes()
    shape = {"parameters": 9, "width": 8, "layers": 7, "feed_forward": 6, "key_value_width": 5, "vocabulary": 4}
    stated = huggingface(model="org/model", revision="v1", sizes=shape)
    assert (stated.sizes(), stated.revision) == (Sizes(**shape), "v1")
    with pytest.raises(ZephyrError, match=r"sizes\.deep"):
        huggingface(model="org/model", sizes={**shape, "deep": 1})
    with pytest.raises(ZephyrError, match="model: Field required"):
        huggingface()


@pytest.mark.parametrize(("name", "options"), [("mistral-7b", {}), ("huggingface", {"model": "org/model"})])
def test_every_base_brings_the_template_with_generation_marks(name: str, options: dict[str, str]) -> None:
    """Which say what carries loss."""
    assert "generation" in plugins.load().model_base(name, options).chat_template()
