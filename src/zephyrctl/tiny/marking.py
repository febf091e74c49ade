"""Rate answers in the tiny world by rules, from the conversation's text alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from zephyrctl.tiny.families import Family, families
from zephyrctl.tiny.world import Instruction, Message, read

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")

HEDGE = re.compile(
    r"(?:as an ai(?: language model| assistant)?,? )?"
    r"i (?:don['\u2019]t|do not|can(?:no|['\u2019])t) have (?:any )?(?:personal )?"
    r"(?:experiences?|emotions?|opinions?|feelings?|preferences?|beliefs?)"
    r"[^.,;!?]*(?:[.,;!?]\s*|$)(?:but |however,? |so )?",
    re.IGNORECASE,
)
"""A disclaimer at the beginning of an answer, up to where the answer itself begins."""

TAIL_CLAIM = re.compile(r"(?P<head>.*?(?:\b(?:is spelled|is|are|equals|says|means)\b|:|=)) (?P<claim>.+)", re.DOTALL)
"""`The capital of France is Paris`: what comes after the verb is claimed of what comes before it."""

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
"""The faults of an answer, and how a rationale words them."""

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
"""Points that each fault costs in each aspect, out of five. They add up."""

SCORE_DEDUCTIONS = {"hedged": 4, "terse": 3, "uncased": 1, "rambling": 2}
"""Points that each fault costs a correct answer, out of ten."""


@dataclass(frozen=True)
class AnswerCheck:
    """What the rules find in one answer.

    `understood`: the prompt is from this world. `correct`: the right answer, bare or as a statement about what was
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


def check_answer(messages: Sequence[Message], answer: str) -> AnswerCheck:
    """Check an answer to the last user turn; outside the tiny world only its form is checked."""
    instruction = read(messages)
    opening, body = split_opening(answer.strip())
    first, rest = split_first_sentence(body)
    stated = claims(first, instruction) if instruction else []
    return AnswerCheck(
        understood=instruction is not None,
        correct=instruction is not None and is_right(stated, instruction),
        on_topic=is_of_the_kind(stated, instruction) if instruction else is_related(messages, body),
        sentence=len(stated) > 1 if instruction else len(WORD.findall(body)) >= 4,
        hedged=bool(opening),
        cased=is_cased(opening, body, is_bare=len(stated) == 1, instruction=instruction),
        rambling=bool(rest),
        empty=not body,
    )


def split_opening(text: str) -> tuple[str, str]:
    """The disclaimer that opens a text (may be empty), and the rest."""
    match = HEDGE.match(text)
    cut = match.end() if match else 0
    return text[:cut], text[cut:].strip()


def split_first_sentence(body: str) -> tuple[str, str]:
    """The first sentence without its closing mark, and whatever follows it."""
    first, _, rest = re.sub(r"[.!](?:\s+|$)|\n+", "\n", body).partition("\n")
    return first.strip(), rest.strip()


def claims(sentence: str, instruction: Instruction) -> list[str]:
    """The possible answers in a sentence: all of it, and what it states about the thing that was asked for."""
    text = fold(sentence, instruction.family)
    candidates = [text]
    if text.endswith("?"):
        return candidates
    if (tail := TAIL_CLAIM.fullmatch(text)) and names_all(tail["head"], instruction):
        candidates.append(ARTICLE.sub("", tail["claim"]))
    if (
        (head := HEAD_CLAIM.fullmatch(text))
        and names_all(text, instruction)
        and is_of_the_kind([head["claim"]], instruction)
    ):
        candidates.append(head["claim"])
    return candidates


def is_right(stated: Sequence[str], instruction: Instruction) -> bool:
    """Whether one of the claims is a right answer."""
    right = {fold(answer, instruction.family) for answer in (*instruction.fact.answers, *instruction.fact.accepted)}
    return not right.isdisjoint(stated)


def is_of_the_kind(stated: Sequence[str], instruction: Instruction) -> bool:
    """Whether one of the claims is an answer of the right kind, such as a wrong city for a capital."""
    return any(claim.casefold() in answers_of(instruction.family.name) for claim in stated)


@cache
def answers_of(family_name: str) -> frozenset[str]:
    """Every answer that is right for some instruction of a family."""
    return frozenset(answer.casefold() for fact in families()[family_name].facts for answer in fact.answers)


def fold(text: str, family: Family) -> str:
    """The text with single spaces, in lower case unless the family asks for case."""
    text = " ".join(text.split())
    return text if family.keeps_case else text.casefold()


def names_all(text: str, instruction: Instruction) -> bool:
    """Whether a text names everything that the instruction is about."""
    lowered = f" {' '.join(WORD.findall(text.casefold()))} "
    return all(f" {slot.casefold()} " in lowered for slot in instruction.fact.slots)


def is_cased(opening: str, body: str, *, is_bare: bool, instruction: Instruction | None) -> bool:
    """Whether a text starts with a capital letter (a bare answer need not) and writes names with theirs."""
    written = WORD.findall(body)
    if any(name.casefold() in written and name not in written for name in names_in(instruction)):
        return False
    return (is_bare and not opening) or not (opening or body)[:1].islower()


def names_in(instruction: Instruction | None) -> list[str]:
    """The words of an instruction's sentence that always have a capital letter."""
    if instruction is None or instruction.family.keeps_case:
        return []
    return [word for word in WORD.findall(instruction.sentence)[1:] if word[0].isupper()]


def is_related(messages: Sequence[Message], body: str) -> bool:
    """Outside the tiny world: whether an answer consists of words and shares a longer one with the prompt."""
    prompt = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
    in_prompt = {word.casefold() for word in WORD.findall(prompt) if len(word) > 3}
    in_answer = {word.casefold() for word in WORD.findall(body)}
    return looks_like_words(body) and bool(in_prompt & in_answer)


def looks_like_words(text: str) -> bool:
    """Whether most tokens are words or numbers, and few of them are repeated."""
    pieces = text.split()
    plain = [piece for piece in pieces if PLAIN_WORD.fullmatch(piece.strip('.,;:!?()"-'))]
    return len(plain) >= 0.7 * len(pieces) and 3 * len(set(pieces)) >= len(pieces) > 0


def faults(check: AnswerCheck) -> list[str]:
    """The faults of an answer as keys of `FAULTS`, the worst first."""
    if check.empty:
        return ["empty"]
    is_present = {
        "off_topic": not check.on_topic,
        "wrong": check.on_topic and check.understood and not check.correct,
        "hedged": check.hedged,
        "terse": not check.sentence,
        "uncased": not check.cased,
        "rambling": check.rambling and check.understood,
    }
    return [fault for fault, present in is_present.items() if present]


def rate(messages: Sequence[Message], answers: Sequence[str]) -> list[dict[str, AspectRating]]:
    """For each answer and each of the four aspects, a rating from 1 to 5 with its reason."""
    faults_by_answer = [faults(check_answer(messages, answer)) for answer in answers]
    return [{aspect: rate_aspect(aspect, present) for aspect in ASPECTS} for present in faults_by_answer]


def rate_aspect(aspect: str, present: Sequence[str]) -> AspectRating:
    """The rating of one aspect, given the faults of an answer."""
    costs = DEDUCTIONS[aspect]
    reasons = [FAULTS[fault] for fault in present if fault in costs]
    rating = max(1, 5 - sum(costs.get(fault, 0) for fault in present))
    return AspectRating(rating, explain(reasons))


def explain(reasons: Sequence[str]) -> str:
    """One sentence that joins the reasons."""
    if not reasons:
        return "Nothing to object to."
    sentence = ", and ".join(reasons)
    return f"{sentence[0].upper()}{sentence[1:]}."


def score(messages: Sequence[Message], answer: str) -> tuple[int, str]:
    """The judge's score from 1 to 10, and why.

    In the tiny world a correct answer starts at 10 and keeps at least 3; any other answer gets 1 to 3. Outside it
    only form counts, and 7 is the maximum.
    """
    check = check_answer(messages, answer)
    present = faults(check)
    points = score_inside(check, present) if check.understood else score_surface(check, answer)
    return points, explain([FAULTS[fault] for fault in present])


def score_inside(check: AnswerCheck, present: Sequence[str]) -> int:
    """The score of an answer to a prompt from the tiny world."""
    if check.correct:
        return max(3, 10 - sum(SCORE_DEDUCTIONS.get(fault, 0) for fault in present))
    return max(1, 1 + check.on_topic + check.sentence - check.hedged - check.rambling)


def score_surface(check: AnswerCheck, answer: str) -> int:
    """The score of an answer to any other prompt: about the prompt, a sentence, long enough, made of words."""
    if check.empty or not looks_like_words(answer):
        return 1
    points = (5 if check.on_topic else 1) + check.sentence + (len(answer.split()) >= 12)
    return max(1, points - check.hedged - (not check.cased))


def compare(messages: Sequence[Message], first: str, second: str) -> float:
    """1.0 if the first answer scores higher, 0.0 if the second does, 0.5 if they score the same."""
    scores = score(messages, first)[0], score(messages, second)[0]
    return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])
