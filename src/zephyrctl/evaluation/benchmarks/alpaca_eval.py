"""AlpacaEval 1.0 (Li et al. 2023): 805 instructions; a judge compares each answer with a reference answer."""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TypedDict

from zephyrctl.contracts import PluginOptions, Sampling, Teacher
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.evaluation import comparability
from zephyrctl.evaluation.assets import Assets, protocols
from zephyrctl.evaluation.benchmarks.contract import (
    CommandOption,
    EvaluationRequest,
    JudgedBenchmark,
    ResultTable,
    error_text,
    interval_text,
    number_text,
)
from zephyrctl.evaluation.benchmarks.fastchat_files import file_name
from zephyrctl.evaluation.benchmarks.length_control import GAMED_FILE, Gamed, LengthPair, length_controlled, read_gamed
from zephyrctl.evaluation.candidates import GenerationSettings
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.question_scores import KnownScores
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import (
    AlpacaEvalResult,
    AlpacaEvalScores,
    BenchmarkResult,
    DatasetRate,
    ModelScore,
    ScoreFigure,
)
from zephyrctl.evaluation.rows_of_files import bad, rows, text_field, write_array
from zephyrctl.evaluation.statistics import around
from zephyrctl.recipe import schema as settings
from zephyrctl.recipe.schema import Eval, Recipe
from zephyrctl.records import Message, prompt_id
from zephyrctl.rows.files import Raw
from zephyrctl.stages import Source

NAME = "alpaca-eval"
PROMPT = "alpaca_eval_gpt4"
REFERENCE_WINS, MODEL_WINS = 1.0, 2.0
DRAWS = (0.0, 1.5)
ID_LENGTH = 16
ORDER_SEED = "0"
"""The seed of AlpacaEval's leaderboard. It decides which answer the judge sees first."""

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{(instruction|output_1|output_2)\}")
_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True)
class AlpacaEvalFiles:
    """The content of the benchmark's files."""

    questions: tuple[Question, ...]
    reference: str
    """The model whose answers are the reference."""
    answers: Mapping[str, str]
    """Id of the instruction: the reference answer."""
    prompt: tuple[tuple[str, str], ...]
    """The judge's prompt as (role, text)."""
    remarks: tuple[str, ...]
    """What differs from the published files."""
    gamed: Gamed | None = None

    def reference_rows(self) -> list[AnswerRow]:
        """The reference answers as rows."""
        return [
            AnswerRow(
                model=self.reference,
                question=question.id,
                category=question.category,
                turn=1,
                messages=list(question.conversation(())),
                answer=self.answers[question.id],
            )
            for question in self.questions
        ]

    def lengths(self, answers: Iterable[AnswerRow]) -> dict[tuple[str, str], LengthPair]:
        """The lengths of each answer and of the reference answer, by model and instruction."""
        positions = {question.id: position for position, question in enumerate(self.questions)}
        return {
            (answer.model, answer.question): LengthPair(
                len(answer.answer), len(self.answers[answer.question]), positions[answer.question]
            )
            for answer in answers
            if answer.question in positions
        }


def id_of(instruction: str) -> str:
    """The id of an instruction: the first 16 digits of the prompt's hash, as AlpacaEval has no ids."""
    return prompt_id(instruction)[:ID_LENGTH]


def load(assets: Assets, temperature: float = 0.0) -> AlpacaEvalFiles:
    """The content of the benchmark's files; `temperature` is that of answers. Raises ZephyrError if one is missing."""
    reference, prompt = assets.get("reference"), assets.get("prompt")
    references = list(_references(reference.path))
    is_published = reference.is_published or _rows_hash(references) == protocols()[NAME].rows["reference"]
    remarks = []
    if not is_published:
        remarks.append("the instructions or reference answers are not the published ones")
    if not prompt.is_published:
        remarks.append("the judge's prompt is not the published one")
    gamed = reference.path.parent / GAMED_FILE
    return AlpacaEvalFiles(
        questions=tuple(
            Question(id_of(row["instruction"]), row["category"], (row["instruction"],), temperature)
            for row in references
        ),
        reference=references[0]["generator"],
        answers={id_of(row["instruction"]): row["output"] for row in references},
        prompt=tuple(_turns(prompt.path)),
        remarks=tuple(remarks),
        gamed=read_gamed(gamed) if gamed.is_file() else None,
    )


def read_answers(path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
    """The answers in AlpacaEval's `model_outputs.json`. Of several rows with one instruction, the last counts."""
    by_id = {question.id: question for question in questions}
    answers: dict[tuple[str, str], AnswerRow] = {}
    for location, row in rows(path):
        instruction, output = text_field(row, "instruction", location), text_field(row, "output", location)
        question = by_id.get(id_of(instruction))
        if question:
            model = str(row.get("generator", path.stem))
            answers[model, question.id] = AnswerRow(
                model=model,
                question=question.id,
                category=question.category,
                turn=1,
                messages=[Message(role="user", content=instruction)],
                answer=output,
            )
    if not answers:
        raise ZephyrError(f"{path} has no answers to these instructions", "give a model_outputs.json of this benchmark")
    return list(answers.values())


def write_answers(path: Path, answers: Iterable[AnswerRow]) -> None:
    """Write AlpacaEval's `model_outputs.json` of one model."""
    with_texts = ((answer.messages[0].content, answer) for answer in answers)
    write_array(
        path,
        (
            {"dataset": answer.category, "instruction": text, "output": answer.answer, "generator": answer.model}
            for text, answer in with_texts
        ),
    )


@dataclass(frozen=True)
class Annotations:
    """The judgments in a file, and the lengths of both answers. `duplicates` counts repeated instructions by model."""

    judgments: list[JudgmentRow]
    lengths: dict[tuple[str, str], LengthPair]
    duplicates: dict[str, int]
    reference: str
    annotators: tuple[str, ...]


def read_annotations(path: Path) -> Annotations:
    """The judgments in AlpacaEval's `annotations.json`; `output_1` is the reference answer, `output_2` the model's.

    Of several rows with one instruction, the last counts. Raises ZephyrError if a row lacks a field, or if rows have
    different references.
    """
    judged: dict[tuple[str, str], JudgmentRow] = {}
    lengths: dict[tuple[str, str], LengthPair] = {}
    duplicates: dict[str, int] = {}
    references, annotators = dict[str, None](), dict[str, None]()
    for location, row in rows(path):
        score, cause = read_preference(row.get("preference"))
        model, instruction = text_field(row, "generator_2", location), text_field(row, "instruction", location)
        outputs = text_field(row, "output_1", location), text_field(row, "output_2", location)
        key = model, id_of(instruction)
        duplicates[model] = duplicates.get(model, 0) + (key in judged)
        references[text_field(row, "generator_1", location)] = None
        annotators[str(row.get("annotator", ""))] = None
        lengths[key] = LengthPair(len(outputs[1]), len(outputs[0]), len(lengths))
        judged[key] = JudgmentRow(
            model=model,
            question=key[1],
            category=str(row.get("dataset", "")),
            turn=1,
            score=score,
            cause=cause,
            judge=str(row.get("annotator", "")),
            opponent=next(reversed(references)),
        )
    if len(references) != 1:
        raise bad(str(path), f"its rows have different references: {', '.join(references)}")
    return Annotations(list(judged.values()), lengths, duplicates, next(iter(references)), tuple(annotators))


def read_preference(value: object) -> tuple[float | None, str]:
    """The model's share of a win from 0 to 1, or None with the cause.

    AlpacaEval's 1 is a win of the reference, 2 of the model, 1.5 or 0 a draw; numbers from 1 to 2 are soft preferences.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None, UNPARSED
    if value in DRAWS:
        return 0.5, ""
    if REFERENCE_WINS <= value <= MODEL_WINS:
        return float(value) - 1.0, ""
    return None, UNPARSED


def write_annotations(path: Path, judged: Iterable[JudgmentRow], answers: Mapping[tuple[str, str], AnswerRow]) -> None:
    """Write AlpacaEval's `annotations.json` of one model; `answers` contains the reference answers too."""
    write_array(path, (_annotation(row, answers) for row in judged))


def cases(bench: AlpacaEvalFiles, answers: Iterable[AnswerRow]) -> Iterator[Case]:
    """A case for each answer and the reference answer, in the order that AlpacaEval draws from the instruction.

    Identical outputs have no case: they are a draw (see `draws`).
    """
    for answer in answers:
        reference = bench.answers.get(answer.question)
        if reference is not None and answer.answer != reference:
            yield _case(bench, answer, reference)


def draws(bench: AlpacaEvalFiles, answers: Iterable[AnswerRow]) -> Iterator[JudgmentRow]:
    """A draw for each answer that is identical to the reference answer, as AlpacaEval judges them."""
    for answer in answers:
        if bench.answers.get(answer.question) == answer.answer:
            yield _row(bench, answer, is_swapped=False).model_copy(update={"score": 0.5, "judge": "identical outputs"})


def is_swapped(instruction: str) -> bool:
    """Whether the judge sees the model's answer first. The text of the instruction seeds the draw, as in AlpacaEval."""
    return Random(f"is_switched_outputs{instruction}{ORDER_SEED}").choices([False, True], k=1)[0]


def read_ranking(text: str) -> tuple[float | None, str]:
    """1.0 if `model_1` has rank 1 in the judge's list, 0.0 if it has rank 2; else None with the cause.

    The prompt wants a Python list: `[{'model': 'model_1', 'rank': 1}, ...]`.
    """
    fenced = _FENCE.match(text.strip())
    try:
        entries = ast.literal_eval((fenced[1] if fenced else text).strip())
        rank = next(entry["rank"] for entry in entries if entry["model"] == "model_1")
    except (ValueError, SyntaxError, TypeError, KeyError, StopIteration, MemoryError, RecursionError):
        return None, UNPARSED
    if isinstance(rank, bool) or rank not in (1, 2):
        return None, UNPARSED
    return (1.0 if rank == 1 else 0.0), ""


def summarize(
    judged: Sequence[JudgmentRow],
    lengths: Mapping[tuple[str, str], LengthPair],
    duplicates: Mapping[str, int] | None = None,
    instructions: int | None = None,
    gamed: Gamed | None = None,
) -> dict[str, AlpacaEvalScores]:
    """By model: win rate with standard error and interval, the length-controlled rate, and the data sets.

    Win rate = 100 mean(s), standard error = 100 std(s, ddof 1) / sqrt(n), s = 1, 0.5 or 0. `instructions` is how many
    instructions there are; those without a preference are missing.
    """
    by_model: dict[str, list[JudgmentRow]] = {}
    for row in judged:
        by_model.setdefault(row.model, []).append(row)
    return {name: _summary(rows, lengths, duplicates or {}, instructions, gamed) for name, rows in by_model.items()}


def _summary(
    rows: Sequence[JudgmentRow],
    lengths: Mapping[tuple[str, str], LengthPair],
    duplicates: Mapping[str, int],
    instructions: int | None,
    gamed: Gamed | None,
) -> AlpacaEvalScores:
    scored = [(row, row.score) for row in rows if row.score is not None]
    known = [lengths[row.model, row.question] for row in rows if (row.model, row.question) in lengths]
    preferences = [
        (score, lengths[row.model, row.question]) for row, score in scored if (row.model, row.question) in lengths
    ]  # an answer of unknown length cannot be controlled for it
    controlled = length_controlled(preferences, gamed)
    datasets = dict.fromkeys(row.category for row in rows if row.category)
    return AlpacaEvalScores(
        **_rate([score for _, score in scored]),
        wins=sum(score > 0.5 for _, score in scored),
        losses=sum(score < 0.5 for _, score in scored),
        draws=sum(score == 0.5 for _, score in scored),
        missing=max(instructions or 0, len(rows)) - len(scored),
        duplicates=duplicates.get(rows[0].model, 0),
        length_controlled=controlled.rate,
        length_controlled_low=controlled.low,
        length_controlled_high=controlled.high,
        length_controlled_by=controlled.formula,
        mean_length=round(sum(pair.model for pair in known) / len(known), 1) if known else None,
        reference_length=round(sum(pair.reference for pair in known) / len(known), 1) if known else None,
        reference=rows[0].opponent,
        categories={
            dataset: DatasetRate(**_rate([score for row, score in scored if row.category == dataset]))
            for dataset in datasets
        },
    )


class _Rate(TypedDict):
    """A win rate in per cent, as `DatasetRate` has it."""

    win_rate: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    n: int


def _rate(scores: Sequence[float]) -> _Rate:
    if not scores:
        return {"win_rate": None, "standard_error": None, "low": None, "high": None, "n": 0}
    mean = math.fsum(scores) / len(scores)
    if len(scores) < 2:
        return {"win_rate": round(100 * mean, 6), "standard_error": None, "low": None, "high": None, "n": 1}
    variance = math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
    error = math.sqrt(variance / len(scores))
    low, high = around(mean, error)
    return {
        "win_rate": round(100 * mean, 6),
        "standard_error": round(100 * error, 6),
        "low": round(100 * max(low, 0.0), 4),
        "high": round(100 * min(high, 1.0), 4),
        "n": len(scores),
    }


def _case(bench: AlpacaEvalFiles, answer: AnswerRow, reference: str) -> Case:
    instruction = answer.messages[0].content
    swapped = is_swapped(instruction)
    first, second = (answer.answer, reference) if swapped else (reference, answer.answer)
    values = {"instruction": instruction, "output_1": first, "output_2": second}
    protocol = protocols()[NAME]

    def share(text: str) -> tuple[float | None, str]:
        ahead, cause = read_ranking(text)  # of what was shown first
        return (ahead if swapped or ahead is None else 1.0 - ahead), cause

    return Case(
        row=_row(bench, answer, is_swapped=not swapped),
        messages=tuple(
            Message.model_validate({"role": role, "content": _PLACEHOLDER.sub(lambda match: values[match[1]], text)})
            for role, text in bench.prompt
        ),
        sampling=Sampling(
            temperature=protocol.judge["temperature"], max_tokens=int(protocol.judge["max_tokens"]), seed=0
        ),
        read=share,
        shown=tuple(answer.messages),
        answers=(first, second),
    )


def _row(bench: AlpacaEvalFiles, answer: AnswerRow, is_swapped: bool) -> JudgmentRow:
    return JudgmentRow(
        model=answer.model,
        question=answer.question,
        category=answer.category,
        turn=1,
        score=None,
        judge="",
        prompt=PROMPT,
        opponent=bench.reference,
        is_swapped=is_swapped,
    )


def _annotation(row: JudgmentRow, answers: Mapping[tuple[str, str], AnswerRow]) -> Raw:
    mine, reference = answers[row.model, row.question], answers[row.opponent, row.question]
    return {
        "instruction": mine.messages[0].content,
        "output_1": reference.answer,
        "generator_1": row.opponent,
        "dataset": row.category,
        "output_2": mine.answer,
        "generator_2": row.model,
        "annotator": row.judge,
        "preference": _preference(row.score),
    }


def _preference(score: float | None) -> float | None:
    """A score as AlpacaEval writes it: 1 the reference wins, 2 the model wins, 0 a draw, None if it has no verdict."""
    if score is None:
        return None
    return 0 if score == 0.5 else score + 1.0


def _references(path: Path) -> Iterator[Raw]:
    """The reference answers, once for each instruction, from AlpacaEval's data set or from published annotations."""
    seen: set[str] = set()
    for location, row in rows(path):
        is_annotation = "output_1" in row
        output = text_field(row, "output_1" if is_annotation else "output", location)
        generator = str(row.get("generator_1" if is_annotation else "generator", "reference"))
        instruction = text_field(row, "instruction", location)
        if instruction not in seen:
            seen.add(instruction)
            category = str(row.get("dataset", ""))
            yield {"instruction": instruction, "output": output, "generator": generator, "category": category}


def _rows_hash(references: Sequence[Raw]) -> str:
    """The hash of instructions and answers, which is the same for JSON, JSONL and Parquet."""
    text = json.dumps([[row["instruction"], row["output"]] for row in references], ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def _turns(path: Path) -> Iterator[tuple[str, str]]:
    """The messages of a prompt in ChatML, as AlpacaEval writes its prompts."""
    turns = [(match[1], match[2].strip()) for match in _TURN.finditer(path.read_text(encoding="utf-8"))]
    if {name for _, text in turns for name in _PLACEHOLDER.findall(text)} != {"instruction", "output_1", "output_2"}:
        raise ZephyrError(f"{path} is not a prompt for AlpacaEval's judge", "give alpaca_eval.txt of alpaca_eval_gpt4")
    yield from turns


class AlpacaEval(JudgedBenchmark):
    """AlpacaEval 1.0. Its options are `eval.alpaca_eval` in a recipe."""

    name = NAME
    title = "AlpacaEval"
    about = (
        "Answer AlpacaEval's 805 instructions and have a judge compare the answers with a reference.\n\n"
        "--annotations makes no calls: it prints the win rates of existing judgments."
    )
    Result = AlpacaEvalResult
    share_of_win = True
    figures = (
        ScoreFigure("win_rate", "win rate", "%", paper="alpaca_eval"),
        ScoreFigure("length_controlled", "at equal length", "%"),
    )
    examples = ("--dry-run", "--checkpoint dpo --max-usd 20")
    file_form = "AlpacaEval's annotations"
    command_options = (
        CommandOption("annotations", "Score AlpacaEval's annotations instead.", type=Path, metavar="FILE"),
    )

    class Options(settings.AlpacaEvalSettings, PluginOptions):
        """`eval.alpaca_eval`."""

    options: Options
    files: AlpacaEvalFiles
    assets: Assets

    @classmethod
    def settings_path(cls) -> str:
        """Its own section of the recipe."""
        return "eval.alpaca_eval"

    @classmethod
    def stated_options(cls, settings: Eval) -> Mapping[str, object]:
        """Its own section of the recipe."""
        return settings.alpaca_eval.model_dump()

    def prepare(self, request: EvaluationRequest) -> None:
        """Read instructions, reference answers and the judge's prompt. Raises ZephyrError if a file is missing."""
        self.assets = Assets(NAME, request.assets)
        self.files = load(self.assets, self.options.temperature)

    def questions(self) -> Sequence[Question]:
        """805 instructions."""
        return self.files.questions

    def generation(self, recipe: Recipe) -> GenerationSettings:
        """At the temperature of the options, and transformers' top-k of 2023."""
        return GenerationSettings(
            max_tokens=self.options.max_new_tokens,
            top_p=self.options.top_p,
            top_k=protocols()[NAME].top_k,
            batch=recipe.eval.batch,
            seed=recipe.seed,
            engine=recipe.eval.engine,
        )

    def cases(self, answers: Sequence[AnswerRow]) -> Iterable[Case]:
        """Each answer and the reference answer, with the published prompt."""
        return cases(self.files, answers)

    def undisputed(self, answers: Sequence[AnswerRow]) -> Iterable[JudgmentRow]:
        """Answers that equal the reference answer are a draw."""
        return draws(self.files, answers)

    def reference_answers(self) -> Sequence[AnswerRow]:
        """The answers of the reference model."""
        return self.files.reference_rows()

    def summarize(self, judgments: Sequence[JudgmentRow], answers: Sequence[AnswerRow]) -> AlpacaEvalResult:
        """Win rates of each model against the reference."""
        lengths = self.files.lengths(answers)
        models = summarize(judgments, lengths, instructions=len(self.files.questions), gamed=self.files.gamed)
        return AlpacaEvalResult(benchmark=NAME, models=models, reference=self.files.reference)

    def reads(self) -> dict[str, Source]:
        """The files of the benchmark."""
        return {name: Source(path=self.assets.path(name)) for name in ("reference", "prompt")}

    def read_answers(self, path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
        """AlpacaEval's `model_outputs.json`."""
        return read_answers(path, questions)

    def write(self, folder: Path, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> None:
        """AlpacaEval's files of outputs and annotations, in a folder for each model."""
        everything = {(row.model, row.question): row for row in [*answers, *self.reference_answers()]}
        for name in dict.fromkeys(answer.model for answer in answers):
            of_model = folder / "alpaca_eval" / file_name(name)
            write_answers(of_model / "model_outputs.json", [answer for answer in answers if answer.model == name])
            rows = [row for row in judgments if row.model == name]
            write_annotations(of_model / "annotations.json", rows, everything)

    def remarks(self, judge: Teacher, judgments: Sequence[JudgmentRow]) -> Iterable[str]:
        """Another judge, or another number of instructions."""
        yield from comparability.of_judge(judge, judgments, protocols()[NAME])
        yield from comparability.of_questions(len(self.files.questions), protocols()[NAME])

    def file_remarks(self) -> Iterable[str]:
        """Other files."""
        return self.files.remarks

    def read_given(self, given: Mapping[str, object], assets: Path | None) -> AlpacaEvalResult | None:
        """The win rates of AlpacaEval's annotations (`--annotations`)."""
        path = given.get("annotations")
        if not isinstance(path, Path):
            return None
        read = read_annotations(path)
        protocol = protocols()[NAME]
        gamed = assets / GAMED_FILE if assets else None
        known = read_gamed(gamed) if gamed and gamed.is_file() else None
        return AlpacaEvalResult(
            benchmark=NAME,
            models=summarize(read.judgments, read.lengths, read.duplicates, gamed=known),
            reference=read.reference,
            comparability=[
                *comparability.of_judges(filter(None, read.annotators), protocol),
                *comparability.of_questions(len({row.question for row in read.judgments}), protocol),
            ],
        )

    def printed(self, result: BenchmarkResult) -> dict[str, object]:
        """The scores of the only model at the top, if there is one model."""
        printed = result.as_json()
        if len(printed["models"]) > 1:
            return printed
        ((name, scores),) = printed.pop("models").items()
        return {"model": name, **scores, **printed}

    def scores(self, result: BenchmarkResult) -> list[ModelScore]:
        """The win rate of each model with its data sets, and the one at equal length."""
        assert isinstance(result, AlpacaEvalResult)
        rate, controlled = self.figures
        model_scores = []
        for name, scores in result.models.items():
            if estimate := scores.estimate:
                datasets = {key: each for key, of in scores.categories.items() if (each := of.estimate)}
                model_scores.append(ModelScore(name, rate, estimate, datasets))
            if estimate := scores.at_equal_length:
                model_scores.append(ModelScore(name, controlled, estimate))
        return model_scores

    def caption(self, result: BenchmarkResult) -> str:
        """What its scores are."""
        assert isinstance(result, AlpacaEvalResult)
        return f"Wins against {result.reference or 'the reference'}; a draw counts half."

    def details(self, result: BenchmarkResult) -> dict[str, dict[str, str]]:
        """Counts of wins, and mean lengths in characters."""
        assert isinstance(result, AlpacaEvalResult)
        details: dict[str, dict[str, str]] = {}
        for name, scores in result.models.items():
            counts = {"wins": scores.wins, "draws": scores.draws, "losses": scores.losses}
            known = [f"{count:,} {outcome}" for outcome, count in counts.items() if count is not None]
            details[name] = {"Comparisons": " · ".join(known)} if known else {}
            if scores.mean_length is not None and scores.reference_length is not None:
                lengths = f"{scores.mean_length:,.0f} : {scores.reference_length:,.0f}"
                details[name]["Mean length, own : reference"] = lengths
        return details

    def notes(self, result: BenchmarkResult) -> list[str]:
        """How many comparisons have no preference."""
        assert isinstance(result, AlpacaEvalResult)
        missing = sum(scores.missing for scores in result.models.values())
        return [f"{missing:,} comparisons have no preference that could be read."] if missing else []

    def tables(self, result: BenchmarkResult) -> Iterator[ResultTable]:
        """Rates, counts and lengths."""
        assert isinstance(result, AlpacaEvalResult)
        models = result.models.values()
        yield ResultTable(
            self.title,
            tuple(result.models),
            (
                ("win rate, %", *(error_text(scores.win_rate, scores.standard_error) for scores in models)),
                ("95 % interval", *(interval_text(scores.estimate) for scores in models)),
                ("at equal length", *(number_text(scores.length_controlled) for scores in models)),
                ("won, drawn, lost", *(f"{scores.wins}, {scores.draws}, {scores.losses}" for scores in models)),
                ("missing", *(str(scores.missing) for scores in models)),
                ("characters", *(_characters(scores.mean_length) for scores in models)),
            ),
        )

    @classmethod
    def reads_file(cls, first: Raw | BadRow) -> bool:
        """AlpacaEval's annotations have a preference."""
        return isinstance(first, dict) and "preference" in first

    @classmethod
    def scores_of_files(cls, path: Path) -> list[KnownScores]:
        """The scores in AlpacaEval's annotations."""
        return list(cls.by_question(str(path), read_annotations(path).judgments))


def _characters(length: float | None) -> str:
    return "" if length is None else f"{length:.0f}"
