"""The results that evaluations write into a manifest's metrics, as models that are read by attribute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.runs.manifest import Manifest

Z_95 = 1.959964
"""Standard errors from a mean to either end of its 95 % interval, under a normal approximation."""
MINUS, OVER = "_minus_", "_over_"
"""What joins two models in the key of a difference and in the key of a match."""


class ResultPart(BaseModel):
    """A part of a result. Keys that this version does not know are ignored; NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """The values that were set, as JSON: what was never measured has no key."""
        return self.model_dump(mode="json", exclude_unset=True)


class Estimate(ResultPart):
    """A mean with its 95 % interval over `n` questions; the interval is None if it is not known."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def around(cls, mean: float, error: float | None) -> Self:
        """A mean with the normal interval of its standard error: mean +- 1.96 x error."""
        if error is None:
            return cls(mean=mean)
        return cls(mean=mean, low=mean - Z_95 * error, high=mean + Z_95 * error)


class MeanEstimate(Estimate):
    """A mean over questions with its bootstrap interval, which is always known."""

    low: float
    high: float
    n: int


class Difference(MeanEstimate):
    """How far one model is above another on the same questions, with p value and the questions that it would take."""

    p: float = Field(description="of the two-sided randomisation test, or of a normal one if only scores are known")
    needed: int | None = Field(default=None, description="questions that would show this difference with 80 % power")


class WinRate(ResultPart):
    """The share of comparisons that one model wins, a draw counting half, from 0 to 1, with its 95 % interval."""

    win_rate: float
    low: float
    high: float
    n: int | None = None
    wins: int = 0
    losses: int = 0
    draws: int = 0

    @property
    def estimate(self) -> Estimate:
        """The rate as an estimate."""
        n = self.wins + self.losses + self.draws if self.n is None else self.n
        return Estimate(mean=self.win_rate, low=self.low, high=self.high, n=n)


class JudgeIdentity(ResultPart):
    """Who judged: a teacher's name, the model that was asked for, and the model ids that its server reported."""

    name: str
    asked_for: str = ""
    models: list[str] = Field(default_factory=list)
    rule_based: bool = Field(default=False, description="fixed rules, not a language model")


class RepeatAgreement(ResultPart):
    """Agreement of repeated ratings of one answer; shares are of pairs of ratings."""

    answers: int
    all_equal: float = Field(description="share of answers whose ratings are all equal")
    equal: float
    mean_gap: float


class PositionBias(ResultPart):
    """Agreement of the two orders of a pair; shares are of pairs."""

    pairs: int
    consistent: float
    prefers_first: float
    prefers_second: float


class LengthPreference(ResultPart):
    """How judgments depend on length: wins of the longer answer, or the rank correlation of rating and length."""

    pairs: int | None = None
    longer_wins: float | None = None
    answers: int | None = None
    rank_correlation: float | None = None


class JudgeAgreement(ResultPart):
    """Agreement with other judgments of the same answers: ratings first, then verdicts on pairs."""

    answers: int | None = None
    equal: float | None = None
    within_1: float | None = None
    mean_difference: float | None = None
    rank_correlation: float | None = None
    verdicts: int | None = None
    verdicts_equal: float | None = None
    without_ties: int | None = None
    without_ties_equal: float | None = None


class JudgeQuality(ResultPart):
    """How reliable a judge is; a part that cannot be measured is None."""

    repeats: RepeatAgreement | None = None
    position: PositionBias | None = None
    length: LengthPreference | None = None
    against: JudgeAgreement | None = None

    def figures(self) -> dict[str, dict[str, float]]:
        """Part: {name: value}, for what was measured."""
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        measured = {name: part.model_dump(exclude_none=True) for name, part in parts.items() if part is not None}
        return {name: values for name, values in measured.items() if values}


class QuestionOverlap(ResultPart):
    """Which questions of a benchmark are in the training data of the run."""

    questions: int
    hits: int = Field(description="questions that were found")
    rows: int = Field(default=0, description="training rows that contain one")
    searched: list[str] = Field(default_factory=list, description="artifacts that were searched")
    ngram: int | None = None
    by_question: dict[str, list[str]] = Field(default_factory=dict, description="question: artifacts that contain it")
    scores_without_them: dict[str, float | None] = Field(default_factory=dict, description="model: score on the rest")


class CategoryScore(ResultPart):
    """The mean rating of one category of MT-Bench, from 1 to 10."""

    score: float | None
    low: float | None = None
    high: float | None = None
    rated: int | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The mean rating; None if no judgment has a score."""
        if self.score is None:
            return None
        return Estimate(mean=self.score, low=self.low, high=self.high, n=self.rated)


class MtBenchScores(CategoryScore):
    """One model on MT-Bench: the mean over all its judgments that have a score, then turns, counts and categories."""

    turn_1: float | None = None
    turn_2: float | None = None
    intervals: dict[str, tuple[float, float] | None] = Field(default_factory=dict, description="turn: its interval")
    unparsed: int = 0
    out_of_range: int = 0
    duplicates: int = 0
    missing: int = 0
    judge: list[str] = Field(default_factory=list, description="model ids")
    categories: dict[str, CategoryScore] = Field(default_factory=dict)

    def turn(self, number: int) -> Estimate | None:
        """The mean rating of one turn; None if no judgment of it has a score."""
        mean = {1: self.turn_1, 2: self.turn_2}[number]
        low, high = self.intervals.get(f"turn_{number}") or (None, None)
        return None if mean is None else Estimate(mean=mean, low=low, high=high)


class DatasetRate(ResultPart):
    """A win rate in per cent with its standard error, over `n` instructions."""

    win_rate: float | None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The rate; None without a preference. An interval that was not recorded follows from the standard error."""
        if self.win_rate is None:
            return None
        if self.low is None:
            return Estimate.around(self.win_rate, self.standard_error)
        return Estimate(mean=self.win_rate, low=self.low, high=self.high, n=self.n)


class AlpacaEvalScores(DatasetRate):
    """One model against AlpacaEval's reference: rates in per cent, lengths in characters."""

    wins: int | None = None
    losses: int | None = None
    draws: int | None = None
    missing: int = 0
    duplicates: int = 0
    length_controlled: float | None = None
    length_controlled_low: float | None = None
    length_controlled_high: float | None = None
    length_controlled_by: str = Field(default="", description="the formula, by AlpacaEval's name")
    mean_length: float | None = None
    reference_length: float | None = None
    reference: str = ""
    categories: dict[str, DatasetRate] = Field(default_factory=dict, description="data set: its rate")

    @property
    def at_equal_length(self) -> Estimate | None:
        """The length-controlled rate; None if there were too few preferences to fit one."""
        if self.length_controlled is None:
            return None
        low, high = self.length_controlled_low, self.length_controlled_high
        return Estimate(mean=self.length_controlled, low=low, high=high)


class LeaderboardScores(ResultPart):
    """One model on the leaderboard's tasks, in per cent; a score is None if no result states it."""

    arc: float | None = None
    hellaswag: float | None = None
    mmlu: float | None = Field(default=None, description="unweighted mean over the subjects")
    mmlu_by_size: float | None = Field(default=None, description="mean over all questions")
    truthfulqa: float | None = None
    standard_errors: dict[str, float | None] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float] | None] = Field(default_factory=dict)
    n: dict[str, int | None] = Field(default_factory=dict)
    shots: dict[str, int | None] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list, description="why a score is not comparable with published ones")

    def estimate(self, task: str) -> Estimate | None:
        """One task's score with its interval, or with that of its standard error; None if there is no score."""
        mean: float | None = getattr(self, task)
        if mean is None:
            return None
        if reach := self.intervals.get(task):
            return Estimate(mean=mean, low=reach[0], high=reach[1], n=self.n.get(task))
        return Estimate.around(mean, self.standard_errors.get(task))


class ArenaRating(ResultPart):
    """One model's Bradley-Terry rating on the Elo scale, with the verdicts that it rests on."""

    rating: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    wins: int = 0
    losses: int = 0
    draws: int = 0

    @property
    def estimate(self) -> Estimate:
        """The rating as an estimate."""
        return Estimate(mean=self.rating, low=self.low, high=self.high, n=self.n)


class FigureScores(ResultPart):
    """One model on a benchmark that needs no result model of its own: estimates by figure and by category."""

    figures: dict[str, Estimate] = Field(default_factory=dict)
    categories: dict[str, Estimate] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class HeldOutResult(ResultPart):
    """The evaluation on held-out prompts: ratings from 1 to 10, their paired differences, and win rates."""

    benchmark: ClassVar[None] = None
    scores: dict[str, Estimate] = Field(default_factory=dict, description="model, or A_minus_B: mean rating")
    pairwise: dict[str, WinRate] = Field(default_factory=dict, description="A_over_B: first turns compared")
    answers: int | None = None
    unparsed: int = Field(default=0, description="answers without a score")
    cut_off: dict[str, int] = Field(default_factory=dict, description="model: answers that met the token limit")
    token_contract: dict[str, str] = Field(default_factory=dict, description="model: fingerprint")
    judge: JudgeIdentity | None = None

    @property
    def model_scores(self) -> dict[str, Estimate]:
        """The scores of models, without the differences."""
        return {name: value for name, value in self.scores.items() if MINUS not in name}

    @property
    def differences(self) -> dict[str, Estimate]:
        """The paired differences, by `A_minus_B`."""
        return {name: value for name, value in self.scores.items() if MINUS in name}


class BenchmarkResult(ResultPart):
    """What every benchmark's result has. `models` is in the subclasses, with the benchmark's own kind of scores."""

    benchmark: str = Field(description="the benchmark's name")
    judge: JudgeIdentity | None = None
    judge_quality: JudgeQuality = Field(default_factory=JudgeQuality)
    comparability: list[str] = Field(default_factory=list, description="why it cannot be set beside published scores")
    contamination: QuestionOverlap | None = None
    unparsed: dict[str, int] | int = Field(default_factory=dict, description="cause: judgments without a score")
    cut_off: dict[str, int] = Field(default_factory=dict, description="model: answers that met the token limit")
    token_contract: dict[str, str] = Field(default_factory=dict, description="model: fingerprint")
    differences: dict[str, Difference] = Field(default_factory=dict, description="A_minus_B: paired by question")


class MtBenchResult(BenchmarkResult):
    """MT-Bench."""

    models: dict[str, MtBenchScores]


class AlpacaEvalResult(BenchmarkResult):
    """AlpacaEval."""

    models: dict[str, AlpacaEvalScores]
    reference: str = ""


class LeaderboardResult(BenchmarkResult):
    """The Open LLM Leaderboard."""

    models: dict[str, LeaderboardScores]


class ArenaResult(BenchmarkResult):
    """An arena: ratings of its models, and the win rate of each pair."""

    ratings: dict[str, ArenaRating]
    matches: dict[str, WinRate] = Field(default_factory=dict, description="A_over_B: the win rate of A")


class FiguresResult(BenchmarkResult):
    """A benchmark whose scores are estimates by name."""

    models: dict[str, FigureScores]


@dataclass(frozen=True)
class ScoreFigure:
    """One figure that a benchmark states for each model: how it is called, and on which scale it is."""

    key: str
    title: str
    unit: str = ""
    """`%`, or empty."""
    scale: tuple[float, float] = (0.0, 100.0)
    """The least and the greatest possible value, for axes."""
    higher_is_better: bool = True
    paper: str = ""
    """The name of the same figure in the paper's tables; empty if the paper has none."""
    is_relative: bool = False
    """True for a rating that compares only the models of one result, such as Elo: its level means nothing."""


@dataclass(frozen=True)
class ModelScore:
    """One figure of one model, as tables, the report, the card and `eval compare` show it."""

    model: str
    figure: ScoreFigure
    estimate: Estimate
    categories: Mapping[str, Estimate] = field(default_factory=dict)


def read_result(manifest: Manifest) -> HeldOutResult | BenchmarkResult:
    """The result of an evaluation, written by this version or by the one before.

    Raises ZephyrError if a value is missing or broken, naming the artifact and the field, and for the result of a
    benchmark that is not installed.
    """
    return parse_result(manifest.metrics, manifest.plan.name)


def parse_result(metrics: Mapping[str, Any], artifact: str) -> HeldOutResult | BenchmarkResult:
    """The result that some metrics state. Raises ZephyrError as `read_result` does."""
    name = metrics.get("benchmark")
    form: type[HeldOutResult] | type[BenchmarkResult] = HeldOutResult
    if name is not None:
        form = _result_form(str(name), artifact)
    try:
        return form.model_validate(metrics)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ZephyrError(
            f"the result of {artifact} cannot be read: metrics.{place}: {first['msg']}",
            f"remove the artifact {artifact!r} and evaluate again",
        ) from None


def _result_form(benchmark: str, artifact: str) -> type[BenchmarkResult]:
    """The result model of an installed benchmark."""
    try:
        offered = plugins.load().find(plugins.BENCHMARK.name, benchmark).offered
    except ZephyrError as error:
        problem = f"{artifact} is the result of a benchmark {benchmark!r} that is not installed"
        raise ZephyrError(problem, error.remedy) from None
    form: type[BenchmarkResult] = getattr(offered, "Result", FiguresResult)
    return form
