"""How good an answer is in the tiny world, judged from the conversation's text alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from zephyrctl.tiny.families import Family, families
from zephyrctl.tiny.world import Message, Task, read

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")

HEDGE = re.compile(
    r"(?:as an ai(?: language model| assistant)?,? )?"
    r"i (?:don['\u2019]t|do not|can(?:no|['\u2019])t) have (?:any )?(?:personal )?"
    r"(?:experiences?|emotions?|opinions?|feelings?|preferences?|beliefs?)"
    r"[^.,;!?]*(?:[.,;!?]\s*|$)(?:but |however,? |so )?",
    re.IGNORECASE,
)
"""A disclaimer that opens an answer, up to where the answer proper begins."""

TAIL_CLAIM = re.compile(r"(?P<head>.*?(?:\b(?:is spelled|is|are|equals|says|means)\b|:|=)) (?P<claim>.+)", re.DOTALL)
"""`The capital of France is Paris`: what stands behind the verb is claimed of what stands before it."""

HEAD_CLAIM = re.compile(r"(?:the )?(?P<claim>.+?) (?:is|are|equals|means) .+", re.DOTALL | re.IGNORECASE)
"""`Paris is the capital of France`: the other way round."""

ARTICLE = re.compile(r"^(?:the|an?) (?=\S{2})", re.IGNORECASE)

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

PLAIN_WORD = re.compile(r"(?=.*[aeiouy0-9])(?:[a-z]+(?:['\u2019-][a-z]+)*|\d{1,4})", re.IGNORECASE)
"""A number, or letters with a vowel among them."""

FAULTS = {
    "empty": "it says nothing",
    "off_topic": "it does not answer what was asked",
    "wrong": "what it says is not true",
    "hedged": "it opens with a disclaimer that nobody asked for",
    "terse": "it is a bare answer and not a sentence",
    "uncased": "it lacks capital letters",
    "rambling": "it goes on after the answer",
}
"""What an answer can be blamed for, in the words of a rationale."""

DEDUCTIONS = {
    "instruction_following": {"empty": 4, "off_topic": 3, "wrong": 1, "hedged": 1, "rambling": 1},
    "honesty": {"empty": 4, "off_topic": 2, "wrong": 2},
    "truthfulness": {"empty": 4, "off_topic": 3, "wrong": 3},
    "helpfulness": {
        "empty": 4,
        "off_topic": 2,
        "wrong": 1,
        "hedged": 1,
        "terse": 1,
        "uncased": 1,
        "rambling": 1,
    },
}
"""What each fault costs an aspect, out of five. Costs add up, so that two faults weigh more than one."""

SCORE_DEDUCTIONS = {"hedged": 4, "terse": 3, "uncased": 1, "rambling": 2}
"""What each fault costs a correct answer, out of ten."""


@dataclass(frozen=True)
class Marks:
    """What the text of one answer shows.

    `understood`: the prompt is one of this world's. `correct`: the right answer, bare or stated of what was
    asked. `on_topic`: an answer of the right kind, right or wrong. `sentence`: stated in a full sentence.
    `hedged`: opens with a disclaimer. `cased`: capitals where they belong. `rambling`: goes on after the
    answer. `empty`: says nothing.
    """

    understood: bool
    correct: bool
    on_topic: bool
    sentence: bool
    hedged: bool
    cased: bool
    rambling: bool
    empty: bool


@dataclass(frozen=True)
class AspectRating:
    """One aspect of one answer, from 1 to 5, and why."""

    rating: int
    rationale: str


def mark(messages: Sequence[Message], answer: str) -> Marks:
    """What an answer to the last user turn shows; outside the world only its surface is looked at."""
    task = read(messages)
    opening, body = split_opening(answer.strip())
    first, rest = split_first_sentence(body)
    stated = claims(first, task) if task else []
    return Marks(
        understood=task is not None,
        correct=task is not None and is_right(stated, task),
        on_topic=is_of_the_kind(stated, task) if task else is_related(messages, body),
        sentence=len(stated) > 1 if task else len(WORD.findall(body)) >= 4,
        hedged=bool(opening),
        cased=is_cased(opening, body, is_bare=len(stated) == 1, task=task),
        rambling=bool(rest),
        empty=not body,
    )


def split_opening(text: str) -> tuple[str, str]:
    """The disclaimer that a text opens with, or nothing, and the rest."""
    match = HEDGE.match(text)
    cut = match.end() if match else 0
    return text[:cut], text[cut:].strip()


def split_first_sentence(body: str) -> tuple[str, str]:
    """The first sentence without its closing mark, and whatever follows it."""
    first, _, rest = re.sub(r"[.!](?:\s+|$)|\n+", "\n", body).partition("\n")
    return first.strip(), rest.strip()


def claims(sentence: str, task: Task) -> list[str]:
    """What a sentence offers as the answer: itself, and what it states of the very thing that was asked."""
    text = fold(sentence, task.family)
    found = [text]
    if text.endswith("?"):
        return found
    if (tail := TAIL_CLAIM.fullmatch(text)) and names_all(tail["head"], task):
        found.append(ARTICLE.sub("", tail["claim"]))
    if (head := HEAD_CLAIM.fullmatch(text)) and names_all(text, task) and is_of_the_kind([head["claim"]], task):
        found.append(head["claim"])
    return found


def is_right(stated: Sequence[str], task: Task) -> bool:
    """Whether one of the claims is a right answer."""
    right = {fold(answer, task.family) for answer in (*task.fact.answers, *task.fact.accepted)}
    return not right.isdisjoint(stated)


def is_of_the_kind(stated: Sequence[str], task: Task) -> bool:
    """Whether one of the claims is an answer of the right kind, such as a wrong city for a capital."""
    return any(claim.casefold() in answers_of(task.family.name) for claim in stated)


@cache
def answers_of(family_name: str) -> frozenset[str]:
    """Every answer that is right for some instruction of a family."""
    return frozenset(answer.casefold() for fact in families()[family_name].facts for answer in fact.answers)


def fold(text: str, family: Family) -> str:
    """The text with single blanks, in lower case unless case is what the family asks for."""
    text = " ".join(text.split())
    return text if family.keeps_case else text.casefold()


def names_all(text: str, task: Task) -> bool:
    """Whether a text names everything that the task is about."""
    lowered = f" {' '.join(WORD.findall(text.casefold()))} "
    return all(f" {slot.casefold()} " in lowered for slot in task.fact.slots)


def is_cased(opening: str, body: str, *, is_bare: bool, task: Task | None) -> bool:
    """Whether a text starts with a capital, unless it is a bare answer, and writes names with theirs."""
    written = WORD.findall(body)
    if any(name.casefold() in written and name not in written for name in names_in(task)):
        return False
    return (is_bare and not opening) or not (opening or body)[:1].islower()


def names_in(task: Task | None) -> list[str]:
    """The words of a task's sentence that carry a capital wherever they stand."""
    if task is None or task.family.keeps_case:
        return []
    return [word for word in WORD.findall(task.sentence)[1:] if word[0].isupper()]


def is_related(messages: Sequence[Message], body: str) -> bool:
    """Outside this world: whether an answer is made of words and shares a longer one with the prompt."""
    prompt = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
    asked = {word.casefold() for word in WORD.findall(prompt) if len(word) > 3}
    given = {word.casefold() for word in WORD.findall(body)}
    return looks_like_words(body) and bool(asked & given)


def looks_like_words(text: str) -> bool:
    """Whether most pieces between blanks are words or numbers, and few of them are repeated."""
    pieces = text.split()
    plain = [piece for piece in pieces if PLAIN_WORD.fullmatch(piece.strip('.,;:!?()"-'))]
    return len(plain) >= 0.7 * len(pieces) and 3 * len(set(pieces)) >= len(pieces) > 0


def faults(marks: Marks) -> list[str]:
    """What an answer is blamed for, the worst first; names of `FAULTS`."""
    if marks.empty:
        return ["empty"]
    found = {
        "off_topic": not marks.on_topic,
        "wrong": marks.on_topic and marks.understood and not marks.correct,
        "hedged": marks.hedged,
        "terse": not marks.sentence,
        "uncased": not marks.cased,
        "rambling": marks.rambling and marks.understood,
    }
    return [fault for fault, is_found in found.items() if is_found]


def rate(messages: Sequence[Message], answers: Sequence[str]) -> list[dict[str, AspectRating]]:
    """For each answer, a rating from 1 to 5 and a reason for each of the four aspects."""
    found = [faults(mark(messages, answer)) for answer in answers]
    return [{aspect: rate_aspect(aspect, blamed) for aspect in ASPECTS} for blamed in found]


def rate_aspect(aspect: str, blamed: Sequence[str]) -> AspectRating:
    """The rating of one aspect, given what an answer is blamed for."""
    costs = DEDUCTIONS[aspect]
    reasons = [FAULTS[fault] for fault in blamed if fault in costs]
    rating = max(1, 5 - sum(costs.get(fault, 0) for fault in blamed))
    return AspectRating(rating, explain(reasons))


def explain(reasons: Sequence[str]) -> str:
    """One sentence that joins the reasons."""
    if not reasons:
        return "Nothing to object to."
    sentence = ", and ".join(reasons)
    return f"{sentence[0].upper()}{sentence[1:]}."


def score(messages: Sequence[Message], answer: str) -> tuple[int, str]:
    """The judge's mark from 1 to 10, and why.

    In this world a correct answer starts at 10 and keeps at least 3, and any other gets 1 to 3. Outside it
    only the surface counts, and 7 is the most.
    """
    marks = mark(messages, answer)
    blamed = faults(marks)
    points = score_inside(marks, blamed) if marks.understood else score_surface(marks, answer)
    return points, explain([FAULTS[fault] for fault in blamed])


def score_inside(marks: Marks, blamed: Sequence[str]) -> int:
    """The mark of an answer to a prompt of this world."""
    if marks.correct:
        return max(3, 10 - sum(SCORE_DEDUCTIONS.get(fault, 0) for fault in blamed))
    return max(1, 1 + marks.on_topic + marks.sentence - marks.hedged - marks.rambling)


def score_surface(marks: Marks, answer: str) -> int:
    """The mark of an answer to any other prompt: about the prompt, a sentence, of some length, in words."""
    if marks.empty or not looks_like_words(answer):
        return 1
    points = (5 if marks.on_topic else 1) + marks.sentence + (len(answer.split()) >= 12)
    return max(1, points - marks.hedged - (not marks.cased))


def compare(messages: Sequence[Message], first: str, second: str) -> float:
    """1.0 where the first answer scores higher, 0.0 where the second does, 0.5 where both score the same."""
    scores = score(messages, first)[0], score(messages, second)[0]
    return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])
