"""What tests of publication share."""

import pytest


@pytest.fixture(autouse=True)
def xet_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Xet client remembers of a server must not outlive it: another one may get its port."""
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path_factory.mktemp("xet")))
