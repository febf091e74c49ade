"""Reference log-probabilities: right, computed once, and found again by what they depend on and nothing else."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workers.pairs_made import pair_job, pair_layout, random_pairs, trained
from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.preference_loss import loss_settings, preference_loss
from zephyrctl.recipe.schema import Dpo, Launch

pytestmark = pytest.mark.slow


def trainer_of(job: Any) -> Any:
    """The trainer of a job before training."""
    from zephyrctl.workers import dpo, trainer_setup
    from zephyrctl.workers.events import Events

    return dpo.make_trainer(job, trainer_setup.begin(job), Events(job.scratch))


def files(folder: Path) -> list[Path]:
    """The files of references beside prepared rows."""
    return sorted((folder / "references").iterdir())


def sums(rows: Any) -> np.ndarray:
    """The reference columns of a data set."""
    return np.array([rows["ref_chosen_logps"], rows["ref_rejected_logps"]])


@pytest.mark.parametrize("engine", ["trl", "prefix-shared"])
def test_they_are_the_sums_of_the_starts_log_probabilities(tmp_path: Path, engine: str) -> None:
    """Against a plain pass over each answer alone, in fp64, in the order of the rows."""
    import torch
    from transformers import AutoModelForCausalLM

    pairs = random_pairs(11, vocabulary=200)
    job = pair_job(tmp_path, pair_layout(engine), pairs, random_pairs(3, seed=1, vocabulary=200))
    trainer = trainer_of(job)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float64)
    for name, rows in (("train", trainer.train_dataset), ("test", trainer.eval_dataset)):
        assert len(rows) == {"train": 11, "test": 3}[name]
        for row in rows:
            for side in ("chosen", "rejected"):
                ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
                with torch.no_grad():
                    every = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
                expected = float(every[len(row["prompt_ids"]) - 1 :].sum())
                assert row[f"ref_{side}_logps"] == pytest.approx(expected, abs=1e-3, rel=1e-5)


def test_they_are_found_again_where_only_the_training_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyrctl.workers import references

    pairs = random_pairs(11, vocabulary=200)
    job = pair_job(tmp_path, pair_layout("prefix-shared"), pairs)
    first = trainer_of(job)
    (kept,) = files(tmp_path)

    def never(*_: Any) -> Any:
        raise AssertionError("computed a second time")

    monkeypatch.setattr(references, "compute", never)
    again = trainer_of(pair_job(tmp_path, pair_layout("prefix-shared", 2, 4), pairs, beta=0.5, learning_rate=1e-4))
    assert (sums(again.train_dataset) == sums(first.train_dataset)).all()
    assert files(tmp_path) == [kept]
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(AssertionError, match="second time"):
        trainer_of(job)


def test_another_start_template_row_or_precision_is_another_key(tmp_path: Path) -> None:
    from datasets import Dataset

    from zephyrctl.workers import references

    rows = Dataset.from_list(random_pairs(20))
    known = {"start": "weights", "template": "{{ messages }}", "rows": rows, "precision": "fp32"}
    changed = random_pairs(20)
    changed[19]["rejected_ids"][-1] += 1
    moved = random_pairs(20)
    moved[7]["chosen_ids"], moved[7]["prompt_ids"] = moved[7]["chosen_ids"][1:], moved[7]["prompt_ids"] + [9]
    others: list[dict[str, Any]] = [
        {"start": "other weights"},
        {"template": "{{ messages }} "},
        {"precision": "bf16"},
        {"rows": Dataset.from_list(changed)},
        {"rows": Dataset.from_list(moved)},
        {"rows": rows.select(range(19))},
        {"rows": rows.select([1, 0, *range(2, 20)])},
    ]
    keys = {references.key(**known), *(references.key(**known | other) for other in others)}
    assert len(keys) == 1 + len(others)


def test_the_key_does_not_hang_on_how_rows_are_stored(tmp_path: Path) -> None:
    from datasets import Dataset, concatenate_datasets

    from zephyrctl.workers import references

    pairs = random_pairs(20)
    whole = Dataset.from_list(pairs)
    in_parts = concatenate_datasets([Dataset.from_list(pairs[:7]), Dataset.from_list(pairs[7:])])
    order = list(range(20))
    random.Random(0).shuffle(order)
    shuffled = Dataset.from_list([pairs[row] for row in order]).select([order.index(row) for row in range(20)])
    with_more = whole.add_column("length", [1] * 20)
    contents = {references.content(rows) for rows in (whole, in_parts, shuffled, with_more)}
    assert len(contents) == 1


def test_a_file_that_does_not_fit_is_none(tmp_path: Path) -> None:
    from zephyrctl.workers import references

    path = tmp_path / "deep" / "file.npz"
    assert references.read(path, 3) is None
    numbers = np.array([-1.5, -2.25, -766.2305], np.float32)
    references.write(path, (numbers, numbers * 2))
    read = references.read(path, 3)
    assert read is not None and (read[0] == numbers).all() and (read[1] == numbers * 2).all()
    assert [side.dtype for side in read] == [np.float32] * 2
    assert references.read(path, 4) is None
    for damaged in (b"", path.read_bytes()[:-30], b"no archive at all"):
        path.write_bytes(damaged)
        assert references.read(path, 3) is None
    np.savez(path.with_suffix(""), something=numbers)
    assert references.read(path, 3) is None
    assert [file.name for file in path.parent.iterdir()] == ["file.npz"], "nothing half-written stays"


def test_weights_that_are_damaged_are_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    job = pair_job(tmp_path, pair_layout("prefix-shared"), random_pairs(8, vocabulary=200))
    start = tmp_path / "start"
    start.mkdir()
    for file in Path(job.model).iterdir():
        (start / file.name).write_bytes(file.read_bytes())
    weights = load_file(start / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(ZephyrError, match="no finite log-probability"):
        trainer_of(job.model_copy(update={"model": str(start)}))
    assert not (tmp_path / "references").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    job = pair_job(tmp_path, pair_layout("prefix-shared"), random_pairs(11, vocabulary=200))
    trainer_of(job)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["done"], event["total"]) for event in told if event["event"] == "references"] == [
        (4, 11),
        (8, 11),
        (11, 11),
    ]


def settings(**changes: Any) -> Dpo:
    """Settings of dDPO."""
    known = {
        "learning_rate": 1e-6,
        "schedule": "linear",
        "epochs": 1,
        "global_batch": 8,
        "max_length": 512,
        "beta": 0.1,
    }
    return Dpo.model_validate(known | changes)


LOSSES = plugins.load().names("loss")


@pytest.mark.parametrize("beta", [0.1, 0.01])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_loss_is_trls(tmp_path: Path, loss: str, beta: float) -> None:
    """Every loss that a recipe may name, computed by TRL where policy and reference are the same model."""
    smoothing = 1e-3 if loss == "exo_pair" else 0.1 if loss in ("robust", "aot") else 0.0
    changes: dict[str, Any] = {"loss": loss, "beta": beta, "label_smoothing": smoothing}
    job = pair_job(
        tmp_path, pair_layout("prefix-shared", 4, 1), random_pairs(4, vocabulary=200), max_steps=1, **changes
    )
    trainer = trained(job)
    expected = [initial.loss for initial in trainer.expected_losses]
    assert trainer.first_losses == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_is_steeper_than_we_say(loss: str) -> None:
    """TRL's own arithmetic, on log-probabilities of which one is off by so much that 'sigmoid' would just bear it."""
    from zephyrctl.workers import dpo

    smoothing = 1e-3 if loss == "exo_pair" else 0.1 if loss in ("robust", "aot") else 0.0
    for beta in (0.1, 0.5):
        chosen = settings(loss=loss, beta=beta, label_smoothing=smoothing)
        kind = preference_loss(chosen)
        if not kind.needs_reference:
            continue
        expected = kind.initial_value(loss_settings(chosen), None)
        error = dpo.TOLERANCE["fp32"] / beta
        for off in ((error, 0.0), (-error, 0.0), (0.0, error), (0.0, -error), (error, -error)):
            dpo.check_first_loss(trl_loss(chosen, off), expected, kind, "fp32")
        with pytest.raises(ZephyrError, match=f"the first {loss} loss"):
            dpo.check_first_loss(trl_loss(chosen, (-2 / beta, 2 / beta)), expected, kind, "fp32")


def trl_loss(settings: Dpo, off: tuple[float, float]) -> float:
    """TRL's loss of one pair of one-token answers whose log-probabilities differ from the reference by so much."""
    from collections import defaultdict
    from types import SimpleNamespace

    import torch
    from trl import DPOTrainer

    log_probs = torch.tensor([[-1.0 + off[0]], [-2.0 + off[1]]], dtype=torch.float64)
    said = SimpleNamespace(
        log_probs=log_probs,
        entropy=torch.zeros(2, 1),
        mean_logits=torch.zeros(2, 1),
        is_top1=torch.zeros(2, 1, dtype=torch.bool),
    )
    trainer: Any = DPOTrainer.__new__(DPOTrainer)
    alone = SimpleNamespace(device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values)
    trainer.accelerator = alone
    trainer.model = SimpleNamespace(training=True)
    trainer.args = SimpleNamespace(discopop_tau=0.05)
    trainer.loss_types, trainer.loss_weights = [settings.loss], [1.0]
    trainer.beta, trainer.label_smoothing = settings.beta, settings.label_smoothing
    trainer.f_divergence_type, trainer.ld_alpha = "reverse_kl", None
    trainer.use_weighting = trainer.aux_loss_enabled = False
    trainer.precompute_ref_logps = True
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = {"train": defaultdict(list)}, 0, 1
    inputs = {
        "input_ids": torch.ones(2, 2, dtype=torch.long),
        "attention_mask": torch.ones(2, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1], [0, 1]]),
        "ref_chosen_logps": torch.tensor([-1.0], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor([-2.0], dtype=torch.float64),
    }
    return float(trainer._compute_loss(lambda **_: said, inputs, False))


@pytest.mark.parametrize(
    ("precision", "loss", "is_fine"),
    [
        ("fp32", 0.69315, True),
        ("fp32", 0.6935, False),
        ("bf16", 0.6990, True),
        ("bf16", 0.671, False),
        ("fp32", float("nan"), False),
    ],
)
def test_a_first_loss_that_is_not_ln_2_is_refused(precision: str, loss: float, is_fine: bool) -> None:
    from zephyrctl.workers.dpo import check_first_loss

    kind = preference_loss(settings())
    expected = kind.initial_value(loss_settings(settings()), None)
    if is_fine:
        check_first_loss(loss, expected, kind, precision)
        return
    with pytest.raises(ZephyrError, match="not ln 2"):
        check_first_loss(loss, expected, kind, precision)


def test_a_run_whose_references_are_off_stops_before_it_trains(tmp_path: Path) -> None:
    """Sums that are rounded to bf16, as TRL 1.16 rounds them under DeepSpeed."""
    import torch

    from zephyrctl.workers import references

    pairs = random_pairs(16, vocabulary=200, longest=120)
    job = pair_job(tmp_path, pair_layout("prefix-shared"), pairs)
    trainer_of(job)
    (path,) = files(tmp_path)
    exact = references.read(path, len(pairs))
    assert exact is not None
    rounded = [torch.from_numpy(side).bfloat16().float().numpy() for side in exact]
    references.write(path, (rounded[0], rounded[1]))
    with pytest.raises(ZephyrError, match="not ln 2"):
        trained(job)
    references.write(path, exact)
    assert trained(job).first_losses[0] == pytest.approx(math.log(2), abs=1e-5)


def test_in_bf16_they_stay_fp32_and_the_first_loss_is_ln_2(tmp_path: Path) -> None:
    launch = Launch(precision="bf16", threads=1)
    job = pair_job(tmp_path, pair_layout("prefix-shared"), random_pairs(16, vocabulary=200), launch=launch)
    trainer = trained(job)
    assert trainer.first_losses[0] == pytest.approx(math.log(2), abs=1e-2)
    kept = sums(trainer.train_dataset).astype(np.float32)
    assert (kept.view(np.uint32) & 0xFFFF).any(), "more digits than bf16 has"
