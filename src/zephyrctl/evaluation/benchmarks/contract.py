"""What a benchmark promises. A plugin offers one from the hook `zephyrctl_benchmarks`.

A benchmark is a class with a name, a title and options. It makes the stage that evaluates models, and it reads its own
results: tables, the report, the card, `eval compare`, `--help` and completion all ask it. Three classes to extend:

- `JudgedBenchmark`: models answer questions, and a judge (or a rule) scores the answers.
- `zephyrctl.evaluation.benchmarks.harness.HarnessBenchmark`: lm-eval asks and scores.
- `Benchmark`: anything else that can be a stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from zephyrctl.contracts import PluginOptions
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.question_scores import KnownScores
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import BenchmarkResult, Estimate, FiguresResult, ModelScore, ScoreFigure, WinRate
from zephyrctl.rows.files import Raw

if TYPE_CHECKING:
    from zephyrctl.contracts import Teacher
    from zephyrctl.errors import BadRow
    from zephyrctl.evaluation.candidates import Candidate, GenerationSettings
    from zephyrctl.evaluation.judging import Case
    from zephyrctl.recipe.schema import Eval, Recipe
    from zephyrctl.runs.artifacts import Artifact
    from zephyrctl.runs.run import Run
    from zephyrctl.stages import Source, Stage

AnyResult = TypeVar("AnyResult", bound=BenchmarkResult)

JUDGING = "Who judges, and from which files"
"""The panel of --help for options about the judge and its files."""


@dataclass(frozen=True)
class CommandOption:
    """An option of the benchmark's own command, such as `--repeats`; its value is given to the class by `name`."""

    name: str
    help: str
    type: type[str | int | Path] = str
    metavar: str | None = None
    is_repeatable: bool = False
    least: int | None = None
    panel: str | None = None
    sets: str = ""
    """The option of the benchmark that it sets in the recipe; empty if the class reads the value itself."""

    @property
    def flag(self) -> str:
        """As it is typed: `--judge-url`."""
        return f"--{self.name.replace('_', '-')}"


AGAINST = CommandOption(
    "against",
    "Judgments of the same answers by people or another judge, to compare with this judge. Repeatable.",
    type=Path,
    metavar="FILE",
    is_repeatable=True,
    panel=JUDGING,
)
"""The option that names judgments to compare with."""


@dataclass(frozen=True)
class EvaluationRequest:
    """An evaluation that somebody asks for."""

    recipe: Recipe
    run: Run
    candidates: Sequence[Candidate]
    assets: Path | None = None
    """The folder of the benchmark's files; None takes what `eval fetch` has fetched."""
    max_usd: float | None = None
    given: Mapping[str, object] = field(default_factory=dict)
    """The values of the benchmark's own command options that were given, by name."""


@dataclass(frozen=True)
class ResultTable:
    """A table of text: the heading of its first column, those of the others, and rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Benchmark(ABC):
    """A benchmark. Its options are `eval.benchmarks.NAME` in a recipe."""

    name: ClassVar[str]
    """Its command, its artifact in a run, and `benchmark` in results."""
    title: ClassVar[str]
    """Its name as it is printed: MT-Bench."""
    about: ClassVar[str]
    """What its command does: a sentence, and further paragraphs for --help."""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    Result: ClassVar[type[BenchmarkResult]] = FiguresResult
    """How results are read back."""
    figures: ClassVar[tuple[ScoreFigure, ...]] = ()
    """What it states for each model, the main figure first."""
    command_options: ClassVar[tuple[CommandOption, ...]] = ()
    """The options of its command besides those that every benchmark's command has."""
    examples: ClassVar[tuple[str, ...]] = ("--dry-run", "--checkpoint dpo")
    """Options of command lines that close its --help."""
    takes_only_checkpoints: ClassVar[bool] = False
    """True if only checkpoints of the run can be evaluated, and no judge is asked."""
    file_form: ClassVar[str] = ""
    """The files of others that `eval compare` can read, in words: FastChat's judgments."""
    reads_folders: ClassVar[bool] = False
    """True if it can read a folder of such files."""

    def __init__(self, options: PluginOptions) -> None:
        self.options = options

    @abstractmethod
    def stage(self, request: EvaluationRequest) -> Stage:
        """The stage that evaluates the candidates. Raises ZephyrError if something that it needs is missing."""

    @classmethod
    def settings_path(cls) -> str:
        """Where a recipe states its options."""
        return f"eval.benchmarks.{cls.name}"

    @classmethod
    def stated_options(cls, settings: Eval) -> Mapping[str, object]:
        """Its options as the recipe states them."""
        return settings.benchmarks.get(cls.name, {})

    def read_given(self, given: Mapping[str, object], assets: Path | None) -> BenchmarkResult | None:
        """The result of files that the command line names, such as judgments of others; None if it names none.

        Raises UsageError if an option makes no sense without such a file.
        """
        return None

    def printed(self, result: BenchmarkResult) -> dict[str, object]:
        """What --json prints of a result that was read from files."""
        return dict(result.as_json())

    def scores(self, result: BenchmarkResult) -> list[ModelScore]:
        """Every figure of every model; a figure that a model lacks is left out."""
        if not isinstance(result, FiguresResult):
            raise NotImplementedError(f"{type(self).__name__} has a result of its own, and must say its scores")
        return [
            ModelScore(name, figure, estimate, scores.categories if number == 0 else {})
            for name, scores in result.models.items()
            for number, figure in enumerate(self.figures)
            if (estimate := scores.figures.get(figure.key))
        ]

    def categories(self, result: BenchmarkResult) -> list[str]:
        """The categories of its main figure, in their order."""
        return list(dict.fromkeys(name for score in self.scores(result) for name in score.categories))

    def matches(self, result: BenchmarkResult) -> dict[str, WinRate]:
        """Win rates of pairs of models, by `A_over_B`; none for a benchmark that scores each model alone."""
        return {}

    def caption(self, result: BenchmarkResult) -> str:
        """What its scores are, in a sentence for the report."""
        return ""

    def details(self, result: BenchmarkResult) -> dict[str, dict[str, str]]:
        """Model: {heading: text}, such as counts of wins; the report shows them beside the scores."""
        return {}

    def notes(self, result: BenchmarkResult) -> list[str]:
        """Sentences about what was left out of the scores."""
        return []

    def tables(self, result: BenchmarkResult) -> Iterator[ResultTable]:
        """The result as the terminal shows it: here one column for each model."""
        scores = self.scores(result)
        models = tuple(dict.fromkeys(score.model for score in scores))
        by_place = {(score.figure.key, score.model): score.estimate for score in scores}
        rows: list[tuple[str, ...]] = []
        for figure in self.figures:
            estimates = [by_place.get((figure.key, model)) for model in models]
            label = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
            rows.append((label, *(number_text(each.mean if each else None) for each in estimates)))
            rows.append(("95 % interval", *map(interval_text, estimates)))
        yield ResultTable(self.title, models, tuple(rows))

    def question_scores(self, artifact: Artifact) -> list[KnownScores]:
        """The scores of each model by question, for `eval compare`; none if the benchmark has none."""
        return []

    @classmethod
    def reads_file(cls, first: Raw | BadRow) -> bool:
        """Whether a file is in a form of this benchmark, by its first row."""
        return False

    @classmethod
    def scores_of_files(cls, path: Path) -> list[KnownScores]:
        """The scores in such a file or folder."""
        return []


class JudgedBenchmark(Benchmark):
    """A benchmark whose questions are answered by models, and whose answers are scored by a judge or by a rule.

    `prepare` is called first, once. What depends on the benchmark's files can be kept on `self` there.
    """

    has_differences: ClassVar[bool] = True
    """Whether models are compared question by question on their scores."""
    share_of_win: ClassVar[bool] = False
    """True if a judgment's score is a share of a win, which tables state in per cent."""

    def stage(self, request: EvaluationRequest) -> Stage:
        """Answer, judge and summarize."""
        from zephyrctl.evaluation.benchmark_stage import JudgedBenchmarkStage

        self.prepare(request)
        return JudgedBenchmarkStage(self, request)

    @abstractmethod
    def prepare(self, request: EvaluationRequest) -> None:
        """Read the benchmark's files. Raises ZephyrError if one is missing or broken."""

    @abstractmethod
    def questions(self) -> Sequence[Question]:
        """What is asked, each question with its category and temperature."""

    @abstractmethod
    def generation(self, recipe: Recipe) -> GenerationSettings:
        """How answers are generated."""

    @abstractmethod
    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """What the judge is asked. None for a benchmark that is scored by a rule: see `undisputed`."""

    @abstractmethod
    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> BenchmarkResult:
        """Scores, intervals and categories. Who judged, and what is known of the judge, is added by the stage."""

    def undisputed(self, answers: Sequence[AnswerRow]) -> Iterable[JudgmentRow]:
        """Judgments that need no judge, such as a draw of identical answers or an exact match."""
        return ()

    def reference_answers(self) -> Sequence[AnswerRow]:
        """Answers of the benchmark itself, such as those of a reference model; they are stored with the others."""
        return ()

    def settings(self) -> dict[str, object]:
        """What its result depends on, besides models, judge and files."""
        return self.options.model_dump(mode="json")

    def reads(self) -> dict[str, Source]:
        """The files that its result depends on, by name."""
        return {}

    def read_answers(self, path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
        """The answers in a file of others, for `--answers`: here FastChat's `model_answer`."""
        from zephyrctl.evaluation.benchmarks import fastchat_files

        return fastchat_files.read_answers(path, questions)

    def write(self, folder: Path, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> None:
        """Write files in the forms that others read, into the artifact's folder."""
        return

    def remarks(self, judge: Teacher, judgments: Sequence[JudgmentRow]) -> Iterable[str]:
        """Why the result cannot be compared with published ones, as far as it follows from the judge and the size."""
        return ()

    def file_remarks(self) -> Iterable[str]:
        """The same, as far as it follows from the benchmark's files and settings."""
        return ()

    def main_scores(self, result: BenchmarkResult) -> dict[str, float]:
        """Model: its main figure."""
        main = self.figures[0].key if self.figures else ""
        return {score.model: score.estimate.mean for score in self.scores(result) if score.figure.key == main}

    def question_scores(self, artifact: Artifact) -> list[KnownScores]:
        """The mean judgment of each question and turn; shares of a win in per cent."""
        from zephyrctl.evaluation.judged_rows import read_judgments

        return list(self.by_question(str(artifact.path), read_judgments(artifact)))

    @classmethod
    def by_question(cls, origin: str, judgments: Iterable[JudgmentRow]) -> Sequence[KnownScores]:
        """The same for judgments from anywhere."""
        from zephyrctl.evaluation.question_scores import mean_by_question

        return mean_by_question(cls.name, origin, judgments, 100.0 if cls.share_of_win else 1.0)


def with_quality(result: AnyResult, judgments: Sequence[JudgmentRow], others: Sequence[JudgmentRow] = ()) -> AnyResult:
    """A result of judgments that others made, with what can be said of their judge."""
    from zephyrctl.evaluation import judge_quality

    quality = judge_quality.measure(judgments, [], others or None)
    return result.model_copy(update={"judge_quality": quality}) if quality.figures() else result


def number_text(value: float | None) -> str:
    """Two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"


def interval_text(estimate: Estimate | None) -> str:
    """Both ends of an interval, or nothing if it is not known."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.2f} to {estimate.high:.2f}"


def error_text(value: float | None, error: float | None) -> str:
    """A value with its standard error, as far as they are known."""
    if value is None:
        return ""
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
