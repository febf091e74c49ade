"""Whether a published model that is not what its manifests say is found out, in a folder and on the Hub."""

import json
import shutil
from pathlib import Path

import pytest

from tests.publishing import runs_made
from tests.publishing.hub_server import TOKEN, serve
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.hub import HubRepo
from zephyrctl.publishing.model_upload import plan_push
from zephyrctl.publishing.push import push
from zephyrctl.publishing.uploads import Upload
from zephyrctl.publishing.verify import ModelFolder, open_folder, verify
from zephyrctl.runs.run import Run


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Upload:
    """What publishing a finished run's checkpoint sends."""
    run: Run = runs_made.make_run(tmp_path_factory.mktemp("runs") / "small")
    return plan_push(run, run.require("dpo", ""), runs_made.make_recipe(), runs_made.Base("an-org/a-base"))


@pytest.fixture
def published(upload: Upload, tmp_path: Path) -> Path:
    """It, in a folder as a clone of the repository has it."""
    folder = tmp_path / "clone"
    for file in upload.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file.source, Path):
            shutil.copyfile(file.source, path)
        else:
            path.write_bytes(file.source)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    return folder


def test_what_was_published_is_whole_and_says_what_cannot_be_repeated(published: Path) -> None:
    verdict = verify(ModelFolder(published))
    assert verdict.is_whole, verdict.problems
    assert verdict.checkpoint == "dpo" and verdict.checked >= 5
    assert {"build", "sft", "dpo", "eval"} <= set(verdict.chain)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("flip", "model.safetensors is not the file that dpo wrote"),
        ("lose", "tokenizer.json is missing"),
        ("add", "extra.json is in no manifest"),
        ("pickle", "pytorch_model.bin is a pickle"),
        ("relink", "dpo read another sft than the one whose manifest is here"),
    ],
)
def test_every_departure_is_named(published: Path, change: str, problem: str) -> None:
    if change == "flip":
        path = published / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "lose":
        (published / "tokenizer.json").unlink()
    elif change == "add":
        (published / "extra.json").write_text("{}")
    elif change == "pickle":
        (published / "pytorch_model.bin").write_bytes(b"x")
    else:
        path = published / "zephyrctl/sft/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"]["model/model.safetensors"]["sha256"] = "0" * 64
        path.write_text(json.dumps(manifest))
    verdict = verify(ModelFolder(published))
    assert any(problem in one for one in verdict.problems), verdict.problems


def test_a_repository_is_verified_without_downloading_its_weights(upload: Upload, tmp_path: Path) -> None:
    with serve() as hub:
        push(upload, "an-org/small-dpo", token=TOKEN, endpoint=hub.endpoint, waits=(0.0,))
        hub.requests.clear()
        verdict = verify(HubRepo("an-org/small-dpo", hub.endpoint, TOKEN, None, tmp_path / "cache"))
        assert verdict.is_whole, verdict.problems
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        repo = hub.repos["an-org/small-dpo"]
        sha, files = repo.commits[-1]
        repo.commits.append(("f" * 40, {**files, "config.json": b"{}"}))
        changed = verify(HubRepo("an-org/small-dpo", hub.endpoint, TOKEN, None, tmp_path / "other"))
        assert any("config.json is not the file" in one for one in changed.problems)
        old = verify(HubRepo("an-org/small-dpo", hub.endpoint, TOKEN, sha, tmp_path / "old"))
        assert old.is_whole


def test_a_folder_without_manifests_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ZephyrError, match="contains no manifest of a checkpoint"):
        verify(ModelFolder(tmp_path))
    (tmp_path / "zephyrctl" / "dpo").mkdir(parents=True)
    (tmp_path / "zephyrctl/dpo/manifest.json").write_text("{}")
    with pytest.raises(ZephyrError, match="is damaged or was written by another version"):
        verify(ModelFolder(tmp_path))


def test_weights_are_hashed_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are many gigabytes, and two questions are asked of their hash."""
    hashed: list[str] = []
    whole = ModelFolder.sha256

    def counted(self: ModelFolder, path: str) -> str:
        hashed.append(path)
        return whole(self, path)

    monkeypatch.setattr(ModelFolder, "sha256", counted)
    assert verify(ModelFolder(published)).is_whole
    assert hashed.count("model.safetensors") == 1


@pytest.mark.parametrize("inside", ["dpo", "dpo/model"])
def test_a_checkpoint_of_a_run_is_verified_before_it_is_published(tmp_path: Path, inside: str) -> None:
    run = runs_made.make_run(tmp_path / "small")
    verdict = verify(open_folder(run.path / inside))
    assert verdict.is_whole, verdict.problems
    assert verdict.checkpoint == "dpo"
    assert set(verdict.chain) == {"build", "feedback", "binarize", "sft", "dpo"}
    (run.path / "dpo/model/tokenizer.json").write_text("{}")
    assert "tokenizer.json is not the file" in verify(open_folder(run.path / inside)).problems[0]
    (run.path / "dpo/manifest.json").write_text("{")
    with pytest.raises(ZephyrError, match="is damaged or was written by another version"):
        verify(open_folder(run.path / inside))
