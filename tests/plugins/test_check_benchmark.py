"""Whether `check_benchmark` passes the built-in benchmarks, and fails wrong ones with the reason."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

import pytest

from tests.evaluation.benchmarks_made import alpaca_files, mt_bench_files
from zephyrctl import plugins
from zephyrctl.contracts import PluginOptions, Sampling
from zephyrctl.evaluation.benchmarks.contract import CommandOption, EvaluationRequest, JudgedBenchmark
from zephyrctl.evaluation.candidates import GenerationSettings
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import BenchmarkResult, Estimate, FigureScores, FiguresResult, ScoreFigure
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message
from zephyrctl.testing import Breach, check_benchmark
from zephyrctl.verdicts import parse_verdict

RATING = ScoreFigure("rating", "mean rating", scale=(1.0, 10.0))
NUMBERS = count()


class Sound(JudgedBenchmark):
    """A sound benchmark, from which the wrong ones below are made."""

    name = "sound"
    title = "Sound"
    about = "Ask one question of two turns."
    figures = (RATING,)

    def prepare(self, request: EvaluationRequest) -> None:
        """Nothing to read."""

    def questions(self) -> Sequence[Question]:
        """One."""
        return [Question("one", "facts", ("Why?", "And then?"))]

    def generation(self, recipe: Recipe) -> GenerationSettings:
        """Short answers."""
        return GenerationSettings(max_tokens=8, top_p=1, top_k=0, batch=1, seed=0, engine="auto")

    def row(self, answer: AnswerRow) -> JudgmentRow:
        """The judgment of an answer, without a score."""
        return JudgmentRow(model=answer.model, question=answer.question, turn=answer.turn, score=None, judge="")

    def read(self, reply: str) -> tuple[float | None, str]:
        """The rating in a reply."""
        score = parse_verdict(reply).score
        return score, "" if score is not None else UNPARSED

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """One per answer."""
        messages = (Message(role="user", content="Rate it."),)
        for answer in answers:
            row = self.row(answer)
            yield Case(row, messages, Sampling(), self.read, tuple(answer.messages), (answer.answer,))

    def mean(self, scores: Sequence[float]) -> Estimate:
        """Their mean."""
        return Estimate(mean=sum(scores) / len(scores))

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> BenchmarkResult:
        """The mean of each model."""
        models: dict[str, list[float]] = {}
        for row in judgments:
            if row.score is not None:
                models.setdefault(row.model, []).append(row.score)
        scores = {model: FigureScores(figures={"rating": self.mean(values)}) for model, values in models.items()}
        return FiguresResult(benchmark=self.name, models=scores)


class Ruled(Sound):
    """Scores by a rule, and asks no judge."""

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """None."""
        return ()

    def undisputed(self, answers: Sequence[AnswerRow]) -> Iterable[JudgmentRow]:
        """Every answer is a 5."""
        return [self.row(answer).model_copy(update={"score": 5.0}) for answer in answers]


class Lenient(Sound):
    """Reads an empty reply as a score."""

    def read(self, reply: str) -> tuple[float | None, str]:
        """Always 10."""
        return 10.0, ""


class Silent(Sound):
    """Gives no cause for a missing score."""

    def read(self, reply: str) -> tuple[float | None, str]:
        """Nothing."""
        return None, ""


class Reversed(Sound):
    """Lower verdicts give a higher score."""

    def mean(self, scores: Sequence[float]) -> Estimate:
        """11 minus the mean."""
        return Estimate(mean=11 - sum(scores) / len(scores))


class Summed(Sound):
    """The score is off its scale."""

    def mean(self, scores: Sequence[float]) -> Estimate:
        """The sum."""
        return Estimate(mean=sum(scores))


class Outside(Sound):
    """The interval does not contain the mean."""

    def mean(self, scores: Sequence[float]) -> Estimate:
        """The mean with an interval above it."""
        mean = sum(scores) / len(scores)
        return Estimate(mean=mean, low=mean + 1, high=mean + 2)


class Restless(Sound):
    """Asks other questions each time."""

    def questions(self) -> Sequence[Question]:
        """Numbered again."""
        return [Question("one", "", (f"Why {next(NUMBERS)}?",))]


class Idle(Sound):
    """Neither asks a judge nor scores by a rule."""

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """None."""
        return ()


class Foreign(Sound):
    """Judges a model that did not answer."""

    def row(self, answer: AnswerRow) -> JudgmentRow:
        """About another model."""
        return super().row(answer).model_copy(update={"model": "third"})


class Misnamed(Sound):
    """Its result names another benchmark."""

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> BenchmarkResult:
        """Under another name."""
        return super().summarize(judgments, answers).model_copy(update={"benchmark": "other"})


class Forgetful(Sound):
    """What it changed in the result is not stored, as no field was set."""

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> BenchmarkResult:
        """Scores that were put in afterwards."""
        result = FiguresResult(benchmark=self.name, models={"first": FigureScores(), "second": FigureScores()})
        for model, scores in super().summarize(judgments, answers).models.items():  # type: ignore[attr-defined]
            result.models[model].figures.update(scores.figures)
        return result


class Unstated(Sound):
    """States a figure that its scores lack."""

    figures = (ScoreFigure("other", "another"),)


def variant(**members: object) -> type[Sound]:
    """The sound benchmark with other members."""
    return type("Variant", (Sound,), {"__doc__": "A benchmark.", **members})


def asking(*questions: Question) -> type[Sound]:
    """The sound benchmark with other questions."""
    return variant(questions=lambda self: questions)


OPTION = CommandOption("files", "Files to read.")


@pytest.mark.parametrize("offered", [Sound, Ruled], ids=lambda offered: offered.__name__)
def test_a_sound_benchmark_passes(offered: type[Sound]) -> None:
    check_benchmark(lambda: offered(PluginOptions()))


@pytest.mark.parametrize("name", ["open-llm", "ifeval"])
def test_the_description_of_benchmarks_of_lm_eval_passes(name: str) -> None:
    check_benchmark(lambda: plugins.load().benchmark(name, {}))


@pytest.mark.parametrize(
    ("name", "write_files"),
    [
        ("mt-bench", mt_bench_files),
        pytest.param("alpaca-eval", alpaca_files, marks=pytest.mark.slow),  # it fits a regression for each bootstrap
    ],
)
def test_a_built_in_judged_benchmark_passes(name: str, write_files: Callable[[Path], Path], tmp_path: Path) -> None:
    write_files(tmp_path / name)
    check_benchmark(lambda: plugins.load().benchmark(name, {}), assets=tmp_path)


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (Lenient, "an empty reply of the judge is read as the score 10.0"),
        (Silent, "no cause to be counted under"),
        (Reversed, "no better 'rating' than the worst ones"),
        (Summed, "'rating' is 20, and its scale is 1 to 10"),
        (Outside, "outside its own interval"),
        (Restless, "a new instance asks other questions"),
        (Idle, "neither asks a judge nor scores by a rule"),
        (Foreign, "about the model 'third', which did not answer"),
        (Misnamed, "names the benchmark 'other'"),
        (Forgetful, "stored and read again has other scores"),
        (Unstated, "no model has the main figure 'other'"),
        (asking(), "asks no questions"),
        (asking(Question("a", "", ("Why?",)), Question("a", "", ("How?",))), "two questions have the same id"),
        (asking(Question("a", "", ("Why?", " "))), "has an empty turn"),
        (variant(title=""), "its title is missing"),
        (variant(figures=()), "states no figures"),
        (variant(figures=(RATING, RATING)), "the same key"),
        (variant(figures=(ScoreFigure("rating", "rating", scale=(1, 1)),)), "does not rise"),
        (variant(command_options=(OPTION, OPTION)), "two of its command options have the same name"),
        (variant(settings=lambda self: {"where": Path()}), "not plain JSON"),
        (variant(__doc__=None), "no docstring"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_benchmark_fails(offered: type[Sound], reason: str) -> None:
    with pytest.raises(Breach, match=re.escape(reason)):
        check_benchmark(lambda: offered(PluginOptions()))
