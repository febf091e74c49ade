"""Read ratings, scores and preferences from a judge's reply; what is not clearly a value is missing."""

import json
import re
from dataclasses import dataclass
from functools import cache

from zephyrctl.records import Rating


@dataclass(frozen=True)
class Verdict:
    """A judge's score of one answer from 1 to 10 (None if it gave none), its reason, and the model that judged."""

    score: float | None
    reason: str
    model: str = ""
    """The model id that the server reported; an alias such as `gpt-4` may change its model."""


_NUMBER = r"(\d+(?:\.\d+)?)"
_RATED = re.compile(r"[\W_]*answer\s*#?\s*(\d{1,9})[\s*_)\]#]*[:=\u2013\u2014-](.*)", re.IGNORECASE)
_RATING = re.compile(
    rf"[\s*_\[(]*(?:rating\s*[:=]?[\s*_\[(]*)?{_NUMBER}"  # not a minus sign
    r"(?:\s*(?:/|out\s+of)\s*5(?![\d.,]*\d))?"
    r"[\s*_\])]*"
    r"(?:$|[.:;](?:\s|$)|[,\u2013\u2014-]\s+(?!\d)|(?<=\s)(?=\())(.*)",  # alone: no 4-5, 4,5 or 4 of them
    re.IGNORECASE,
)
_NO_RATING = re.compile(
    r"[\s*_\[(]*(?:rating\s*[:=]?[\s*_\[(]*)?(?:n\s*/\s*a|not\s+applicable)[\s*_\])]*(?:$|[.:;,\u2013\u2014-](?:\s|$)|(?<=\s)(?=\()).*",
    re.IGNORECASE | re.DOTALL,
)
_OPENING = re.compile(r"^[ \t]*(?:```\w*[ \t]*)?(?=\{)", re.MULTILINE)
_KEY = re.compile(r"answer[\s_#-]*(\d{1,9})", re.IGNORECASE)
JSON_TRIES = 20
"""Openings of a reply at which JSON is tried, from its end; a hostile reply may consist of openings."""
_SCORE = re.compile(rf"\s*{_NUMBER}(?:\s*/\s*10)?\s*")
_SINGLE = re.compile(
    r"^[^\w\n]*(?:(?:rating|score|verdict)(?:\s+is)?\s*[:=]?)?[\s*_]*\[([^\[\]]+)\][\s*_.]*$", re.I | re.M
)


def read_ratings(text: str, count: int, aspect: str) -> tuple[list[Rating], bool]:
    """A rating for each of `count` answers, and whether the reply could be read; if it could not, ask again.

    Two forms are read: JSON (`answer_1: {rating, rationale}`, also within other text or a code fence), and lines
    `Answer K: VALUE. Rationale`. Only one number from 1 to 5 is a rating: `4.5` is 4.5, and `4/5` is 4 because 5 is the
    end of the scale. `7.5`, `4/10`, `4-5`, `-4`, `4 of them` and `10` are missing and not readable. N/A (null in JSON)
    is missing and readable. The last rating of an answer counts. If an answer is rated that was not shown, all ratings
    are missing: the rater may count from 0.
    """
    by_number = _ratings_of_json(text, aspect)
    if by_number is None:
        by_number = _ratings_of_lines(text, aspect)
    numbers = range(1, count + 1)
    missing = Rating(aspect=aspect, value=None), False
    if any(number not in numbers for number in by_number):
        return [missing[0]] * count, False
    ratings = [by_number.get(number, missing) for number in numbers]
    return [rating for rating, _ in ratings], all(is_readable for _, is_readable in ratings)


_RatingsByNumber = dict[int, tuple[Rating, bool]]
"""Number of the answer: its rating, and whether it is clearly a value or clearly N/A."""


def _ratings_of_lines(text: str, aspect: str) -> _RatingsByNumber:
    matches = (_RATED.match(line.strip()) for line in text.splitlines())
    return {int(match[1]): _rating(match[2], aspect) for match in matches if match}


def _rating(text: str, aspect: str) -> tuple[Rating, bool]:
    match = _RATING.match(text)
    if match and 1 <= float(match[1]) <= 5:
        return Rating(aspect=aspect, value=float(match[1]), rationale=match[2].strip()), True
    return Rating(aspect=aspect, value=None, rationale=text.strip()), _NO_RATING.match(text) is not None


def _ratings_of_json(text: str, aspect: str) -> _RatingsByNumber | None:
    """The ratings in the last JSON object that names answers; None if there is no such object."""
    for opening in reversed([match.end() for match in _OPENING.finditer(text)][-JSON_TRIES:]):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, opening)
        except (ValueError, RecursionError):
            continue
        named = {int(match[1]): entry for key, entry in value.items() if (match := _KEY.fullmatch(key))}
        if named:
            return {number: _rating_of_value(entry, aspect) for number, entry in named.items()}
    return None


def _rating_of_value(value: object, aspect: str) -> tuple[Rating, bool]:
    stated = {str(key).lower(): part for key, part in value.items()} if isinstance(value, dict) else {"rating": value}
    rating, rationale = stated.get("rating", ""), stated.get("rationale")
    stated_text = "N/A" if rating is None else str(rating)
    if isinstance(rating, bool | list | dict):
        stated_text = ""  # JSON's true would otherwise be read as text
    read, is_readable = _rating(stated_text, aspect)
    reason = rationale if isinstance(rationale, str) else read.rationale
    return read.model_copy(update={"rationale": reason.strip()}), is_readable


def is_not_applicable(text: str) -> bool:
    """True for a verdict of `[[N/A]]`: the judge gives no score, so asking again would not help."""
    return _NO_RATING.fullmatch(_last_bracket(text)) is not None


def parse_verdict(text: str) -> Verdict:
    """The score in the last `[[8]]`, from 1 to 10, else in a `[8]` that is alone on its line; None otherwise.

    `[[7.5]]` stays 7.5 and `[[8/10]]` is 8; `[[11]]`, `[[N/A]]` and a `[1]` within a sentence are not scores.
    (MT-Bench's own rule differs: it takes the first.)
    """
    stated = _last_bracket(text) or next(iter(_SINGLE.findall(text)[-1:]), "")
    match = _SCORE.fullmatch(stated)
    score = float(match[1]) if match else None
    return Verdict(score if score is not None and 1 <= score <= 10 else None, text.strip())


def parse_preference(text: str) -> float | None:
    """1.0 for a last `[[A]]`, 0.0 for `[[B]]`, 0.5 for `[[C]]` (a draw), None otherwise."""
    return {"A": 1.0, "B": 0.0, "C": 0.5}.get(_last_bracket(text).strip().upper())


def _last_bracket(text: str) -> str:
    """The text in the last double brackets: reasons come first and may quote other verdicts."""
    return next(iter(re.findall(r"\[\[([^\[\]]*)\]\]", text)[-1:]), "")


def parse_list(text: str) -> list[str]:
    """The entries of a list with one entry per line, without numbers, bullets and quotes."""
    lines = (re.sub(r"^\s*(?:[-*\u2022]|\(?\d+[.):])\s*", "", line).strip(" \t\"'*_") for line in text.splitlines())
    return [line for line in lines if line]


@cache
def ratings_schema(count: int) -> str:
    """The JSON schema of `count` ratings, for servers that support structured output."""
    mark = {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, "rating": {"type": ["number", "string"]}},
        "required": ["rationale", "rating"],
        "additionalProperties": False,
    }
    names = [f"answer_{number}" for number in range(1, count + 1)]
    return json.dumps(
        {
            "type": "object",
            "properties": dict.fromkeys(names, mark),
            "required": names,
            "additionalProperties": False,
        }
    )
