"""Whether the held-out loss is a mean over tokens, the same however rows are batched."""

import json
from pathlib import Path

import pytest

from tests.training.jobs_made import events, layout, make_job
from zephyrctl.launching.job import SftJob

pytestmark = pytest.mark.slow


def loss(folder: Path, rows_at_once: int) -> float:
    """The held-out loss of a job that learns nothing: its rate is all but zero."""
    from zephyrctl.workers import sft

    place = layout(processes=1, zero_stage=None)
    place = place.model_copy(update={"micro_batch": rows_at_once, "accumulation": 8 // rows_at_once})
    path = make_job(folder, place)
    job = SftJob.model_validate_json(path.read_bytes())
    settings = job.settings.model_copy(update={"learning_rate": 1e-12, "max_steps": 1})
    path.write_text(job.model_copy(update={"test": job.train, "settings": settings}).model_dump_json())
    sft.work(path)
    result = events(folder)[-1]
    assert result["event"] == "result"
    return float(str(result["eval_loss"]))


def direct(folder: Path) -> float:
    """The same, row by row, through the model's own forward pass."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM

    job = json.loads((folder / "job.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in pq.read_table(job["train"]).to_pylist():
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        total -= float(log_probs.gather(1, ids[0, 1:, None]).sum())
        count += len(ids[0]) - 1
    return total / count


def test_the_held_out_loss_does_not_hang_on_the_batches(tmp_path: Path) -> None:
    one, four = loss(tmp_path / "one", 1), loss(tmp_path / "four", 4)
    assert one == pytest.approx(four, rel=1e-5)
    assert one == pytest.approx(direct(tmp_path / "one"), rel=1e-4)
