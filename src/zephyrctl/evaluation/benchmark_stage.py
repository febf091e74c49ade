"""The stage of a judged benchmark: models answer, a judge judges, and scores are written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl import plugins
from zephyrctl.contracts import Teacher
from zephyrctl.data.decontaminate import benchmark_overlap
from zephyrctl.evaluation import comparability, compare, judge_quality
from zephyrctl.evaluation.answering import answer_all
from zephyrctl.evaluation.candidates import AnswerStats, Candidate, check_names, sources
from zephyrctl.evaluation.held_out import pairings
from zephyrctl.evaluation.judged_rows import ANSWERS, JUDGMENTS, AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import Case, causes, check_unparsed, judge_all, judges_itself
from zephyrctl.evaluation.question_scores import QuestionScores
from zephyrctl.evaluation.results import BenchmarkResult, Difference, JudgeIdentity, QuestionOverlap
from zephyrctl.launching.weights import model_base
from zephyrctl.progress import Progress
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Stage
from zephyrctl.teachers import costs, prices
from zephyrctl.teachers.client import Calls
from zephyrctl.teachers.costs import Forecast, lines

if TYPE_CHECKING:
    from zephyrctl.evaluation.benchmarks.contract import EvaluationRequest, JudgedBenchmark

ASSUMED_LENGTH = 400
"""Characters that an answer is assumed to have in a forecast, before it exists."""


class JudgedBenchmarkStage(Stage):
    """Evaluate some models on a benchmark that a judge scores. Raises ZephyrError if two models have one name."""

    stage = "eval"

    def __init__(self, benchmark: JudgedBenchmark, request: EvaluationRequest) -> None:
        check_names(request.candidates)
        recipe = self.recipe = request.recipe
        self.benchmark = benchmark
        self.candidates = request.candidates
        self.max_usd = request.max_usd
        self.questions = benchmark.questions()
        self.generation = benchmark.generation(recipe)
        has_checkpoint = any(candidate.checkpoint for candidate in self.candidates)
        self.searched = benchmark_overlap.trained_on(request.run) if has_checkpoint else []
        self.name = benchmark.name
        names = ", ".join(candidate.name for candidate in self.candidates)
        self.does = f"ask {names} {len(self.questions)} questions of {self.name}; {recipe.eval.judge.name!r} judges"
        self.settings = {
            **benchmark.settings(),
            "seed": recipe.seed,
            "judge": recipe.eval.judge.model_dump(mode="json", exclude={"limits"}),
            "unparsed_share": recipe.eval.unparsed_share,
            "engine": recipe.eval.engine,
            "batch": recipe.eval.batch,
            **benchmark_overlap.settings(recipe.decontaminate, self.searched),
            "models": {candidate.name: candidate.settings(recipe) for candidate in self.candidates},
        }
        self.reads = {
            **benchmark.reads(),
            **sources(self.candidates, recipe),
            **benchmark_overlap.sources(self.searched),
        }

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write answers, judgments, files in the forms of others, and the benchmark's result into the draft."""
        answers, judgments, stats, judge = asyncio.run(self._answer_and_judge(draft, inputs, progress))
        check_unparsed(judgments, self.recipe.eval.unparsed_share)
        draft.write(ANSWERS, "test", [*answers, *self.benchmark.reference_answers()], AnswerRow)
        draft.write(JUDGMENTS, "test", judgments, JudgmentRow)
        self.benchmark.write(draft.path, answers, judgments)
        draft.metrics |= self._result(answers, judgments, stats, judge).as_json()
        turns = {question.id: question.turns for question in self.questions}
        searched = [inputs[name] for name in self.searched]
        benchmark_overlap.record_overlap(self.name, turns, searched, self.recipe.decontaminate, draft)
        self._add_scores_without_overlap(draft, answers, judgments)
        for cause, count in causes(judgments).items():
            draft.drop(f"judgments without a score: {cause}", count)

    def costs(self, run: Run, inputs: Inputs) -> dict[str, Any]:
        """What judging would cost, by answers that exist, else by an assumed length of answers."""
        judge = plugins.load().teacher(self.recipe.eval.judge.name, self.recipe.eval.judge.options)
        if judge.is_rule_based:
            return {}
        answers = [answer for candidate in self.candidates for answer in self._expected_answers(candidate)]
        return self._forecast(judge, list(self.benchmark.cases(answers)), run).model_dump()

    async def _answer_and_judge(
        self, draft: Draft, inputs: Inputs, progress: Progress
    ) -> tuple[list[AnswerRow], list[JudgmentRow], AnswerStats, Teacher]:
        known = prices.load(self.recipe.prices)
        async with Calls(draft.run.path, self.name, known, self.max_usd, progress) as calls:
            judge = calls.teacher(self.recipe.eval.judge)  # a judge without a price fails before anything is generated
            answers, stats = await answer_all(
                self.candidates,
                self.questions,
                self.generation,
                self.recipe,
                draft,
                inputs,
                calls,
                self.benchmark.read_answers,
                progress,
            )
            cases = list(self.benchmark.cases(answers))
            if not judge.is_rule_based:
                for line in lines(self._forecast(judge, cases, draft.run).model_dump()):
                    progress.say(line.strip())
            judgments = [*self.benchmark.undisputed(answers), *await judge_all(judge, cases, progress)]
            calls.close_into(draft)
        return answers, judgments, stats, judge

    def _result(
        self, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow], stats: AnswerStats, judge: Teacher
    ) -> BenchmarkResult:
        """The benchmark's own summary, with what the stage knows of judge and answers."""
        models = sorted({row.judge for row in judgments if row.judge != comparability.IDENTICAL})
        parts: dict[str, object] = {
            "judge": JudgeIdentity(
                name=judge.name, asked_for=judge.label, models=models, rule_based=judge.is_rule_based
            ),
            "unparsed": causes(judgments),
            "cut_off": stats.cut_off,
            "token_contract": stats.contracts,
            "comparability": list(self._comparability(answers, judgments, stats, judge)),
        }
        if self.benchmark.has_differences:
            parts["differences"] = self._differences(judgments)
        quality = judge_quality.measure(judgments, [*answers, *self.benchmark.reference_answers()])
        if quality.figures():
            parts["judge_quality"] = quality
        return self.benchmark.summarize(judgments, answers).model_copy(update=parts)

    def _differences(self, judgments: Sequence[JudgmentRow]) -> dict[str, Difference]:
        known = self.benchmark.by_question("", judgments)
        by_model = {scores.model: scores for scores in known if isinstance(scores, QuestionScores)}
        starts = {name: checkpoint.start for name, checkpoint in self.recipe.checkpoints.items()}
        return compare.differences(pairings([candidate.name for candidate in self.candidates], starts), by_model)

    def _comparability(
        self, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow], stats: AnswerStats, judge: Teacher
    ) -> Iterable[str]:
        """Why the result cannot be compared with published ones."""
        yield from self.benchmark.remarks(judge, judgments)
        if any(candidate.checkpoint for candidate in self.candidates):
            yield from comparability.of_template(model_base(self.recipe).chat_template())
        yield from self.benchmark.file_remarks()
        yield from stats.remarks
        turns = sum(len(question.turns) for question in self.questions)
        for candidate in self.candidates:
            answered = sum(answer.model == candidate.name for answer in answers)
            if answered < turns:
                yield f"{turns - answered} of {turns} answers of {candidate.name} are missing"

    def _add_scores_without_overlap(
        self, draft: Draft, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]
    ) -> None:
        """Add each model's score on the questions that are not in the training data, if some are."""
        stated = draft.metrics.get("contamination")
        if not stated:
            return
        overlap = QuestionOverlap.model_validate(stated)
        if overlap.hits:
            clean = [row for row in judgments if row.question not in overlap.by_question]
            scores = self.benchmark.main_scores(self.benchmark.summarize(clean, answers))
            draft.metrics["contamination"] = overlap.model_copy(update={"scores_without_them": scores}).as_json()

    def _expected_answers(self, candidate: Candidate) -> list[AnswerRow]:
        """A candidate's answers for a forecast: those of its file, else answers of the assumed length."""
        if candidate.file:
            answers = self.benchmark.read_answers(candidate.file, self.questions)
            return [answer.model_copy(update={"model": candidate.name}) for answer in answers]
        text = "x" * ASSUMED_LENGTH
        return [
            AnswerRow(
                model=candidate.name,
                question=question.id,
                category=question.category,
                turn=turn,
                messages=list(question.conversation((text,) * (turn - 1))),
                answer=f"{candidate.name} {text}",
            )
            for question in self.questions
            for turn in range(1, len(question.turns) + 1)
        ]

    def _forecast(self, judge: Teacher, cases: Sequence[Case], run: Run) -> Forecast:
        is_asked = [case for case in cases if not judges_itself(judge, compares=len(case.answers) > 1)]
        calls = [costs.JudgingCall(case.messages, case.sampling, case.row.sample) for case in is_asked]
        with costs.open_history(run.path) as history:
            known = prices.load(self.recipe.prices)
            return costs.forecast_judging(judge, self.recipe.eval.judge.limits, calls, history, known)
