"""Restore the capitals of lower-cased turns: sentence starts, "i", and names that the dialogue writes elsewhere.

A turn is lower-cased if it has at least three words, does not begin with a capital, and has no capital outside code,
addresses and identifiers. Only the case of Latin letters changes. The paper published no truecaser: these rules are
ours.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

LEAST_WORDS = 3
BEFORE = "\"'“”‘’«»([{<*_~¿¡"
AFTER = "\"'“”‘’«»)]}>*_~.,;:!?…"
"""Marks that may come before and after a word."""
QUOTES = ('"', "'", "”", "’")
CLOSERS = "\"'”’»)]}>*_~"
CODE = "\0"
"""Replaces every character of code, so that positions in the text do not change."""

# A fenced block (also an open one, to the end), a span between backticks, a line indented by four spaces or a tab.
_CODE = re.compile(r"(?:```|~~~).*?(?:```|~~~|\Z)|`[^`\n]+`|^(?: {4}|\t)[^\n]*", re.DOTALL | re.MULTILINE)
_LETTER = re.compile(r"[^\W\d_]")
_TOKEN = re.compile(r"\S+")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NAME = re.compile(r"[^\W\d_]{2,}")
_NAMES = re.compile(r" (?P<names>[A-Z][\w’'-]*(?: [A-Z][\w’'-]*)*)")
# What may come between the start of a sentence and its first word: bullets, quotes, brackets, but never code.
_OPENING = rf"\s*(?:[^\w\s{CODE}]+\s+)*(?=(?P<token>[^\s{CODE}]+))"
_FIRST = re.compile(_OPENING)
_NEXT = re.compile(
    rf"[.!?\n{CODE}](?:(?<=[.!?])[{re.escape(CLOSERS)}]*\s|(?<=\n)(?:[^\S\n]*\n|(?=[-*•+–] ))|(?<={CODE})\s*\n)"
    + _OPENING
)
"""Where a sentence may begin: after . ! or ?, after an empty line, at a list item, after a block of code."""
# "i" alone, or in i'm, i've, i'll, i'd, i'ma. Not in "a.i", "i.e", "i-th" or a path: what is around it must be a space
# or a mark of a sentence. The look-behind is after the letter, so that the engine first looks for an "i".
_PRONOUN = re.compile(r"i(?<![^\s\"'“‘(\[*_]i)(?P<short>['’](?:m|ve|ll|d|ma)\b)?(?![^\s\"'’”)\],.!?;:*_…]|\.\w)")
_NUMERAL = re.compile(r"[a-z]{1,4}\)")
_ABBREVIATIONS = frozenset(
    ("e.g", "i.e", "etc", "vs", "cf", "mr", "mrs", "ms", "dr", "prof", "st", "no", "approx", "fig", "inc", "ltd")
)
_ENGLISH = re.compile(r"\b(?:the|and|is|are|am|was|what|how|why|you|my|me|this|that|have|with|can|to|of|for|but|it)\b")
"""A small i is a word in many languages; it is the English pronoun if one of these words is in the turn."""
_OPERATORS = frozenset("=<>+*/^|&%≤≥≠∈-")


def truecase(texts: Sequence[str]) -> list[str]:
    """The turns of a dialogue, with capitals in the lower-cased ones; other turns are returned as they are.

    For every turn `before.lower() == after.lower()`.
    """
    small = [is_lower_cased(text) for text in texts]
    if not any(small):
        return list(texts)
    names = names_of([text for text, is_small in zip(texts, small, strict=True) if not is_small])
    return [_capitalise(text, names) if is_small else text for text, is_small in zip(texts, small, strict=True)]


def is_lower_cased(text: str) -> bool:
    """True for a turn of three words or more whose text outside code has letters and no capital."""
    # Most turns begin with a capital, and this test alone decides them. The others are decided from cheap to costly.
    if "A" <= text[:1] <= "Z":
        return False
    first = _LETTER.search(text)
    if not first or first[0].isupper():
        return False
    prose = _without_code(text)
    # `islower` is one pass in C; only a text with some capital needs its words looked at one by one.
    if not text.islower() and any(word != word.lower() for word in _words(prose)):
        return False
    return len(list(islice(_words(prose), LEAST_WORDS))) == LEAST_WORDS


def names_of(texts: Sequence[str]) -> dict[str, str]:
    """{lower-cased: as written} for words that have a capital in mid-sentence and are never written without."""
    seen: Counter[str] = Counter()
    small: set[str] = set()
    for text in texts:
        prose = _without_code(text)
        words = set(_NAME.findall(prose))
        small |= {word for word in words if word.islower()}
        for found in _NAMES.finditer(prose):
            if _follows_small_word(prose, found.start()):
                seen.update(_NAME.findall(found["names"]))
    written: dict[str, str] = {}
    # The most frequent spelling wins. A name must keep its length ("İ" is two characters in lower case), because
    # `_capitalise` replaces characters in place.
    for name, _ in seen.most_common():
        if name.lower() not in small and len(name.lower()) == len(name):
            written.setdefault(name.lower(), name)
    return written


def _follows_small_word(prose: str, place: int) -> bool:
    """True if the word before this position is lower-cased and ends no sentence: the next word is in mid-sentence."""
    # 32 characters are enough for a word, and keep the cost from growing with the length of the text.
    last = prose[max(0, place - 32) : place].rpartition(" ")[2].rpartition("\n")[2].lstrip("(").removesuffix(",")
    return last[:1].islower() and last[-1:].isalpha()


def _capitalise(text: str, names: Mapping[str, str]) -> str:
    """The text with the capitals of the three rules, each of which is applied to the original text."""
    prose = _without_code(text)
    letters = list(text)
    present = names.keys() & set(_NAME.findall(prose)) if names else ()
    for name in present:
        for found in re.finditer(rf"(?<![^\W_]){name}(?![^\W_])", prose):
            if _is_in_word(prose, found.start()):
                letters[found.start() : found.end()] = names[name]
    pronouns = list(_pronouns(prose))
    for place in (*_starts(prose), *(pronouns if pronouns and _ENGLISH.search(prose) else ())):
        letters[place] = _capital(letters[place])
    return "".join(letters)


def _starts(prose: str) -> Iterator[int]:
    """The positions of the first letters of sentences."""
    first = _FIRST.match(prose)
    for found in chain([first] if first else [], _NEXT.finditer(prose)):
        token = found["token"]
        core = _core(token)
        if (
            core
            and not _NUMERAL.fullmatch(token)
            and not (found is not first and _is_within_sentence(prose, found.start()))
        ):
            yield found.start("token") + token.index(core)


def _is_within_sentence(prose: str, place: int) -> bool:
    """True if the mark here ends no sentence: in an ellipsis, an abbreviation, an initial, or a quoted ? or !."""
    if prose[place] != ".":
        return prose[place + 1 : place + 2] in QUOTES and prose[place] in "!?"
    last = prose[max(0, place - 16) : place].rpartition(" ")[2].rpartition("\n")[2].lstrip(BEFORE)
    return last.endswith(".") or last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i")


def _pronouns(prose: str) -> Iterator[int]:
    """The positions of "i" as a word; next to code a bare i is a variable, next to an operator part of a formula."""
    has_code = CODE in prose
    for found in _PRONOUN.finditer(prose):
        before = prose[max(0, found.start() - 8) : found.start()].rstrip(" ")[-1:]
        after = prose[found.end() : found.end() + 2]
        # "i." or "i)" at the start of a line or after a bracket is the first item of a list: i, ii, iii.
        is_numeral = before in ("", "\n", "(") and after[:1] in (".", ")") and after != "."
        is_formula = before in _OPERATORS or (after.lstrip(" ")[:1] or "i") in _OPERATORS
        if found["short"] or not (has_code or is_numeral or is_formula):
            yield found.start()


def _words(prose: str) -> Iterator[str]:
    return (core for found in _TOKEN.finditer(prose) if (core := _core(found[0])))


def _core(token: str) -> str:
    """The word of a token without the marks around it; empty for addresses, identifiers, numbers and code."""
    if token.isalpha():
        return token
    core = token.strip(AFTER).lstrip(BEFORE)
    return core if core.isalpha() or _WORD.fullmatch(core) else ""


def _is_in_word(prose: str, place: int) -> bool:
    """True if the token around this position is a word, and no apostrophe comes before the position."""
    begin = place
    while begin and not prose[begin - 1].isspace():
        begin -= 1
    found = _TOKEN.match(prose, begin)
    return found is not None and bool(_core(found[0])) and prose[place - 1 : place] not in ("'", "’")


def _without_code(text: str) -> str:
    if "`" not in text and "    " not in text and "\t" not in text and "~~~" not in text:
        return text
    return _CODE.sub(lambda found: CODE * len(found[0]), text)


def _capital(letter: str) -> str:
    """The capital of a Latin letter; letters of other scripts, or without a one-letter capital, stay as they are."""
    capital = letter.upper()
    is_latin = letter < "\u0250" or "\u1e00" <= letter <= "\u1eff"
    return capital if is_latin and len(capital) == 1 and capital.lower() == letter else letter
