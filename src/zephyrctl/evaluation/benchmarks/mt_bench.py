"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): 80 questions of two turns, answers rated from 1 to 10."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zephyrctl.contracts import PluginOptions, Sampling, Teacher
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.evaluation import comparability
from zephyrctl.evaluation.assets import Assets, protocols
from zephyrctl.evaluation.benchmarks import fastchat_files
from zephyrctl.evaluation.benchmarks.contract import (
    AGAINST,
    JUDGING,
    CommandOption,
    EvaluationRequest,
    JudgedBenchmark,
    ResultTable,
    interval_text,
    number_text,
    with_quality,
)
from zephyrctl.evaluation.benchmarks.fastchat_files import checked
from zephyrctl.evaluation.candidates import GenerationSettings
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import OUT_OF_RANGE, UNPARSED, Case
from zephyrctl.evaluation.question_scores import KnownScores
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import (
    BenchmarkResult,
    CategoryScore,
    ModelScore,
    MtBenchResult,
    MtBenchScores,
    ScoreFigure,
)
from zephyrctl.evaluation.rows_of_files import field, rows
from zephyrctl.evaluation.statistics import interval
from zephyrctl.recipe import schema as settings
from zephyrctl.recipe.schema import Eval, Recipe
from zephyrctl.records import Message
from zephyrctl.rows.files import Raw
from zephyrctl.stages import Source

NAME = "mt-bench"
FIRST_ID = 81
TURNS = 2
PUBLISHED_MAX_TOKENS = 1024
"""Longest answer of the published scores, in tokens."""
LEFT_OUT = {
    "unparsed": "whose judgment could not be read",
    "out_of_range": "rated outside 1 to 10",
    "missing": "not answered or not judged",
    "duplicates": "judged more than once, the last one counts",
}
"""A count of `MtBenchScores`, and the sentence about the answers that it counts."""
References = Literal["original", "corrected"]

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SINGLE = re.compile(r"\[(\d+\.?\d*)\]")


@dataclass(frozen=True)
class JudgePrompt:
    """One of FastChat's prompts for judges, with its placeholders."""

    name: str
    system: str
    template: str


@dataclass(frozen=True)
class MtBenchFiles:
    """The content of the benchmark's files."""

    questions: tuple[Question, ...]
    prompts: Mapping[str, JudgePrompt]
    """By FastChat's name, such as `single-math-v1-multi-turn`."""
    references: Mapping[str, tuple[str, ...]]
    """Question: the reference answer to each turn."""
    remarks: tuple[str, ...]
    """What differs from the published files."""


def load(assets: Assets, references: References = "original") -> MtBenchFiles:
    """The content of the benchmark's files. Raises ZephyrError if a file is missing or has another form.

    `corrected` uses the references and wording of another published source, which corrects GPT-4's wrong references.
    """
    protocol = protocols()[NAME]
    files = {name: assets.get(name) for name in _file_names(references)}
    by_id = {str(row["question_id"]): row for row in _rows(assets, "questions", ("question_id", "category", "turns"))}
    guides = {  # references; GPT-4 wrote the original ones
        str(row["question_id"]): tuple(row["choices"][0]["turns"])
        for row in _rows(assets, "references", ("question_id", "choices"))
    }
    remarks = [f"the {name} are not the published file" for name, file in files.items() if not file.is_published]
    if references == "corrected":
        remarks.append("judged with corrected references; the published scores were judged with GPT-4's own")
        remarks += _correct(by_id, guides, assets)
    questions = tuple(
        Question(id, row["category"], tuple(row["turns"]), protocol.temperatures.get(row["category"], 0.0))
        for id, row in by_id.items()
    )
    prompts = {
        row["name"]: JudgePrompt(row["name"], row["system_prompt"], row["prompt_template"])
        for row in _rows(assets, "prompts", ("name", "system_prompt", "prompt_template"))
    }
    return MtBenchFiles(questions, prompts, guides, tuple(remarks))


def category_of(question: str) -> str:
    """The category of a published question id: ten questions of each category, from 81. Empty for another id."""
    categories = protocols()[NAME].categories
    number = (int(question) - FIRST_ID) // 10 if question.isdecimal() else -1
    return categories[number] if 0 <= number < len(categories) else ""


def read_rating(text: str) -> tuple[float | None, str]:
    """The rating as FastChat reads it: the first `[[8]]`, else the first `[8]`; None outside 1 to 10."""
    # The first match counts, as in FastChat: a judge that quotes `[[5]]` before it rates is read as 5.
    match = _RATING.search(text) or _SINGLE.search(text)
    return checked(float(match[1])) if match else (None, UNPARSED)


def cases(bench: MtBenchFiles, answers: Iterable[AnswerRow], repeats: int = 1) -> Iterator[Case]:
    """A case for each answer, with the published prompts. Math, reasoning and coding have a prompt with a reference.

    A second turn is judged within its conversation. It cannot be judged if the first turn is missing.
    """
    questions = {question.id: question for question in bench.questions}
    by_model: dict[tuple[str, str], dict[int, AnswerRow]] = {}
    for answer in answers:
        by_model.setdefault((answer.model, answer.question), {})[answer.turn] = answer
    for (_, id), turns in by_model.items():
        for turn in sorted(turns):
            if id in questions and all(earlier in turns for earlier in range(1, turn)):
                texts = [turns[number].answer for number in range(1, turn + 1)]
                for sample in range(repeats):
                    yield _case(bench, questions[id], turns[turn], texts, sample)


def summarize(
    judged: Sequence[JudgmentRow], duplicates: Mapping[str, int] | None = None, questions: int | None = None
) -> dict[str, MtBenchScores]:
    """By model: the score (the flat mean over all judgments that have one), its interval, turns and categories.

    `questions` is how many questions there are; missing judgments are counted against it. Intervals are clustered by
    question. If several judges rated one model, each judge has an entry of its own.
    """
    by_name: dict[str, list[JudgmentRow]] = {}
    judges: dict[str, set[str]] = {}
    for row in judged:
        judges.setdefault(row.model, set()).add(row.judge)
    for row in judged:
        name = row.model if len(judges[row.model]) == 1 else f"{row.model} by {row.judge}"
        by_name.setdefault(name, []).append(row)
    return {name: _summary(name, rows, duplicates or {}, questions) for name, rows in by_name.items()}


def _summary(
    name: str, rows: Sequence[JudgmentRow], duplicates: Mapping[str, int], questions: int | None
) -> MtBenchScores:
    unscored = Counter(row.cause for row in rows if row.score is None)
    out_of_range = unscored.pop(OUT_OF_RANGE, 0)
    turns = {turn: [row for row in rows if row.turn == turn] for turn in (1, TURNS)}
    judged_turns = len({(row.question, row.turn) for row in rows})
    low, high = _interval(rows, name) or (None, None)
    return MtBenchScores(
        score=_mean(rows),
        low=low,
        high=high,
        turn_1=_mean(turns[1]),
        turn_2=_mean(turns[2]),
        intervals={f"turn_{turn}": _interval(of_turn, f"{name} turn {turn}") for turn, of_turn in turns.items()},
        rated=sum(row.score is not None for row in rows),
        unparsed=sum(unscored.values()),
        out_of_range=out_of_range,
        duplicates=duplicates.get(rows[0].model, 0),
        missing=max(0, questions * TURNS - judged_turns) if questions else 0,
        judge=sorted({row.judge for row in rows}),
        categories=_category_scores(name, rows),
    )


def _category_scores(name: str, rows: Sequence[JudgmentRow]) -> dict[str, CategoryScore]:
    """The mean rating of each category that was judged: the published categories first, in their order."""
    scores = {}
    for category in dict.fromkeys([*protocols()[NAME].categories, *(row.category for row in rows)]):
        of_category = [row for row in rows if row.category == category]
        if category and of_category:
            low, high = _interval(of_category, f"{name} {category}") or (None, None)
            rated = sum(row.score is not None for row in of_category)
            scores[category] = CategoryScore(score=_mean(of_category), low=low, high=high, rated=rated)
    return scores


def _interval(rows: Iterable[JudgmentRow], name: str) -> tuple[float, float] | None:
    """The 95 % interval of the mean rating, questions resampled whole; None if no judgment has a score."""
    by_question: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            by_question.setdefault(row.question, []).append(row.score)
    if not by_question:
        return None
    low, high = interval(list(by_question.values()), name)
    return round(low, 4), round(high, 4)


def _mean(rows: Iterable[JudgmentRow]) -> float | None:
    scores = [row.score for row in rows if row.score is not None]
    return round(math.fsum(scores) / len(scores), 6) if scores else None


def _case(bench: MtBenchFiles, question: Question, answer: AnswerRow, texts: Sequence[str], sample: int) -> Case:
    """The case of one answer; `texts` are the model's answers up to this turn."""
    protocol = protocols()[NAME]
    reference = bench.references.get(question.id) if question.category in protocol.guided else None
    is_guided = reference is not None and len(reference) >= answer.turn
    # FastChat's names: single-v1, single-math-v1, and both with -multi-turn for a second turn.
    name = f"single-{'math-' if is_guided else ''}v1{'-multi-turn' if answer.turn > 1 else ''}"
    if name not in bench.prompts:
        raise ZephyrError(f"the file of judge prompts has no {name!r}", "give FastChat's judge_prompts.jsonl")
    prompt = bench.prompts[name]
    fields = _fields(question, texts, reference if is_guided else None, answer.turn)
    return Case(
        row=JudgmentRow(
            model=answer.model,
            question=question.id,
            category=question.category,
            turn=answer.turn,
            sample=sample,
            score=None,
            judge="",
            prompt=name,
        ),
        messages=(
            Message(role="system", content=prompt.system),
            Message(role="user", content=prompt.template.format(**fields)),
        ),
        sampling=Sampling(
            temperature=protocol.judge["temperature"], max_tokens=int(protocol.judge["max_tokens"]), seed=0
        ),
        read=read_rating,
        shown=question.conversation(tuple(texts[:-1])),
        answers=(texts[-1],),
    )


def _fields(question: Question, texts: Sequence[str], reference: Sequence[str] | None, turn: int) -> dict[str, str]:
    """The placeholders of the published prompts. For a second turn they are numbered: `question_1`, `answer_2`."""
    if turn == 1:
        fields = {"question": question.turns[0], "answer": texts[0]}
    else:
        fields = {f"question_{number}": text for number, text in enumerate(question.turns, 1)}
        fields |= {f"answer_{number}": text for number, text in enumerate(texts, 1)}
    return fields | {f"ref_answer_{number}": text for number, text in enumerate(reference or (), 1)}


def _correct(by_id: dict[str, Raw], guides: dict[str, tuple[str, ...]], assets: Assets) -> Iterator[str]:
    """Replace wording and references by the corrected ones, and say which questions have another wording."""
    reworded = []
    guided = protocols()[NAME].guided
    for row in _rows(assets, "corrected", ("question_id", "turns")):
        id = str(row["question_id"])
        if id not in by_id:
            continue
        if by_id[id]["turns"] != row["turns"]:
            reworded.append(id)
            by_id[id] = {**by_id[id], "turns": row["turns"]}
        if by_id[id]["category"] in guided and row.get("reference"):
            guides[id] = tuple(row["reference"])
    if reworded:
        yield f"questions {', '.join(reworded)} have another wording in the corrected set, but not in files of answers"


def _rows(assets: Assets, name: str, fields: Sequence[str]) -> list[Raw]:
    """The rows of one of the benchmark's files. Raises ZephyrError if a row lacks one of the fields."""
    complete = []
    for location, row in rows(assets.path(name)):
        for required in fields:
            field(row, required, location)
        complete.append(row)
    return complete


class MtBench(JudgedBenchmark):
    """MT-Bench. Its options are `eval.mt_bench` in a recipe."""

    name = NAME
    title = "MT-Bench"
    about = (
        "Answer MT-Bench's 80 questions of two turns and have a judge rate the answers.\n\n"
        "--judgments makes no calls: it prints the scores of existing judgments."
    )
    Result = MtBenchResult
    figures = (
        ScoreFigure("score", "score, 1 to 10", scale=(1.0, 10.0), paper="mt_bench"),
        ScoreFigure("turn_1", "turn 1", scale=(1.0, 10.0)),
        ScoreFigure("turn_2", "turn 2", scale=(1.0, 10.0)),
    )
    examples = ("--dry-run", "--checkpoint dpo --max-usd 10")
    file_form = "FastChat's judgments"
    command_options = (
        CommandOption("references", "original (GPT-4's, as published) or corrected.", panel=JUDGING, sets="references"),
        CommandOption("repeats", "Judgments per answer.", type=int, least=1, panel=JUDGING, sets="repeats"),
        CommandOption(
            "judgments",
            "Score FastChat's judgments instead. Repeatable.",
            type=Path,
            metavar="FILE",
            is_repeatable=True,
        ),
        AGAINST,
    )

    class Options(settings.MtBenchSettings, PluginOptions):
        """`eval.mt_bench`."""

    options: Options
    files: MtBenchFiles
    assets: Assets

    @classmethod
    def settings_path(cls) -> str:
        """Its own section of the recipe."""
        return "eval.mt_bench"

    @classmethod
    def stated_options(cls, settings: Eval) -> Mapping[str, object]:
        """Its own section of the recipe."""
        return settings.mt_bench.model_dump()

    def prepare(self, request: EvaluationRequest) -> None:
        """Read questions, judge prompts and references. Raises ZephyrError if a file is missing."""
        self.assets = Assets(NAME, request.assets)
        self.files = load(self.assets, self.options.references)

    def questions(self) -> Sequence[Question]:
        """80 questions of two turns."""
        return self.files.questions

    def generation(self, recipe: Recipe) -> GenerationSettings:
        """As FastChat generated: the temperature of the category, and transformers' top-k of 2023."""
        return GenerationSettings(
            max_tokens=self.options.max_new_tokens,
            top_p=1.0,
            top_k=protocols()[NAME].top_k,
            batch=recipe.eval.batch,
            seed=recipe.seed,
            engine=recipe.eval.engine,
        )

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """Each answer with the published prompt, as often as the options say."""
        return cases(self.files, answers, self.options.repeats)

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> MtBenchResult:
        """Mean ratings of each model."""
        return MtBenchResult(benchmark=NAME, models=summarize(judgments, questions=len(self.files.questions)))

    def reads(self) -> dict[str, Source]:
        """The files of the benchmark."""
        return {name: Source(path=self.assets.path(name)) for name in _file_names(self.options.references)}

    def write(self, folder: Path, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> None:
        """FastChat's files of answers and judgments."""
        fastchat_files.write_folder(folder / "fastchat", answers, judgments)

    def remarks(self, judge: Teacher, judgments: Sequence[JudgmentRow]) -> Iterable[str]:
        """Another judge, or another number of questions."""
        yield from comparability.of_judge(judge, judgments, protocols()[NAME])
        yield from comparability.of_questions(len(self.files.questions), protocols()[NAME])

    def file_remarks(self) -> Iterable[str]:
        """Other files, or another length of answers."""
        yield from self.files.remarks
        yield from comparability.of_limit(self.options.max_new_tokens, PUBLISHED_MAX_TOKENS)

    def read_given(self, given: Mapping[str, object], assets: Path | None) -> MtBenchResult | None:
        """The scores of FastChat's judgments (`--judgments`), compared with others (`--against`)."""
        paths, others = fastchat_files.given_judgments(given)
        if not paths:
            return None
        read = fastchat_files.read_judgments(paths)
        judgments = [_with_category(row) for row in read.judgments]
        protocol = protocols()[NAME]
        is_published = all(category_of(row.question) for row in judgments)
        result = MtBenchResult(
            benchmark=NAME,
            models=summarize(judgments, read.duplicates, protocol.questions if is_published else None),
            comparability=[
                *comparability.of_judges({row.judge for row in judgments}, protocol),
                *comparability.of_questions(len({row.question for row in judgments}), protocol),
            ],
        )
        return with_quality(result, judgments, [row for path in others for row in fastchat_files.read_any(path)])

    def scores(self, result: BenchmarkResult) -> list[ModelScore]:
        """The mean rating of each model, with its categories."""
        assert isinstance(result, MtBenchResult)
        model_scores = []
        for name, scores in result.models.items():
            if estimate := scores.estimate:
                categories = {key: each for key, of in scores.categories.items() if (each := of.estimate)}
                model_scores.append(ModelScore(name, self.figures[0], estimate, categories))
                turns = [(figure, scores.turn(number)) for number, figure in enumerate(self.figures[1:], 1)]
                model_scores += [ModelScore(name, figure, turn) for figure, turn in turns if turn]
        return model_scores

    def categories(self, result: BenchmarkResult) -> list[str]:
        """The categories in their published order, also those in which a model has no score."""
        assert isinstance(result, MtBenchResult)
        return list(dict.fromkeys(name for scores in result.models.values() for name in scores.categories))

    def caption(self, result: BenchmarkResult) -> str:
        """What its scores are."""
        return "Mean rating from 1 to 10 over both turns."

    def details(self, result: BenchmarkResult) -> dict[str, dict[str, str]]:
        """How many judgments have a score."""
        assert isinstance(result, MtBenchResult)
        return {
            name: {"Ratings": f"{scores.rated:,}"} for name, scores in result.models.items() if scores.rated is not None
        }

    def notes(self, result: BenchmarkResult) -> list[str]:
        """How many judgments are missing, could not be read, or were repeated."""
        assert isinstance(result, MtBenchResult)
        sentences = []
        for cause, words in LEFT_OUT.items():
            if total := sum(getattr(scores, cause) for scores in result.models.values()):
                sentences.append(f"{total:,} {'answer' if total == 1 else 'answers'} {words}.")
        return sentences

    def tables(self, result: BenchmarkResult) -> Iterator[ResultTable]:
        """Scores, turns and counts, then categories."""
        assert isinstance(result, MtBenchResult)
        models = result.models.values()
        names = tuple(result.models)
        yield ResultTable(
            self.title,
            names,
            (
                ("score 1-10", *(number_text(scores.score) for scores in models)),
                ("95 % interval", *(interval_text(scores.estimate) for scores in models)),
                ("turn 1", *(number_text(scores.turn_1) for scores in models)),
                ("turn 2", *(number_text(scores.turn_2) for scores in models)),
                ("rated", *(str(scores.rated) for scores in models)),
                (
                    "no score, missing",
                    *(f"{scores.unparsed + scores.out_of_range}, {scores.missing}" for scores in models),
                ),
            ),
        )
        categories = dict.fromkeys(name for scores in models for name in scores.categories)
        rows = []
        for category in categories:
            of_models = [scores.categories.get(category) for scores in models]
            rows.append((category, *("" if each is None else number_text(each.score) for each in of_models)))
        yield ResultTable("by category", names, tuple(rows))

    @classmethod
    def reads_file(cls, first: Raw | BadRow) -> bool:
        """FastChat's single-answer judgments have a score for a question."""
        return isinstance(first, dict) and "score" in first and "question_id" in first

    @classmethod
    def scores_of_files(cls, path: Path) -> list[KnownScores]:
        """The scores in FastChat's judgments."""
        return list(cls.by_question(str(path), map(_with_category, fastchat_files.read_judgments([path]).judgments)))


def _file_names(references: References) -> list[str]:
    """The files that an evaluation with these references reads."""
    return ["questions", "prompts", "references", *(["corrected"] if references == "corrected" else [])]


def _with_category(row: JudgmentRow) -> JudgmentRow:
    return row if row.category else row.model_copy(update={"category": category_of(row.question)})
