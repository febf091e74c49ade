"""Compare each two models' answers by a judge, in both orders, and rate the models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from zephyrctl import plugins, templates, verdicts
from zephyrctl.contracts import GREEDY, Sampling, Teacher
from zephyrctl.errors import UsageError, ZephyrError, did_you_mean
from zephyrctl.evaluation import comparability
from zephyrctl.evaluation.benchmarks import fastchat_files
from zephyrctl.evaluation.benchmarks.contract import (
    AGAINST,
    CommandOption,
    EvaluationRequest,
    JudgedBenchmark,
    ResultTable,
    with_quality,
)
from zephyrctl.evaluation.bradley_terry import MEAN, Verdict, rate
from zephyrctl.evaluation.candidates import GenerationSettings
from zephyrctl.evaluation.held_out import held_out_prompts
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.question_scores import KnownScores
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import (
    ArenaRating,
    ArenaResult,
    BenchmarkResult,
    ModelScore,
    ScoreFigure,
    WinRate,
)
from zephyrctl.evaluation.statistics import estimate
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.stages import Source

NAME = "arena"
HELD_OUT = "held-out"
"""The run's held-out prompts, among sets of questions."""
PROMPT = "compare"
SAMPLING = Sampling(max_tokens=1024, seed=GREEDY.seed)

Order = tuple[str, str, str, int, str, int]


def cases(answers: Iterable[AnswerRow], names: Sequence[str]) -> Iterator[Case]:
    """Both orders of each two models' answers to a turn, each within its own conversation.

    Our own prompt compares the last answers; if the conversations before them differ, both are shown. Identical
    answers have no case: they are a draw (see `draws`).
    """
    by_turn = _by_turn(answers)
    for first, second in combinations(names, 2):
        for turns in by_turn.values():
            if first in turns and second in turns and turns[first].answer != turns[second].answer:
                yield _case(turns[first], turns[second], is_swapped=False)
                yield _case(turns[first], turns[second], is_swapped=True)


def draws(answers: Iterable[AnswerRow], names: Sequence[str]) -> Iterator[JudgmentRow]:
    """The verdicts on identical answers: a draw in both orders."""
    by_turn = _by_turn(answers)
    for first, second in combinations(names, 2):
        for turns in by_turn.values():
            if first in turns and second in turns and turns[first].answer == turns[second].answer:
                for is_swapped in (False, True):
                    row = _row(turns[first], turns[second], is_swapped)
                    yield row.model_copy(update={"score": 0.5, "judge": "identical outputs"})


def read_verdict(text: str) -> tuple[float | None, str]:
    """The share of a win of the answer shown first: 1, 0.5 or 0; None with the cause if the reply has no verdict."""
    share = verdicts.parse_preference(text)
    return share, "" if share is not None else UNPARSED


def summarize(judged: Sequence[JudgmentRow]) -> ArenaResult:
    """Ratings of all models, the best first, and the win rate of each pair.

    If the two orders disagree, the pair is a draw. If one order has no verdict, the pair is left out, because the order
    alone may have decided the other one. Verdicts that were asked in one order only (people's votes) count as they are.
    """
    by_question: dict[str, list[Verdict]] = {}
    for (first, second, question, _, _, _), share in outcomes(judged).items():
        by_question.setdefault(question, []).append((first, second, share))
    counted: dict[str, dict[str, int]] = {}
    between: dict[str, list[float]] = {}
    for first, second, share in (one for given in by_question.values() for one in given):
        between.setdefault(f"{first}_over_{second}", []).append(share)
        for name, mine in ((first, share), (second, 1 - share)):
            tally = counted.setdefault(name, {"wins": 0, "losses": 0, "draws": 0})
            tally[_outcome(mine)] += 1
    rated = rate(by_question) if by_question else {}
    return ArenaResult(
        benchmark=NAME,
        ratings={name: ArenaRating(**asdict(rating), **counted[name]) for name, rating in rated.items()},
        matches={name: _match(shares, name) for name, shares in between.items()},
    )


def outcomes(judged: Iterable[JudgmentRow]) -> dict[Order, float]:
    """The verdict on every two answers, seen from the model that the rows name first."""
    orders: dict[Order, list[JudgmentRow]] = {}
    for row in judged:
        judge = "" if row.prompt == PROMPT else row.judge  # a server may report another id in the midst of ours
        key = row.model, row.opponent, row.question, row.turn, judge, row.sample
        orders.setdefault(key, []).append(row)
    verdicts = {}
    for key, rows in orders.items():
        shares = {row.score for row in rows}
        if None not in shares:
            distinct = [share for share in shares if share is not None]
            verdicts[key] = distinct[0] if len(distinct) == 1 else 0.5
    return verdicts


def _match(shares: Sequence[float], name: str) -> WinRate:
    mean = estimate(shares, name)
    return WinRate(
        win_rate=mean.mean,
        low=mean.low,
        high=mean.high,
        n=mean.n,
        wins=sum(share > 0.5 for share in shares),
        losses=sum(share < 0.5 for share in shares),
        draws=sum(share == 0.5 for share in shares),
    )


def _by_turn(answers: Iterable[AnswerRow]) -> Mapping[tuple[str, int], dict[str, AnswerRow]]:
    by_turn: dict[tuple[str, int], dict[str, AnswerRow]] = {}
    for answer in answers:
        by_turn.setdefault((answer.question, answer.turn), {})[answer.model] = answer
    return by_turn


def _case(mine: AnswerRow, theirs: AnswerRow, is_swapped: bool) -> Case:
    first, second = (theirs, mine) if is_swapped else (mine, theirs)
    answers = {"first": _shown_text(first, second), "second": _shown_text(second, first)}
    text = templates.render(f"prompts/{PROMPT}.md.jinja", messages=first.messages, **answers)

    def share(words: str) -> tuple[float | None, str]:
        ahead, cause = read_verdict(words)
        return (1.0 - ahead if is_swapped and ahead is not None else ahead), cause

    return Case(
        row=_row(mine, theirs, is_swapped),
        messages=(Message(role="user", content=text),),
        sampling=SAMPLING,
        read=share,
        shown=tuple(first.messages),
        answers=(first.answer, second.answer),
    )


def _shown_text(answer: AnswerRow, other: AnswerRow) -> str:
    """An answer, with the turns before it if the other answer has different ones."""
    if [message.content for message in answer.messages] == [message.content for message in other.messages]:
        return answer.answer
    return "\n\n".join([*(f"{message.role}: {message.content}" for message in answer.messages), answer.answer])


def _row(mine: AnswerRow, theirs: AnswerRow, is_swapped: bool) -> JudgmentRow:
    return JudgmentRow(
        model=mine.model,
        question=mine.question,
        category=mine.category,
        turn=mine.turn,
        score=None,
        judge="",
        prompt=PROMPT,
        opponent=theirs.model,
        is_swapped=is_swapped,
    )


class Arena(JudgedBenchmark):
    """Models against each other, on held-out prompts or on the questions of another benchmark."""

    name = NAME
    title = "Arena"
    about = (
        "Have a judge compare every two models' answers, in both orders, and rate the models (Bradley-Terry).\n\n"
        "--judgments makes no calls: it rates models by existing verdicts."
    )
    Result = ArenaResult
    has_differences = False
    share_of_win = True
    figures = (ScoreFigure("rating", "rating", scale=(0.0, 2 * MEAN), is_relative=True),)
    examples = ("--dry-run", "--checkpoint sft --checkpoint dpo")
    command_options = (
        CommandOption("questions", "held-out (the run's prompts), or a benchmark with its own questions."),
        CommandOption(
            "judgments",
            "Rate by FastChat's pairwise judgments or votes instead. Repeatable.",
            type=Path,
            metavar="FILE",
            is_repeatable=True,
        ),
        AGAINST,
    )

    source: JudgedBenchmark | None = None
    """The benchmark whose questions are asked; None for held-out prompts."""

    def prepare(self, request: EvaluationRequest) -> None:
        """Find the questions. Raises ZephyrError if there are none, or if there is only one model."""
        self.models = [candidate.name for candidate in request.candidates]
        if len(self.models) < 2:
            raise ZephyrError(
                f"an arena needs two models, and there is only {self.models[0]}",
                "give another --checkpoint or --answers",
            )
        name = str(request.given.get("questions") or HELD_OUT)
        if name != HELD_OUT:
            self.source = _benchmark_with_questions(name, request)
            self.max_tokens = self.source.generation(request.recipe).max_tokens
            return
        if not request.run.artifact("build"):
            raise ZephyrError(
                f"{request.run.path} has no held-out prompts",
                "ask the questions of a benchmark: --questions NAME; or build some first",
            )
        self.max_tokens = request.recipe.eval.max_new_tokens
        prompts = held_out_prompts(request.run, request.recipe.eval)
        self.prompts = [Question(prompt.id, "", tuple(prompt.user_turns())) for prompt in prompts]

    def questions(self) -> Sequence[Question]:
        """The run's held-out prompts, or those of another benchmark."""
        return self.source.questions() if self.source else self.prompts

    def generation(self, recipe: Recipe) -> GenerationSettings:
        """As the other benchmark generates; else as the held-out evaluation does."""
        if self.source:
            return self.source.generation(recipe)
        settings = recipe.eval
        return GenerationSettings(
            max_tokens=settings.max_new_tokens,
            top_p=1.0,
            top_k=0,
            batch=settings.batch,
            seed=recipe.seed,
            engine=settings.engine,
        )

    def settings(self) -> dict[str, object]:
        """Which questions are asked, and how long answers may be."""
        return {"questions": self.source.name if self.source else HELD_OUT, "max_new_tokens": self.max_tokens}

    def reads(self) -> dict[str, Source]:
        """The files of the other benchmark, or the run's prompts."""
        return self.source.reads() if self.source else {"prompts": Source(artifact="build", stage="build")}

    def read_answers(self, path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
        """In the form of the other benchmark, else FastChat's."""
        return self.source.read_answers(path, questions) if self.source else super().read_answers(path, questions)

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """Both orders of every two models' answers."""
        return cases(answers, self.models)

    def undisputed(self, answers: Sequence[AnswerRow]) -> Iterable[JudgmentRow]:
        """Equal answers are a draw."""
        return draws(answers, self.models)

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> ArenaResult:
        """Ratings, and the win rate of each pair."""
        return summarize(judgments)

    def write(self, folder: Path, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> None:
        """FastChat's pairwise judgments, in a file of the judge's name."""
        judges = [row.judge for row in judgments if row.judge != comparability.IDENTICAL]
        name = fastchat_files.file_name(judges[0] if judges else comparability.IDENTICAL)
        fastchat_files.write_pairs(folder / "fastchat" / "model_judgment" / f"{name}_pair.jsonl", judgments)

    def remarks(self, judge: Teacher, judgments: Sequence[JudgmentRow]) -> Iterable[str]:
        """Ratings are relative."""
        yield "an arena's ratings compare its own models only: nothing published is on their scale"

    def read_given(self, given: Mapping[str, object], assets: Path | None) -> ArenaResult | None:
        """Ratings by FastChat's pairwise judgments (`--judgments`), compared with others (`--against`)."""
        paths, others = fastchat_files.given_judgments(given)
        if not paths:
            return None
        judgments = [row for path in paths for row in fastchat_files.read_pairs(path)]
        unparsed = sum(row.score is None for row in judgments)
        result = summarize(judgments).model_copy(update={"unparsed": unparsed})
        return with_quality(result, judgments, [row for path in others for row in fastchat_files.read_pairs(path)])

    def scores(self, result: BenchmarkResult) -> list[ModelScore]:
        """The rating of each model."""
        assert isinstance(result, ArenaResult)
        ranked = sorted(result.ratings.items(), key=lambda pair: -pair[1].rating)
        return [ModelScore(name, self.figures[0], rating.estimate) for name, rating in ranked]

    def caption(self, result: BenchmarkResult) -> str:
        """What its scores are."""
        return f"Bradley-Terry ratings on the Elo scale; their mean is {MEAN:.0f}."

    def details(self, result: BenchmarkResult) -> dict[str, dict[str, str]]:
        """How many verdicts each rating is based on."""
        assert isinstance(result, ArenaResult)
        return {name: {"Matches": f"{rating.n:,}"} for name, rating in result.ratings.items() if rating.n is not None}

    def matches(self, result: BenchmarkResult) -> dict[str, WinRate]:
        """The win rate of each pair."""
        assert isinstance(result, ArenaResult)
        return dict(result.matches)

    def tables(self, result: BenchmarkResult) -> Iterator[ResultTable]:
        """One row for each model."""
        assert isinstance(result, ArenaResult)
        rows = []
        for name, rating in result.ratings.items():
            interval = "" if rating.low is None or rating.high is None else f"{rating.low:.0f} to {rating.high:.0f}"
            counts = str(rating.wins), str(rating.draws), str(rating.losses)
            rows.append((name, f"{rating.rating:.0f}", interval, *counts))
        yield ResultTable("arena", ("rating", "95 % interval", "wins", "draws", "losses"), tuple(rows))

    def question_scores(self, artifact: Artifact) -> list[KnownScores]:
        """None: a verdict on a pair is not a score of one model."""
        return []


def _benchmark_with_questions(name: str, request: EvaluationRequest) -> JudgedBenchmark:
    """The benchmark of that name, prepared. Raises UsageError if there is none with questions of its own."""
    offers = plugins.load().offers_of_kind(plugins.BENCHMARK.name)
    classes = [offer.offered for offer in offers if issubclass(offer.offered, JudgedBenchmark)]
    known = {benchmark.name: benchmark for benchmark in classes if benchmark is not Arena}
    if name not in known:
        names = [HELD_OUT, *known]
        remedy = did_you_mean(name, names, f"one of: {', '.join(names)}")
        raise UsageError(f"--questions {name!r} is not a set of questions", remedy)
    benchmark = plugins.load().benchmark(name, known[name].stated_options(request.recipe.eval))
    assert isinstance(benchmark, JudgedBenchmark)
    benchmark.prepare(request)
    return benchmark


def _outcome(share: float) -> str:
    """The tally's key for a share of a comparison, from 0 to 1."""
    if share == 0.5:
        return "draws"
    return "wins" if share > 0.5 else "losses"
