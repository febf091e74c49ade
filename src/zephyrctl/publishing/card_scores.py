"""Prepare the scores of a published model for its card, and compare them with the paper's Zephyr-7B."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zephyrctl.evaluation.results import (
    MINUS,
    OVER,
    BenchmarkResult,
    Estimate,
    HeldOutResult,
    JudgeIdentity,
    ModelScore,
    QuestionOverlap,
    WinRate,
    read_result,
)
from zephyrctl.publishing.benchmark_figures import BenchmarkView, view
from zephyrctl.publishing.card_text import interval, one_line, plain_number
from zephyrctl.publishing.paper_figures import zephyr_score
from zephyrctl.runs.manifest import Manifest


@dataclass(frozen=True)
class CardJudge:
    """Who judged."""

    name: str
    is_rule_based: bool


@dataclass(frozen=True)
class CardScore:
    """A mean score on held-out prompts."""

    name: str
    mean: str
    interval: str
    n: str


@dataclass(frozen=True)
class CardDifference:
    """A paired difference on held-out prompts."""

    better: str
    worse: str
    mean: str
    interval: str


@dataclass(frozen=True)
class CardMatch:
    """A win rate on held-out prompts."""

    winner: str
    loser: str
    win_rate: float
    rate: str
    interval: str
    counts: str


@dataclass(frozen=True)
class HeldOutCard:
    """The evaluation on held-out prompts."""

    judge: CardJudge | None
    scores: tuple[CardScore, ...]
    differences: tuple[CardDifference, ...]
    matches: tuple[CardMatch, ...]


@dataclass(frozen=True)
class BenchmarkFigure:
    """One figure of a benchmark; `paper` is that of Zephyr-7B, `above` how far ours is above it."""

    name: str
    value: float
    interval: str
    paper: float | None

    @property
    def above(self) -> str:
        """The difference from the paper's figure, with its sign."""
        return "" if self.paper is None else f"{self.value - self.paper:+.2f}"


@dataclass(frozen=True)
class BenchmarkCard:
    """A benchmark that scored the checkpoint."""

    name: str
    figures: tuple[BenchmarkFigure, ...]
    judge: str
    remarks: tuple[str, ...]
    overlap: str

    @property
    def has_paper(self) -> bool:
        """True if the paper prints one of the figures."""
        return any(figure.paper is not None for figure in self.figures)


def held_out_result(evaluations: Sequence[Manifest]) -> HeldOutResult | None:
    """The last evaluation on held-out prompts that has scores."""
    results = [read_result(manifest) for manifest in evaluations]
    scored = [result for result in results if isinstance(result, HeldOutResult) and result.scores]
    return scored[-1] if scored else None


def held_out_card(result: HeldOutResult | None) -> HeldOutCard:
    """The tables of the evaluation on held-out prompts; empty without one."""
    if result is None:
        return HeldOutCard(None, (), (), ())
    return HeldOutCard(
        judge=card_judge(result.judge),
        scores=tuple(_score(name, score) for name, score in result.model_scores.items()),
        differences=tuple(_difference(name, difference) for name, difference in result.differences.items()),
        matches=tuple(_match(name, match) for name, match in result.pairwise.items()),
    )


def card_judge(judge: JudgeIdentity | None) -> CardJudge | None:
    """Who judged, with a name that fits in a table."""
    return CardJudge(one_line(judge.name), judge.rule_based) if judge else None


def benchmark_cards(evaluations: Sequence[Manifest], checkpoint: str) -> Iterator[BenchmarkCard]:
    """Every benchmark that scored the checkpoint, with its judge and what limits comparisons."""
    for manifest in evaluations:
        result = read_result(manifest)
        if isinstance(result, BenchmarkResult):
            shown = view(result)
            scores = [score for score in shown.scores if score.model == checkpoint]
            if scores:
                yield _benchmark(result, shown, scores)


def _benchmark(result: BenchmarkResult, shown: BenchmarkView, scores: Sequence[ModelScore]) -> BenchmarkCard:
    figures = [_figure(score) for score in scores]
    for score in scores:
        figures += [_category(name, estimate) for name, estimate in score.categories.items()]
    return BenchmarkCard(
        name=shown.title,
        figures=tuple(figures),
        judge=_judge(result.judge),
        remarks=tuple(result.comparability),
        overlap=_overlap(result.contamination),
    )


def _figure(score: ModelScore) -> BenchmarkFigure:
    figure, estimate = score.figure, score.estimate
    name = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
    paper = zephyr_score(figure.paper) if figure.paper else None
    return BenchmarkFigure(one_line(name), estimate.mean, interval(estimate, ".2f"), paper)


def _category(name: str, estimate: Estimate) -> BenchmarkFigure:
    return BenchmarkFigure(one_line(name), estimate.mean, interval(estimate, ".2f"), None)


def _judge(judge: JudgeIdentity | None) -> str:
    if judge is None:
        return ""
    if judge.rule_based:
        return f"`{judge.name}`, fixed rules and not a language model"
    return ", ".join(f"`{name}`" for name in judge.models or [judge.name])


def _overlap(overlap: QuestionOverlap | None) -> str:
    if overlap is None:
        return "the training data was not searched for its questions"
    searched = ", ".join(overlap.searched)
    return f"{overlap.hits} of {overlap.questions} questions are in the training data ({searched})"


def _score(name: str, score: Estimate) -> CardScore:
    n = "" if score.n is None else plain_number(score.n)
    return CardScore(name, f"{score.mean:.2f}", interval(score, ".2f"), n)


def _difference(name: str, difference: Estimate) -> CardDifference:
    better, _, worse = name.partition(MINUS)
    return CardDifference(better, worse, f"{difference.mean:+.2f}", interval(difference, "+.2f"))


def _match(name: str, match: WinRate) -> CardMatch:
    winner, _, loser = name.partition(OVER)
    counts = {"wins": match.wins, "losses": match.losses, "draws": match.draws}
    shown = ", ".join(f"{plain_number(n)} {outcome}" for outcome, n in counts.items()) if sum(counts.values()) else ""
    return CardMatch(winner, loser, match.win_rate, f"{match.win_rate:.1%}", interval(match.estimate, ".1%"), shown)
