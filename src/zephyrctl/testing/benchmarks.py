"""Check that a benchmark keeps its contract."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from zephyrctl.evaluation.benchmarks.contract import Benchmark, EvaluationRequest, JudgedBenchmark
from zephyrctl.evaluation.candidates import Candidate
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import Case
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import BenchmarkResult, Estimate, ModelScore, ScoreFigure
from zephyrctl.recipe import loading
from zephyrctl.runs.run import Run
from zephyrctl.testing.plugin_classes import check_class, require

MODELS = ("first", "second")
"""The models that answer. Every answer differs, so that no judgment is undisputed because two are equal."""
ROUNDING = 1e-6
"""By how much a stated mean may be outside its interval or its scale."""
Given = Mapping[str, object]
"""The values of a benchmark's own command options, by name."""
NOTHING: Given = MappingProxyType({})
"""No values for command options."""


def check_benchmark(make: Callable[[], Benchmark], *, assets: Path | None = None, given: Given = NOTHING) -> None:
    """Check a benchmark's description; of a judged one also its questions, cases, scores and stored result.

    `assets` is the folder of its files, and `given` has the values of its own command options. No model is asked.
    """
    benchmark = make()
    check_class(type(benchmark))
    _check_description(benchmark)
    if isinstance(benchmark, JudgedBenchmark):
        with TemporaryDirectory() as folder:
            other = make()
            assert isinstance(other, JudgedBenchmark)
            _check_judged(benchmark, other, Path(folder), assets, given)


def _check_description(benchmark: Benchmark) -> None:
    for name in ("title", "about"):
        text = getattr(benchmark, name, "")
        require(isinstance(text, str) and bool(text.strip()), f"its {name} is missing")
    keys = [figure.key for figure in benchmark.figures]
    require(bool(keys), "it states no figures")
    require(len(set(keys)) == len(keys), "two of its figures have the same key")
    for figure in benchmark.figures:
        require(bool(figure.title.strip()), f"the figure {figure.key!r} has no title")
        require(figure.scale[0] < figure.scale[1], f"the scale of {figure.key!r} does not rise: {figure.scale}")
    names = [option.name for option in benchmark.command_options]
    require(len(set(names)) == len(names), "two of its command options have the same name")
    for option in benchmark.command_options:
        require(option.name.isidentifier(), f"the command option {option.name!r} is not a Python name")
        require(bool(option.help.strip()), f"the command option {option.flag} has no help")
    require(issubclass(benchmark.Result, BenchmarkResult), "its Result does not extend BenchmarkResult")


def _check_judged(
    benchmark: JudgedBenchmark,
    other: JudgedBenchmark,
    folder: Path,
    assets: Path | None,
    given: Given,
) -> None:
    recipe = loading.load("tiny", {}).recipe
    candidates = [Candidate(name, model=f"conformance/{name}") for name in MODELS]
    request = EvaluationRequest(recipe, Run(folder), candidates, assets=assets, given=given)
    for each in (benchmark, other):
        each.prepare(request)
    questions = list(benchmark.questions())
    _check_questions(questions)
    require(list(other.questions()) == questions, "a new instance asks other questions")
    require(benchmark.generation(recipe).max_tokens >= 1, "its answers may have no tokens")
    try:
        json.dumps(benchmark.settings())
    except TypeError as error:
        require(False, f"its settings are not plain JSON: {error}")
    for source in benchmark.reads().values():
        require(source.path is not None and source.path.exists(), f"it reads {source}, which does not exist")
    answers = _answers(questions)
    cases = list(benchmark.cases(answers))
    rows_of_rules = list(benchmark.undisputed([*answers]))
    require(bool(cases or rows_of_rules), "it neither asks a judge nor scores by a rule")
    for case in cases:
        _check_case(case, questions)
    unread = [case.row.model_copy(update={"cause": "unparsed", "judge": "conformance"}) for case in cases]
    _check_result(benchmark, benchmark.summarize([*unread, *rows_of_rules], answers))
    if cases:
        best, worst = (
            _check_result(benchmark, benchmark.summarize([*_judged(benchmark, cases, top), *rows_of_rules], answers))
            for top in (True, False)
        )
        _check_direction(benchmark.figures[0], best, worst)


def _check_questions(questions: Sequence[Question]) -> None:
    require(bool(questions), "it asks no questions")
    require(len({question.id for question in questions}) == len(questions), "two questions have the same id")
    for question in questions:
        has_text = bool(question.turns) and all(text.strip() for text in question.turns)
        require(has_text, f"the question {question.id!r} has an empty turn, or none")
        require(0 <= question.temperature <= 2, f"the question {question.id!r} has a temperature outside 0 to 2")


def _answers(questions: Sequence[Question]) -> list[AnswerRow]:
    """Each model's answer to each turn."""
    return [
        AnswerRow(
            model=model,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation(tuple(_text(model, question, n) for n in range(1, turn)))),
            answer=_text(model, question, turn),
            finish_reason="stop",
        )
        for model in MODELS
        for question in questions
        for turn in range(1, len(question.turns) + 1)
    ]


def _text(model: str, question: Question, turn: int) -> str:
    return f"The answer of {model} to turn {turn} of {question.id}."


def _check_case(case: Case, questions: Sequence[Question]) -> None:
    require(case.row.model in MODELS, f"a case is about the model {case.row.model!r}, which did not answer")
    known = case.row.question in {question.id for question in questions}
    require(known, f"a case is about the question {case.row.question!r}, which is not asked")
    require(case.row.score is None, "a case has a score before it is judged")
    require(bool(case.messages) and case.messages[-1].role == "user", "a judge's prompt does not end with a user turn")
    require(len(case.answers) in (1, 2), f"a case shows {len(case.answers)} answers, and not 1 or 2")
    score, cause = case.read("")
    require(score is None, f"an empty reply of the judge is read as the score {score}")
    require(bool(cause.strip()), "a reply without a score has no cause to be counted under")


def _judged(benchmark: JudgedBenchmark, cases: Sequence[Case], is_best: bool) -> list[JudgmentRow]:
    """The same verdict on every case: the highest score that a judge can give, or the lowest."""
    rows = []
    for case in cases:
        low, high = (0.0, 1.0) if benchmark.share_of_win or len(case.answers) == 2 else (1.0, 10.0)
        score = high if is_best else low
        rows.append(case.row.model_copy(update={"score": score, "judge": "conformance", "text": "Made up."}))
    return rows


def _check_result(benchmark: JudgedBenchmark, result: BenchmarkResult) -> list[ModelScore]:
    """Check a result's scores, and that it is the same after it was stored; the scores."""
    require(isinstance(result, benchmark.Result), f"summarize returns {type(result).__name__}, not its Result")
    require(result.benchmark == benchmark.name, f"its result names the benchmark {result.benchmark!r}")
    stored = benchmark.Result.model_validate(json.loads(json.dumps(result.as_json())))
    scores = benchmark.scores(result)
    require(benchmark.scores(stored) == scores, "a result that was stored and read again has other scores")
    for score in scores:
        require(
            score.figure in benchmark.figures, f"a score has the figure {score.figure.key!r}, which it never states"
        )
        for estimate in (score.estimate, *score.categories.values()):
            _check_estimate(benchmark, score.figure, estimate)
    for table in benchmark.tables(result):
        is_full = all(len(row) == len(table.columns) + 1 for row in table.rows)
        require(is_full, f"a row of the table {table.title!r} has more or fewer cells than the table has columns")
    return scores


def _check_estimate(benchmark: Benchmark, figure: ScoreFigure, estimate: Estimate) -> None:
    low, high = figure.scale
    require(
        math.isfinite(estimate.mean) and low - ROUNDING <= estimate.mean <= high + ROUNDING,
        f"{figure.key!r} is {estimate.mean:g}, and its scale is {low:g} to {high:g}",
    )
    # Other figures may come from a fit: if every verdict is the same, resampling moves AlpacaEval's to one side.
    is_main = figure == benchmark.figures[0]
    if is_main and estimate.low is not None and estimate.high is not None:
        is_inside = estimate.low - ROUNDING <= estimate.mean <= estimate.high + ROUNDING
        require(is_inside, f"the mean of {figure.key!r} is outside its own interval")


def _check_direction(figure: ScoreFigure, best: Sequence[ModelScore], worst: Sequence[ModelScore]) -> None:
    """Check that the highest verdicts give a better main figure than the lowest."""
    at_best, at_worst = (
        {score.model: score.estimate.mean for score in scores if score.figure.key == figure.key}
        for scores in (best, worst)
    )
    require(bool(at_best), f"no model has the main figure {figure.key!r}, though every answer was judged")
    for model, value in at_best.items():
        gain = value - at_worst.get(model, value)
        is_better = gain > 0 if figure.higher_is_better else gain < 0
        require(is_better, f"the best verdicts give {model!r} no better {figure.key!r} than the worst ones")
