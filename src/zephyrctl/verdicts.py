"""What a rater's or judge's words say, read strictly: what is not plainly a value is missing, and never a number."""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from zephyrctl.records import Rating


@dataclass(frozen=True)
class Verdict:
    """A judge's score of one answer from 1 to 10 (None where it gave none), its reason, and who really judged."""

    score: float | None
    reason: str
    model: str = ""
    """The model id that the server reported: an alias such as `gpt-4` moves."""


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
"""Places at which a reply is read as JSON, from its end: a hostile one is all openings."""
_SCORE = re.compile(rf"\s*{_NUMBER}(?:\s*/\s*10)?\s*")
_SINGLE = re.compile(
    r"^[^\w\n]*(?:(?:rating|score|verdict)(?:\s+is)?\s*[:=]?)?[\s*_]*\[([^\[\]]+)\][\s*_.]*$", re.I | re.M
)


def read_ratings(text: str, count: int, aspect: str) -> tuple[list[Rating], bool]:
    """A mark for each of `count` answers, and whether the reply could be read; where it could not, ask again.

    Read are the JSON form (`answer_1: {rating, rationale}`, also within other text or a code fence) and lines
    `Answer K: VALUE. Rationale`. What is not plainly one number from 1 to 5 is missing: `4.5` stays 4.5 and `4/5` is 4,
    as 5 is the end of the scale; `7.5`, `4/10`, `4-5`, `-4`, `4 of them` and `10` are missing and not readable. A plain
    N/A (null in JSON) is missing and readable. The last word on an answer counts. A mark for an answer that was not
    shown makes all of them missing: nobody knows how that rater counts (from 0?).
    """
    found = _marks_of_json(text, aspect)
    if found is None:
        found = _marks_of_lines(text, aspect)
    places = range(1, count + 1)
    nothing = Rating(aspect=aspect, value=None), False
    if any(place not in places for place in found):
        return [nothing[0]] * count, False
    marks = [found.get(place, nothing) for place in places]
    return [mark for mark, _ in marks], all(is_plain for _, is_plain in marks)


_Marks = dict[int, tuple[Rating, bool]]
"""By the answer's number: its mark, and whether that is plainly a value or plainly none."""


def _marks_of_lines(text: str, aspect: str) -> _Marks:
    matches = (_RATED.match(line.strip()) for line in text.splitlines())
    return {int(match[1]): _mark(match[2], aspect) for match in matches if match}


def _mark(text: str, aspect: str) -> tuple[Rating, bool]:
    match = _RATING.match(text)
    if match and 1 <= float(match[1]) <= 5:
        return Rating(aspect=aspect, value=float(match[1]), rationale=match[2].strip()), True
    return Rating(aspect=aspect, value=None, rationale=text.strip()), _NO_RATING.match(text) is not None


def _marks_of_json(text: str, aspect: str) -> _Marks | None:
    """The marks of the last JSON object that names answers, or None where there is none."""
    for opening in reversed([match.end() for match in _OPENING.finditer(text)][-JSON_TRIES:]):
        try:
            made, _ = json.JSONDecoder().raw_decode(text, opening)
        except (ValueError, RecursionError):
            continue
        named = {int(match[1]): value for key, value in made.items() if (match := _KEY.fullmatch(key))}
        if named:
            return {place: _mark_of_value(value, aspect) for place, value in named.items()}
    return None


def _mark_of_value(value: Any, aspect: str) -> tuple[Rating, bool]:
    stated = {str(key).lower(): part for key, part in value.items()} if isinstance(value, dict) else {"rating": value}
    rating, rationale = stated.get("rating", ""), stated.get("rationale")
    said = "N/A" if rating is None else str(rating)
    if isinstance(rating, bool | list | dict):
        said = ""  # True is no 1
    mark, is_plain = _mark(said, aspect)
    reason = rationale if isinstance(rationale, str) else mark.rationale
    return mark.model_copy(update={"rationale": reason.strip()}), is_plain


def is_not_applicable(text: str) -> bool:
    """True for a verdict of `[[N/A]]`: the judge says plainly that it gives no score, and asking again is of no use."""
    return _NO_RATING.fullmatch(_last_bracket(text)) is not None


def parse_verdict(text: str) -> Verdict:
    """The score in the last `[[8]]`, from 1 to 10, else in a `[8]` that has its line to itself; None otherwise.

    `[[7.5]]` stays 7.5 and `[[8/10]]` is 8; `[[11]]`, `[[N/A]]` and a `[1]` within a sentence are no score. (MT-Bench's
    own rule is another one: it takes the first.)
    """
    stated = _last_bracket(text) or next(iter(_SINGLE.findall(text)[-1:]), "")
    match = _SCORE.fullmatch(stated)
    score = float(match[1]) if match else None
    return Verdict(score if score is not None and 1 <= score <= 10 else None, text.strip())


def parse_preference(text: str) -> float | None:
    """1.0 for a last `[[A]]`, 0.0 for `[[B]]`, 0.5 for `[[C]]` (a draw), None otherwise."""
    return {"A": 1.0, "B": 0.0, "C": 0.5}.get(_last_bracket(text).strip().upper())


def _last_bracket(text: str) -> str:
    """What stands in the last double brackets: reasons come first and may quote others, the verdict ends a reply."""
    return next(iter(re.findall(r"\[\[([^\[\]]*)\]\]", text)[-1:]), "")


def parse_list(text: str) -> list[str]:
    """The entries of a list, one a line, without numbers, bullets and quotes around them."""
    lines = (re.sub(r"^\s*(?:[-*\u2022]|\(?\d+[.):])\s*", "", line).strip(" \t\"'*_") for line in text.splitlines())
    return [line for line in lines if line]


@cache
def ratings_schema(count: int) -> str:
    """The JSON schema of `count` marks, for servers that can hold a model to one."""
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
