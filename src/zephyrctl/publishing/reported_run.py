"""A run as the report shows it: its artifacts in order, and the labels and colours of its models."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from zephyrctl.evaluation.results import BenchmarkResult, HeldOutResult, read_result
from zephyrctl.publishing.benchmark_figures import BenchmarkView, benchmark_names, view
from zephyrctl.publishing.number_format import anchor
from zephyrctl.publishing.stage_settings import StageSettings
from zephyrctl.recipe.schema import Checkpoint, Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run
from zephyrctl.training.kinds import KINDS

TRAINING = tuple(KINDS)
"""The stages that train a model."""
STAGES = ("build", "feedback", "binarize", *TRAINING, "eval")
BASE = "base"
COLOURS = ("purple", "rust", "sky", "pink", "gold")
"""The colours of further models; the base and the first model of each kind have that of their kind."""
DASHES = 4
"""The number of dash patterns. With the colours they tell 20 models apart, and a few without any colour."""


@dataclass(frozen=True)
class ModelName:
    """How a model is shown: its label, kind and link, and its own colour and dash pattern in charts of many models."""

    key: str
    label: str
    kind: str
    """`base`, or the kind of training that made it; also the colour of its kind."""
    anchor: str | None
    colour: str
    dash: int


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the run, with its result."""

    artifact: Artifact
    result: HeldOutResult | BenchmarkResult

    @property
    def benchmark(self) -> str | None:
        """The benchmark's name; None for held-out prompts."""
        return self.result.benchmark

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.view.title if self.benchmark else "Held-out prompts"

    @property
    def anchor(self) -> str:
        """The HTML id of its artifact."""
        return anchor(self.artifact.manifest.plan.name)

    @cached_property
    def view(self) -> BenchmarkView:
        """Its scores by model and figure."""
        return view(self.result)


class ReportedRun:
    """A run with its recipe, and how its models are named."""

    def __init__(self, run: Run, recipe: Recipe | None, artifacts: Iterable[Artifact]) -> None:
        self.run = run
        self.recipe = recipe
        self.named = {artifact.manifest.plan.name: artifact for artifact in artifacts}

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """The artifacts in the order of the work: the recipe's, or that of the usual stages."""
        order = [name for name, _ in self.expected()]

        def position(artifact: Artifact) -> int:
            name = artifact.manifest.plan.name
            return order.index(name) if name in order else len(order)

        return sorted(self.named.values(), key=position)

    def name(self, key: str) -> ModelName:
        """A model's label (the recipe's, else dSFT and dDPO for `sft` and `dpo`), colours and link."""
        checkpoint = self._checkpoint(key)
        kind = self.kind(key)
        usual = KINDS[key].title if key in KINDS else key
        label = checkpoint.label if checkpoint and checkpoint.label else usual
        colour, dash = self._colours.get(key, (kind, 0))
        return ModelName(key, label, kind, anchor(key) if key in self.named else None, colour, dash)

    def kind(self, key: str) -> str:
        """The kind of training that made a model, or `base`."""
        if artifact := self.named.get(key):
            return artifact.manifest.plan.stage
        checkpoint = self._checkpoint(key)
        return checkpoint.stage if checkpoint else BASE

    def published(self, key: str) -> dict[str, float]:
        """The paper's figures for a checkpoint, as the recipe states them."""
        checkpoint = self._checkpoint(key)
        return checkpoint.published if checkpoint else {}

    def start(self, key: str) -> str | None:
        """The model that a checkpoint was trained from, by its manifest, else by the recipe."""
        if (artifact := self.named.get(key)) and (start := StageSettings.of(artifact.manifest.plan).start):
            return start
        checkpoint = self._checkpoint(key)
        return checkpoint.start if checkpoint else None

    def ordered(self, keys: Iterable[str]) -> list[str]:
        """The base first, then the recipe's checkpoints in its order, then the others in the given order."""
        order = [BASE, *(self.recipe.checkpoints if self.recipe else TRAINING)]
        return sorted(keys, key=lambda key: order.index(key) if key in order else len(order))

    def of_stage(self, *stages: str) -> list[Artifact]:
        """The artifacts of these stages, in the order of the work."""
        return [artifact for artifact in self.artifacts if artifact.manifest.plan.stage in stages]

    def expected(self) -> Iterator[tuple[str, str]]:
        """(name, stage) of all artifacts of a complete run: the recipe's, or one of each usual stage."""
        if self.recipe is None:
            present = [(name, artifact.manifest.plan.stage) for name, artifact in self.named.items()]
            for stage in STAGES:
                yield from [pair for pair in present if pair[1] == stage] or [(stage, stage)]
            return
        checkpoints = self.recipe.checkpoints
        needs_pairs = any(checkpoint.trains_on != "dialogues" for checkpoint in checkpoints.values())
        yield from ((stage, stage) for stage in (STAGES[:3] if needs_pairs else STAGES[:1]))
        yield from ((name, checkpoint.stage) for name, checkpoint in checkpoints.items())
        yield "eval", "eval"

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation of an installed benchmark; that on held-out prompts first, then in the benchmarks' order.

        Raises ZephyrError if the result of one is damaged.
        """
        order = {name: position for position, name in enumerate(benchmark_names())}
        known = [artifact for artifact in self.of_stage("eval") if artifact not in self.unknown_benchmarks]
        results = [Evaluation(artifact, read_result(artifact.manifest)) for artifact in known]

        def position(evaluation: Evaluation) -> int:
            return -1 if evaluation.benchmark is None else order[evaluation.benchmark]

        return sorted(results, key=position)

    @cached_property
    def unknown_benchmarks(self) -> list[Artifact]:
        """The evaluations on benchmarks that are not installed; their results cannot be read."""
        names = {*benchmark_names(), None}
        return [one for one in self.of_stage("eval") if one.manifest.metrics.get("benchmark") not in names]

    def is_trained_on_pairs(self, key: str) -> bool:
        """True for a model that learned from pairs, as dDPO does."""
        kind = KINDS.get(self.kind(key))
        return kind is not None and kind.rows == "pairs"

    @cached_property
    def evaluated(self) -> list[str]:
        """Every model that an evaluation scores; references, whose answers are only compared with, are not."""
        scored = [score.model for evaluation in self.evaluations for score in evaluation.view.scores]
        return self.ordered(dict.fromkeys(scored))

    @cached_property
    def _colours(self) -> dict[str, tuple[str, int]]:
        """The colour and the dash pattern of every evaluated model, the same in all charts.

        The base and the first model of each kind of training have the colour of their kind, the others the next
        colour of `COLOURS`. Dash patterns alternate, so that two models of one colour differ.
        """
        free = [BASE, *KINDS]
        others = 0
        colours = {}
        for position, key in enumerate(self.evaluated):
            kind = self.kind(key)
            # A model from outside the run also counts as `base`, but only the run's own base has that colour.
            if kind in free and (key == BASE or kind != BASE):
                free.remove(kind)
                colour = kind
            else:
                colour, others = COLOURS[others % len(COLOURS)], others + 1
            colours[key] = (colour, position % DASHES)
        return colours

    def _checkpoint(self, key: str) -> Checkpoint | None:
        return self.recipe.checkpoints.get(key) if self.recipe else None
