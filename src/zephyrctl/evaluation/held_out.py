"""`eval` on held-out prompts: every checkpoint answers turn by turn, a judge scores answers and compares pairs."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zephyrctl import plugins
from zephyrctl.concurrency import gather
from zephyrctl.contracts import Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.answer_journal import Journal
from zephyrctl.evaluation.statistics import estimate, win_rate
from zephyrctl.feedback.dry_run import books_of
from zephyrctl.launching.processes import Conversation
from zephyrctl.launching.weights import base_hash, loaded, model_base
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import HELD_OUT, Recipe
from zephyrctl.records import Message, Prompt, Record
from zephyrctl.runs.run import Artifact, Draft, Run
from zephyrctl.stages import Inputs, Source, Step
from zephyrctl.teachers import judging_costs, prices
from zephyrctl.teachers.client import Calls

BASE = "base"
AT_ONCE = 32
CUT_OFF = 0.05
"""Share of a checkpoint's answers that may be cut off before it is said: such scores are of half answers."""


class JudgedAnswer(Record):
    """One answer of one checkpoint to one turn of a held-out prompt, and the judge's score."""

    checkpoint: str
    prompt_id: str
    turn: int
    messages: list[Message]
    answer: str
    score: float | None
    reason: str
    judge: str


@dataclass(frozen=True)
class Answer:
    """An answer before it is judged."""

    checkpoint: str
    prompt_id: str
    turn: int
    messages: tuple[Message, ...]
    text: str


def step(recipe: Recipe, checkpoints: Sequence[str], max_usd: float | None = None) -> Step:
    """The evaluation of some of the recipe's checkpoints, and of the base where the recipe says so.

    `max_usd` is the most that its judge may cost; it changes no result.
    """
    names = [*([BASE] if recipe.eval.base else []), *checkpoints]

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        prompts = _held_out(inputs["prompts"], recipe)
        answers = _answer(recipe, names, prompts, inputs, draft, progress)
        asyncio.run(_judge(recipe, answers, draft, progress, max_usd))

    reads = {"prompts": Source(artifact="build", stage="build")}
    reads |= {name: Source(artifact=name, stage=recipe.checkpoints[name].stage) for name in checkpoints}
    base = model_base(recipe)
    return Step(
        name="eval",
        stage="eval",
        does=f"ask {', '.join(names)} up to {recipe.eval.prompts} held-out prompts; {recipe.eval.judge.name!r} judges",
        settings={
            **recipe.eval.model_dump(mode="json", include=HELD_OUT, exclude={"judge": {"limits"}}),
            "chat_template": base.chat_template(),
            "checkpoints": {name: _start(recipe, name) for name in checkpoints},
            "base_content": base_hash(base) if recipe.eval.base else None,
        },
        reads=reads,
        work=work,
        costs=partial(_costs, recipe, names),
    )


def _costs(recipe: Recipe, names: Sequence[str], run: Run, inputs: Inputs) -> dict[str, Any]:
    """What judging would cost before anything is answered: answers are taken to have half of their greatest length."""
    choice = recipe.eval.judge
    judge = plugins.load().teacher(choice.name, choice.options)
    if judge.is_rule_based:
        return {}
    prompts = _held_out(inputs["prompts"], recipe)
    text = "x" * (2 * recipe.eval.max_new_tokens)
    shown = [
        (conversation(prompt, [text] * turn), turn) for prompt in prompts for turn in range(len(prompt.user_turns()))
    ]
    matches = pairings(names, {name: checkpoint.start for name, checkpoint in recipe.checkpoints.items()})
    rated = [partial(judge.judge, messages, f"{name} {text}") for name in names for messages, _ in shown]
    compared = [
        partial(judge.compare, messages, f"{one} {text}", f"{other} {text}")
        for match in matches
        for one, other in (match, match[::-1])
        for messages, turn in shown
        if not turn
    ]
    calls = asyncio.run(judging_costs.calls_of(judge, [*rated, *compared]))
    with books_of(run.path) as books:
        return judging_costs.forecast(judge, choice.limits, calls, books, prices.load(recipe.prices)).model_dump()


def summarize(
    judged: Sequence[JudgedAnswer], outcomes: dict[str, list[float]], matches: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Scores with intervals, the matches' differences paired by prompt, and win rates."""
    means = prompt_means(judged)
    scores = {name: estimate(list(values.values()), name) for name, values in means.items()}
    for name, other in matches:
        shared = [key for key in means.get(name, {}) if key in means.get(other, {})]
        if shared:
            paired = f"{name}_minus_{other}"
            scores[paired] = estimate([means[name][key] - means[other][key] for key in shared], paired)
    return {
        "scores": {name: score.model_dump() for name, score in scores.items()},
        "pairwise": {name: win_rate(values, name).model_dump() for name, values in outcomes.items() if values},
        "unparsed": sum(row.score is None for row in judged),
        "answers": len(judged),
    }


def pairings(names: Sequence[str], starts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Who is compared with whom: each checkpoint with what it started from, and the last one with every other."""
    matches = [(name, starts[name]) for name in names if starts.get(name) in names]
    matches += [(names[-1], name) for name in names[:-1]]
    return list(dict.fromkeys(matches))


def prompt_means(judged: Sequence[JudgedAnswer]) -> dict[str, dict[str, float]]:
    """checkpoint: {prompt id: mean score over its turns}; answers without a score are left out and counted."""
    collected: dict[str, dict[str, list[float]]] = {}
    for row in judged:
        if row.score is not None:
            collected.setdefault(row.checkpoint, {}).setdefault(row.prompt_id, []).append(row.score)
    return {
        name: {key: sum(scores) / len(scores) for key, scores in by_prompt.items()}
        for name, by_prompt in collected.items()
    }


def _start(recipe: Recipe, name: str) -> str:
    return recipe.checkpoints[name].start


def held_out_prompts(run: Run, recipe: Recipe) -> list[Prompt]:
    """What is asked of a run's checkpoints. Raises ZephyrError where its prompts are not built."""
    return _held_out(run.require("build", "zephyrctl data build"), recipe)


def _held_out(source: "Artifact | Path", recipe: Recipe) -> list[Prompt]:
    """The first prompts of the test side by id, which is a random but fixed order."""
    assert isinstance(source, Artifact)
    prompts = sorted(source.read("prompts", "test", Prompt), key=lambda prompt: prompt.id)[: recipe.eval.prompts]
    if len(prompts) < 2:
        raise ZephyrError("fewer than two held-out prompts to ask", "raise build.test_share, or build more prompts")
    return prompts


def _answer(
    recipe: Recipe,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    inputs: Inputs,
    draft: Draft,
    progress: Progress,
) -> list[Answer]:
    """Every checkpoint's answers, turn by turn; one worker loads one model after another.

    Kept of each: the fingerprint of its token contract, and how many answers were cut off at the recipe's limit.
    """
    worker = Conversation(draft.scratch / "generate.log", recipe.launch.threads)
    answers = []
    contracts, cut_off = {}, {}
    try:
        with Journal(draft.scratch / "answers.journal") as journal:
            for done, name in enumerate(names):
                if name not in journal:
                    progress.advance(done, len(names), "checkpoints answered")
                    contract = _load(worker, recipe, name, inputs)
                    texts, unfinished = _all_turns(worker, recipe, prompts)
                    journal.add(name, {"answers": texts, "cut_off": unfinished, "token_contract": contract})
                row = journal.rows[name]
                answers += _restore(name, prompts, row["answers"])
                contracts[name], cut_off[name] = row["token_contract"], row["cut_off"]
                progress.advance(done + 1, len(names), "checkpoints answered")
    finally:
        worker.close()
    draft.metrics |= {"token_contract": contracts, "cut_off": cut_off}
    asked = len(answers) // len(names)
    for name, count in cut_off.items():
        if count > CUT_OFF * asked:
            limit = recipe.eval.max_new_tokens
            draft.notes.append(f"{count} of {asked} answers of {name} were cut off at {limit} tokens")
    return answers


def _load(worker: Conversation, recipe: Recipe, name: str, inputs: Inputs) -> str:
    """Load a checkpoint, which is refused where its token contract is not that of the template; its fingerprint."""
    base = model_base(recipe)
    artifact = inputs.get(name)
    told = loaded(base, artifact if isinstance(artifact, Artifact) else None)
    fingerprint: str = worker.ask({"load": told.pop("model"), **told})["token_contract"]
    return fingerprint


def _all_turns(worker: Conversation, recipe: Recipe, prompts: Sequence[Prompt]) -> tuple[list[list[str]], int]:
    """The answers of each prompt, one a turn, and how many did not end; a later turn sees the earlier answers."""
    answers: list[list[str]] = [[] for _ in prompts]
    cut_off = 0
    for turn in range(max(len(prompt.user_turns()) for prompt in prompts)):
        asked = [place for place, prompt in enumerate(prompts) if len(prompt.user_turns()) > turn]
        request = {
            "conversations": [
                [message.model_dump() for message in conversation(prompts[place], answers[place])] for place in asked
            ],
            "max_tokens": recipe.eval.max_new_tokens,
            "temperature": 0.0,
            "batch": recipe.eval.batch,
        }
        for place, answer in zip(asked, worker.ask(request)["answers"], strict=True):
            answers[place].append(answer["text"])
            cut_off += answer["finish_reason"] == "length"
    return answers, cut_off


def conversation(prompt: Prompt, answers: Sequence[str]) -> tuple[Message, ...]:
    """The prompt's user turns up to the next unanswered one, with the given answers between them."""
    messages = [message for message in prompt.messages if message.role == "system"]
    for turn, text in enumerate(prompt.user_turns()[: len(answers) + 1]):
        messages.append(Message(role="user", content=text))
        if turn < len(answers):
            messages.append(Message(role="assistant", content=answers[turn]))
    return tuple(messages)


def _restore(name: str, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[Answer]:
    return [
        Answer(name, prompt.id, turn, conversation(prompt, answers[: turn - 1]), text)
        for prompt, answers in zip(prompts, texts, strict=True)
        for turn, text in enumerate(answers, 1)
    ]


async def _judge(
    recipe: Recipe, answers: Sequence[Answer], draft: Draft, progress: Progress, max_usd: float | None
) -> None:
    names = list(dict.fromkeys(answer.checkpoint for answer in answers))
    matches = pairings(names, {name: checkpoint.start for name, checkpoint in recipe.checkpoints.items()})
    async with Calls(draft.run.path, "eval", prices.load(recipe.prices), max_usd, progress) as calls:
        judge = calls.teacher(recipe.eval.judge)
        judged = await _score(judge, answers, progress)
        outcomes = await _compare(matches, judge, answers, progress)
        calls.close_into(draft)
    draft.write("answers", "test", judged, JudgedAnswer)
    draft.metrics |= summarize(judged, outcomes, matches)
    draft.metrics["judge"] = {
        "name": judge.name,
        "models": sorted({row.judge for row in judged}),
        "rule_based": judge.is_rule_based,
    }
    draft.lose("judgments without a score", draft.metrics["unparsed"])
    if judge.is_rule_based:
        draft.notes.append(f"scores are the rules of the {judge.name!r} teacher, not a language model's judgment")


async def _score(judge: Teacher, answers: Sequence[Answer], progress: Progress) -> list[JudgedAnswer]:
    async def score(answer: Answer) -> JudgedAnswer:
        verdict = await judge.judge(answer.messages, answer.text)
        return JudgedAnswer(
            checkpoint=answer.checkpoint,
            prompt_id=answer.prompt_id,
            turn=answer.turn,
            messages=list(answer.messages),
            answer=answer.text,
            score=verdict.score,
            reason=verdict.reason,
            judge=verdict.model or judge.label,
        )

    judged: dict[Answer, JudgedAnswer] = {}
    async for answer, scored in gather(score, answers, AT_ONCE):
        judged[answer] = scored
        progress.advance(len(judged), len(answers), "answers judged")
    return [judged[answer] for answer in answers]


async def _compare(
    matches: Sequence[tuple[str, str]],
    judge: Teacher,
    answers: Sequence[Answer],
    progress: Progress,
) -> dict[str, list[float]]:
    """First turns, compared in both orders so that no position is preferred; the outcome of a prompt is their mean.

    A prompt on which the two orders disagree is a draw, and one that the judge leaves open is not counted.
    """
    texts = {(answer.checkpoint, answer.prompt_id): answer for answer in answers if answer.turn == 1}
    prompts = dict.fromkeys(answer.prompt_id for answer in answers)
    todo = {f"{name}:{other}:{id}": (texts[name, id], texts[other, id]) for name, other in matches for id in prompts}

    async def compare(key: str) -> list[float | None]:
        mine, theirs = todo[key]
        forth = await judge.compare(mine.messages, mine.text, theirs.text)
        back = await judge.compare(mine.messages, theirs.text, mine.text)
        return [forth, None if back is None else 1.0 - back]

    compared: dict[str, list[float | None]] = {}
    async for key, verdicts in gather(compare, list(todo), AT_ONCE):
        compared[key] = verdicts
        progress.advance(len(compared), len(todo), "answers compared")
    outcomes: dict[str, list[float]] = {}
    for key in todo:
        name, other, _ = key.split(":")  # neither names nor ids hold a colon
        if (outcome := _outcome(compared[key])) is not None:
            outcomes.setdefault(f"{name}_over_{other}", []).append(outcome)
    return outcomes


def _outcome(verdicts: Sequence[float | None]) -> float | None:
    given = [verdict for verdict in verdicts if verdict is not None]
    if len(given) < 2:
        return None
    return given[0] if given[0] == given[1] else 0.5
