"""Reference log-probabilities under DeepSpeed in bf16: those of one process, and a first loss of ln 2."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.training import jobs_made
from tests.workers.pairs_made import pair_job, pair_layout, random_pairs
from zephyrctl.launching.processes import free_port, worker
from zephyrctl.recipe.schema import Launch

pytestmark = pytest.mark.slow
PAIRS = 10
"""No multiple of two ranks' micro-batches, so that the last one is filled up."""


def references(folder: Path, processes: int, zero_stage: int | None) -> np.ndarray:
    """Train two steps in bf16; the reference's sums [2, PAIRS] of the chosen and the rejected answers."""
    layout = pair_layout("prefix-shared", 2, 1, processes=processes, zero_stage=zero_stage)
    job = pair_job(folder, layout, random_pairs(PAIRS), launch=Launch(precision="bf16", threads=1), max_steps=2)
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    meeting = {"WORLD_SIZE": f"{processes}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}"}
    with contextlib.ExitStack() as started:
        for rank in range(processes):
            alone = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", **meeting} if processes > 1 else {}
            environment = jobs_made.environment(**alone)
            ranks = started.enter_context(jobs_made.started(worker("dpo", path), path, environment))
        jobs_made.finish(ranks, path)
    result = jobs_made.events(folder)[-1]
    assert result["event"] == "result", result
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-2)
    (file,) = (folder / "references").iterdir()
    with np.load(file) as kept:
        return np.array([kept["ref_chosen_logps"], kept["ref_rejected_logps"]])


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The sums that plain torch computes, with fp32 weights under autocast."""
    return references(tmp_path_factory.mktemp("plain"), 1, None)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_ranks_compute_what_one_process_does(tmp_path: Path, of_one_process: np.ndarray, zero_stage: int) -> None:
    """TRL 1.16 rounds the sums to bf16 under DeepSpeed, which moves a first loss by up to 0.23."""
    import torch

    sums = references(tmp_path, 2, zero_stage)
    assert sums.shape == (2, PAIRS)
    assert sums == pytest.approx(of_one_process, rel=5e-3, abs=0.1)
    rounded = torch.tensor(sums).to(torch.bfloat16).float().numpy()
    assert (sums != rounded).mean() > 0.5, "they are not rounded to bf16"
    config = json.loads((tmp_path / "job.json").read_text())["deepspeed"]
    assert config["zero_optimization"]["stage"] == zero_stage
