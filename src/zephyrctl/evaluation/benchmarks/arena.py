"""An arena: every two models' answers side by side before a judge, in both orders, and a rating for each model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations

from zephyrctl import templates, verdicts
from zephyrctl.contracts import GREEDY, Sampling
from zephyrctl.evaluation.bradley_terry import Verdict, rate
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.evaluation.judging import UNPARSED, Case
from zephyrctl.evaluation.results import ArenaRating, ArenaResult, WinRate
from zephyrctl.evaluation.statistics import estimate
from zephyrctl.records import Message

NAME = "arena"
PROMPT = "compare"
SAMPLING = Sampling(max_tokens=1024, seed=GREEDY.seed)

Order = tuple[str, str, str, int, str, int]


def cases(answers: Iterable[AnswerRow], names: Sequence[str]) -> Iterator[Case]:
    """Both orders of every two models' answers to a turn, each within its own conversation.

    Our own prompt compares the last answers; where the conversations before them differ, both are shown. The same text
    twice is a draw that nobody is asked about (see `draws`).
    """
    by_turn = _by_turn(answers)
    for first, second in combinations(names, 2):
        for turns in by_turn.values():
            if first in turns and second in turns and turns[first].answer != turns[second].answer:
                yield _case(turns[first], turns[second], is_swapped=False)
                yield _case(turns[first], turns[second], is_swapped=True)


def draws(answers: Iterable[AnswerRow], names: Sequence[str]) -> Iterator[JudgmentRow]:
    """The verdicts on answers that are the same to the letter: a draw in both orders."""
    by_turn = _by_turn(answers)
    for first, second in combinations(names, 2):
        for turns in by_turn.values():
            if first in turns and second in turns and turns[first].answer == turns[second].answer:
                for is_swapped in (False, True):
                    row = _row(turns[first], turns[second], is_swapped)
                    yield row.model_copy(update={"score": 0.5, "judge": "identical outputs"})


def read_verdict(text: str) -> tuple[float | None, str]:
    """Who wins by a judge's words: 1 for what was shown first, 0.5 for a draw; none where it cannot be read."""
    share = verdicts.parse_preference(text)
    return share, "" if share is not None else UNPARSED


def summarize(judged: Sequence[JudgmentRow]) -> ArenaResult:
    """Ratings of all models, the best first, and the win rate of each pair.

    Two orders that disagree are a draw; a pair of which one order has no verdict is left out, as the order alone might
    have decided it. Verdicts that are there in one order only (people's votes) count as they are.
    """
    by_question: dict[str, list[Verdict]] = {}
    for (first, second, question, _, _, _), share in outcomes(judged).items():
        by_question.setdefault(question, []).append((first, second, share))
    counted: dict[str, dict[str, int]] = {}
    between: dict[str, list[float]] = {}
    for first, second, share in (one for given in by_question.values() for one in given):
        between.setdefault(f"{first}_over_{second}", []).append(share)
        for name, mine in ((first, share), (second, 1 - share)):
            tally = counted.setdefault(name, {"wins": 0, "losses": 0, "draws": 0})
            tally["wins" if mine > 0.5 else "losses" if mine < 0.5 else "draws"] += 1
    rated = rate(by_question) if by_question else {}
    return ArenaResult(
        benchmark=NAME,
        ratings={name: ArenaRating(**asdict(rating), **counted[name]) for name, rating in rated.items()},
        matches={name: _match(shares, name) for name, shares in between.items()},
    )


def outcomes(judged: Iterable[JudgmentRow]) -> dict[Order, float]:
    """The verdict on every two answers, seen from the model that the rows name first."""
    orders: dict[Order, list[JudgmentRow]] = {}
    for row in judged:
        judge = "" if row.prompt == PROMPT else row.judge  # a server may report another id in the midst of ours
        key = row.model, row.opponent, row.question, row.turn, judge, row.sample
        orders.setdefault(key, []).append(row)
    found = {}
    for key, rows in orders.items():
        shares = {row.score for row in rows}
        if None not in shares:
            given = [share for share in shares if share is not None]
            found[key] = given[0] if len(given) == 1 else 0.5
    return found


def _match(shares: Sequence[float], name: str) -> WinRate:
    mean = estimate(shares, name)
    return WinRate(
        win_rate=mean.mean,
        low=mean.low,
        high=mean.high,
        n=mean.n,
        wins=sum(share > 0.5 for share in shares),
        losses=sum(share < 0.5 for share in shares),
        draws=sum(share == 0.5 for share in shares),
    )


def _by_turn(answers: Iterable[AnswerRow]) -> Mapping[tuple[str, int], dict[str, AnswerRow]]:
    found: dict[tuple[str, int], dict[str, AnswerRow]] = {}
    for answer in answers:
        found.setdefault((answer.question, answer.turn), {})[answer.model] = answer
    return found


def _case(mine: AnswerRow, theirs: AnswerRow, is_swapped: bool) -> Case:
    first, second = (theirs, mine) if is_swapped else (mine, theirs)
    text = templates.render(
        f"prompts/{PROMPT}.md.jinja", messages=first.messages, first=_said(first, second), second=_said(second, first)
    )

    def share(words: str) -> tuple[float | None, str]:
        ahead, cause = read_verdict(words)
        return (1.0 - ahead if is_swapped and ahead is not None else ahead), cause

    return Case(
        row=_row(mine, theirs, is_swapped),
        messages=(Message(role="user", content=text),),
        sampling=SAMPLING,
        read=share,
        shown=tuple(first.messages),
        answers=(first.answer, second.answer),
    )


def _said(answer: AnswerRow, other: AnswerRow) -> str:
    """An answer, with the turns before it where they are not the other's."""
    if [message.content for message in answer.messages] == [message.content for message in other.messages]:
        return answer.answer
    return "\n\n".join([*(f"{message.role}: {message.content}" for message in answer.messages), answer.answer])


def _row(mine: AnswerRow, theirs: AnswerRow, is_swapped: bool) -> JudgmentRow:
    return JudgmentRow(
        model=mine.model,
        question=mine.question,
        category=mine.category,
        turn=mine.turn,
        score=None,
        judge="",
        prompt=PROMPT,
        opponent=theirs.model,
        is_swapped=is_swapped,
    )
