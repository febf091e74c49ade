"""The models that answer a benchmark, how their answers are generated, and what is known of the answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.held_out import BASE
from zephyrctl.launching.weights import base_hash, model_base
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.stages import Source


@dataclass(frozen=True)
class Candidate:
    """One model that answers: a checkpoint, a folder or Hub id, a model on a server, or a file of answers."""

    name: str
    checkpoint: str | None = None
    model: str | None = None
    server: TeacherChoice | None = None
    file: Path | None = None

    @property
    def key(self) -> str:
        """Its name among the inputs of the stage."""
        return f"model {self.name}" if self.checkpoint is None else self.checkpoint

    def source(self, recipe: Recipe) -> Source | None:
        """What it reads: an artifact, a folder or a file. None for a Hub id, a server and the base."""
        if self.checkpoint and self.checkpoint != BASE:
            return Source(artifact=self.checkpoint, stage=recipe.checkpoints[self.checkpoint].stage)
        if self.file:
            return Source(path=self.file)
        return Source(path=Path(self.model)) if self.model and Path(self.model).is_dir() else None

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """What its answers depend on, besides the files that it reads."""
        if self.checkpoint:
            base = model_base(recipe)
            start = BASE if self.checkpoint == BASE else recipe.checkpoints[self.checkpoint].start
            content = base_hash(base) if self.checkpoint == BASE else None
            return {"start": start, "chat_template": base.chat_template(), "base_content": content}
        if self.server:
            return {"server": self.server.model_dump(mode="json", exclude={"limits"})}
        return {"model": self.model} if self.model else {"file": True}


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; each question states its own temperature."""

    max_tokens: int
    """Longest answer, in tokens."""
    top_p: float
    """Nucleus share; 1 is all tokens."""
    top_k: int
    """Most likely tokens to draw from; 0 is all."""
    batch: int
    """Answers at once."""
    seed: int
    engine: str
    """`auto`, `transformers` or `vllm`."""


@dataclass
class AnswerStats:
    """What is known of the answers besides their texts."""

    contracts: dict[str, str] = field(default_factory=dict)
    """Model: the fingerprint of its token contract."""
    cut_off: dict[str, int] = field(default_factory=dict)
    """Model: how many of its answers met the token limit."""
    remarks: list[str] = field(default_factory=list)


def sources(candidates: Iterable[Candidate], recipe: Recipe) -> dict[str, Source]:
    """Everything that the candidates read."""
    return {candidate.key: source for candidate in candidates if (source := candidate.source(recipe))}


def check_names(candidates: Sequence[Candidate]) -> None:
    """Raise ZephyrError if two candidates have one name, which would mix their answers, or if there is none."""
    names = [candidate.name for candidate in candidates]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ZephyrError(f"two models are called {repeated[0]!r}", "name one of them: --model NAME=FOLDER")
    if not names:
        raise ZephyrError("there is no model to ask", "train a checkpoint, or give --model or --answers")
