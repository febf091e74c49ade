"""`data audit`: measure a file of dialogues, rated answers or pairs, without any call."""

import hashlib
import heapq
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from zephyrctl.data import chunks, duplicates
from zephyrctl.data.decontaminate.search import BenchmarkSearch, Match, read_benchmarks
from zephyrctl.data.truecase import is_lower_cased
from zephyrctl.data.word_hashes import Hashes
from zephyrctl.errors import BadRow, ZephyrError, did_you_mean
from zephyrctl.progress import Progress
from zephyrctl.recipe.loading import flatten
from zephyrctl.records import Completion, PreferencePair, RatedPrompt, Record, prompt_id
from zephyrctl.rows.files import Raw, Read, opened
from zephyrctl.rows.formats import list_titles
from zephyrctl.rows.published_rows import RowFormats, find_match, row_formats

OwnRecord = TypeVar("OwnRecord", bound=Record)

BATCH = 256
"""Rows that are searched and hashed at once."""
LANGUAGE_SAMPLE = 2000
"""The most prompts whose language is identified: those with the lowest hashes, a random but fixed sample."""
LANGUAGE_CHARACTERS = 400
NEAR_ROWS = 50_000
"""The most rows in which near duplicates are searched for: their n-grams are in memory, 1 to 10 kB for each row."""
NEAR = 0.8
"""The least Jaccard similarity of near duplicates, over word 5-grams."""
QUOTED_MATCHES = 20

REFUSALS = {
    "as an AI": r"as an? (?:ai|artificial intelligence|language model|large language model)\b",
    "I am an AI": r"i(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|language model|machine)\b",
    "I'm sorry": r"(?:i(?:'m| am) (?:very |so |really )?sorry|sorry,|my apologies|i apologi[sz]e)",
    "I cannot": r"(?:unfortunately,? )?i (?:cannot|can't|can not|am unable|am not able|won't|will not be able)\b",
    "I have no opinions": r"i (?:don't|do not) (?:really )?have (?:any |the )?(?:personal )?"
    r"(?:experiences?|feelings?|emotions?|opinions?|beliefs?|preferences?)\b",
}
"""Openings of answers that refuse or hedge: our name for each, and its pattern. Apostrophes may be curly."""

_REFUSALS = {name: re.compile(words.replace("'", "['\u2019]"), re.IGNORECASE) for name, words in REFUSALS.items()}
_OPENING = re.compile(r"\A[\s\"'*_#>-]*")


@dataclass(frozen=True)
class AuditedRow:
    """One row of any form."""

    id: str
    asked: Sequence[str]
    answers: Sequence[str]
    pair: PreferencePair | None = None
    rated: RatedPrompt | None = None
    turns: int = 0

    @property
    def form(self) -> str:
        """'pairs', 'rated prompts' or 'dialogues'."""
        if self.pair:
            return "pairs"
        return "rated prompts" if self.rated else "dialogues"


@dataclass
class TextLengths:
    """TextLengths of many texts, in characters and in words; four bytes each."""

    characters: "array[int]" = field(default_factory=lambda: array("I"))
    words: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, text: str) -> None:
        """Add the lengths of one text."""
        self.characters.append(len(text))
        self.words.append(len(text.split()))

    def figures(self) -> dict[str, float]:
        """Means and medians; nothing if there is no text."""
        if not self.characters:
            return {}
        figures: dict[str, float] = {}
        for unit, lengths in (("characters", self.characters), ("words", self.words)):
            figures[f"mean_{unit}"] = round(fmean(lengths), 2)
            figures[f"median_{unit}"] = round(float(median(lengths)), 2)
        return figures


@dataclass
class AuditCounts:
    """Everything that was counted in a file; `figures` turns it into a report."""

    counts: "Counter[str]" = field(default_factory=Counter)
    forms: "Counter[str]" = field(default_factory=Counter)
    keys: "Counter[str]" = field(default_factory=Counter)
    bad: "Counter[str]" = field(default_factory=Counter)
    refusals: "Counter[str]" = field(default_factory=Counter)
    turns: "Counter[int]" = field(default_factory=Counter)
    rejected_places: "Counter[int]" = field(default_factory=Counter)
    best_places: "Counter[int]" = field(default_factory=Counter)
    worst_places: "Counter[int]" = field(default_factory=Counter)
    score_steps: "Counter[float]" = field(default_factory=Counter)
    aspects: dict[str, list[float]] = field(default_factory=dict)
    lengths: dict[str, TextLengths] = field(default_factory=dict)
    differences: "array[int]" = field(default_factory=lambda: array("l"))
    """Length of the chosen answer minus that of the rejected one, in characters."""
    overlap: "Counter[str]" = field(default_factory=Counter)
    matches: list[dict[str, str]] = field(default_factory=list)
    languages: "Counter[str]" = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """The report as one JSON object: counts with their shares, and nested details."""
        return dict(_figures(self))


def audit(path: Path, against: Sequence[Path] = (), ngram: int = 8, progress: Progress | None = None) -> AuditCounts:
    """Count what is in a file, or in the folder of a finished stage. Bad rows are counted and skipped.

    Raises ZephyrError if the file cannot be read, or none of its rows.
    """
    report = AuditCounts()
    search = BenchmarkSearch(read_benchmarks(against), ngram) if against else None
    report.counts["benchmark_prompts"] = len(search) if search else 0
    asked, whole, sample = set[bytes](), set[bytes](), PromptSample(LANGUAGE_SAMPLE)
    near = NearDuplicates(NEAR, NEAR_ROWS)
    rows = _rows(path, report)
    while batch := list(islice(rows, BATCH)):
        for row in batch:
            _count_row(row, report)
            _count_duplicates(row, report, asked, whole)
            sample.add(row.id, " ".join(row.asked))
        near.add([(*row.asked, *row.answers) for row in batch])
        if search:
            _count_matches(batch, search, report)
        if progress:
            progress.advance(report.counts["rows"], report.counts["rows"], "rows read")
    if not report.counts["rows"]:
        causes = ", ".join(f"{count} x {cause}" for cause, count in report.bad.items())
        formats = row_formats()
        known = list_titles([*formats.dialogues, *formats.rated, *formats.pairs])
        raise ZephyrError(f"{path}: no row can be read ({causes})", f"give rows with {known}")
    report.counts["near_duplicate_rows"] = near.repeats()
    report.counts["near_duplicates_sought_in"] = near.rows
    report.languages = languages(sample.texts())
    return report


def failed_gates(figures: Mapping[str, object], gates: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """(figure, value) for every gate that fails. Raises ZephyrError for a figure that the report does not have."""
    known = {key: value for key, value in flatten(figures).items() if isinstance(value, int | float)}
    for name, most in gates.items():
        if name not in known:
            remedy = did_you_mean(name, known, otherwise=f"one of: {', '.join(sorted(known))}")
            raise ZephyrError(f"audit.gates: the report has no figure {name!r}", remedy)
        if known[name] > most:
            yield name, known[name]


def files_of(path: Path) -> list[Path]:
    """The file itself, or the tables of a finished stage. Raises ZephyrError for any other folder."""
    if not path.is_dir():
        return [path]
    for rows in ("pairs", "rated", "dialogues"):
        if found := sorted((path / rows).glob("*.parquet")):
            return found
    raise ZephyrError(f"{path} contains no rows to audit", "give a file, or the folder of build, feedback or binarize")


def read_row(row: Raw, where: str, formats: RowFormats) -> AuditedRow:
    """A row of any form. Raises BadRow if it has none, or cannot be read."""
    pair_format = find_match(formats.pairs, row)
    if pair := _own(PreferencePair, row) or (pair_format and pair_format.read(row, where)):
        return AuditedRow(pair.id, pair.user_turns(), [pair.chosen, pair.rejected], pair=pair)
    rated_format = find_match(formats.rated, row)
    if rated := _own(RatedPrompt, row) or (rated_format and rated_format.read(row, where)):
        return AuditedRow(rated.id, rated.user_turns(), [answer.text for answer in rated.completions], rated=rated)
    dialogue = formats.dialogue(row, where, "")
    answers = [turn.content for turn in dialogue.messages if turn.role == "assistant"]
    return AuditedRow(dialogue.id, dialogue.user_turns(), answers, turns=len(dialogue.messages))


def uniform_p(counts: Sequence[int]) -> float | None:
    """The p-value of Pearson's chi-square test that all positions are equally likely; None for fewer than two.

    The tail probability has a closed form for an integer number of degrees of freedom (Abramowitz and Stegun 26.4.4 and
    26.4.5); chi-square is the sum of (count - expected)^2 / expected, and `half` is half of it.
    """
    total, freedom = sum(counts), len(counts) - 1
    if freedom < 1 or not total:
        return None
    expected = total / len(counts)
    # With an even number of degrees of freedom the tail is e^-h times the first terms of e^h. With an odd number it is
    # erfc(sqrt(h)) plus a series with half-integer powers, whose factorials are values of the gamma function.
    half = sum((count - expected) ** 2 / expected for count in counts) / 2
    if freedom % 2 == 0:
        series = sum(half**power / math.factorial(power) for power in range(freedom // 2))
        return float(math.exp(-half) * series)
    series = sum(half ** (power - 0.5) / math.gamma(power + 0.5) for power in range(1, (freedom + 1) // 2))
    return float(math.erfc(math.sqrt(half)) + math.exp(-half) * series)


def refusal(text: str) -> str | None:
    """The name of the refusal or hedge that an answer begins with, or None."""
    opening = _OPENING.sub("", text[:200])
    return next((name for name, words in _REFUSALS.items() if words.match(opening)), None)


def languages(texts: Iterable[str]) -> "Counter[str]":
    """How many texts are in each language (ISO 639), by their first characters; 'unclear' below 50 % probability."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # takes 0.8 s with its model

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found = (identifier.classify(text[:LANGUAGE_CHARACTERS]) for text in texts)
    return Counter(language if probability > 0.5 else "unclear" for language, probability in found)


class PromptSample:
    """The texts with the lowest hashes: the same sample for any order of the file."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, str]] = []

    def add(self, id: str, text: str) -> None:
        """Keep the text if its hash is among the lowest so far."""
        # heapq keeps the smallest first: with negative hashes the first is the highest hash, the next to be replaced.
        rank = -int.from_bytes(hashlib.blake2b(id.encode(), digest_size=6).digest())
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (rank, text))
        elif rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (rank, text))

    def texts(self) -> list[str]:
        """The sample."""
        return [text for _, text in self._heap]


class NearDuplicates:
    """Counts rows that nearly repeat an earlier one, among the first rows of a large file."""

    def __init__(self, threshold: float, most: int) -> None:
        self.rows = 0
        self._threshold = threshold
        self._most = most
        self._bands: list[Hashes] = []
        self._shingles: list[Hashes] = []

    def add(self, texts: Sequence[Sequence[str]]) -> None:
        """Add some rows."""
        taken = texts[: self._most - self.rows]
        if taken:
            hashes, offsets = duplicates.shingles(taken)
            self._bands.append(duplicates.sketch(taken, self._threshold))
            self._shingles += [np.unique(hashes[begin:end]) for begin, end in pairwise(offsets)]
            self.rows += len(taken)

    def repeats(self) -> int:
        """How many rows nearly repeat an earlier one."""
        if not self.rows:
            return 0
        bands = np.concatenate(self._bands)
        groups = duplicates.candidates(bands, np.ones(self.rows, bool))
        count = 0
        for group in groups:
            count += sum(1 for _ in duplicates.repeats(group, bands, self._threshold, self._shingles.__getitem__))
        return count


def _rows(path: Path, report: AuditCounts) -> Iterator[AuditedRow]:
    formats = row_formats()
    for file in files_of(path):
        for where, raw in _raw_rows(file):
            try:
                row = opened(raw)
                audited = read_row(row, where, formats)
            except BadRow as error:
                report.bad[error.cause] += 1
                continue
            report.keys.update(list(row))
            yield audited


def _raw_rows(file: Path) -> Iterator[tuple[str, Read]]:
    """The rows of a file, of which 8 MB are in memory at a time."""
    for chunk in chunks.number_chunks(chunks.file_chunks(file)):
        yield from ((where, row) for _, where, row in chunk.rows())


def _own(record: type[OwnRecord], row: Raw) -> OwnRecord | None:
    """A row of our own artifacts, or None if it has another form."""
    if not all(name in row for name, field in record.model_fields.items() if field.is_required()):
        return None
    try:
        return record.model_validate(row)
    except ValidationError:
        return None


def _count_row(row: AuditedRow, report: AuditCounts) -> None:
    counts = report.counts
    counts["rows"] += 1
    report.forms[row.form] += 1
    counts["user_turns"] += len(row.asked)
    counts["lower_cased_user_turns"] += sum(map(is_lower_cased, row.asked))
    counts["answers"] += len(row.answers)
    counts["lower_cased_answers"] += sum(map(is_lower_cased, row.answers))
    for opening in filter(None, map(refusal, row.answers)):
        report.refusals[opening] += 1
    for asked in row.asked:
        _measure("prompt", asked, report)
    if row.pair:
        _count_pair(row.pair, report)
    elif row.rated:
        _count_rated(row.rated, report)
    else:
        report.turns[row.turns] += 1
        for answer in row.answers:
            _measure("answer", answer, report)


def _count_pair(pair: PreferencePair, report: AuditCounts) -> None:
    counts, chosen, rejected = report.counts, pair.score_chosen, pair.score_rejected
    if chosen is None or rejected is None:
        counts["scores_missing"] += 1
    else:
        counts["ties"] += chosen == rejected
        counts["score_disagreements"] += chosen < rejected
        report.score_steps[round(chosen - rejected, 2)] += 1
    counts["identical"] += pair.chosen == pair.rejected
    counts["empty_chosen"] += not pair.chosen.strip()
    counts["empty_rejected"] += not pair.rejected.strip()
    counts["longer_chosen"] += len(pair.chosen) > len(pair.rejected)
    counts["longer_rejected"] += len(pair.chosen) < len(pair.rejected)
    report.differences.append(len(pair.chosen) - len(pair.rejected))
    _measure("chosen", pair.chosen, report)
    _measure("rejected", pair.rejected, report)
    if pair.rejected_place is not None:
        report.rejected_places[pair.rejected_place] += 1


def _count_rated(rated: RatedPrompt, report: AuditCounts) -> None:
    counts, answers = report.counts, rated.completions
    counts["prompts_with_fewer_than_two_answers"] += len(answers) < 2
    counts["identical"] += len({answer.text for answer in answers}) < len(answers)
    counts["empty_answers"] += sum(not answer.text.strip() for answer in answers)
    for answer in answers:
        _measure("answer", answer.text, report)
        counts["ratings"] += len(answer.ratings)
        counts["ratings_missing"] += sum(rating.value is None for rating in answer.ratings)
        counts["answers_without_ratings"] += not answer.ratings
        for rating in answer.ratings:
            if rating.value is not None:
                total = report.aspects.setdefault(rating.aspect, [0.0, 0.0])
                total[0] += rating.value
                total[1] += 1
    _count_order(answers, report)


def _count_order(answers: Sequence[Completion], report: AuditCounts) -> None:
    """Count positions and lengths of the best and worst answers, and whether the overall scores prefer another."""
    means = [(mean, place) for place, answer in enumerate(answers) if (mean := answer.mean_rating()) is not None]
    overall = [(answer.overall, place) for place, answer in enumerate(answers) if answer.overall is not None]
    report.counts["overall_of_10_with_low_ratings"] += sum(
        answer.overall == 10 and (answer.mean_rating() or 5) <= 2 for answer in answers
    )
    if len(means) < 2:
        return
    best, worst = max(means)[0], min(means)[0]
    # Positions are counted only if one answer is best or worst alone: a tie has no position.
    firsts = [place for mean, place in means if mean == best]
    report.counts["prompts_compared"] += 1
    report.counts["ties"] += len(firsts) > 1
    report.counts["ties_of_all"] += best == worst
    if len(firsts) == 1:
        report.best_places[firsts[0]] += 1
    if len(lasts := [place for mean, place in means if mean == worst]) == 1:
        report.worst_places[lasts[0]] += 1
    if best > worst:
        lengths = {place: len(answers[place].text) for _, place in means}
        report.counts["longer_best"] += lengths[max(means)[1]] > lengths[min(means)[1]]
    if len(overall) > 1:
        report.counts["prompts_with_overall_scores"] += 1
        report.counts["score_disagreements"] += max(overall, key=itemgetter(0))[1] not in firsts


def _count_duplicates(row: AuditedRow, report: AuditCounts, asked: set[bytes], whole: set[bytes]) -> None:
    # Sets of 16-byte hashes: a million rows take some 80 MB in each, where their texts would take gigabytes.
    prompt = bytes.fromhex(prompt_id("\0".join(row.asked)))[:16]
    content = bytes.fromhex(prompt_id("\0".join((*row.asked, "", *row.answers))))[:16]
    report.counts["duplicate_prompts"] += prompt in asked
    report.counts["duplicate_rows"] += content in whole
    asked.add(prompt)
    whole.add(content)


def _count_matches(batch: Sequence[AuditedRow], search: BenchmarkSearch, report: AuditCounts) -> None:
    """Count the rows that contain a benchmark prompt, by their first match."""
    first: dict[str, tuple[AuditedRow, str, Match]] = {}
    for number, turn, match in search.find_in_rows([row.asked for row in batch]):
        row = batch[number]
        first.setdefault(row.id, (row, row.asked[turn], match))
    for row, text, match in first.values():
        report.overlap["rows"] += 1
        report.overlap[match.kind] += 1
        if len(report.matches) < QUOTED_MATCHES:
            quoted = {"id": row.id, "kind": match.kind, "benchmark": match.benchmark}
            report.matches.append({**quoted, "text": text, "benchmark_text": match.benchmark_text})


def _measure(name: str, text: str, report: AuditCounts) -> None:
    report.lengths.setdefault(name, TextLengths()).add(text)


def _figures(report: AuditCounts) -> Iterator[tuple[str, object]]:
    counts, rows = report.counts, report.counts["rows"]
    yield "rows", rows
    yield "form", "mixed" if len(report.forms) > 1 else next(iter(report.forms))
    yield "keys", dict(report.keys)
    yield "bad_rows", sum(report.bad.values())
    yield "bad_rows_by_cause", dict(report.bad)
    if report.forms["pairs"]:
        yield from _pair_figures(report)
    if report.forms["rated prompts"]:
        yield from _rated_figures(report)
    if report.forms["dialogues"]:
        yield "turns", {str(turns): count for turns, count in sorted(report.turns.items())}
    for name in ("duplicate_prompts", "duplicate_rows", "near_duplicate_rows"):
        yield from _counted(name, counts[name], rows)
    yield "near_duplicates_sought_in", counts["near_duplicates_sought_in"]
    yield from _counted("lower_cased_answers", counts["lower_cased_answers"], counts["answers"])
    yield from _counted("lower_cased_user_turns", counts["lower_cased_user_turns"], counts["user_turns"])
    yield from _counted("refusal_openings", report.refusals.total(), counts["answers"])
    yield "refusal_openings_by_phrase", dict(report.refusals.most_common())
    yield "lengths", {name: lengths.figures() for name, lengths in report.lengths.items()}
    yield "languages", dict(report.languages.most_common())
    yield "languages_sampled", report.languages.total()
    yield "benchmark_prompts", counts["benchmark_prompts"]
    yield from _counted("benchmark_overlap", report.overlap["rows"], rows)
    yield "benchmark_overlap_by_kind", {kind: count for kind, count in report.overlap.items() if kind != "rows"}
    yield "benchmark_matches", report.matches


def _pair_figures(report: AuditCounts) -> Iterator[tuple[str, object]]:
    counts, pairs = report.counts, report.forms["pairs"]
    for name in ("ties", "identical", "empty_chosen", "empty_rejected", "scores_missing", "score_disagreements"):
        yield from _counted(name, counts[name], pairs)
    different = counts["longer_chosen"] + counts["longer_rejected"]
    yield "longer_chosen", counts["longer_chosen"]
    yield "longer_chosen_share", _share(counts["longer_chosen"], different)
    yield "length_difference_median", median(report.differences)
    yield from _places("rejected_places", report.rejected_places)


def _rated_figures(report: AuditCounts) -> Iterator[tuple[str, object]]:
    counts, prompts = report.counts, report.forms["rated prompts"]
    for name in ("ties", "ties_of_all", "longer_best"):
        yield from _counted(name, counts[name], counts["prompts_compared"])
    for name in ("identical", "prompts_with_fewer_than_two_answers"):
        yield from _counted(name, counts[name], prompts)
    yield "empty_answers", counts["empty_answers"]
    yield from _counted("answers_without_ratings", counts["answers_without_ratings"], counts["answers"])
    yield "ratings", counts["ratings"]
    yield from _counted("ratings_missing", counts["ratings_missing"], counts["ratings"])
    yield "overall_of_10_with_low_ratings", counts["overall_of_10_with_low_ratings"]
    yield from _counted("score_disagreements", counts["score_disagreements"], counts["prompts_with_overall_scores"])
    yield "mean_rating", {aspect: round(total / count, 3) for aspect, (total, count) in sorted(report.aspects.items())}
    yield from _places("best_places", report.best_places)
    yield from _places("worst_places", report.worst_places)


def _counted(name: str, count: int, of: int) -> Iterator[tuple[str, float]]:
    yield name, count
    yield f"{name}_share", _share(count, of)


def _share(count: int, of: int) -> float:
    return round(count / of, 6) if of else 0.0


def _places(name: str, places: Mapping[int, int]) -> Iterator[tuple[str, object]]:
    """Counts by position, and the p-value of the hypothesis that all positions are equally likely."""
    last = max(places, default=-1)
    yield name, {str(place): places.get(place, 0) for place in range(last + 1)}
    yield f"{name}_p", uniform_p([places.get(place, 0) for place in range(last + 1)])
