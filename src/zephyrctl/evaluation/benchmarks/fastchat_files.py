"""Read and write FastChat's files: answers, judgments and pairwise judgments of MT-Bench."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import OUT_OF_RANGE, UNPARSED
from zephyrctl.evaluation.questions import Question
from zephyrctl.evaluation.rows_of_files import bad, field, rows, write_lines
from zephyrctl.rows.files import Raw
from zephyrctl.runs.manifest import digest

LOWEST, HIGHEST = 1.0, 10.0
NO_RATING = -1
WINNERS = {"tie": 0.5, "error": None}


@dataclass(frozen=True)
class SingleJudgments:
    """The judgments of files. Of rows that repeat each other, the last one counts."""

    judgments: list[JudgmentRow]
    duplicates: dict[str, int]
    """Model: rows that repeated an earlier one."""


def given_judgments(given: Mapping[str, object]) -> tuple[list[Path], list[Path]]:
    """The files of `--judgments` and of `--against`. Raises UsageError if only the second is given."""
    paths, others = (_paths(given.get(name)) for name in ("judgments", "against"))
    if others and not paths:
        raise UsageError("--against compares judgments that exist", "give them too: --judgments FILE")
    return paths, others


def write_folder(folder: Path, answers: Sequence[AnswerRow], judgments: Sequence[JudgmentRow]) -> None:
    """FastChat's folders: a file of answers for each model, and a file of judgments for each judge."""
    for name in dict.fromkeys(answer.model for answer in answers):
        path = folder / "model_answer" / f"{file_name(name)}.jsonl"
        write_answers(path, [answer for answer in answers if answer.model == name])
    for judge in dict.fromkeys(row.judge for row in judgments):
        path = folder / "model_judgment" / f"{file_name(judge)}_single.jsonl"
        write_judgments(path, [row for row in judgments if row.judge == judge])


def file_name(model: str) -> str:
    """A model's name as the name of a file: Hub ids contain a slash."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in model).lstrip(".") or "model"


def _paths(value: object) -> list[Path]:
    return [Path(str(path)) for path in value] if isinstance(value, list | tuple) else []


def read_answers(path: Path, questions: Sequence[Question]) -> list[AnswerRow]:
    """The answers in FastChat's `model_answer` file. Of several rows with one question, the last counts.

    Raises ZephyrError if the file contains other rows.
    """
    by_id = {question.id: question for question in questions}
    by_question: dict[tuple[str, str], list[AnswerRow]] = {}
    for location, row in rows(path):
        question = by_id.get(str(field(row, "question_id", location)))
        model, turns = str(field(row, "model_id", location)), _turns(row, location)
        if question:
            by_question[model, question.id] = list(_answered(model, question, turns, _moment(row)))
    if not by_question:
        raise ZephyrError(
            f"{path} has no answers to these questions", "give FastChat's model_answer file of this benchmark"
        )
    return [answer for answers in by_question.values() for answer in answers]


def write_answers(path: Path, answers: Iterable[AnswerRow]) -> None:
    """FastChat's `model_answer` file of one model."""
    by_question: dict[str, list[AnswerRow]] = {}
    for answer in answers:
        by_question.setdefault(answer.question, []).append(answer)
    ordered = {question: sorted(turns, key=lambda answer: answer.turn) for question, turns in by_question.items()}
    write_lines(path, (_answer_row(question, turns) for question, turns in ordered.items()))


def read_judgments(paths: Iterable[Path]) -> SingleJudgments:
    """Single-answer judgments. Of repeated ones the last counts: such rows once shifted a published score by 0.5.

    Rows repeat each other if model, question, turn, judge, prompt and sample are the same. A rating of -1, or outside
    1 to 10, has no score. Raises ZephyrError for pairwise judgments.
    """
    last: dict[tuple[object, ...], JudgmentRow] = {}
    duplicates: dict[str, int] = {}
    for path in paths:
        for location, row in rows(path):
            judged = _judged(row, location)
            key = (judged.model, judged.question, judged.turn, judged.judge, judged.prompt, judged.sample)
            duplicates[judged.model] = duplicates.get(judged.model, 0) + (key in last)
            last[key] = judged
    return SingleJudgments(list(last.values()), duplicates)


def write_judgments(path: Path, judged: Iterable[JudgmentRow]) -> None:
    """FastChat's `_single.jsonl`; what has no score is -1 there."""
    write_lines(path, map(_judgment_row, judged))


def read_pairs(path: Path) -> Iterator[JudgmentRow]:
    """FastChat's pairwise judgments: both orders of a pair, as two rows; the score is that of `model_1`.

    Human votes (`model_a`, `model_b`, `winner`) are one row each.
    """
    for location, row in rows(path):
        if "winner" in row:
            yield _vote(row, location)
        else:
            yield from _both_orders(row, location)


def write_pairs(path: Path, judged: Iterable[JudgmentRow]) -> None:
    """FastChat's `_pair.jsonl`: both orders of a pair in one row; an order that is missing is an error there."""
    pairs: dict[tuple[object, ...], dict[bool, JudgmentRow]] = {}
    for row in judged:
        key = row.model, row.opponent, row.question, row.turn, row.sample
        pairs.setdefault(key, {})[row.is_swapped] = row
    write_lines(path, (_pair_row(next(iter(orders.values())), orders) for orders in pairs.values()))


def read_any(path: Path) -> list[JudgmentRow]:
    """Judgments of either kind, whichever the file holds."""
    first = next(rows(path))[1]
    return list(read_pairs(path)) if is_pairwise(first) else read_judgments([path]).judgments


def is_pairwise(row: Mapping[str, object]) -> bool:
    """True for a row of pairwise judgments."""
    return bool({"g1_winner", "winner"} & set(row))


def _judged(row: Raw, location: str) -> JudgmentRow:
    if is_pairwise(row):
        raise ZephyrError(
            f"{location} is a pairwise judgment", "rate such files with: zephyrctl eval arena --judgments FILE"
        )
    score = field(row, "score", location)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise bad(location, f"score is {score!r}, and a number is expected")
    value, cause = checked(float(score))
    judge, prompt = _judge(row)
    return JudgmentRow(
        model=str(field(row, "model", location)),
        question=str(field(row, "question_id", location)),
        category=str(row.get("category", "")),
        turn=_turn(row, location),
        sample=int(row.get("sample", 0)),
        score=value,
        cause=cause,
        judge=str(row.get("judge_model_id") or judge),
        prompt=prompt,
        text=str(row.get("judgment", "")),
        judged_at=_moment(row),
    )


def checked(rating: float) -> tuple[float | None, str]:
    """A rating from 1 to 10, or None with the cause: FastChat writes -1 if it cannot read the rating."""
    if rating == NO_RATING:
        return None, UNPARSED
    return (rating, "") if LOWEST <= rating <= HIGHEST else (None, OUT_OF_RANGE)


def _judgment_row(row: JudgmentRow) -> Raw:
    return {
        "question_id": _number(row.question),
        "model": row.model,
        "judge": [row.judge, row.prompt],
        "category": row.category,
        "judgment": row.text,
        "score": NO_RATING if row.score is None else row.score,
        "turn": row.turn,
        "tstamp": row.judged_at,
        **({"sample": row.sample} if row.sample else {}),
    }


def _answered(model: str, question: Question, turns: Sequence[str], moment: float) -> Iterator[AnswerRow]:
    for turn, text in enumerate(turns[: len(question.turns)], 1):
        yield AnswerRow(
            model=model,
            question=question.id,
            category=question.category,
            turn=turn,
            messages=list(question.conversation(tuple(turns[: turn - 1]))),
            answer=text,
            answered_at=moment,
        )


def _answer_row(question: str, turns: Sequence[AnswerRow]) -> Raw:
    texts = [turn.answer for turn in turns]
    return {
        "question_id": _number(question),
        "answer_id": digest([turns[0].model, question, texts])[:22],
        "model_id": turns[0].model,
        "choices": [{"index": 0, "turns": texts}],
        "tstamp": max(turn.answered_at for turn in turns),
    }


def _both_orders(row: Raw, location: str) -> Iterator[JudgmentRow]:
    first, second = str(field(row, "model_1", location)), str(field(row, "model_2", location))
    judge, prompt = _judge(row)
    for key, is_swapped in (("g1", False), ("g2", True)):
        winner = field(row, f"{key}_winner", location)
        yield JudgmentRow(
            model=first,
            opponent=second,
            question=str(field(row, "question_id", location)),
            category=str(row.get("category", "")),
            turn=_turn(row, location),
            score=_outcome(str(winner), {"model_1": 1.0, "model_2": 0.0}, location),
            cause="" if winner != "error" else UNPARSED,
            judge=judge,
            prompt=prompt,
            text=str(row.get(f"{key}_judgment", "")),
            is_swapped=is_swapped,
            judged_at=_moment(row),
        )


def _vote(row: Raw, location: str) -> JudgmentRow:
    winner = str(field(row, "winner", location))
    judge = row.get("judge", "human")
    return JudgmentRow(
        model=str(field(row, "model_a", location)),
        opponent=str(field(row, "model_b", location)),
        question=str(field(row, "question_id", location)),
        category=str(row.get("category", "")),
        turn=_turn(row, location),
        score=_outcome("tie" if "tie" in winner else winner, {"model_a": 1.0, "model_b": 0.0}, location),
        judge=str(judge[0] if isinstance(judge, list) and judge else judge),
        judged_at=_moment(row),
    )


def _pair_row(row: JudgmentRow, orders: Mapping[bool, JudgmentRow]) -> Raw:
    words = {1.0: "model_1", 0.0: "model_2", 0.5: "tie", None: "error"}
    games = {"g1": orders.get(False), "g2": orders.get(True)}
    outcomes = {}
    for game, judgment in games.items():
        outcomes[f"{game}_winner"] = words[judgment.score] if judgment else "error"
        outcomes[f"{game}_judgment"] = judgment.text if judgment else ""
    return {
        "question_id": _number(row.question),
        "model_1": row.model,
        "model_2": row.opponent,
        **outcomes,
        "judge": [row.judge, row.prompt],
        "turn": row.turn,
        "tstamp": row.judged_at,
    }


def _outcome(winner: str, sides: Mapping[str, float], location: str) -> float | None:
    known = {**WINNERS, **sides}
    if winner not in known:
        raise bad(location, f"{winner!r} is none of {', '.join(known)}")
    return known[winner]


def _judge(row: Raw) -> tuple[str, str]:
    """The judge's model and the name of its prompt, from `[model, prompt]` or one name."""
    judge = row.get("judge", "")
    if isinstance(judge, list):
        return (str(judge[0]) if judge else ""), (str(judge[1]) if len(judge) > 1 else "")
    return str(judge), ""


def _turns(row: Raw, location: str) -> list[str]:
    try:
        turns = row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        raise bad(location, "an answer has its texts in choices[0].turns") from None
    if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
        raise bad(location, "choices[0].turns must be texts")
    return turns


def _turn(row: Raw, location: str) -> int:
    turn = row.get("turn", 1)
    if isinstance(turn, bool) or not isinstance(turn, int) or turn < 1:
        raise bad(location, f"turn is {turn!r}, and 1 or 2 is expected")
    return turn


def _moment(row: Raw) -> float:
    moment = row.get("tstamp", 0.0)
    return float(moment) if isinstance(moment, int | float) else 0.0


def _number(question: str) -> int | str:
    return int(question) if question.isdecimal() else question
