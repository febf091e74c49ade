"""Which answers and judgments the report lays side by side, question by question, of every evaluation."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from zephyrctl.evaluation.judged_rows import read_answers, read_judgments
from zephyrctl.publishing.measured import mapping, real
from zephyrctl.publishing.number_format import anchor, number
from zephyrctl.publishing.subject import Name, Subject
from zephyrctl.runs.artifacts import Artifact

MOST_QUESTIONS = 200
"""How many questions of one evaluation are shown; of more, those whose ids have the lowest hash."""
FOLDED = 600
"""Characters of a text that stand open; the rest is folded."""
LONGEST = 8_000
"""Characters of a text that the page holds at all: it stays a file that a browser opens at once."""
SHORT_REASON = 140
"""Characters up to which a judge's only words stand open."""
MOST_SHOWN = 4
"""How many models are ticked at first."""
TITLES = {"mt-bench": "MT-Bench", "alpaca-eval": "AlpacaEval", "open-llm": "Open LLM Leaderboard", "arena": "Arena"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """A text once: what stands open, what is folded, and how many characters the page leaves out."""

    head: str
    rest: str
    left_out: str


@dataclass(frozen=True)
class Verdict:
    """One judgment: what it came to, beside whom, and the judge's words."""

    score: str
    beside: str
    judge: str
    words: Text


@dataclass(frozen=True)
class Answer:
    """What one model said; `reason` is a judge's short remark that needs no folding."""

    name: Name
    number: int
    text: Text
    is_cut: bool
    mark: str
    reason: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Turn:
    """What was asked (role, text) and every model's answer to it."""

    asked: tuple[tuple[str, Text], ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Question:
    """One question; `scores` are those of the models by their numbers, from 0 to 1, empty where there is none."""

    anchor: str
    id: str
    bench: str
    category: str
    scores: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Bench:
    """One evaluation: how many of its questions are shown, and who judged them."""

    key: str
    title: str
    anchor: str
    shown: int
    total: int
    judge: str
    is_rule_based: bool


@dataclass(frozen=True)
class SideBySide:
    """All that the browser of answers shows; `left` and `right` are the numbers of the two models it compares."""

    benches: tuple[Bench, ...]
    categories: tuple[str, ...]
    models: tuple[Name, ...]
    shown: frozenset[int]
    left: int
    right: int
    questions: tuple[Question, ...]


def side_by_side(subject: Subject) -> SideBySide | None:
    """The questions of every evaluation; None where none of them kept answers."""
    evaluations = sorted(subject.of_stage("eval"), key=_order)
    tables = [(one, answers, verdicts) for one in evaluations for answers, verdicts in [_rows(one)] if answers]
    if not tables:
        return None
    keys = subject.ordered(dict.fromkeys(str(row["model"]) for _, answers, _ in tables for row in answers))
    names = tuple(subject.name(key) for key in keys)
    left, right = _compared(subject, keys, [{str(row["model"]) for row in answers} for _, answers, _ in tables])
    parts = [_bench(one, answers, verdicts, names) for one, answers, verdicts in tables]
    questions = tuple(question for _, of in parts for question in of)
    return SideBySide(
        benches=tuple(bench for bench, _ in parts),
        categories=tuple(dict.fromkeys(one.category for one in questions if one.category)),
        models=names,
        shown=frozenset(
            [left, right, *(place for place in range(len(keys)) if place not in (left, right))][:MOST_SHOWN]
        ),
        left=left,
        right=right,
        questions=questions,
    )


def _order(artifact: Artifact) -> int:
    """The held-out evaluation first, then the benchmarks in the order of their titles here."""
    kind = artifact.manifest.metrics.get("benchmark")
    return [*TITLES].index(kind) if kind in TITLES else -1 if not kind else len(TITLES)


def _compared(subject: Subject, keys: Sequence[str], together: Iterable[Set[str]]) -> tuple[int, int]:
    """The last dDPO checkpoint, else the last model, and what it was trained from, else one that was asked the same."""
    trained = [key for key in keys if key in subject.named]
    scored = [key for key in keys if key in subject.evaluated]
    left = ([key for key in trained if subject.tone(key) == "dpo"] or trained or scored or list(keys))[-1]
    start = subject.start(left)
    met = {key for models in together if left in models for key in models if key != left}
    others = [key for key in scored if key in met] or [key for key in keys if key in met] or [left]
    return keys.index(left), keys.index(start if start in others else others[-1])


def _rows(artifact: Artifact) -> tuple[list[Row], list[Row]]:
    """The answers and the judgments of an evaluation."""
    answers: list[Row] = [row.model_dump() for row in read_answers(artifact)]
    return answers, [row.model_dump() for row in read_judgments(artifact)]


def _bench(
    artifact: Artifact,
    answers: Sequence[Row],
    verdicts: Iterable[Row],
    names: Sequence[Name],
) -> tuple[Bench, list[Question]]:
    key = artifact.manifest.plan.name
    kind = artifact.manifest.metrics.get("benchmark")
    judge = mapping(artifact.manifest.metrics.get("judge"))
    by_question: dict[str, list[Row]] = {}
    for row in answers:
        by_question.setdefault(str(row["question"]), []).append(row)
    chosen = sorted(sorted(by_question, key=_hash)[:MOST_QUESTIONS], key=_natural)
    judged = _by_answer(verdicts, by_question)
    questions = [_question(key, id, by_question[id], judged, names) for id in chosen]
    title = TITLES.get(str(kind), str(kind)) if kind else "Held-out prompts"
    judged_by = str(judge.get("name") or "")
    is_rule_based = judge.get("rule_based") is True
    return Bench(key, title, anchor(key), len(chosen), len(by_question), judged_by, is_rule_based), questions


Place = tuple[str, str, int]
"""The model, the question and the turn of an answer."""


def _place(row: Row) -> Place:
    return str(row.get("model")), str(row.get("question")), int(row.get("turn") or 1)


def _by_answer(verdicts: Iterable[Row], answered: Mapping[str, Iterable[Row]]) -> dict[Place, list[Row]]:
    """The judgments of each answer. A match that is on record for one of the two counts for the other as well."""
    found: dict[Place, list[Row]] = {}
    rows = list(verdicts)
    for row in rows:
        found.setdefault(_place(row), []).append(row)
    met = {(*_place(row), row.get("opponent")) for row in rows if row.get("opponent")}
    models = {id: {str(row["model"]) for row in of} for id, of in answered.items()}
    for row in rows:
        (model, question, turn), opponent = _place(row), row.get("opponent")
        if opponent in models.get(question, ()) and (opponent, question, turn, model) not in met:
            found.setdefault((str(opponent), question, turn), []).append(_turned(row))
    return found


def _turned(row: Row) -> Row:
    """A match as the other one of the two sees it; the judge's words stay with the first."""
    score = real(row.get("score"))
    turned = None if score is None else 1 - score
    swapped = not row.get("is_swapped")
    return {**row, "score": turned, "opponent": row.get("model"), "text": "", "is_swapped": swapped}


def _question(
    bench: str,
    id: str,
    rows: Iterable[Row],
    judged: Mapping[Place, Sequence[Row]],
    names: Sequence[Name],
) -> Question:
    by_turn: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_turn.setdefault(int(row.get("turn") or 1), {})[str(row["model"])] = row
    scores: dict[str, list[float]] = {}
    for turn, of in by_turn.items():
        for model in of:
            shares = map(_share, judged.get((model, id, turn), ()))
            scores.setdefault(model, []).extend(share for share in shares if share is not None)
    means = [f"{fmean(known):.3f}" if (known := scores.get(name.key)) else "" for name in names]
    first = next(iter(next(iter(by_turn.values())).values()))
    return Question(
        anchor=f"q-{_safe(bench)}-{_safe(id)}",
        id=id if len(id) <= 24 else id[:8],
        bench=bench,
        category=str(first.get("category") or ""),
        scores=",".join(means),
        turns=tuple(
            _turn(id, turn, by_turn[turn], judged, names, is_first=turn == min(by_turn)) for turn in sorted(by_turn)
        ),
    )


def _turn(
    id: str,
    turn: int,
    answers: Mapping[str, Row],
    judged: Mapping[Place, Sequence[Row]],
    names: Sequence[Name],
    is_first: bool,
) -> Turn:
    messages: Sequence[Row] = next((row["messages"] for row in answers.values() if row.get("messages")), [])
    asked = messages if is_first else messages[-1:]
    shown = [(number, name) for number, name in enumerate(names) if name.key in answers]
    return Turn(
        asked=tuple((str(message.get("role")), folded(str(message.get("content") or ""))) for message in asked),
        answers=tuple(
            _answer(name, number, answers[name.key], judged.get((name.key, id, turn), ()), names)
            for number, name in shown
        ),
    )


def _answer(name: Name, place: int, row: Row, judged: Sequence[Row], names: Sequence[Name]) -> Answer:
    labels = {one.key: one.label for one in names}
    words = [str(one.get("text") or "").strip() for one in judged]
    is_short = len(judged) == 1 and len(words[0]) <= SHORT_REASON and "\n" not in words[0]
    return Answer(
        name=name,
        number=place,
        text=folded(str(row.get("answer") or "").strip()),
        is_cut=row.get("finish_reason") == "length",
        mark=_mark(judged),
        reason=words[0] if is_short else "",
        verdicts=() if is_short else tuple(_verdict(one, labels) for one in judged),
    )


def _mark(judged: Sequence[Row]) -> str:
    """What an answer's judgments come to: its mean score, or how often it won."""
    scores = [score for row in judged if (score := real(row.get("score"))) is not None]
    if not judged:
        return ""
    if not scores:
        return "no score"
    if not judged[0].get("opponent"):
        return number(fmean(scores))
    if len(scores) == 1:
        return _outcome(scores[0])
    counts = [(sum(_outcome(score) == name for score in scores), name) for name in ("won", "drew", "lost")]
    return ", ".join(f"{name} {n}" for n, name in counts if n)


def _outcome(score: float) -> str:
    return "won" if score > 0.5 else "lost" if score < 0.5 else "drew"


def _verdict(row: Row, labels: Mapping[str, str]) -> Verdict:
    score, opponent = real(row.get("score")), str(row.get("opponent") or "")
    if score is None:
        said = f"no score{': ' + str(row['cause']) if row.get('cause') else ''}"
    else:
        said = _outcome(score) if opponent else number(score)
    place = "second" if row.get("is_swapped") else "first"
    beside = f"against {labels.get(opponent, opponent)}, shown {place}" if opponent else ""
    return Verdict(said, beside, str(row.get("judge") or ""), folded(str(row.get("text") or "").strip()))


def _share(row: Row) -> float | None:
    """A score from 0 to 1: what it is beside another answer, and 1 to 10 alone."""
    score = real(row.get("score"))
    if score is None:
        return None
    return score if row.get("opponent") else (score - 1) / 9


def folded(text: str) -> Text:
    """A text cut where it folds, between two words where it can be; nothing of it stands twice."""
    kept, lost = text[:LONGEST], len(text) - LONGEST
    left_out = f"{lost:,}" if lost > 0 else ""
    if len(kept) <= FOLDED * 1.25:
        return Text(kept, "", left_out)
    end = max(kept.rfind(space, FOLDED - 80, FOLDED) for space in (" ", "\n"))
    end = FOLDED if end < 0 else end
    return Text(kept[:end].rstrip(), kept[end:].strip(), left_out)


def _hash(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()


def _natural(id: str) -> list[tuple[int, str]]:
    """Numbers in a text by their value: 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", id)]


def _safe(id: str) -> str:
    """A text as a part of an element's id, with a piece of its hash where it had to be changed."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", id)[:32]
    return plain if plain == id else f"{plain[:16]}-{_hash(id)[:8]}"
