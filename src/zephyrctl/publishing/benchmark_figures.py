"""Bring the results of all evaluations into one form, by asking each benchmark's class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from zephyrctl import plugins
from zephyrctl.evaluation.installed import benchmark_classes
from zephyrctl.evaluation.results import BenchmarkResult, Estimate, HeldOutResult, ModelScore, ScoreFigure, WinRate

HELD_OUT = ScoreFigure("score", "score", scale=(1, 10))
MOST_FIGURES = 3
"""Figures up to which the first is the main one; a benchmark with more states tasks of equal rank."""


@dataclass(frozen=True)
class BenchmarkView:
    """The result of an evaluation in the form that the report and the card show."""

    title: str
    scores: tuple[ModelScore, ...]
    caption: str = ""
    """What the scores are, in a sentence."""
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Model: {heading: text}, such as counts of wins."""
    matches: Mapping[str, WinRate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    """The categories of the main figure, in their order; a model may lack some."""

    @property
    def figures(self) -> list[ScoreFigure]:
        """The figures that any model has, the main one first."""
        return list(dict.fromkeys(score.figure for score in self.scores))

    @property
    def has_main_figure(self) -> bool:
        """True if the first figure sums the benchmark up: a leaderboard's tasks are figures of equal rank."""
        return 0 < len(self.figures) <= MOST_FIGURES

    @property
    def chart_title(self) -> str:
        """The title of a chart of the main figure."""
        main = self.figures[0]
        unit = f", {main.unit}" if main.unit else ""
        return f"{self.title} {main.title.partition(',')[0]}{unit}"

    @property
    def main_scores(self) -> dict[str, Estimate]:
        """The main figure by model."""
        return {score.model: score.estimate for score in self.scores if score.figure == self.figures[0]}

    def estimate(self, model: str, figure: ScoreFigure) -> Estimate | None:
        """One figure of one model."""
        found = (score.estimate for score in self.scores if (score.model, score.figure) == (model, figure))
        return next(found, None)

    def by_category(self, model: str) -> Mapping[str, Estimate]:
        """The main figure of one model by category."""
        found = (score.categories for score in self.scores if score.model == model and score.figure == self.figures[0])
        return next(found, {})


def benchmark_names() -> list[str]:
    """The installed benchmarks, in the order in which they are shown."""
    return [benchmark.name for benchmark in benchmark_classes()]


def view(result: HeldOutResult | BenchmarkResult) -> BenchmarkView:
    """The result of any evaluation in that form."""
    if isinstance(result, HeldOutResult):
        scores = [ModelScore(model, HELD_OUT, score) for model, score in result.model_scores.items()]
        return BenchmarkView("Held-out", tuple(scores))
    benchmark = plugins.load().benchmark(result.benchmark, {})
    return BenchmarkView(
        title=benchmark.title,
        scores=tuple(benchmark.scores(result)),
        caption=benchmark.caption(result),
        details=benchmark.details(result),
        matches=benchmark.matches(result),
        notes=tuple(benchmark.notes(result)),
        categories=tuple(benchmark.categories(result)),
    )


def heading(figure: ScoreFigure) -> str:
    """The figure's title as the heading of a column."""
    return figure.title[:1].upper() + figure.title[1:]


def paper_headings() -> Iterator[tuple[str, ScoreFigure, str]]:
    """(the paper's name, the figure, its heading) of every figure that the paper prints.

    A benchmark's only such figure is named after the benchmark, the others after themselves.
    """
    for benchmark in benchmark_classes():
        printed = [figure for figure in benchmark.figures if figure.paper]
        for figure in printed:
            unit = f", {figure.unit}" if figure.unit else ""
            alone = f"{benchmark.title}{unit}"
            yield figure.paper, figure, alone if len(printed) == 1 else figure.title.partition(",")[0]
