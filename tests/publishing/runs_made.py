"""A small finished run with real artifacts and real safetensors weights, for tests of what is published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from zephyrctl import templates
from zephyrctl.contracts import ModelBase, Sizes
from zephyrctl.recipe import Recipe
from zephyrctl.records import Record, Split
from zephyrctl.runs import Artifact, Draft, Plan, Run

SCORES = {
    "base": {"mean": 1.4, "low": 1.25, "high": 1.55, "n": 200},
    "sft": {"mean": 5.875, "low": 5.5, "high": 6.25, "n": 200},
    "dpo": {"mean": 7.125, "low": 6.75, "high": 7.5, "n": 200},
    "dpo_minus_sft": {"mean": 1.25, "low": 1.0, "high": 1.5, "n": 200},
}
PAIRWISE = {"dpo_over_sft": {"win_rate": 0.7125, "low": 0.65, "high": 0.775, "wins": 130, "losses": 45, "draws": 25}}
METRICS = {"scores": SCORES, "pairwise": PAIRWISE, "judge": {"name": "offline", "rule_based": True}}


def make_recipe(**changes: Any) -> Recipe:
    """A recipe of few values, all of the run's own."""
    training = {"learning_rate": 5e-4, "schedule": "cosine", "epochs": 1, "global_batch": 8, "micro_batch": 8}
    values: dict[str, Any] = {
        "name": "small",
        "base": {"name": "huggingface", "options": {"model": "an-org/a-base"}},
        "build": {"source": {"kind": "files", "paths": ["dialogues.jsonl"]}},
        "feedback": {"completers": [{"name": "offline"}], "rater": {"name": "offline"}},
        "sft": {**training, "max_length": 64},
        "dpo": {**training, "max_length": 64, "beta": 0.1},
        "checkpoints": {"sft": {"stage": "sft"}, "dpo": {"stage": "dpo", "start": "sft"}},
        "eval": {"judge": {"name": "offline"}},
    }
    return Recipe.model_validate({**values, **changes})


class Row(Record):
    """A row; what is published counts rows and reads none."""

    id: str


class Base(ModelBase):
    """A base of which a push asks only the place, the revision and the licence."""

    name = "a-base"

    def location(self) -> str:
        """As given."""
        return str(self.options)

    def sizes(self) -> Sizes:
        """Nobody asks."""
        raise NotImplementedError

    @property
    def revision(self) -> str:
        """A pinned one."""
        return "abc123"

    @property
    def license(self) -> str:
        """A licence that the Hub knows."""
        return "apache-2.0"


def make_run(path: Path, metrics: dict[str, Any] | None = METRICS) -> Run:
    """A run from build to dpo, and eval unless its metrics are None."""
    run = Run(path)
    build = make_build(run)
    feedback = make_artifact(run, "feedback", {"build": build}, _rows("rated", 3), losses={"no parsable rating": 2})
    pairs = make_artifact(
        run, "binarize", {"feedback": feedback}, _rows("pairs", 1200), losses={"tie": 3, "empty | blank": 1}
    )
    sft = make_checkpoint(run, "sft", {"build": build}, {"sft.learning_rate": 5e-4}, {"steps": 31, "loss": 0.75})
    measured = {"first_loss": 0.6931, "reward_accuracy": 0.95, "steps": 1200}
    dpo = make_checkpoint(run, "dpo", {"sft": sft, "pairs": pairs}, {"dpo": {"beta": 0.1, "loss": "sigmoid"}}, measured)
    if metrics is not None:
        make_evaluation(run, {"sft": sft, "dpo": dpo}, metrics)
    return run


def make_build(run: Run, dialogues: int = 4) -> Artifact:
    """The first artifact; another count of dialogues makes another content."""
    return make_artifact(run, "build", {}, lambda draft: _write_dialogues(draft, dialogues), losses={"duplicate": 5})


def make_checkpoint(
    run: Run,
    stage: str,
    inputs: dict[str, Artifact],
    settings: dict[str, Any],
    metrics: dict[str, Any],
    seed: int = 0,
) -> Artifact:
    """A checkpoint with a `model/` folder."""
    return make_artifact(run, stage, inputs, lambda draft: write_model(draft, seed), settings=settings, metrics=metrics)


def make_evaluation(run: Run, inputs: dict[str, Artifact], metrics: dict[str, Any]) -> Artifact:
    """An evaluation of checkpoints."""
    note = "The prompts were held out of all training."
    return make_artifact(run, "eval", inputs, lambda draft: None, metrics=metrics, notes=[note])


def make_artifact(
    run: Run,
    stage: str,
    inputs: dict[str, Artifact],
    write: Callable[[Draft], None],
    settings: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    losses: dict[str, int] | None = None,
    notes: list[str] | None = None,
) -> Artifact:
    """A finished artifact of a stage."""
    hashes = {name: artifact.content_hash for name, artifact in inputs.items()}
    plan = Plan(name=stage, stage=stage, settings=settings or {}, inputs=hashes)
    with run.draft(plan, {name: artifact.path for name, artifact in inputs.items()}, {}) as draft:
        write(draft)
        draft.metrics, draft.losses, draft.notes = metrics or {}, losses or {}, notes or []
        return draft.finish()


def _write_dialogues(draft: Draft, count: int) -> None:
    _write_rows(draft, "dialogues", "train", count)
    _write_rows(draft, "dialogues", "test", 1)
    _write_rows(draft, "prompts", "train", 2)


def _rows(rows: str, count: int) -> Callable[[Draft], None]:
    return lambda draft: _write_rows(draft, rows, "train", count)


def _write_rows(draft: Draft, rows: str, split: Split, count: int) -> None:
    draft.write(rows, split, [Row(id=str(number)) for number in range(count)], Row)


def write_model(draft: Draft, seed: int) -> None:
    """A model's folder with random weights."""
    folder = draft.path / "model"
    folder.mkdir()
    weights = numpy.random.default_rng(seed).standard_normal((64, 64)).astype("float32")
    save_file({"model.embed_tokens.weight": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 64}))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (folder / "chat_template.jinja").write_text(templates.read("chat/zephyr.jinja"))
