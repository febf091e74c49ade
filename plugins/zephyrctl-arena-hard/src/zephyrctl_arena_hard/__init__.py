"""Arena-Hard style judging for zephyrctl: models against a baseline on a file of prompts, with five-level verdicts.

The method is that of Arena-Hard (Li et al. 2024, arXiv 2406.11939): a judge compares each answer with the baseline's
answer in both orders and says how clear the difference is. The prompt of the judge is our own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from zephyrctl.contracts import PluginOptions, Sampling, Teacher
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.benchmarks.contract import Benchmark, CommandOption, EvaluationRequest, JudgedBenchmark
from zephyrctl.evaluation.candidates import GenerationSettings
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import Estimate, FigureScores, FiguresResult, ScoreFigure
from zephyrctl.evaluation.rows_of_files import bad, rows
from zephyrctl.evaluation.statistics import interval
from zephyrctl.hooks import hookimpl
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message, prompt_id
from zephyrctl.stages import Source

NAME = "arena-hard"
PROMPT = "five levels"
IDENTICAL = "identical outputs"
LEVELS = {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B=A": 0.5, "B>A": 0.25, "B>>A": 0.0}
"""Verdict: the share of a win for A."""
STRONG_WEIGHT = 3
"""A clear win counts as three slight ones, as in Arena-Hard."""
TOO_LONG = 16
"""Characters of a prompt's id."""

INSTRUCTIONS = """\
Two assistants, A and B, answered the same request. Decide which answer serves the person who wrote it better.

Work in this order:
1. Write a short answer of your own, so that you know what a good one contains.
2. For A, then for B: name statements that are wrong, parts of the request that are missing, and text that nobody asked
   for.
3. Weigh them. Being right comes first, then doing all that was asked, then being easy to follow. The order in which the
   answers are shown, their length and the assistants' tone do not count.

End with one of these verdicts, alone on the last line:
[[A>>B]] A is clearly better
[[A>B]] A is slightly better
[[A=B]] neither is better
[[B>A]] B is slightly better
[[B>>A]] B is clearly better"""

_VERDICT = re.compile(r"\[\[\s*([AB]\s*(?:>>|>|=)\s*[AB])\s*\]\]")


class ArenaHard(JudgedBenchmark):
    """Win rates against a baseline on prompts of your own. Its options are `eval.benchmarks.arena-hard`."""

    name = NAME
    title = "Arena-Hard style"
    about = (
        "Compare models with a baseline on a file of prompts, in both orders, with verdicts of five levels.\n\n"
        "The baseline is one of the models, the first if none is named, or a file of answers."
    )
    examples = ("--prompts prompts.jsonl --dry-run", "--prompts prompts.jsonl --baseline sft")
    figures = (ScoreFigure("win_rate", "win rate against the baseline", "%"),)
    share_of_win = True
    command_options = (
        CommandOption("prompts", "JSONL with a prompt or turns in each row.", type=Path, metavar="FILE"),
        CommandOption("baseline", "A model by its name, or a file of answers.", metavar="NAME|FILE"),
    )

    class Options(PluginOptions):
        """`eval.benchmarks.arena-hard`."""

        max_new_tokens: int = Field(default=4096, ge=1, description="longest answer, in tokens")
        temperature: float = Field(default=0.0, ge=0, le=2, description="of the answers; 0 is greedy")
        verdict_tokens: int = Field(default=2048, ge=1, description="longest reply of the judge, in tokens")

    options: Options

    def prepare(self, request: EvaluationRequest) -> None:
        """Read the prompts, and find the baseline. Raises UsageError or ZephyrError if either is missing."""
        path = request.given.get("prompts")
        if not isinstance(path, Path):
            raise UsageError("no prompts to ask", "give a file of them: --prompts FILE")
        if not path.is_file():
            raise ZephyrError(f"there is no file {path}", "check the path of --prompts")
        self.path = path
        self.asked = list(read_prompts(path, self.options.temperature))
        if not self.asked:
            raise ZephyrError(f"{path} has no prompts", 'give rows such as {"prompt": "..."}')
        names = [candidate.name for candidate in request.candidates]
        stated = str(request.given.get("baseline") or names[0])
        self.baseline_file = None if stated in names else Path(stated)
        if self.baseline_file and not self.baseline_file.is_file():
            raise UsageError(
                f"--baseline {stated!r} is neither a model that answers nor a file", f"one of: {', '.join(names)}"
            )
        self.baseline = self.baseline_file.stem if self.baseline_file else stated
        if names == [self.baseline]:
            raise ZephyrError(f"{self.baseline} is the baseline, and there is no other model", "name one more model")

    def questions(self) -> Sequence[Question]:
        """The prompts of the file."""
        return self.asked

    def generation(self, recipe: Recipe) -> GenerationSettings:
        """At the temperature of the options."""
        return GenerationSettings(
            max_tokens=self.options.max_new_tokens,
            top_p=1.0,
            top_k=0,
            batch=recipe.eval.batch,
            seed=recipe.seed,
            engine=recipe.eval.engine,
        )

    def settings(self) -> dict[str, object]:
        """The options and the baseline."""
        return {**super().settings(), "baseline": self.baseline}

    def reads(self) -> dict[str, Source]:
        """The files of prompts and of the baseline's answers."""
        files = {"prompts": self.path, "baseline": self.baseline_file}
        return {name: Source(path=path) for name, path in files.items() if path}

    def reference_answers(self) -> Sequence[AnswerRow]:
        """The baseline's answers, if they are in a file."""
        if self.baseline_file is None:
            return ()
        answers = self.read_answers(self.baseline_file, self.asked)
        return [answer.model_copy(update={"model": self.baseline}) for answer in answers]

    def cases(self, answers: Sequence[AnswerRow]) -> Iterator[Case]:
        """Both orders of each answer and the baseline's last answer to the same prompt."""
        for answer, baseline in self._pairs(answers):
            if answer.answer != baseline.answer:
                yield self._case(answer, baseline, is_swapped=False)
                yield self._case(answer, baseline, is_swapped=True)

    def undisputed(self, answers: Sequence[AnswerRow]) -> Iterator[JudgmentRow]:
        """Equal answers are a draw in both orders."""
        for answer, baseline in self._pairs(answers):
            if answer.answer == baseline.answer:
                for is_swapped in (False, True):
                    row = judgment_row(answer, baseline, is_swapped)
                    yield row.model_copy(update={"score": 0.5, "judge": IDENTICAL})

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> FiguresResult:
        """The weighted win rate of each model in per cent, with a bootstrap interval over prompts, by category too."""
        models: dict[str, list[JudgmentRow]] = {}
        for row in judgments:
            models.setdefault(row.model, []).append(row)
        return FiguresResult(benchmark=NAME, models={name: _scores(name, rows) for name, rows in models.items()})

    def remarks(self, judge: Teacher, judgments: Sequence[JudgmentRow]) -> Iterable[str]:
        """Own prompts, an own prompt of the judge, and an own baseline."""
        yield f"win rates against {self.baseline} on {len(self.asked)} prompts of {self.path.name}, by our own prompt"

    def _pairs(self, answers: Sequence[AnswerRow]) -> Iterator[tuple[AnswerRow, AnswerRow]]:
        """Each answer to a last turn, with the baseline's answer to the same prompt."""
        last = {question.id: len(question.turns) for question in self.asked}
        known = [*answers, *self.reference_answers()]
        baseline = {row.question: row for row in known if row.model == self.baseline and row.turn == last[row.question]}
        for row in answers:
            if row.model != self.baseline and row.turn == last[row.question] and row.question in baseline:
                yield row, baseline[row.question]

    def _case(self, answer: AnswerRow, baseline: AnswerRow, is_swapped: bool) -> Case:
        first, second = (baseline, answer) if is_swapped else (answer, baseline)

        def read(reply: str) -> tuple[float | None, str]:
            share, cause = read_verdict(reply)  # of what was shown as A
            return (1.0 - share if is_swapped and share is not None else share), cause

        return Case(
            row=judgment_row(answer, baseline, is_swapped),
            messages=(
                Message(role="system", content=INSTRUCTIONS),
                Message(role="user", content=_shown(first, second)),
            ),
            sampling=Sampling(max_tokens=self.options.verdict_tokens),
            read=read,
            shown=tuple(first.messages),
            answers=(first.answer, second.answer),
        )


def read_prompts(path: Path, temperature: float) -> Iterator[Question]:
    """The prompts of a JSONL file. A row has `prompt`, or `turns` of texts or of Arena-Hard's `{"content": text}`.

    `id` (or `question_id` or `uid`) and `category` (or `cluster`) are optional. Raises ZephyrError for other rows.
    """
    for where, row in rows(path):
        turns = row["turns"] if isinstance(row.get("turns"), list) else [row.get("prompt")]
        contents = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in turns]
        texts = [text for text in contents if isinstance(text, str) and text.strip()]
        if not texts or len(texts) < len(contents):
            raise bad(where, "a row needs a 'prompt', or 'turns' with a text each")
        stated = row.get("id") or row.get("question_id") or row.get("uid") or prompt_id("\n".join(texts))[:TOO_LONG]
        yield Question(str(stated), str(row.get("category") or row.get("cluster") or ""), tuple(texts), temperature)


def read_verdict(reply: str) -> tuple[float | None, str]:
    """The share of a win for A by the last verdict of a reply; None and the cause if there is none."""
    verdicts = ["".join(verdict.split()) for verdict in _VERDICT.findall(reply)]
    known = [LEVELS[verdict] for verdict in verdicts if verdict in LEVELS]
    return (known[-1], "") if known else (None, UNPARSED)


def judgment_row(answer: AnswerRow, baseline: AnswerRow, is_swapped: bool) -> JudgmentRow:
    """A judgment without its score."""
    return JudgmentRow(
        model=answer.model,
        question=answer.question,
        category=answer.category,
        turn=answer.turn,
        score=None,
        judge="",
        prompt=PROMPT,
        opponent=baseline.model,
        is_swapped=is_swapped,
    )


def win_rate(judgments: Sequence[JudgmentRow], name: str) -> Estimate | None:
    """The weighted win rate in per cent; None without a verdict. The prompts are resampled, each with both orders.

    A clear verdict is three values of 1 or 0. A teacher that judges by its own method knows no levels: each is one.
    """
    by_prompt: dict[str, list[float]] = {}
    for row in judgments:
        if row.score is not None:
            is_strong = row.score in (0.0, 1.0) and bool(row.text)
            outcome = row.score if row.score == 0.5 else float(row.score > 0.5)
            by_prompt.setdefault(row.question, []).extend([outcome] * (STRONG_WEIGHT if is_strong else 1))
    values = [value for of_prompt in by_prompt.values() for value in of_prompt]
    if not values:
        return None
    low, high = interval(list(by_prompt.values()), name)
    return Estimate(
        mean=round(100 * sum(values) / len(values), 4),
        low=round(100 * low, 4),
        high=round(100 * high, 4),
        n=len(by_prompt),
    )


def _scores(model: str, judgments: Sequence[JudgmentRow]) -> FigureScores:
    overall = win_rate(judgments, model)
    categories: dict[str, Estimate] = {}
    for category in dict.fromkeys(row.category for row in judgments if row.category):
        of_category = [row for row in judgments if row.category == category]
        if rate := win_rate(of_category, f"{model} {category}"):
            categories[category] = rate
    return FigureScores(figures={"win_rate": overall} if overall else {}, categories=categories)


def _shown(first: AnswerRow, second: AnswerRow) -> str:
    """What the judge reads. Earlier turns belong to an answer, as each model saw its own."""
    if len(first.messages) == 1:
        request = first.messages[-1].content
        return f"<request>\n{request}\n</request>\n\n<A>\n{first.answer}\n</A>\n\n<B>\n{second.answer}\n</B>"
    return f"<A>\n{_dialogue(first)}\n</A>\n\n<B>\n{_dialogue(second)}\n</B>"


def _dialogue(answer: AnswerRow) -> str:
    turns = [f"{message.role}: {message.content}" for message in answer.messages]
    return "\n\n".join([*turns, f"assistant: {answer.answer}"])


@hookimpl
def zephyrctl_benchmarks() -> list[type[Benchmark]]:
    """`arena-hard`."""
    return [ArenaHard]
