"""Tokenise and pack the rows of a checkpoint on the CPU, before any GPU is used, and keep them by content."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import token_contract
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.launching import processes
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Packing, Training
from zephyrctl.records import Split
from zephyrctl.runs.manifest import digest, hash_file
from zephyrctl.runs.run import Run
from zephyrctl.token_contract import TokenContract
from zephyrctl.training.results import RowReport

FOLDER = ".prepared"
KEPT = 2
"""Prepared data that is kept for each checkpoint: trying a setting and going back to the old one costs nothing."""
VERSION = 1
"""Part of the key. Raise it if the same rows and settings give other prepared rows than before."""
TOKENIZER_FILES = ("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model")


class PrepareRequest(BaseModel):
    """What the preparing worker needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="the kind of training")
    model: str = Field(description="folder or Hub id whose tokenizer is used")
    revision: str | None
    trusts_code: bool = Field(default=False, description="Python code that comes with the model may run")
    chat_template: str
    rows: dict[Split, Path] = Field(description="Parquet rows: dialogues or preference pairs")
    folder: Path = Field(description="where the prepared rows go")
    max_length: int
    packing: Packing = "none"
    assistant_only_loss: bool = True
    seed: int


@dataclass(frozen=True)
class Prepared:
    """Rows that are ready for training."""

    folder: Path
    key: str
    contract: TokenContract
    reports: Mapping[Split, RowReport]

    def rows(self, split: Split) -> Path | None:
        """The Parquet file of one split; None if it has no rows."""
        report = self.reports.get(split)
        return self.folder / f"{split}.parquet" if report and report.rows else None


def prepare(run: Run, name: str, request: Mapping[str, object], progress: Progress) -> Prepared:
    """The prepared rows of a checkpoint, read if the same content was prepared before.

    `request` is a PrepareRequest without its folder. Raises ZephyrError if the worker does.
    """
    key = key_of(request)
    folder = run.path / FOLDER / f"{name}-{key[:16]}"
    if not (folder / "report.json").is_file():
        unfinished = folder.absolute().with_name(f".{folder.name}.unfinished")
        _run_worker(PrepareRequest.model_validate({"folder": unfinished, **request}), folder, progress)
    os.utime(folder)  # the time of the last use: `_remove_old` keeps what was used last
    _remove_old(folder.parent, name)
    return read_prepared(folder.absolute(), key)


def read_prepared(folder: Path, key: str) -> Prepared:
    """The prepared rows of a folder that a worker has finished."""
    reports = json.loads((folder / "report.json").read_text())
    contract = token_contract.read(folder)
    assert contract is not None, f"{folder} has no token contract"
    return Prepared(folder, key, contract, {split: RowReport(**report) for split, report in reports.items()})


def key_of(request: Mapping[str, object]) -> str:
    """The hash of everything that prepared rows depend on; `request` is a PrepareRequest without its folder."""
    whole = PrepareRequest.model_validate({"folder": Path(), **request})
    # The tokenizer's files instead of the model's name: a checkpoint that is trained again keeps its prepared rows.
    settings = whole.model_dump(mode="json", exclude={"folder", "rows", "model", "revision", "trusts_code"})
    rows = {split: hash_file(path) for split, path in whole.rows.items()}
    return digest({**settings, "rows": rows, "tokenizer": _tokenizer_hash(whole), "version": VERSION})


def check_budget(reports: Mapping[Split, RowReport], settings: Training, section: str) -> None:
    """Raise GateError if a larger share of the training rows or tokens is dropped than the recipe allows."""
    report = reports["train"]
    for unit, share in report.shares_lost().items():
        if share > settings.loss_budget:
            causes = report.lost_rows if unit == "rows" else report.lost_tokens
            listed = "; ".join(f"{count:,} {cause}" for cause, count in causes.items())
            raise GateError(
                f"{share:.2%} of the training {unit} would be dropped ({listed}), more than {section}.loss_budget, "
                f"{settings.loss_budget:.2%}",
                _remedy(settings, section, share),
            )


def padding_share(path: Path, column: str, micro_batch: int, seed: int = 0) -> float:
    """The share of token positions that are padding, in random micro-batches of these rows.

    Every row of a micro-batch takes as many positions as its longest row.
    """
    lengths = pq.read_table(path, columns=[column])[column].to_numpy()
    if not len(lengths):
        return 0.0
    # [rows]; shuffled as the sampler does, and cut into whole micro-batches, or one short one if there are few rows
    order = np.random.default_rng(seed).permutation(lengths)
    whole = order[: max(micro_batch, len(order) // micro_batch * micro_batch)]
    batches = whole.reshape(-1, micro_batch) if len(whole) % micro_batch == 0 else whole.reshape(1, -1)
    positions = (batches.max(axis=1) * batches.shape[1]).sum()  # rows x longest row, over all micro-batches
    return float(1 - batches.sum() / positions)


def _remedy(settings: Training, section: str, share: float) -> str:
    longer = f"--set {section}.max_length={2 * settings.max_length}"
    packed = f" or --set {section}.packing=bfd_split, which keeps every token" if hasattr(settings, "packing") else ""
    return f"{longer}{packed}; or allow it: --set {section}.loss_budget={np.ceil(share * 100) / 100:.2f}"


def _run_worker(request: PrepareRequest, folder: Path, progress: Progress) -> None:
    shutil.rmtree(request.folder, ignore_errors=True)
    request.folder.mkdir(parents=True)
    path = request.folder / "request.json"
    path.write_text(request.model_dump_json(indent=2))

    def follow(event: processes.Event) -> None:
        if event["event"] == "step":
            progress.advance(event["step"], event["total"], "rows tokenised")

    # this worker has no data loaders, whose forks do not bear a tokenizer's threads: it may use all cores
    environment = {**processes.worker_environment(), "TOKENIZERS_PARALLELISM": "true"}
    processes.Work("prepare", processes.worker("prepare", path), request.folder, environment=environment).do(follow)
    for own in ("events.jsonl", "worker.log", "request.json"):
        (request.folder / own).unlink(missing_ok=True)
    # the worker writes beside it, and a rename is atomic: a folder of this name is complete
    shutil.rmtree(folder, ignore_errors=True)
    request.folder.rename(folder)


def _tokenizer_hash(request: PrepareRequest) -> str:
    folder = Path(request.model)
    if not folder.is_dir():
        return f"{request.model}@{request.revision}"
    files: set[Path] = set()
    for pattern in TOKENIZER_FILES:
        files |= {path for path in folder.glob(pattern) if path.name != token_contract.FILE}
    return digest({path.name: hash_file(path) for path in sorted(files)})


def _remove_old(parent: Path, name: str) -> None:
    kept = sorted(parent.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def check_contract(prepared: Prepared, start: Path, name: str) -> None:
    """Raise ZephyrError if the model to start from was trained on tokens of another contract than these rows."""
    if theirs := token_contract.read(start):
        prepared.contract.check(
            theirs,
            f"the rows for {name!r}",
            f"the checkpoint in {start}",
            "train the checkpoint that it starts from again, or go back to its base and template",
        )


def check_template(template: str, section: str) -> None:
    """Raise ZephyrError if a chat template does not mark assistant turns; call it if only these are in the loss."""
    # both ways of writing a Jinja tag, with and without the dash that strips blanks before it
    if "{%- generation" not in template.replace("{% ", "{%- "):
        raise ZephyrError(
            f"{section}.assistant_only_loss needs a chat template that marks the assistant's words with "
            "{% generation %}, and the base's template has no such marks",
            f"add the marks to the template, or --set {section}.assistant_only_loss=false",
        )
