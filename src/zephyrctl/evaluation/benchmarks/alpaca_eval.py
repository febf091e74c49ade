"""AlpacaEval 1.0 (Li et al. 2023): 805 instructions, each answer laid beside a reference answer before a judge."""

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, TypedDict

from zephyrctl.contracts import Sampling
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.assets import Assets, protocols
from zephyrctl.evaluation.benchmarks.length_control import GAMED_FILE, Beside, Gamed, length_controlled, read_gamed
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.results import AlpacaEvalScores, DatasetRate
from zephyrctl.evaluation.rows_of_files import bad, field, rows, write_array
from zephyrctl.evaluation.statistics import around
from zephyrctl.records import Message, prompt_id
from zephyrctl.rows.files import Raw

NAME = "alpaca-eval"
PROMPT = "alpaca_eval_gpt4"
REFERENCE_WINS, MODEL_WINS = 1.0, 2.0
DRAWS = (0.0, 1.5)
ID_LENGTH = 16
ORDER_SEED = "0"
"""AlpacaEval's own seed, with which its leaderboard was made: which answer the judge sees first hangs on it."""

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_PLACE = re.compile(r"\{(instruction|output_1|output_2)\}")
_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True)
class Bench:
    """The instructions, the reference answers by instruction, the judge's prompt, and what is not as published."""

    questions: tuple[Question, ...]
    reference: str
    answers: Mapping[str, str]
    prompt: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    gamed: Gamed | None = None

    def beside(self, answers: Iterable[AnswerRow]) -> dict[tuple[str, str], Beside]:
        """How long every answer is, and the reference's beside it."""
        places = {question.id: place for place, question in enumerate(self.questions)}
        return {
            (answer.model, answer.question): Beside(
                len(answer.answer), len(self.answers[answer.question]), places[answer.question]
            )
            for answer in answers
            if answer.question in places
        }


def id_of(instruction: str) -> str:
    """The id of an instruction: AlpacaEval has none, so it is the beginning of the prompt's hash."""
    return prompt_id(instruction)[:ID_LENGTH]


def load(assets: Assets, temperature: float = 0.0) -> Bench:
    """The benchmark from its files; answers are drawn at one temperature. Raises ZephyrError where one is missing."""
    reference, prompt = assets.get("reference"), assets.get("prompt")
    found = list(_references(reference.path))
    is_published = reference.is_published or _rows_hash(found) == protocols()[NAME].rows["reference"]
    remarks = []
    if not is_published:
        remarks.append("the instructions or reference answers are not the published ones")
    if not prompt.is_published:
        remarks.append("the judge's prompt is not the published one")
    return Bench(
        questions=tuple(
            Question(id_of(row["instruction"]), row["category"], (row["instruction"],), temperature) for row in found
        ),
        reference=found[0]["generator"],
        answers={id_of(row["instruction"]): row["output"] for row in found},
        prompt=tuple(_turns(prompt.path)),
        remarks=tuple(remarks),
        gamed=read_gamed(gamed) if (gamed := reference.path.parent / GAMED_FILE).is_file() else None,
    )


def read_answers(path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
    """The answers of AlpacaEval's `model_outputs.json` to these instructions; the last row of one counts."""
    asked = {question.id: question for question in questions}
    found: dict[tuple[str, str], AnswerRow] = {}
    for where, row in rows(path):
        instruction, output = field(row, "instruction", where, str), field(row, "output", where, str)
        question = asked.get(id_of(instruction))
        if question:
            model = str(row.get("generator", path.stem))
            found[model, question.id] = AnswerRow(
                model=model,
                question=question.id,
                category=question.category,
                turn=1,
                messages=[Message(role="user", content=instruction)],
                answer=output,
            )
    if not found:
        raise ZephyrError(f"{path} answers none of the instructions", "give a model_outputs.json of this benchmark")
    return list(found.values())


def write_answers(path: Path, answers: Iterable[AnswerRow]) -> None:
    """AlpacaEval's `model_outputs.json` of one model."""
    rows_of = ((answer.messages[0].content, answer) for answer in answers)
    write_array(
        path,
        (
            {"dataset": answer.category, "instruction": text, "output": answer.answer, "generator": answer.model}
            for text, answer in rows_of
        ),
    )


@dataclass(frozen=True)
class Annotations:
    """Judgments with both answers; `duplicates` counts rows of an instruction that came again, by model."""

    judged: list[JudgmentRow]
    beside: dict[tuple[str, str], Beside]
    duplicates: dict[str, int]
    reference: str
    annotators: tuple[str, ...]


def read_annotations(path: Path) -> Annotations:
    """AlpacaEval's `annotations.json`: preference 1 is a win of the reference, 2 of the model, 1.5 or 0 a draw.

    A number in between is a soft preference; null or anything else is no preference. The last row of an instruction
    counts. Raises ZephyrError where rows have other fields or other references.
    """
    judged: dict[tuple[str, str], JudgmentRow] = {}
    beside: dict[tuple[str, str], Beside] = {}
    duplicates: dict[str, int] = {}
    references, annotators = dict[str, None](), dict[str, None]()
    for where, row in rows(path):
        score, cause = read_preference(row.get("preference"))
        model, instruction = field(row, "generator_2", where, str), field(row, "instruction", where, str)
        outputs = field(row, "output_1", where, str), field(row, "output_2", where, str)
        key = model, id_of(instruction)
        duplicates[model] = duplicates.get(model, 0) + (key in judged)
        references[field(row, "generator_1", where, str)] = None
        annotators[str(row.get("annotator", ""))] = None
        beside[key] = Beside(len(outputs[1]), len(outputs[0]), len(beside))
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
    return Annotations(list(judged.values()), beside, duplicates, next(iter(references)), tuple(annotators))


def read_preference(value: Any) -> tuple[float | None, str]:
    """The model's share of a win, from 0 to 1, or none and why."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None, UNPARSED
    if value in DRAWS:
        return 0.5, ""
    if REFERENCE_WINS <= value <= MODEL_WINS:
        return float(value) - 1.0, ""
    return None, UNPARSED


def write_annotations(path: Path, judged: Iterable[JudgmentRow], answers: Mapping[tuple[str, str], AnswerRow]) -> None:
    """AlpacaEval's `annotations.json` of one model; `answers` holds those of the reference too."""
    write_array(path, (_annotation(row, answers) for row in judged))


def cases(bench: Bench, answers: Iterable[AnswerRow]) -> Iterator[Case]:
    """Every answer beside the reference, in the order that AlpacaEval draws by the instruction.

    Identical outputs make no case: they are a draw without asking (see `draws`).
    """
    for answer in answers:
        reference = bench.answers.get(answer.question)
        if reference is not None and answer.answer != reference:
            yield _case(bench, answer, reference)


def draws(bench: Bench, answers: Iterable[AnswerRow]) -> Iterator[JudgmentRow]:
    """The judgments of outputs that are the reference's own, to the letter."""
    for answer in answers:
        if bench.answers.get(answer.question) == answer.answer:
            yield _row(bench, answer, is_swapped=False).model_copy(update={"score": 0.5, "judge": "identical outputs"})


def is_swapped(instruction: str) -> bool:
    """Whether the judge sees the model's answer first, as AlpacaEval draws it from the instruction."""
    return Random(f"is_switched_outputs{instruction}{ORDER_SEED}").choices([False, True], k=1)[0]


def read_ranking(text: str) -> tuple[float | None, str]:
    """1.0 where `model_1` has rank 1 in the list that the judge was asked for, 0.0 where it has rank 2; else none."""
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
    beside: Mapping[tuple[str, str], Beside],
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
    return {name: _summary(rows, beside, duplicates or {}, instructions, gamed) for name, rows in by_model.items()}


def _summary(
    rows: Sequence[JudgmentRow],
    beside: Mapping[tuple[str, str], Beside],
    duplicates: Mapping[str, int],
    instructions: int | None,
    gamed: Gamed | None,
) -> AlpacaEvalScores:
    scored = [(row, row.score) for row in rows if row.score is not None]
    lengths = [beside[row.model, row.question] for row in rows if (row.model, row.question) in beside]
    preferences = [
        (score, beside[row.model, row.question]) for row, score in scored if (row.model, row.question) in beside
    ]
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
        mean_length=round(sum(pair.model for pair in lengths) / len(lengths), 1) if lengths else None,
        reference_length=round(sum(pair.reference for pair in lengths) / len(lengths), 1) if lengths else None,
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


def _case(bench: Bench, answer: AnswerRow, reference: str) -> Case:
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
            Message.model_validate({"role": role, "content": _PLACE.sub(lambda match: values[match[1]], text)})
            for role, text in bench.prompt
        ),
        sampling=Sampling(
            temperature=protocol.judge["temperature"], max_tokens=int(protocol.judge["max_tokens"]), seed=0
        ),
        read=share,
        shown=tuple(answer.messages),
        answers=(first, second),
    )


def _row(bench: Bench, answer: AnswerRow, is_swapped: bool) -> JudgmentRow:
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
        "preference": None if row.score is None else 0 if row.score == 0.5 else row.score + 1.0,
    }


def _references(path: Path) -> Iterator[Raw]:
    """The reference rows of AlpacaEval's data set, or those beside which a published annotation judged."""
    seen: set[str] = set()
    for where, row in rows(path):
        is_annotation = "output_1" in row
        output = field(row, "output_1" if is_annotation else "output", where, str)
        generator = str(row.get("generator_1" if is_annotation else "generator", "reference"))
        instruction = field(row, "instruction", where, str)
        if instruction not in seen:
            seen.add(instruction)
            category = str(row.get("dataset", ""))
            yield {"instruction": instruction, "output": output, "generator": generator, "category": category}


def _rows_hash(found: Sequence[Raw]) -> str:
    told = json.dumps([[row["instruction"], row["output"]] for row in found], ensure_ascii=False)
    return sha256(told.encode()).hexdigest()


def _turns(path: Path) -> Iterator[tuple[str, str]]:
    """The messages of a prompt in ChatML, as AlpacaEval writes its prompts."""
    found = [(match[1], match[2].strip()) for match in _TURN.finditer(path.read_text(encoding="utf-8"))]
    if {name for _, text in found for name in _PLACE.findall(text)} != {"instruction", "output_1", "output_2"}:
        raise ZephyrError(f"{path} is no prompt of AlpacaEval's judge", "give alpaca_eval.txt of alpaca_eval_gpt4")
    yield from found
