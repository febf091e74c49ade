"""What needs a CUDA GPU: the same stages in bf16 on the device; skipped elsewhere, with the reason."""

import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import shell
from zephyrctl.launching.processes import gpus

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not gpus(), reason="no CUDA GPU on this machine")]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_training_on_the_gpu_in_bf16(small_run: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_run, folder)
    outcome = shell([stage, "--set", "launch.precision=bf16", "--json"], folder)
    assert outcome.code == 0, outcome.err
    metrics = outcome.json["metrics"]
    assert math.isfinite(metrics["train_loss"])
    if stage == "dpo":
        assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-2)
