"""A run with its recipe: its artifacts in the order of the work, and how its checkpoints are called and coloured."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from zephyrctl.publishing.measured import mapping
from zephyrctl.publishing.number_format import anchor
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run

STAGES = ("build", "feedback", "binarize", "sft", "dpo", "eval")
TRAINING = ("sft", "dpo")
HUES = ("purple", "rust", "sky", "pink", "gold")
"""The colours of models after the first dSFT, the first dDPO and the base, which keep those of their stage."""
DASHES = 4
"""How many dash patterns lines have; with the colours they tell 20 models apart, and some without any colour."""


@dataclass(frozen=True)
class Name:
    """How a model is shown: `tone` is the colour of its stage, `hue` and `dash` are its own in a picture of many."""

    key: str
    label: str
    tone: str
    anchor: str | None
    hue: str
    dash: int


class Subject:
    """A run with its recipe, and how its checkpoints are called."""

    def __init__(self, run: Run, recipe: Recipe | None, artifacts: Iterable[Artifact]) -> None:
        self.run = run
        self.recipe = recipe
        self.named = {artifact.manifest.plan.name: artifact for artifact in artifacts}

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """The artifacts in the order of the work: the recipe's, or that of the usual stages."""
        order = [name for name, _ in self.expected()]
        late = len(order)
        return sorted(
            self.named.values(),
            key=lambda one: order.index(name) if (name := one.manifest.plan.name) in order else late,
        )

    def name(self, key: str) -> Name:
        """A checkpoint's label (the recipe's, else dSFT and dDPO for `sft` and `dpo`), colours and anchor."""
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        usual = {"sft": "dSFT", "dpo": "dDPO"}.get(key, key)
        label = checkpoint.label if checkpoint and checkpoint.label else usual
        hue, dash = self._inks.get(key, (self.tone(key), 0))
        return Name(key, label, self.tone(key), anchor(key) if key in self.named else None, hue, dash)

    def tone(self, key: str) -> str:
        """The kind of a checkpoint: base, sft or dpo."""
        if artifact := self.named.get(key):
            return artifact.manifest.plan.stage
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        return checkpoint.stage if checkpoint else "base"

    def published(self, key: str) -> dict[str, float]:
        """The paper's figures for a checkpoint."""
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        return checkpoint.published if checkpoint else {}

    def start(self, key: str) -> str | None:
        """What a checkpoint was trained from: as its manifest says, else as the recipe does."""
        artifact = self.named.get(key)
        said = artifact.manifest.plan.settings.get("start") if artifact else None
        checkpoint = self.recipe.checkpoints.get(key) if self.recipe else None
        return said if isinstance(said, str) else checkpoint.start if checkpoint else None

    def ordered(self, keys: Iterable[str]) -> list[str]:
        """The base first, then the recipe's checkpoints in its order, then the others as they come."""
        order = ["base", *(self.recipe.checkpoints if self.recipe else TRAINING)]
        return sorted(keys, key=lambda key: order.index(key) if key in order else len(order))

    def of_stage(self, *stages: str) -> list[Artifact]:
        """The artifacts of these stages, in the order of the work."""
        return [artifact for artifact in self.artifacts if artifact.manifest.plan.stage in stages]

    def benchmarks(self, *names: str) -> list[Artifact]:
        """The evaluations on public benchmarks of these names; the held-out one has none."""
        return [one for one in self.of_stage("eval") if one.manifest.metrics.get("benchmark") in names]

    def expected(self) -> Iterator[tuple[str, str]]:
        """The (name, stage) of all that a whole run has: the recipe's, or one of each usual stage."""
        if self.recipe is None:
            found = [(name, artifact.manifest.plan.stage) for name, artifact in self.named.items()]
            for stage in STAGES:
                yield from [pair for pair in found if pair[1] == stage] or [(stage, stage)]
            return
        checkpoints = self.recipe.checkpoints
        needs_pairs = any(one.stage == "dpo" or one.data in ("chosen", "pairs") for one in checkpoints.values())
        yield from ((stage, stage) for stage in (STAGES[:3] if needs_pairs else STAGES[:1]))
        yield from ((name, one.stage) for name, one in checkpoints.items())
        yield "eval", "eval"

    @cached_property
    def evaluated(self) -> list[str]:
        """Every model that an evaluation gives a figure; references, which only stand beside answers, are not."""
        return self.ordered(dict.fromkeys(self._with_figures()))

    @cached_property
    def _inks(self) -> dict[str, tuple[str, int]]:
        """The colour and the dash pattern of every model that an evaluation names, the same in every picture."""
        free = ["base", "sft", "dpo"]
        others = 0
        inks = {}
        for place, key in enumerate(self.evaluated):
            if (tone := self.tone(key)) in free and (key == "base" or tone != "base"):
                free.remove(tone)
            else:
                tone, others = HUES[others % len(HUES)], others + 1
            inks[key] = (tone, place % DASHES)
        return inks

    def _with_figures(self) -> Iterator[str]:
        for artifact in self.of_stage("eval"):
            for found in ("scores", "models", "ratings"):
                yield from (key for key in mapping(artifact.manifest.metrics.get(found)) if "_minus_" not in key)
