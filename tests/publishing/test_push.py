"""A try against a real HTTP server on this machine: what arrives, what is refused, what is never shown."""

import hashlib
import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.publishing import runs_made
from tests.publishing.hub_server import TOKEN, Hub, serve
from zephyrctl import templates
from zephyrctl.errors import GateError, UsageError, ZephyrError
from zephyrctl.publishing.model_upload import chain_behind, plan_push
from zephyrctl.publishing.push import Pushed, check_repo_id, push, require_checks
from zephyrctl.publishing.uploads import Upload
from zephyrctl.recipe import loading
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run
from zephyrctl.token_contract import TokenContract

REPO = "an-org/small-dpo"
MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
STAGES = ("build", "feedback", "binarize", "sft", "dpo", "eval")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running Hub."""
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, made once and changed by nobody."""
    return runs_made.make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A finished run of the test's own."""
    return Run(Path(shutil.copytree(made.path, tmp_path / "small")))


@pytest.fixture(scope="module")
def upload(made: Run) -> Upload:
    """What publishing its dpo checkpoint would send."""
    return _plan(made)


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits 23 seconds over its six attempts; they are made, the waiting is left out."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def _artifact(run: Run, name: str = "dpo") -> Artifact:
    return run.require(name, f"zephyrctl {name}")


def _plan(run: Run, name: str = "dpo") -> Upload:
    return plan_push(run, _artifact(run, name), runs_made.make_recipe(), runs_made.Base("an-org/a-base"))


def _push(hub: Hub, upload: Upload, private: bool = True) -> Pushed:
    return push(upload, REPO, private=private, token=TOKEN, endpoint=hub.endpoint, waits=(0.0, 0.0))


def _refusal(hub: Hub, upload: Upload, token: str = TOKEN) -> ZephyrError:
    with pytest.raises(ZephyrError) as caught:
        push(upload, REPO, token=token, endpoint=hub.endpoint, waits=(0.0,))
    assert token not in caught.value.problem + caught.value.remedy
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def test_every_file_arrives_byte_for_byte(hub: Hub, made: Run, upload: Upload) -> None:
    pushed = _push(hub, upload)
    there = hub.repos[REPO].files
    assert set(there) == {file.path for file in upload.files} == set(pushed.files)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in there.items()} == {
        file.path: file.sha256 for file in upload.files
    }
    for name in MODEL_FILES:
        assert there[name] == (made.path / "dpo" / "model" / name).read_bytes()
    for stage in STAGES:
        assert there[f"zephyrctl/{stage}/manifest.json"] == (made.path / stage / "manifest.json").read_bytes()
    assert pushed.url == f"{hub.endpoint}/{REPO}"
    assert pushed.commit == hub.repos[REPO].sha
    assert not pushed.is_unchanged


def test_one_commit_carries_it_all_and_weights_go_by_lfs(hub: Hub, upload: Upload) -> None:
    _push(hub, upload)
    assert hub.requests.count("commit") == 1
    assert len(hub.repos[REPO].commits) == 2, "the empty first one, and ours"
    assert set(hub.stored) == {file.sha256 for file in upload.files if file.path == "model.safetensors"}
    assert hub.requests.count("upload") == hub.requests.count("verify") == 1


def test_a_repo_is_private_unless_said_otherwise(hub: Hub, upload: Upload) -> None:
    pushed = push(upload, REPO, token=TOKEN, endpoint=hub.endpoint)
    assert hub.repos[REPO].private
    assert pushed.is_private
    assert pushed.notes == ()


def test_a_repo_is_public_when_asked(hub: Hub, upload: Upload) -> None:
    assert not _push(hub, upload, private=False).is_private
    assert not hub.repos[REPO].private


@pytest.mark.parametrize("was_private", [True, False])
@pytest.mark.parametrize("private", [True, False])
def test_a_repo_that_exists_keeps_its_visibility(hub: Hub, upload: Upload, was_private: bool, private: bool) -> None:
    hub.add_repo(REPO, private=was_private)
    pushed = _push(hub, upload, private=private)
    assert hub.repos[REPO].private is pushed.is_private is was_private
    assert any(f"stays {'private' if was_private else 'public'}" in note for note in pushed.notes)
    assert any("settings" in note for note in pushed.notes) is (private != was_private)
    assert "create" not in hub.requests


def test_a_plan_lists_every_file_and_reaches_no_network(hub: Hub, upload: Upload) -> None:
    paths = [file.path for file in upload.files]
    manifests = {f"zephyrctl/{stage}/manifest.json" for stage in STAGES}
    assert set(paths) == MODEL_FILES | manifests | {"README.md", "zephyrctl/recipe.yaml"}
    assert paths == sorted(paths)
    assert upload.bytes == sum(file.bytes for file in upload.files)
    sources = {file.path: file.source for file in upload.files}
    assert isinstance(sources["README.md"], bytes)
    assert isinstance(sources["config.json"], Path) and sources["config.json"].is_file()
    assert hub.requests == []


def test_a_second_push_makes_no_commit_and_says_so(hub: Hub, made: Run, upload: Upload) -> None:
    first = _push(hub, upload)
    second = _push(hub, _plan(made))
    assert second.is_unchanged
    assert second.commit == first.commit
    assert hub.requests.count("commit") == hub.requests.count("upload") == 1
    assert any("no commit" in note for note in second.notes)


def test_a_push_of_other_weights_commits_them_and_names_old_ones(hub: Hub, run: Run, upload: Upload) -> None:
    _push(hub, upload)
    hub.repos[REPO].files["pytorch_model.bin"] = b"older"
    sft = _artifact(run, "sft")
    runs_made.make_checkpoint(run, "dpo", {"sft": sft}, {}, {}, seed=1)
    pushed = _push(hub, _plan(run))
    assert not pushed.is_unchanged
    here = hash_file(run.path / "dpo/model/model.safetensors")
    assert hashlib.sha256(hub.repos[REPO].files["model.safetensors"]).hexdigest() == here
    assert any("pytorch_model.bin" in note for note in pushed.notes)


def test_the_chain_leaves_out_what_was_made_again_since(run: Run) -> None:
    runs_made.make_build(run, dialogues=7)
    chain, notes = chain_behind(run, _artifact(run))
    assert [artifact.manifest.plan.name for artifact in chain] == ["sft", "feedback", "binarize", "dpo"]
    assert len(notes) == 2
    assert all("'build' was rebuilt" in note for note in notes)
    assert not any(file.path.startswith("zephyrctl/build/") for file in _plan(run).files)


def test_scores_of_an_earlier_checkpoint_are_not_published(run: Run) -> None:
    runs_made.make_checkpoint(run, "dpo", {"sft": _artifact(run, "sft")}, {}, {}, seed=1)
    upload = _plan(run)
    assert not any("eval" in file.path for file in upload.files)
    assert any("judged an earlier 'dpo'" in note for note in upload.notes)


def test_a_run_that_was_not_evaluated_is_published(hub: Hub, tmp_path: Path) -> None:
    run = runs_made.make_run(tmp_path / "plain", metrics=None)
    _push(hub, _plan(run, "sft"))
    assert b"was not evaluated" in hub.repos[REPO].files["README.md"]
    assert "zephyrctl/dpo/manifest.json" not in hub.repos[REPO].files


def test_the_published_recipe_loads_as_it_was(tmp_path: Path, upload: Upload) -> None:
    source = next(file.source for file in upload.files if file.path == "zephyrctl/recipe.yaml")
    assert isinstance(source, bytes)
    (tmp_path / "recipe.yaml").write_bytes(source)
    assert loading.load(str(tmp_path / "recipe.yaml"), {}).recipe == runs_made.make_recipe()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "a/weights.pth", "x.pkl", "last.CKPT"])
def test_pickled_weights_are_refused(run: Run, name: str) -> None:
    path = run.path / "dpo" / "model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps({}))
    upload = _plan(run)
    assert [one.name for one in upload.failed_checks] == ["pickle"]
    with pytest.raises(GateError, match="is a pickle") as caught:
        require_checks(upload, ())
    assert caught.value.exit_code == 3 and "--waive pickle" in caught.value.remedy
    require_checks(upload, ("pickle",))
    assert not any(file.path == name for file in upload.files), "it is in no manifest and stays here"


def test_a_checkpoint_without_weights_is_refused(run: Run) -> None:
    with pytest.raises(ZephyrError, match="no weights"):
        _plan(run, "build")


@pytest.mark.parametrize("change", ["same size", "longer", "gone"])
def test_files_that_are_not_the_manifest_s_are_refused(run: Run, change: str) -> None:
    path = run.path / "dpo/model/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if change == "same size" else content + b"x")
    if change == "gone":
        path.unlink()
    with pytest.raises(ZephyrError, match=r"model\.safetensors is not the file"):
        _plan(run)


def contract(template: str) -> TokenContract:
    """A token contract of some template."""
    return TokenContract(
        chat_template=hashlib.sha256(template.encode()).hexdigest(),
        special_tokens={"eos": ("</s>", 2)},
        vocabulary=64,
        starts_with_bos=False,
        ends_with_eos=True,
        probes=(),
    )


@pytest.mark.parametrize(("is_its_own", "is_said"), [(True, True), (False, True), (True, False)])
def test_a_template_that_it_was_not_trained_with_is_not_published(
    tmp_path: Path, is_its_own: bool, is_said: bool
) -> None:
    """The contract beside the model is of another template, or it is not the one that the manifest names."""
    run = Run(tmp_path / "other")
    template = templates.read("chat/zephyr.jinja")
    made = contract(template if is_its_own else template + "!")

    def write(draft: Draft) -> None:
        runs_made.write_model(draft, 0)
        made.write(draft.path / "model")

    said = made.fingerprint if is_said else "another"
    runs_made.make_artifact(run, "dpo", {}, write, metrics={"token_contract": said})
    if is_its_own and is_said:
        assert any(file.path == "token_contract.json" for file in _plan(run).files)
    else:
        with pytest.raises(ZephyrError, match="not those that the model was trained with"):
            _plan(run)


def test_a_stray_file_stays_here_and_is_named(run: Run) -> None:
    (run.path / "dpo/model/diary.txt").write_text("mine")
    upload = _plan(run)
    assert not any("diary" in file.path for file in upload.files)
    assert any("diary.txt" in note for note in upload.notes)


@pytest.mark.parametrize(
    "options", [{"api_key": "abc"}, {"url": "https://me:word@host/v1"}, {"note": "hf_" + "a" * 34}]
)
def test_secrets_in_settings_are_refused_and_not_shown(run: Run, options: dict[str, str]) -> None:
    holding = runs_made.make_recipe(eval={"judge": {"name": "remote", "options": options}})
    upload = plan_push(run, _artifact(run), holding, runs_made.Base("an-org/a-base"))
    assert {one.name for one in upload.failed_checks} == {"secrets"}
    with pytest.raises(GateError, match=r"recipe\.yaml") as caught:
        require_checks(upload, ("licence", "pickle"))
    assert not any(value in one.problem for value in options.values() for one in upload.failed_checks)
    assert not any(value in caught.value.problem for value in options.values())


def test_names_of_environment_variables_are_no_secrets(run: Run) -> None:
    options = {"api_key_env": "OPENAI_API_KEY", "api_key": "$OPENAI_API_KEY"}
    plain = runs_made.make_recipe(eval={"judge": {"name": "remote", "options": options}})
    assert not plan_push(run, _artifact(run), plain, runs_made.Base("an-org/a-base")).failed_checks


@pytest.mark.parametrize(
    "repo_id", ["name", "a/b/c", "", "a/", "/b", "a b/c", "a/b.git", "a/b--c", "a/..", "https://x/y"]
)
def test_a_bad_repo_id_is_a_usage_error(upload: Upload, repo_id: str) -> None:
    with pytest.raises(UsageError) as caught:
        push(upload, repo_id, token=TOKEN, endpoint="http://127.0.0.1:9")
    assert "ORG/NAME" in caught.value.remedy


def test_a_good_repo_id_passes() -> None:
    check_repo_id("HuggingFaceH4/zephyr-7b_beta.1")


@pytest.mark.parametrize(
    ("route", "status", "problem", "remedy"),
    [
        ("info", 401, "does not accept the token", "hf auth login"),
        ("create", 403, f"may not write to {REPO}", "write access to an-org"),
        ("preupload", 403, f"may not write to {REPO}", "write access to an-org"),
        ("commit", 403, f"may not write to {REPO}", "write access to an-org"),
        ("create", 404, f"does not know {REPO}", "HF_ENDPOINT"),
        ("preupload", 404, f"does not know {REPO}", "HF_ENDPOINT"),
        ("commit", 409, f"at work on {REPO}", "try again"),
        ("commit", 412, f"at work on {REPO}", "try again"),
        ("commit", 429, "too many requests", "try again"),
        ("commit", 418, "refuses with 418", "try again"),
        ("create", 500, "fails with 500", "later"),
        ("commit", 503, "fails with 503", "later"),
        ("xet", 403, f"may not write to {REPO}", "write access to an-org"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: Hub, upload: Upload, route: str, status: int, problem: str, remedy: str
) -> None:
    hub.fail(route, status, message=f"you sent {TOKEN}")
    error = _refusal(hub, upload)
    assert problem in error.problem
    assert remedy in error.remedy
    assert "you sent ***" in error.problem, "what the Hub says is passed on, without the token"
    assert type(error) is ZephyrError


def test_a_wrong_token_is_explained(hub: Hub, upload: Upload) -> None:
    assert "hf auth login" in _refusal(hub, upload, token="hf_" + "wrong" * 7).remedy
    assert hub.repos == {}


@pytest.mark.parametrize("token", [f"{TOKEN}\x00", f"{TOKEN[:9]} {TOKEN[9:]}", TOKEN + "é"])
def test_a_token_that_fits_in_no_header_is_not_quoted(hub: Hub, upload: Upload, token: str) -> None:
    assert "HF_TOKEN" in _refusal(hub, upload, token=token).remedy
    assert hub.requests == []


@pytest.mark.parametrize("route", ["info", "create", "commit", "xet"])
@pytest.mark.parametrize("status", [500, 0])
def test_a_short_failure_passes(hub: Hub, upload: Upload, route: str, status: int) -> None:
    hub.fail(route, status, times=1)
    _push(hub, upload)
    assert len(hub.repos[REPO].commits) == 2


@pytest.mark.parametrize(("route", "status"), [("preupload", 500), ("batch", 503), ("upload", 500), ("upload", 0)])
def test_a_short_failure_of_an_upload_passes(
    hub: Hub, upload: Upload, route: str, status: int, without_waiting: None
) -> None:
    hub.fail(route, status, times=2)
    _push(hub, upload)
    assert hub.requests.count(route) == 3
    assert len(hub.stored) == 1


@pytest.mark.parametrize("status", [504, 0])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: Hub, upload: Upload, status: int) -> None:
    hub.fail("commit", status, times=1, is_late=True)
    pushed = _push(hub, upload)
    assert hub.requests.count("commit") == 1
    assert len(hub.repos[REPO].commits) == 2
    assert pushed.commit == hub.repos[REPO].sha


def test_an_upload_cut_half_way_is_explained(
    hub: Hub, upload: Upload, without_waiting: None, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("upload", 0)
    with caplog.at_level(logging.DEBUG):
        error = _refusal(hub, upload)
    assert "was cut" in error.problem
    assert "try again" in error.remedy
    assert hub.requests.count("upload") == 6
    assert hub.repos[REPO].files == {}
    assert TOKEN not in caplog.text
    assert "deadbeef" not in caplog.text, "the signature of an upload address is a right to write"


def test_an_upload_that_fails_again_and_again_is_explained(hub: Hub, upload: Upload, without_waiting: None) -> None:
    hub.fail("upload", 502)
    assert "fails with 502" in _refusal(hub, upload).problem
    assert hub.requests.count("preupload") == 1, "huggingface_hub has tried six times; we do not start over"


def test_a_hub_that_is_not_there_is_explained(upload: Upload) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ZephyrError, match=f"no connection to {address}"):
            push(upload, REPO, token=TOKEN, endpoint=f"http://{address}")


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://127.0.0.1", "http://[", "https://", "http://me:word@127.0.0.1", ""]
)
def test_an_endpoint_that_is_no_address_is_explained(upload: Upload, endpoint: str) -> None:
    with pytest.raises(ZephyrError, match="not the address of a Hub") as caught:
        push(upload, REPO, token=TOKEN, endpoint=endpoint)
    assert "HF_ENDPOINT" in caught.value.remedy
    assert "word" not in caught.value.problem


def test_a_server_that_is_no_hub_is_explained(hub: Hub, upload: Upload) -> None:
    hub.fail("info", 200)
    error = _refusal(hub, upload)
    assert "does not answer as a Hub does" in error.problem
    assert "HF_ENDPOINT" in error.remedy


def test_offline_mode_is_explained(hub: Hub, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in _refusal(hub, upload).remedy
    assert hub.requests == []


def test_a_file_that_the_repo_ignores_is_noticed(hub: Hub, upload: Upload) -> None:
    hub.ignored = {"model.safetensors"}
    error = _refusal(hub, upload)
    assert "model.safetensors did not arrive" in error.problem
    assert ".gitignore" in error.remedy


def test_a_file_that_vanishes_after_the_plan_is_explained(hub: Hub, run: Run) -> None:
    upload = _plan(run)
    (run.path / "dpo/model/config.json").unlink()
    assert "config.json" in _refusal(hub, upload).problem


def test_a_file_that_changes_after_the_plan_is_noticed(hub: Hub, run: Run) -> None:
    upload = _plan(run)
    path = run.path / "dpo/model/model.safetensors"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    assert "model.safetensors did not arrive" in _refusal(hub, upload).problem


def test_ctrl_c_passes_through(hub: Hub, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    hub.fail("commit", 500)
    with pytest.raises(KeyboardInterrupt):
        _push(hub, upload)
    hub.failures.clear()
    assert not _push(hub, upload).is_unchanged, "and the next push goes on"


def test_xet_is_left_alone_where_the_server_offers_none(hub: Hub, upload: Upload) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    _push(hub, upload)
    assert "cas" not in hub.requests
    assert before == constants.HF_HUB_DISABLE_XET


def test_xet_carries_the_weights_where_the_server_offers_it(hub: Hub, upload: Upload) -> None:
    """The server puts them together from the chunks that came, and takes the commit where their hash is right."""
    pytest.importorskip("hf_xet")
    hub.offers_xet = True
    _push(hub, upload)
    assert {"xorb", "shard"} <= set(hub.requests) and "batch" not in hub.requests
    weights = next(file.sha256 for file in upload.files if file.path == "model.safetensors")
    assert hashlib.sha256(hub.repos[REPO].files["model.safetensors"]).hexdigest() == weights
    assert _push(hub, upload).is_unchanged


@pytest.mark.parametrize("route", ["xorb", "shard"])
def test_a_xet_upload_that_is_refused_is_one_error_and_goes_on_later(hub: Hub, upload: Upload, route: str) -> None:
    pytest.importorskip("hf_xet")
    hub.offers_xet = True
    hub.fail(route, 400)
    assert "try again" in _refusal(hub, upload).remedy
    assert len(hub.repos[REPO].commits) == 1, "nothing is published in part"
    hub.failures.clear()
    assert not _push(hub, upload).is_unchanged


def test_without_a_token_it_is_explained_and_nothing_heavy_is_imported(made: Run, hub: Hub, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.publishing import runs_made
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.model_upload import plan_push
from zephyrctl.publishing.push import push
from zephyrctl.runs.run import Run
assert "huggingface_hub" not in sys.modules, "read when it is needed"
run = Run(Path({str(made.path)!r}))
upload = plan_push(run, run.artifact("dpo"), runs_made.make_recipe(), runs_made.Base("an-org/a-base"))
assert "huggingface_hub" not in sys.modules, "a dry run needs none"
try:
    push(upload, {REPO!r}, endpoint={hub.endpoint!r})
except ZephyrError as error:
    print(error.problem, "|", error.remedy)
push(upload, {REPO!r}, token={TOKEN!r}, endpoint={hub.endpoint!r})
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    quiet = {
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    environment = {key: value for key, value in os.environ.items() if not re.match("HF_|HUGGING", key)} | quiet
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "there is no Hub token | log in: hf auth login, or set HF_TOKEN",
        "[]",
    ], done.stderr


def test_the_published_card_s_front_matter_is_the_hub_s(hub: Hub, upload: Upload) -> None:
    _push(hub, upload)
    card = hub.repos[REPO].files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert "validate" in hub.requests
