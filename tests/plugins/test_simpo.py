"""A loss that comes as a package is trained by both engines without a reference, and its first loss is checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shell
from tests.plugins.packages import FIRST_PARTY, pip_install, python_path
from tests.workers.pairs_made import pair_job, pair_layout, random_pairs, trained
from zephyrctl import plugins
from zephyrctl.errors import ZephyrError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it."""
    (package,) = [path for path in FIRST_PARTY if path.name == "zephyrctl-simpo"]
    return pip_install([package], tmp_path_factory.mktemp("simpo"))


@pytest.fixture
def simpo(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class, found in this process through its entry point."""
    monkeypatch.syspath_prepend(str(installed))
    plugins.forget_loaded()
    yield plugins.load().find("loss", "simpo").offered
    plugins.forget_loaded()


def train(folder: Path, engine: str, gamma: float = 0.5, **settings: Any) -> Any:
    """A trainer after ten steps of SimPO on 80 pairs of random ids."""
    layout = pair_layout(engine, reference=None)
    options: dict[str, Any] = {"loss": "simpo", "loss_options": {"gamma": gamma}, "beta": 2.0, **settings}
    pairs = random_pairs(80, vocabulary=200)
    return trained(pair_job(folder, layout, pairs, random_pairs(8, seed=1, vocabulary=200), **options))


def test_both_engines_train_it_without_a_reference(simpo: type, tmp_path: Path) -> None:
    """The margins of the pairs grow, and the two forward passes agree in every loss."""
    trainers = {engine: train(tmp_path / engine, engine) for engine in ("prefix-shared", "trl")}
    for engine, trainer in trainers.items():
        assert trainer.ref_model is None
        assert not (tmp_path / engine / "references").exists()
        assert not {"ref_chosen_logps", "ref_rejected_logps"} & set(trainer.train_dataset.column_names)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"] + 0.05
        assert lines[-1]["loss"] < lines[0]["loss"]
        assert len(trainer.margins()) == 8
    first, second = (trainers[engine].first_losses for engine in ("prefix-shared", "trl"))
    assert sum(first) / len(first) == pytest.approx(sum(second) / len(second), abs=1e-4)


def test_the_first_loss_is_what_the_start_says(simpo: type, tmp_path: Path) -> None:
    """It is not ln 2, it moves with gamma, and it is computed apart from training."""
    means = {}
    for gamma in (0.0, 2.0):
        trainer = train(tmp_path / str(gamma), "prefix-shared", gamma, max_steps=1)
        expected = [initial.loss for initial in trainer.expected_losses]
        assert trainer.first_losses == pytest.approx(expected, abs=1e-4)
        means[gamma] = sum(expected) / len(expected)
    assert means[2.0] > means[0.0] + 0.5
    assert abs(means[2.0] - 0.6931) > 0.1


def test_a_formula_that_is_not_the_stated_one_stops_the_run(
    simpo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that forgets its target margin."""
    right = simpo.loss

    def forgetful(self: Any, pairs: Any, settings: Any) -> Any:
        return right(simpo(simpo.Options(gamma=0.0)), pairs, settings)

    monkeypatch.setattr(simpo, "loss", forgetful)
    with pytest.raises(ZephyrError, match=r"the first simpo loss is .* and not ") as raised:
        train(tmp_path, "prefix-shared", max_steps=1)
    assert "initial_value is wrong" in raised.value.remedy


def test_the_command_plans_trains_and_records_it(installed: Path, tmp_path: Path) -> None:
    """From the base, on a file of pairs; the manifest names the package and the expected first loss."""
    pairs = [
        {
            "prompt": f"Name number {number}.",
            "chosen": f"It is {number}, of course. Anything else?",
            "rejected": f"No. {number * 7}",
        }
        for number in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = ["dpo.loss=simpo", "dpo.loss_options.gamma=0.5", "dpo.beta=2.0", "dpo.max_steps=2", "dpo.log_every=1"]
    settings += ["checkpoints.dpo.start=base", "launch.processes=1", "dpo.max_length=256", "dpo.global_batch=8"]
    changes = [word for setting in settings for word in ("--set", setting)]
    path = python_path(installed)
    planned = shell(["plan", "--json", *changes], tmp_path, PYTHONPATH=path)
    assert planned.code == 0, planned.err
    assert planned.json["dpo"]["reference"] is None
    outcome = shell(["dpo", "--pairs", "pairs.jsonl", "--run", "mine", "--json", *changes], tmp_path, PYTHONPATH=path)
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tmp_path / outcome.json["path"] / "manifest.json").read_text())
    assert manifest["plugins"] == {"zephyrctl-simpo": "0.1.0"}
    assert manifest["plan"]["settings"]["dpo"]["loss_options"] == {"gamma": 0.5}
    metrics = manifest["metrics"]
    assert metrics["first_loss"] == pytest.approx(metrics["expected_first_loss"], abs=metrics["first_loss_tolerance"])
    assert "reference" not in metrics["layout"]
    assert "reference log-probabilities" not in outcome.err
