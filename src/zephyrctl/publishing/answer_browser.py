"""Prepare the answers and judgments of every evaluation for the report, side by side, question by question."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow, read_answers, read_judgments
from zephyrctl.publishing.number_format import anchor, number
from zephyrctl.publishing.reported_run import Evaluation, ModelName, ReportedRun

MOST_QUESTIONS = 200
"""Questions of one evaluation that are shown; of more, those whose ids have the lowest hash."""
FOLDED = 600
"""Characters of a text that are shown at first; the rest is folded."""
LONGEST = 8_000
"""Characters of a text that the page contains, so that a browser opens the file without delay."""
SHORT_REMARK = 140
"""Characters up to which the text of a single judgment is shown unfolded."""
MOST_TICKED = 4
"""Models that are shown at first."""

AnswerKey = tuple[str, str, int]
"""The model, the question and the turn of an answer."""
Judgments = Mapping[AnswerKey, Sequence[JudgmentRow]]


@dataclass(frozen=True)
class FoldedText:
    """A text in two parts, what is shown and what is folded, and the number of characters that are left out."""

    head: str
    rest: str
    left_out: str


@dataclass(frozen=True)
class ShownJudgment:
    """One judgment: its result, the other answer that the judge saw, and the judge's words."""

    result: str
    opponent: str
    judge: str
    text: FoldedText


@dataclass(frozen=True)
class ShownAnswer:
    """One model's answer; `remark` is the text of its only judgment if that is short."""

    name: ModelName
    number: int
    text: FoldedText
    is_cut_off: bool
    result: str
    remark: str
    judgments: tuple[ShownJudgment, ...]


@dataclass(frozen=True)
class ShownTurn:
    """The messages (role, text) that lead to an answer, and every model's answer."""

    prompt: tuple[tuple[str, FoldedText], ...]
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class ShownQuestion:
    """One question. `scores` has one entry per model, comma-separated: from 0 to 1, empty if there is no score."""

    anchor: str
    id: str
    evaluation: str
    category: str
    scores: str
    turns: tuple[ShownTurn, ...]


@dataclass(frozen=True)
class ShownEvaluation:
    """One evaluation: how many of its questions are shown, and who judged the answers."""

    key: str
    title: str
    anchor: str
    shown: int
    total: int
    judge: str
    is_rule_based: bool


@dataclass(frozen=True)
class AnswerBrowser:
    """Everything that the section shows; `left` and `right` are the numbers of the two models that it compares."""

    evaluations: tuple[ShownEvaluation, ...]
    categories: tuple[str, ...]
    models: tuple[ModelName, ...]
    ticked: frozenset[int]
    left: int
    right: int
    questions: tuple[ShownQuestion, ...]


def answer_browser(run: ReportedRun) -> AnswerBrowser | None:
    """The questions of every evaluation of the run; None if none of them kept answers."""
    answered = [(evaluation, list(read_answers(evaluation.artifact))) for evaluation in run.evaluations]
    answered = [(evaluation, answers) for evaluation, answers in answered if answers]
    if not answered:
        return None
    keys = run.ordered(dict.fromkeys(row.model for _, answers in answered for row in answers))
    names = tuple(run.name(key) for key in keys)
    left, right = _compared_models(run, keys, [{row.model for row in answers} for _, answers in answered])
    parts = [_show(evaluation, answers, names) for evaluation, answers in answered]
    questions = tuple(question for _, shown in parts for question in shown)
    others = [position for position in range(len(keys)) if position not in (left, right)]
    return AnswerBrowser(
        evaluations=tuple(evaluation for evaluation, _ in parts),
        categories=tuple(dict.fromkeys(question.category for question in questions if question.category)),
        models=names,
        ticked=frozenset([left, right, *others][:MOST_TICKED]),
        left=left,
        right=right,
        questions=questions,
    )


def _compared_models(run: ReportedRun, keys: Sequence[str], together: Iterable[Set[str]]) -> tuple[int, int]:
    """The two models that are compared at first, as positions in `keys`.

    Left is the last checkpoint that was trained on pairs, else the last model. Right is what it was trained from, else
    the last model that answered the same questions.
    """
    trained = [key for key in keys if key in run.named]
    scored = [key for key in keys if key in run.evaluated]
    on_pairs = [key for key in trained if run.is_trained_on_pairs(key)]
    left = (on_pairs or trained or scored or list(keys))[-1]
    start = run.start(left)
    met = {key for models in together if left in models for key in models if key != left}
    others = [key for key in scored if key in met] or [key for key in keys if key in met] or [left]
    right = start if start in others else others[-1]
    return keys.index(left), keys.index(right)


def _show(
    evaluation: Evaluation, answers: Iterable[AnswerRow], names: Sequence[ModelName]
) -> tuple[ShownEvaluation, list[ShownQuestion]]:
    key = evaluation.artifact.manifest.plan.name
    by_question: dict[str, list[AnswerRow]] = {}
    for row in answers:
        by_question.setdefault(row.question, []).append(row)
    chosen = sorted(sorted(by_question, key=_hash)[:MOST_QUESTIONS], key=_natural)
    judgments = _by_answer(read_judgments(evaluation.artifact), by_question)
    questions = [_show_question(key, id, by_question[id], judgments, names) for id in chosen]
    judge = evaluation.result.judge
    shown = ShownEvaluation(
        key=key,
        title=evaluation.title,
        anchor=anchor(key),
        shown=len(chosen),
        total=len(by_question),
        judge=judge.name if judge else "",
        is_rule_based=judge is not None and judge.rule_based,
    )
    return shown, questions


def _by_answer(
    rows: Iterable[JudgmentRow], answered: Mapping[str, Iterable[AnswerRow]]
) -> dict[AnswerKey, list[JudgmentRow]]:
    """The judgments of each answer. A match that is recorded for one of its two models also counts for the other."""
    judgments: dict[AnswerKey, list[JudgmentRow]] = {}
    recorded = list(rows)
    for row in recorded:
        judgments.setdefault(_key(row), []).append(row)
    matches = {(*_key(row), row.opponent) for row in recorded if row.opponent}
    models = {id: {answer.model for answer in answers} for id, answers in answered.items()}
    for row in recorded:
        is_known = row.opponent in models.get(row.question, ())
        if is_known and (row.opponent, row.question, row.turn, row.model) not in matches:
            judgments.setdefault((row.opponent, row.question, row.turn), []).append(_from_other_side(row))
    return judgments


def _key(row: JudgmentRow) -> AnswerKey:
    return row.model, row.question, row.turn


def _from_other_side(row: JudgmentRow) -> JudgmentRow:
    """The same match with its two models swapped; the judge's words stay with the first model."""
    score = None if row.score is None else 1 - row.score
    swapped = {"model": row.opponent, "opponent": row.model, "score": score, "is_swapped": not row.is_swapped}
    return row.model_copy(update={**swapped, "text": ""})


def _show_question(
    evaluation: str, id: str, rows: Iterable[AnswerRow], judgments: Judgments, names: Sequence[ModelName]
) -> ShownQuestion:
    by_turn: dict[int, dict[str, AnswerRow]] = {}
    for row in rows:
        by_turn.setdefault(row.turn, {})[row.model] = row
    scores: dict[str, list[float]] = {}
    for turn, answers in by_turn.items():
        for model in answers:
            shares = map(_share, judgments.get((model, id, turn), ()))
            scores.setdefault(model, []).extend(share for share in shares if share is not None)
    means = [f"{fmean(scores[name.key]):.3f}" if scores.get(name.key) else "" for name in names]
    first = next(iter(next(iter(by_turn.values())).values()))
    first_turn = min(by_turn)
    return ShownQuestion(
        anchor=f"q-{_safe(evaluation)}-{_safe(id)}",
        id=id if len(id) <= 24 else id[:8],
        evaluation=evaluation,
        category=first.category,
        scores=",".join(means),
        turns=tuple(
            _show_turn(id, turn, by_turn[turn], judgments, names, is_first=turn == first_turn)
            for turn in sorted(by_turn)
        ),
    )


def _show_turn(
    id: str,
    turn: int,
    answers: Mapping[str, AnswerRow],
    judgments: Judgments,
    names: Sequence[ModelName],
    is_first: bool,
) -> ShownTurn:
    messages = next((row.messages for row in answers.values() if row.messages), [])
    # Each later turn repeats the whole conversation; only its last message is new.
    new = messages if is_first else messages[-1:]
    shown = [
        _show_answer(name, position, answers[name.key], judgments.get((name.key, id, turn), ()), names)
        for position, name in enumerate(names)
        if name.key in answers
    ]
    return ShownTurn(tuple((message.role, fold(message.content)) for message in new), tuple(shown))


def _show_answer(
    name: ModelName, position: int, row: AnswerRow, judgments: Sequence[JudgmentRow], names: Sequence[ModelName]
) -> ShownAnswer:
    labels = {model.key: model.label for model in names}
    texts = [judgment.text.strip() for judgment in judgments]
    has_remark = len(texts) == 1 and len(texts[0]) <= SHORT_REMARK and "\n" not in texts[0]
    return ShownAnswer(
        name=name,
        number=position,
        text=fold(row.answer.strip()),
        is_cut_off=row.finish_reason == "length",
        result=_result(judgments),
        remark=texts[0] if has_remark else "",
        judgments=() if has_remark else tuple(_show_judgment(judgment, labels) for judgment in judgments),
    )


def _result(judgments: Sequence[JudgmentRow]) -> str:
    """The sum of an answer's judgments: its mean score, or how often it won."""
    scores = [row.score for row in judgments if row.score is not None]
    if not judgments:
        return ""
    if not scores:
        return "no score"
    if not judgments[0].opponent:
        return number(fmean(scores))
    if len(scores) == 1:
        return _outcome(scores[0])
    counts = [(sum(_outcome(score) == name for score in scores), name) for name in ("won", "drew", "lost")]
    return ", ".join(f"{name} {n}" for n, name in counts if n)


def _outcome(score: float) -> str:
    """A share of a win as a word."""
    if score == 0.5:
        return "drew"
    return "won" if score > 0.5 else "lost"


def _show_judgment(row: JudgmentRow, labels: Mapping[str, str]) -> ShownJudgment:
    if row.score is None:
        result = f"no score: {row.cause}" if row.cause else "no score"
    else:
        result = _outcome(row.score) if row.opponent else number(row.score)
    opponent = ""
    if row.opponent:
        position = "second" if row.is_swapped else "first"
        opponent = f"against {labels.get(row.opponent, row.opponent)}, shown {position}"
    return ShownJudgment(result, opponent, row.judge, fold(row.text.strip()))


def _share(row: JudgmentRow) -> float | None:
    """A score from 0 to 1: a share of a win as it is, and a rating from 1 to 10 scaled."""
    if row.score is None:
        return None
    return row.score if row.opponent else (row.score - 1) / 9


def fold(text: str) -> FoldedText:
    """A text cut where it folds, between two words if possible."""
    kept, left_out = text[:LONGEST], max(0, len(text) - LONGEST)
    shown = f"{left_out:,}" if left_out else ""
    if len(kept) <= FOLDED * 1.25:  # folding a few lines would hide more than it saves
        return FoldedText(kept, "", shown)
    end = max(kept.rfind(space, FOLDED - 80, FOLDED) for space in (" ", "\n"))
    end = FOLDED if end < 0 else end
    return FoldedText(kept[:end].rstrip(), kept[end:].strip(), shown)


def _hash(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()


def _natural(id: str) -> list[tuple[int, str]]:
    """A sort key by which numbers in a text count by their value: 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", id)]


def _safe(id: str) -> str:
    """A text as a part of an HTML id, with a part of its hash if it had to be changed."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", id)[:32]
    return plain if plain == id else f"{plain[:16]}-{_hash(id)[:8]}"
