"""The evaluation on held-out prompts: checkpoints answer turn by turn, and a judge rates and compares the answers."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zephyrctl import plugins
from zephyrctl.concurrency import gather
from zephyrctl.contracts import Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.judged_rows import ANSWERS, JUDGMENTS, AnswerRow, JudgmentRow
from zephyrctl.evaluation.results import MINUS, OVER, Estimate, HeldOutResult, JudgeIdentity
from zephyrctl.evaluation.statistics import estimate, win_rate
from zephyrctl.launching.processes import ConversationWorker
from zephyrctl.launching.weights import base_hash, loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import HELD_OUT, Eval, Recipe
from zephyrctl.records import Message, Prompt
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Source, Stage
from zephyrctl.teachers import costs, prices
from zephyrctl.teachers.client import Calls

BASE = "base"
"""The name of the untrained base among checkpoints."""
CALLS_AT_ONCE = 32
CUT_OFF_SHARE = 0.05
"""Share of a checkpoint's answers above which a note says that they were cut off: half answers have low scores."""

Match = tuple[str, str]
"""Two models to compare: the later one, and the one that it is compared with."""


class HeldOutStage(Stage):
    """Evaluate some checkpoints of the recipe, and the base if the recipe says so.

    `max_usd` is the most that the judge may cost; it changes no result.
    """

    name = "eval"
    stage = "eval"

    def __init__(self, recipe: Recipe, checkpoints: Sequence[str], max_usd: float | None = None) -> None:
        self.recipe = recipe
        self.max_usd = max_usd
        self.models = [*([BASE] if recipe.eval.base else []), *checkpoints]
        self.starts = {name: checkpoint.start for name, checkpoint in recipe.checkpoints.items()}
        self.base = model_base(recipe)
        self.does = (
            f"ask {', '.join(self.models)} up to {recipe.eval.prompts} held-out prompts; "
            f"{recipe.eval.judge.name!r} judges"
        )
        self.settings = {
            **recipe.eval.model_dump(mode="json", include=HELD_OUT, exclude={"judge": {"limits"}}),
            "chat_template": self.base.chat_template(),
            "checkpoints": {name: self.starts[name] for name in checkpoints},
            "base_content": base_hash(self.base) if recipe.eval.base else None,
        }
        self.reads = {"prompts": Source(artifact="build", stage="build")}
        self.reads |= {name: Source(artifact=name, stage=recipe.checkpoints[name].stage) for name in checkpoints}

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write answers, judgments and a `HeldOutResult` into the draft."""
        prompts = choose_prompts(inputs["prompts"], self.recipe.eval)
        answers, cut_off, contracts = self._generate(prompts, inputs, draft, progress)
        matches = pairings(self.models, self.starts)
        judgments, outcomes, judge = asyncio.run(self._judge(answers, matches, draft, progress))
        result = summarize(judgments, outcomes, matches).model_copy(
            update={
                "token_contract": contracts,
                "cut_off": cut_off,
                "judge": JudgeIdentity(
                    name=judge.name, models=sorted({row.judge for row in judgments}), rule_based=judge.is_rule_based
                ),
            }
        )
        draft.write(ANSWERS, "test", answers, AnswerRow)
        draft.write(JUDGMENTS, "test", judgments, JudgmentRow)
        draft.metrics |= result.as_json()
        draft.drop("judgments without a score", result.unparsed)
        if judge.is_rule_based:
            draft.notes.append(f"scores are the rules of the {judge.name!r} teacher, not a language model's judgment")

    def costs(self, run: Run, inputs: Inputs) -> dict[str, Any]:
        """What judging would cost, assuming that each answer has half of its greatest length."""
        settings = self.recipe.eval
        judge = plugins.load().teacher(settings.judge.name, settings.judge.options)
        if judge.is_rule_based:
            return {}
        prompts = choose_prompts(inputs["prompts"], settings)
        text = "x" * (2 * settings.max_new_tokens)  # 4 characters per token, half of the tokens
        conversations = [
            (conversation(prompt, [text] * turn), turn)
            for prompt in prompts
            for turn in range(len(prompt.user_turns()))
        ]
        ratings = [
            partial(judge.judge, messages, f"{name} {text}") for name in self.models for messages, _ in conversations
        ]
        first_turns = [messages for messages, turn in conversations if turn == 0]
        comparisons = [
            partial(judge.compare, messages, f"{first} {text}", f"{second} {text}")
            for match in pairings(self.models, self.starts)
            for first, second in (match, match[::-1])
            for messages in first_turns
        ]
        calls = asyncio.run(costs.record_calls(judge, [*ratings, *comparisons]))
        with costs.open_history(run.path) as history:
            known = prices.load(self.recipe.prices)
            return costs.forecast_judging(judge, settings.judge.limits, calls, history, known).model_dump()

    def _generate(
        self, prompts: Sequence[Prompt], inputs: Inputs, draft: Draft, progress: Progress
    ) -> tuple[list[AnswerRow], dict[str, int], dict[str, str]]:
        """Every model's answers, how many of them were cut off, and the fingerprint of its token contract.

        One worker loads one model after another. A model whose answers are in the journal is not loaded again.
        """
        settings = self.recipe.eval
        answers: list[AnswerRow] = []
        cut_off: dict[str, int] = {}
        contracts: dict[str, str] = {}
        worker = ConversationWorker(draft.scratch / "generate.log", self.recipe.launch.threads)
        try:
            with Journal(draft.scratch / "answers.journal") as journal:
                for done, name in enumerate(self.models):
                    if name not in journal:
                        progress.advance(done, len(self.models), "checkpoints answered")
                        contract = self._load(worker, name, inputs)
                        texts, unfinished = _answer_turns(worker, settings, prompts)
                        journal.add(name, {"answers": texts, "cut_off": unfinished, "token_contract": contract})
                    entry = journal.rows[name]
                    answers += _answer_rows(name, prompts, entry["answers"])
                    contracts[name], cut_off[name] = entry["token_contract"], entry["cut_off"]
                    progress.advance(done + 1, len(self.models), "checkpoints answered")
        finally:
            worker.close()
        answers_per_model = len(answers) // len(self.models)
        for name, count in cut_off.items():
            if count > CUT_OFF_SHARE * answers_per_model:
                limit = settings.max_new_tokens
                draft.notes.append(f"{count} of {answers_per_model} answers of {name} were cut off at {limit} tokens")
        return answers, cut_off, contracts

    def _load(self, worker: ConversationWorker, name: str, inputs: Inputs) -> str:
        """Load a checkpoint and return the fingerprint of its token contract.

        Raises ZephyrError if the checkpoint was trained on other tokens than the template writes.
        """
        artifact = inputs.get(name)
        request = loaded(self.base, artifact if isinstance(artifact, Artifact) else None)
        fingerprint: str = worker.ask({"load": request.pop("model"), **request})["token_contract"]
        return fingerprint

    async def _judge(
        self, answers: Sequence[AnswerRow], matches: Sequence[Match], draft: Draft, progress: Progress
    ) -> tuple[list[JudgmentRow], dict[Match, list[float]], Teacher]:
        """A rating of each answer, and the outcome of each match on each prompt."""
        known = prices.load(self.recipe.prices)
        async with Calls(draft.run.path, self.name, known, self.max_usd, progress) as calls:
            judge = calls.teacher(self.recipe.eval.judge)
            judgments = await _rate(judge, answers, progress)
            outcomes = await _compare(matches, judge, answers, progress)
            calls.close_into(draft)
        return judgments, outcomes, judge


def summarize(
    judgments: Sequence[JudgmentRow], outcomes: Mapping[Match, Sequence[float]], matches: Sequence[Match]
) -> HeldOutResult:
    """Scores with intervals, differences of the matches paired by prompt, and win rates."""
    means = prompt_means(judgments)
    scores: dict[str, Estimate] = {name: estimate(list(values.values()), name) for name, values in means.items()}
    for name, other in matches:
        shared = [prompt for prompt in means.get(name, {}) if prompt in means.get(other, {})]
        if shared:
            key = f"{name}{MINUS}{other}"
            scores[key] = estimate([means[name][prompt] - means[other][prompt] for prompt in shared], key)
    rates = {f"{name}{OVER}{other}": shares for (name, other), shares in outcomes.items() if shares}
    return HeldOutResult(
        scores=scores,
        pairwise={key: win_rate(shares, key) for key, shares in rates.items()},
        unparsed=sum(row.score is None for row in judgments),
        answers=len(judgments),
    )


def pairings(names: Sequence[str], starts: Mapping[str, str]) -> list[Match]:
    """Each model with the one that it started from, then the last model with every other one."""
    matches = [(name, starts[name]) for name in names if starts.get(name) in names]
    matches += [(names[-1], name) for name in names[:-1]]
    return list(dict.fromkeys(matches))


def prompt_means(judgments: Sequence[JudgmentRow]) -> dict[str, dict[str, float]]:
    """model: {prompt id: mean score over its turns}, of the judgments that have a score."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in judgments:
        if row.score is not None:
            scores.setdefault(row.model, {}).setdefault(row.question, []).append(row.score)
    return {
        name: {prompt: sum(values) / len(values) for prompt, values in by_prompt.items()}
        for name, by_prompt in scores.items()
    }


def held_out_prompts(run: Run, settings: Eval) -> list[Prompt]:
    """The prompts that a run's checkpoints are asked. Raises ZephyrError if the run has no prompts."""
    return choose_prompts(run.require("build", "zephyrctl data build"), settings)


def choose_prompts(build: "Artifact | Path", settings: Eval) -> list[Prompt]:
    """The first `eval.prompts` prompts of the test side by id: ids are hashes, so the order is random but fixed.

    Raises ZephyrError if there are fewer than two.
    """
    assert isinstance(build, Artifact)
    prompts = sorted(build.read("prompts", "test", Prompt), key=lambda prompt: prompt.id)[: settings.prompts]
    if len(prompts) < 2:
        raise ZephyrError("fewer than two held-out prompts to ask", "raise build.test_share, or build more prompts")
    return prompts


def conversation(prompt: Prompt, answers: Sequence[str]) -> tuple[Message, ...]:
    """The prompt's user turns up to the first unanswered one, with the model's own answers between them."""
    messages = [message for message in prompt.messages if message.role == "system"]
    for turn, text in enumerate(prompt.user_turns()[: len(answers) + 1]):
        messages.append(Message(role="user", content=text))
        if turn < len(answers):
            messages.append(Message(role="assistant", content=answers[turn]))
    return tuple(messages)


def _answer_turns(worker: ConversationWorker, settings: Eval, prompts: Sequence[Prompt]) -> tuple[list[list[str]], int]:
    """The answers to each prompt, one per turn, and how many were cut off. A later turn sees the earlier answers."""
    answers: list[list[str]] = [[] for _ in prompts]
    cut_off = 0
    for turn in range(max(len(prompt.user_turns()) for prompt in prompts)):
        positions = [position for position, prompt in enumerate(prompts) if len(prompt.user_turns()) > turn]
        conversations = [conversation(prompts[position], answers[position]) for position in positions]
        request = {
            "conversations": [[message.model_dump() for message in messages] for messages in conversations],
            "max_tokens": settings.max_new_tokens,
            "temperature": 0.0,
            "batch": settings.batch,
        }
        for position, answer in zip(positions, worker.ask(request)["answers"], strict=True):
            answers[position].append(answer["text"])
            cut_off += answer["finish_reason"] == "length"
    return answers, cut_off


def _answer_rows(name: str, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[AnswerRow]:
    return [
        AnswerRow(
            model=name,
            question=prompt.id,
            turn=turn,
            messages=list(conversation(prompt, answers[: turn - 1])),
            answer=text,
        )
        for prompt, answers in zip(prompts, texts, strict=True)
        for turn, text in enumerate(answers, 1)
    ]


async def _rate(judge: Teacher, answers: Sequence[AnswerRow], progress: Progress) -> list[JudgmentRow]:
    """One judgment for each answer, in the order of the answers."""

    async def rate(position: int) -> JudgmentRow:
        answer = answers[position]
        verdict = await judge.judge(answer.messages, answer.answer)
        return JudgmentRow(
            model=answer.model,
            question=answer.question,
            turn=answer.turn,
            score=verdict.score,
            text=verdict.reason,
            judge=verdict.model or judge.label,
        )

    judgments: dict[int, JudgmentRow] = {}
    async for position, judgment in gather(rate, range(len(answers)), CALLS_AT_ONCE):
        judgments[position] = judgment
        progress.advance(len(judgments), len(answers), "answers judged")
    return [judgments[position] for position in range(len(answers))]


async def _compare(
    matches: Sequence[Match], judge: Teacher, answers: Sequence[AnswerRow], progress: Progress
) -> dict[Match, list[float]]:
    """The outcomes of each match, one per prompt, from first turns that were compared in both orders.

    A prompt is a draw if the two orders disagree, and is left out if an order has no verdict.
    """
    first_turns = {(row.model, row.question): row for row in answers if row.turn == 1}
    prompts = dict.fromkeys(row.question for row in answers)
    comparisons = [(match, prompt) for match in matches for prompt in prompts]

    async def compare(comparison: tuple[Match, str]) -> list[float | None]:
        (name, other), prompt = comparison
        mine, theirs = first_turns[name, prompt], first_turns[other, prompt]
        shown_first = await judge.compare(mine.messages, mine.answer, theirs.answer)
        shown_second = await judge.compare(mine.messages, theirs.answer, mine.answer)
        return [shown_first, None if shown_second is None else 1.0 - shown_second]

    verdicts: dict[tuple[Match, str], list[float | None]] = {}
    async for comparison, both_orders in gather(compare, comparisons, CALLS_AT_ONCE):
        verdicts[comparison] = both_orders
        progress.advance(len(verdicts), len(comparisons), "answers compared")
    outcomes: dict[Match, list[float]] = {}
    for comparison in comparisons:
        if (share := outcome(verdicts[comparison])) is not None:
            outcomes.setdefault(comparison[0], []).append(share)
    return outcomes


def outcome(verdicts: Sequence[float | None]) -> float | None:
    """The share of a win from the verdicts of both orders: 0.5 if they disagree, None if one is missing."""
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) < 2:
        return None
    return known[0] if known[0] == known[1] else 0.5
