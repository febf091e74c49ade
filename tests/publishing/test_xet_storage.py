"""Whether the Xet storage of our tests keeps what the real client sends, to the byte."""

import hashlib

import numpy as np
import pytest

from tests.publishing.hub_server import TOKEN, serve

REPO = "an-org/large"


@pytest.mark.parametrize("kind", ["weights", "noise", "zeros", "words"])
def test_many_chunks_of_every_packing_arrive(kind: str) -> None:
    """Weights are grouped by bytes and packed, noise is not packed at all, and zeros are one chunk again and again."""
    pytest.importorskip("hf_xet")
    from huggingface_hub import HfApi

    draw = np.random.default_rng(0)
    content = {
        "weights": draw.normal(size=500_001).astype(np.float32).tobytes() + b"odd",
        "noise": draw.bytes(2_000_003),
        "zeros": bytes(2_000_003),
        "words": b" ".join(b"%d" % number for number in range(300_000)),
    }[kind]
    with serve() as hub:
        hub.offers_xet = True
        hub.add_repo(REPO, private=True)
        api = HfApi(endpoint=hub.endpoint, token=TOKEN)
        api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=REPO)
        assert hub.repos[REPO].files["model.safetensors"] == content
        assert set(hub.stored) == {hashlib.sha256(content).hexdigest()}
        assert sum(map(len, hub.xet.xorbs.values())) > (1 if kind == "zeros" else 10)
