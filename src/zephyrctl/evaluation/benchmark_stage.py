"""The steps `eval mt-bench`, `eval alpaca-eval` and `eval arena`: models answer, a judge judges, scores are written."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zephyrctl import plugins
from zephyrctl.contracts import Teacher
from zephyrctl.data.decontaminate import benchmark_overlap
from zephyrctl.evaluation import comparability, compare, judge_quality, question_scores
from zephyrctl.evaluation.answering import Contestant, ReadFile, Telling, Way, answer_all, check_names, sources
from zephyrctl.evaluation.assets import Assets, protocols
from zephyrctl.evaluation.benchmarks import alpaca_eval, arena, fastchat_files, mt_bench
from zephyrctl.evaluation.held_out import held_out_prompts, pairings
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import Case, causes, check_unparsed, judge_all, judges_itself
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import (
    AlpacaEvalResult,
    BenchmarkResult,
    DatasetRate,
    JudgeIdentity,
    MtBenchResult,
)
from zephyrctl.feedback.dry_run import books_of
from zephyrctl.launching.weights import model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Source, Step
from zephyrctl.teachers import judging_costs, prices
from zephyrctl.teachers.client import Calls
from zephyrctl.teachers.costs import Forecast, lines

Answers = Sequence[AnswerRow]
PLACEHOLDER = 400
"""Characters that an answer is taken to have where nobody has given it yet."""


@dataclass(frozen=True)
class Contest:
    """One benchmark, ready to be asked: its questions, how they are answered, judged, scored and written."""

    name: str
    questions: tuple[Question, ...]
    way: Way
    read_file: ReadFile
    cases: Callable[[Answers], Iterable[Case]]
    undisputed: Callable[[Answers], Iterable[JudgmentRow]]
    summarize: Callable[[Sequence[JudgmentRow], Answers], BenchmarkResult]
    write: Callable[[Draft, Answers, Sequence[JudgmentRow]], None]
    settings: dict[str, Any]
    reads: dict[str, Source] = field(default_factory=dict)
    shown: Answers = ()
    """Answers that belong to the benchmark itself, such as those of a reference."""
    remarks: tuple[str, ...] = ()
    differences: bool = True
    """Whether models are compared question by question; an arena does nothing else."""


def step(recipe: Recipe, contest: Contest, contestants: Sequence[Contestant], run: Run, max_usd: float | None) -> Step:
    """The evaluation of some models on one benchmark. Raises ZephyrError where two models have one name."""
    check_names(contestants)
    searched = benchmark_overlap.trained_on(run) if any(one.checkpoint for one in contestants) else []

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        answers, judged, telling, judge = asyncio.run(
            _answer_and_judge(recipe, contest, contestants, draft, inputs, progress, max_usd)
        )
        check_unparsed(judged, recipe.eval.unparsed_share)
        draft.write("answers", "test", [*answers, *contest.shown], AnswerRow)
        draft.write("judgments", "test", judged, JudgmentRow)
        contest.write(draft, answers, judged)
        draft.metrics |= _metrics(recipe, contest, contestants, answers, judged, telling, judge)
        turns = {question.id: question.turns for question in contest.questions}
        training_data = [inputs[name] for name in searched]
        benchmark_overlap.record_overlap(contest.name, turns, training_data, recipe.decontaminate, draft)
        _tell_without(contest, draft, answers, judged)
        for cause, count in causes(judged).items():
            draft.drop(f"judgments without a score: {cause}", count)

    names = ", ".join(one.name for one in contestants)
    return Step(
        name=contest.name,
        stage="eval",
        does=f"ask {names} {len(contest.questions)} questions of {contest.name}; {recipe.eval.judge.name!r} judges",
        settings={
            **contest.settings,
            "seed": recipe.seed,
            "judge": recipe.eval.judge.model_dump(mode="json", exclude={"limits"}),
            "unparsed_share": recipe.eval.unparsed_share,
            "engine": recipe.eval.engine,
            "batch": recipe.eval.batch,
            **benchmark_overlap.settings(recipe.decontaminate, searched),
            "models": {one.name: one.settings(recipe) for one in contestants},
        },
        reads={
            **contest.reads,
            **sources(contestants, recipe),
            **benchmark_overlap.sources(searched),
        },
        work=work,
        costs=partial(_costs, recipe, contest, contestants),
    )


def mt_bench_contest(recipe: Recipe, assets: Assets) -> Contest:
    """MT-Bench. Raises ZephyrError where its files are not there."""
    settings = recipe.eval.mt_bench
    bench = mt_bench.load(assets, settings.references)
    names = ["questions", "prompts", "references", *(["corrected"] if settings.references == "corrected" else [])]

    def summarize(judged: Sequence[JudgmentRow], answers: Answers) -> MtBenchResult:
        return MtBenchResult(benchmark=mt_bench.NAME, models=mt_bench.summarize(judged, questions=len(bench.questions)))

    return Contest(
        name=mt_bench.NAME,
        questions=bench.questions,
        way=_way(recipe, mt_bench.NAME, settings.max_new_tokens, 1.0),
        read_file=fastchat_files.read_answers,
        cases=lambda answers: mt_bench.cases(bench, answers, settings.repeats),
        undisputed=lambda answers: (),
        summarize=summarize,
        write=_write_fastchat,
        settings=settings.model_dump(mode="json"),
        reads={name: Source(path=assets.path(name)) for name in names},
        remarks=(*bench.remarks, *comparability.of_limit(settings.max_new_tokens, 1024)),
    )


def alpaca_contest(recipe: Recipe, assets: Assets) -> Contest:
    """AlpacaEval 1.0. Raises ZephyrError where its files are not there."""
    settings = recipe.eval.alpaca_eval
    bench = alpaca_eval.load(assets, settings.temperature)
    asked = {question.id: question for question in bench.questions}
    reference = [
        AnswerRow(
            model=bench.reference,
            question=id,
            category=asked[id].category,
            turn=1,
            messages=list(asked[id].conversation(())),
            answer=text,
        )
        for id, text in bench.answers.items()
    ]

    def summarize(judged: Sequence[JudgmentRow], answers: Answers) -> AlpacaEvalResult:
        models = alpaca_eval.summarize(
            judged, bench.beside(answers), instructions=len(bench.questions), gamed=bench.gamed
        )
        return AlpacaEvalResult(benchmark=alpaca_eval.NAME, models=models, reference=bench.reference)

    def write(draft: Draft, answers: Answers, judged: Sequence[JudgmentRow]) -> None:
        everything = {(answer.model, answer.question): answer for answer in [*answers, *reference]}
        for name in dict.fromkeys(answer.model for answer in answers):
            folder = draft.path / "alpaca_eval" / _file(name)
            alpaca_eval.write_answers(folder / "model_outputs.json", [one for one in answers if one.model == name])
            rows = [row for row in judged if row.model == name]
            alpaca_eval.write_annotations(folder / "annotations.json", rows, everything)

    return Contest(
        name=alpaca_eval.NAME,
        questions=bench.questions,
        way=_way(recipe, alpaca_eval.NAME, settings.max_new_tokens, settings.top_p),
        read_file=alpaca_eval.read_answers,
        cases=lambda answers: alpaca_eval.cases(bench, answers),
        undisputed=lambda answers: alpaca_eval.draws(bench, answers),
        summarize=summarize,
        write=write,
        settings=settings.model_dump(mode="json"),
        reads={name: Source(path=assets.path(name)) for name in ("reference", "prompt")},
        shown=reference,
        remarks=bench.remarks,
    )


def arena_contest(recipe: Recipe, names: Sequence[str], asking: Contest | None, run: Run) -> Contest:
    """Every two of these models against each other, on the questions of a benchmark or on held-out prompts.

    Raises ZephyrError where neither is there.
    """
    if asking is None:
        questions = tuple(
            Question(prompt.id, "", tuple(prompt.user_turns())) for prompt in held_out_prompts(run, recipe.eval)
        )
        way = _way(recipe, "", recipe.eval.max_new_tokens, 1.0)
        reads = {"prompts": Source(artifact="build", stage="build")}
        read_file: ReadFile = fastchat_files.read_answers
    else:
        questions, way, reads, read_file = asking.questions, asking.way, asking.reads, asking.read_file
    return Contest(
        name=arena.NAME,
        questions=questions,
        way=way,
        read_file=read_file,
        cases=lambda answers: arena.cases(answers, names),
        undisputed=lambda answers: arena.draws(answers, names),
        summarize=lambda judged, answers: arena.summarize(judged),
        write=_write_pairs,
        settings={"questions": asking.name if asking else "held-out", "max_new_tokens": way.max_tokens},
        reads=reads,
        differences=False,
    )


async def _answer_and_judge(
    recipe: Recipe,
    contest: Contest,
    contestants: Sequence[Contestant],
    draft: Draft,
    inputs: Inputs,
    progress: Progress,
    max_usd: float | None,
) -> tuple[list[AnswerRow], list[JudgmentRow], Telling, Teacher]:
    known = prices.load(recipe.prices)
    async with Calls(draft.run.path, contest.name, known, max_usd, progress) as calls:
        judge = calls.teacher(recipe.eval.judge)  # before anything is generated: a judge without a price is no judge
        answers, telling = await answer_all(
            contestants, contest.questions, contest.way, recipe, draft, inputs, calls, contest.read_file, progress
        )
        cases = list(contest.cases(answers))
        for line in _cost_lines(recipe, judge, cases, draft.run):
            progress.say(line)
        judged = [*contest.undisputed(answers), *await judge_all(judge, cases, progress)]
        calls.close_into(draft)
    return answers, judged, telling, judge


def _metrics(
    recipe: Recipe,
    contest: Contest,
    contestants: Sequence[Contestant],
    answers: Answers,
    judged: Sequence[JudgmentRow],
    telling: Telling,
    judge: Teacher,
) -> dict[str, Any]:
    parts: dict[str, object] = {}
    if contest.differences:
        gathered = {one.model: one for one in question_scores.gathered(contest.name, "", judged)}
        starts = {name: checkpoint.start for name, checkpoint in recipe.checkpoints.items()}
        parts["differences"] = compare.differences(pairings([one.name for one in contestants], starts), gathered)
    quality = judge_quality.measure(judged, [*answers, *contest.shown])
    if quality.figures():
        parts["judge_quality"] = quality
    models = sorted({row.judge for row in judged if row.judge != comparability.IDENTICAL})
    parts |= {
        "judge": JudgeIdentity(name=judge.name, asked_for=judge.label, models=models, rule_based=judge.is_rule_based),
        "unparsed": causes(judged),
        "cut_off": telling.cut_off,
        "token_contract": telling.contracts,
        "comparability": list(_comparability(recipe, contest, contestants, answers, judged, telling, judge)),
    }
    return contest.summarize(judged, answers).model_copy(update=parts).as_json()


def _comparability(
    recipe: Recipe,
    contest: Contest,
    contestants: Sequence[Contestant],
    answers: Answers,
    judged: Sequence[JudgmentRow],
    telling: Telling,
    judge: Teacher,
) -> Iterable[str]:
    if contest.name == arena.NAME:
        yield "an arena's ratings compare its own models only: nothing published is on their scale"
    else:
        protocol = protocols()[contest.name]
        yield from comparability.of_judge(judge, judged, protocol)
        yield from comparability.of_questions(len(contest.questions), protocol)
    if any(one.checkpoint for one in contestants):
        yield from comparability.of_template(model_base(recipe).chat_template())
    yield from contest.remarks
    yield from telling.remarks
    asked = sum(len(question.turns) for question in contest.questions)
    for one in contestants:
        there = sum(answer.model == one.name for answer in answers)
        if there < asked:
            yield f"{asked - there} of {asked} answers of {one.name} are missing"


def _tell_without(contest: Contest, draft: Draft, answers: Answers, judged: Sequence[JudgmentRow]) -> None:
    """The scores on the questions that the training data does not hold, where it holds some."""
    found = draft.metrics.get("contamination")
    if not found or not found["hits"]:
        return
    clean = [row for row in judged if row.question not in found["by_question"]]
    result = contest.summarize(clean, answers)
    found["scores_without_them"] = {
        name: scores.win_rate if isinstance(scores, DatasetRate) else scores.score
        for name, scores in (result.models if isinstance(result, AlpacaEvalResult | MtBenchResult) else {}).items()
    }


def _costs(
    recipe: Recipe, contest: Contest, contestants: Sequence[Contestant], run: Run, inputs: Inputs
) -> dict[str, Any]:
    """What judging would cost before anything is answered: by answers that exist, else by their usual length."""
    judge = plugins.load().teacher(recipe.eval.judge.name, recipe.eval.judge.options)
    if judge.is_rule_based:
        return {}
    answers = [answer for one in contestants for answer in _expected(contest, one)]
    told = _forecast(recipe, judge, list(contest.cases(answers)), run)
    return told.model_dump()


def _expected(contest: Contest, one: Contestant) -> list[AnswerRow]:
    if one.file:
        return [
            answer.model_copy(update={"model": one.name}) for answer in contest.read_file(one.file, contest.questions)
        ]
    return [
        AnswerRow(
            model=one.name,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation(("x" * PLACEHOLDER,) * (turn - 1))),
            answer=f"{one.name} {'x' * PLACEHOLDER}",
        )
        for question in contest.questions
        for turn in range(1, len(question.turns) + 1)
    ]


def _forecast(recipe: Recipe, judge: Teacher, cases: Sequence[Case], run: Run) -> Forecast:
    is_asked = [case for case in cases if not judges_itself(judge, beside_another=len(case.answers) > 1)]
    calls = [judging_costs.Call(case.messages, case.sampling, case.row.sample) for case in is_asked]
    with books_of(run.path) as books:
        return judging_costs.forecast(judge, recipe.eval.judge.limits, calls, books, prices.load(recipe.prices))


def _cost_lines(recipe: Recipe, judge: Teacher, cases: Sequence[Case], run: Run) -> list[str]:
    if judge.is_rule_based:
        return []
    return [line.strip() for line in lines(_forecast(recipe, judge, cases, run).model_dump())]


def _way(recipe: Recipe, benchmark: str, max_tokens: int, top_p: float) -> Way:
    top_k = protocols()[benchmark].top_k if benchmark else 0
    return Way(max_tokens, top_p, top_k, recipe.eval.batch, recipe.seed, recipe.eval.engine)


def _write_fastchat(draft: Draft, answers: Answers, judged: Sequence[JudgmentRow]) -> None:
    """FastChat's folders: a file of answers for each model, and one of judgments for each judge."""
    folder = draft.path / "fastchat"
    for name in dict.fromkeys(answer.model for answer in answers):
        path = folder / "model_answer" / f"{_file(name)}.jsonl"
        fastchat_files.write_answers(path, [answer for answer in answers if answer.model == name])
    for judge in dict.fromkeys(row.judge for row in judged):
        path = folder / "model_judgment" / f"{_file(judge)}_single.jsonl"
        fastchat_files.write_judgments(path, [row for row in judged if row.judge == judge])


def _write_pairs(draft: Draft, answers: Answers, judged: Sequence[JudgmentRow]) -> None:
    """FastChat's pairwise judgments, in a file of the judge's name."""
    judges = [row.judge for row in judged if row.judge != comparability.IDENTICAL]
    name = _file(judges[0] if judges else comparability.IDENTICAL)
    fastchat_files.write_pairs(draft.path / "fastchat" / "model_judgment" / f"{name}_pair.jsonl", judged)


def _file(name: str) -> str:
    """A model's name as the name of a file: Hub ids have a slash."""
    return "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in name).lstrip(".") or "model"
