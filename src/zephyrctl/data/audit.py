"""`data audit`: what is in a file of dialogues, rated answers or pairs, and what is wrong with it, without any call."""

import hashlib
import heapq
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from pydantic import ValidationError

from zephyrctl.data import chunks, duplicates
from zephyrctl.data.decontaminate.search import BenchmarkSearch, Match, read_benchmarks
from zephyrctl.data.truecase import is_lower_cased
from zephyrctl.data.word_hashes import Hashes
from zephyrctl.errors import BadRow, ZephyrError, did_you_mean
from zephyrctl.progress import Progress
from zephyrctl.recipe.loading import flatten
from zephyrctl.records import Completion, PreferencePair, RatedPrompt, prompt_id
from zephyrctl.rows.files import Raw, Read, opened
from zephyrctl.rows.formats import list_titles
from zephyrctl.rows.published_rows import RowFormats, find_match, row_formats

BATCH = 256
"""Rows that are searched and sketched at once."""
LANGUAGE_SAMPLE = 2000
"""Prompts whose language is looked at, at most: those of the lowest hash, which is a random but fixed sample."""
LANGUAGE_CHARACTERS = 400
NEAR_ROWS = 50_000
"""Rows of a file in which near repeats are looked for, at most: their words are kept, 1 to 10 kB a row."""
NEAR = 0.8
"""The word-shingle similarity (Jaccard) of near repeats."""
QUOTED_HITS = 20

REFUSALS = {
    "as an AI": r"as an? (?:ai|artificial intelligence|language model|large language model)\b",
    "I am an AI": r"i(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|language model|machine)\b",
    "I'm sorry": r"(?:i(?:'m| am) (?:very |so |really )?sorry|sorry,|my apologies|i apologi[sz]e)",
    "I cannot": r"(?:unfortunately,? )?i (?:cannot|can't|can not|am unable|am not able|won't|will not be able)\b",
    "I have no opinions": r"i (?:don't|do not) (?:really )?have (?:any |the )?(?:personal )?"
    r"(?:experiences?|feelings?|emotions?|opinions?|beliefs?|preferences?)\b",
}
"""How answers open that refuse or hedge, in our words; the quotation mark may be curly."""

_REFUSALS = {name: re.compile(words.replace("'", "['\u2019]"), re.IGNORECASE) for name, words in REFUSALS.items()}
_OPENING = re.compile(r"\A[\s\"'*_#>-]*")


@dataclass(frozen=True)
class AuditedRow:
    """One row, whatever its form."""

    id: str
    asked: Sequence[str]
    answers: Sequence[str]
    pair: PreferencePair | None = None
    rated: RatedPrompt | None = None
    turns: int = 0

    @property
    def form(self) -> str:
        """'pairs', 'rated prompts' or 'dialogues'."""
        return "pairs" if self.pair else "rated prompts" if self.rated else "dialogues"


@dataclass
class TextLengths:
    """TextLengths of many texts, in characters and in words; four bytes each."""

    characters: "array[int]" = field(default_factory=lambda: array("I"))
    words: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, text: str) -> None:
        """Measure one text."""
        self.characters.append(len(text))
        self.words.append(len(text.split()))

    def figures(self) -> dict[str, float]:
        """Means and medians; empty without texts."""
        if not self.characters:
            return {}
        return {
            f"{name}_{unit}": round(float(value(lengths)), 2)
            for unit, lengths in (("characters", self.characters), ("words", self.words))
            for name, value in (("mean", fmean), ("median", median))
        }


@dataclass
class AuditCounts:
    """What was seen: counters by name, lengths, and places; `figures` makes the report of it."""

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
    """Chosen minus rejected, in characters."""
    overlap: "Counter[str]" = field(default_factory=Counter)
    hits: list[dict[str, str]] = field(default_factory=list)
    languages: "Counter[str]" = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """The report as one object: counts of the whole file at the top, shares beside them, the rest nested."""
        return dict(_figures(self))


def audit(path: Path, against: Sequence[Path] = (), ngram: int = 8, progress: Progress | None = None) -> AuditCounts:
    """Look at every row of a file, or of a stage's folder. A row that cannot be read is counted and never stops it.

    Raises ZephyrError where the file itself cannot be read.
    """
    seen = AuditCounts()
    search = BenchmarkSearch(read_benchmarks(against), ngram) if against else None
    seen.counts["benchmark_prompts"] = len(search) if search else 0
    asked, whole, sample = set[bytes](), set[bytes](), PromptSample(LANGUAGE_SAMPLE)
    near = NearDuplicates(NEAR, NEAR_ROWS)
    rows = _rows(path, seen)
    while batch := list(islice(rows, BATCH)):
        for row in batch:
            _look(row, seen)
            _note_repeats(row, seen, asked, whole)
            sample.add(row.id, " ".join(row.asked))
        near.add([(*row.asked, *row.answers) for row in batch])
        if search:
            _find(batch, search, seen)
        if progress:
            progress.advance(seen.counts["rows"], seen.counts["rows"], "rows looked at")
    if not seen.counts["rows"]:
        causes = ", ".join(f"{count} x {cause}" for cause, count in seen.bad.items())
        formats = row_formats()
        known = list_titles([*formats.dialogues, *formats.rated, *formats.pairs])
        raise ZephyrError(f"{path}: no row can be read ({causes})", f"give rows with {known}")
    seen.counts["near_duplicate_rows"] = near.repeats()
    seen.counts["near_duplicates_sought_in"] = near.rows
    seen.languages = languages(sample.texts())
    return seen


def failed_gates(figures: Mapping[str, Any], gates: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """The gates whose figure is more than it may be. Raises ZephyrError for a figure that there is not."""
    known = {key: value for key, value in flatten(figures).items() if isinstance(value, int | float)}
    for name, most in gates.items():
        if name not in known:
            remedy = did_you_mean(name, known, otherwise=f"one of: {', '.join(sorted(known))}")
            raise ZephyrError(f"audit.gates: this file has no figure {name!r}", remedy)
        if known[name] > most:
            yield name, known[name]


def files_of(path: Path) -> list[Path]:
    """The files to read: the file itself, or those of a finished stage. Raises ZephyrError for any other folder."""
    if not path.is_dir():
        return [path]
    for rows in ("pairs", "rated", "dialogues"):
        if found := sorted((path / rows).glob("*.parquet")):
            return found
    raise ZephyrError(f"{path} holds no rows to look at", "give a file, or the folder of build, feedback or binarize")


def see(row: Raw, where: str, formats: RowFormats) -> AuditedRow:
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
    """How likely counts this uneven are where every place is as likely: Pearson's chi-square; None for fewer than two.

    The chi-square tail has a closed form for whole degrees of freedom (Abramowitz and Stegun 26.4.4 and 26.4.5).
    """
    total, freedom = sum(counts), len(counts) - 1
    if freedom < 1 or not total:
        return None
    expected = total / len(counts)
    half = sum((count - expected) ** 2 / expected for count in counts) / 2
    if freedom % 2 == 0:
        series = sum(half**power / math.factorial(power) for power in range(freedom // 2))
        return float(math.exp(-half) * series)
    series = sum(half ** (power - 0.5) / math.gamma(power + 0.5) for power in range(1, (freedom + 1) // 2))
    return float(math.erfc(math.sqrt(half)) + math.exp(-half) * series)


def refusal(text: str) -> str | None:
    """The name of the refusal or hedge that an answer opens with, or None."""
    opening = _OPENING.sub("", text[:200])
    return next((name for name, words in _REFUSALS.items() if words.match(opening)), None)


def languages(texts: Iterable[str]) -> "Counter[str]":
    """How many texts are in each language (ISO 639), by how they begin; 'unclear' where py3langid is below 50 %."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # 0.8 s with its model

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found = (identifier.classify(text[:LANGUAGE_CHARACTERS]) for text in texts)
    return Counter(language if probability > 0.5 else "unclear" for language, probability in found)


class PromptSample:
    """The texts of the lowest hashes: the same ones whatever the order of the file."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, str]] = []

    def add(self, id: str, text: str) -> None:
        """Keep the text while its hash is among the lowest."""
        rank = -int.from_bytes(hashlib.blake2b(id.encode(), digest_size=6).digest())
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (rank, text))
        elif rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (rank, text))

    def texts(self) -> list[str]:
        """The sample."""
        return [text for _, text in self._heap]


class NearDuplicates:
    """Rows that say nearly what an earlier one says; looked for among the first rows of a large file."""

    def __init__(self, threshold: float, most: int) -> None:
        self.rows = 0
        self._threshold = threshold
        self._most = most
        self._bands: list[Hashes] = []
        self._shingles: list[Hashes] = []

    def add(self, texts: Sequence[Sequence[str]]) -> None:
        """Take in some rows."""
        taken = texts[: self._most - self.rows]
        if taken:
            hashes, offsets = duplicates.shingles(taken)
            self._bands.append(duplicates.sketch(taken, self._threshold))
            self._shingles += [np.unique(hashes[begin:end]) for begin, end in pairwise(offsets)]
            self.rows += len(taken)

    def repeats(self) -> int:
        """How many rows repeat an earlier one."""
        if not self.rows:
            return 0
        bands = np.concatenate(self._bands)
        groups = duplicates.candidates(bands, np.ones(self.rows, bool))
        return sum(
            1 for group in groups for _ in duplicates.repeats(group, bands, self._threshold, self._shingles.__getitem__)
        )


def _rows(path: Path, seen: AuditCounts) -> Iterator[AuditedRow]:
    formats = row_formats()
    for file in files_of(path):
        for where, raw in _raw_rows(file):
            try:
                row = opened(raw)
                one = see(row, where, formats)
            except BadRow as error:
                seen.bad[error.cause] += 1
                continue
            seen.keys.update(list(row))
            yield one


def _raw_rows(file: Path) -> Iterator[tuple[str, Read]]:
    """The rows of a file as they come, 8 MB of it in memory at a time."""
    for chunk in chunks.number_chunks(chunks.file_chunks(file)):
        yield from ((where, row) for _, where, row in chunk.rows())


def _own(record: type[Any], row: Raw) -> Any:
    """A row of our own artifacts, or None if it has another form."""
    if not all(name in row for name, field in record.model_fields.items() if field.is_required()):
        return None
    try:
        return record.model_validate(row)
    except ValidationError:
        return None


def _look(row: AuditedRow, seen: AuditCounts) -> None:
    counts = seen.counts
    counts["rows"] += 1
    seen.forms[row.form] += 1
    counts["user_turns"] += len(row.asked)
    counts["lower_cased_user_turns"] += sum(map(is_lower_cased, row.asked))
    counts["answers"] += len(row.answers)
    counts["lower_cased_answers"] += sum(map(is_lower_cased, row.answers))
    for opening in filter(None, map(refusal, row.answers)):
        seen.refusals[opening] += 1
    for asked in row.asked:
        _measure("prompt", asked, seen)
    if row.pair:
        _look_at_pair(row.pair, seen)
    elif row.rated:
        _look_at_rated(row.rated, seen)
    else:
        seen.turns[row.turns] += 1
        for answer in row.answers:
            _measure("answer", answer, seen)


def _look_at_pair(pair: PreferencePair, seen: AuditCounts) -> None:
    counts, chosen, rejected = seen.counts, pair.score_chosen, pair.score_rejected
    if chosen is None or rejected is None:
        counts["scores_missing"] += 1
    else:
        counts["ties"] += chosen == rejected
        counts["score_disagreements"] += chosen < rejected
        seen.score_steps[round(chosen - rejected, 2)] += 1
    counts["identical"] += pair.chosen == pair.rejected
    counts["empty_chosen"] += not pair.chosen.strip()
    counts["empty_rejected"] += not pair.rejected.strip()
    counts["longer_chosen"] += len(pair.chosen) > len(pair.rejected)
    counts["longer_rejected"] += len(pair.chosen) < len(pair.rejected)
    seen.differences.append(len(pair.chosen) - len(pair.rejected))
    _measure("chosen", pair.chosen, seen)
    _measure("rejected", pair.rejected, seen)
    if pair.rejected_place is not None:
        seen.rejected_places[pair.rejected_place] += 1


def _look_at_rated(rated: RatedPrompt, seen: AuditCounts) -> None:
    counts, answers = seen.counts, rated.completions
    counts["prompts_with_fewer_than_two_answers"] += len(answers) < 2
    counts["identical"] += len({answer.text for answer in answers}) < len(answers)
    counts["empty_answers"] += sum(not answer.text.strip() for answer in answers)
    for answer in answers:
        _measure("answer", answer.text, seen)
        counts["ratings"] += len(answer.ratings)
        counts["ratings_missing"] += sum(rating.value is None for rating in answer.ratings)
        counts["answers_without_ratings"] += not answer.ratings
        for rating in answer.ratings:
            if rating.value is not None:
                total = seen.aspects.setdefault(rating.aspect, [0.0, 0.0])
                total[0] += rating.value
                total[1] += 1
    _look_at_order(answers, seen)


def _look_at_order(answers: Sequence[Completion], seen: AuditCounts) -> None:
    """Best and worst by the mean, and whether the overall scores would have chosen another answer."""
    means = [(mean, place) for place, answer in enumerate(answers) if (mean := answer.mean_rating()) is not None]
    overall = [(answer.overall, place) for place, answer in enumerate(answers) if answer.overall is not None]
    seen.counts["overall_of_10_with_low_ratings"] += sum(
        answer.overall == 10 and (answer.mean_rating() or 5) <= 2 for answer in answers
    )
    if len(means) < 2:
        return
    best, worst = max(means)[0], min(means)[0]
    firsts = [place for mean, place in means if mean == best]
    seen.counts["prompts_compared"] += 1
    seen.counts["ties"] += len(firsts) > 1
    seen.counts["ties_of_all"] += best == worst
    if len(firsts) == 1:
        seen.best_places[firsts[0]] += 1
    if len(lasts := [place for mean, place in means if mean == worst]) == 1:
        seen.worst_places[lasts[0]] += 1
    if best > worst:
        lengths = {place: len(answers[place].text) for _, place in means}
        seen.counts["longer_best"] += lengths[max(means)[1]] > lengths[min(means)[1]]
    if len(overall) > 1:
        seen.counts["prompts_with_overall_scores"] += 1
        seen.counts["score_disagreements"] += max(overall, key=lambda one: one[0])[1] not in firsts


def _note_repeats(row: AuditedRow, seen: AuditCounts, asked: set[bytes], whole: set[bytes]) -> None:
    prompt = bytes.fromhex(prompt_id("\0".join(row.asked)))[:16]
    content = bytes.fromhex(prompt_id("\0".join((*row.asked, "", *row.answers))))[:16]
    seen.counts["duplicate_prompts"] += prompt in asked
    seen.counts["duplicate_rows"] += content in whole
    asked.add(prompt)
    whole.add(content)


def _find(batch: Sequence[AuditedRow], search: BenchmarkSearch, seen: AuditCounts) -> None:
    turns = [(row, text) for row in batch for text in row.asked]
    hit: dict[str, tuple[AuditedRow, str, Match]] = {}
    for place, match in search.find([text for _, text in turns]):
        row, text = turns[place]
        if row.id not in hit:
            hit[row.id] = row, text, match
    for row, text, match in hit.values():
        seen.overlap["rows"] += 1
        seen.overlap[match.kind] += 1
        if len(seen.hits) < QUOTED_HITS:
            quoted = {"id": row.id, "kind": match.kind, "benchmark": match.benchmark}
            seen.hits.append({**quoted, "text": text, "benchmark_text": match.benchmark_text})


def _measure(name: str, text: str, seen: AuditCounts) -> None:
    seen.lengths.setdefault(name, TextLengths()).add(text)


def _figures(seen: AuditCounts) -> Iterator[tuple[str, Any]]:
    counts, rows = seen.counts, seen.counts["rows"]
    yield "rows", rows
    yield "form", "mixed" if len(seen.forms) > 1 else next(iter(seen.forms))
    yield "keys", dict(seen.keys)
    yield "bad_rows", sum(seen.bad.values())
    yield "bad_rows_by_cause", dict(seen.bad)
    if seen.forms["pairs"]:
        yield from _pair_figures(seen)
    if seen.forms["rated prompts"]:
        yield from _rated_figures(seen)
    if seen.forms["dialogues"]:
        yield "turns", {str(turns): count for turns, count in sorted(seen.turns.items())}
    for name in ("duplicate_prompts", "duplicate_rows", "near_duplicate_rows"):
        yield from _counted(name, counts[name], rows)
    yield "near_duplicates_sought_in", counts["near_duplicates_sought_in"]
    yield from _counted("lower_cased_answers", counts["lower_cased_answers"], counts["answers"])
    yield from _counted("lower_cased_user_turns", counts["lower_cased_user_turns"], counts["user_turns"])
    yield from _counted("refusal_openings", seen.refusals.total(), counts["answers"])
    yield "refusal_openings_by_phrase", dict(seen.refusals.most_common())
    yield "lengths", {name: lengths.figures() for name, lengths in seen.lengths.items()}
    yield "languages", dict(seen.languages.most_common())
    yield "languages_sampled", seen.languages.total()
    yield "benchmark_prompts", counts["benchmark_prompts"]
    yield from _counted("benchmark_overlap", seen.overlap["rows"], rows)
    yield "benchmark_overlap_by_kind", {kind: count for kind, count in seen.overlap.items() if kind != "rows"}
    yield "benchmark_matches", seen.hits


def _pair_figures(seen: AuditCounts) -> Iterator[tuple[str, Any]]:
    counts, pairs = seen.counts, seen.forms["pairs"]
    for name in ("ties", "identical", "empty_chosen", "empty_rejected", "scores_missing", "score_disagreements"):
        yield from _counted(name, counts[name], pairs)
    different = counts["longer_chosen"] + counts["longer_rejected"]
    yield "longer_chosen", counts["longer_chosen"]
    yield "longer_chosen_share", _share(counts["longer_chosen"], different)
    yield "length_difference_median", median(seen.differences)
    yield from _places("rejected_places", seen.rejected_places)


def _rated_figures(seen: AuditCounts) -> Iterator[tuple[str, Any]]:
    counts, prompts = seen.counts, seen.forms["rated prompts"]
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
    yield "mean_rating", {aspect: round(total / count, 3) for aspect, (total, count) in sorted(seen.aspects.items())}
    yield from _places("best_places", seen.best_places)
    yield from _places("worst_places", seen.worst_places)


def _counted(name: str, count: int, of: int) -> Iterator[tuple[str, float]]:
    yield name, count
    yield f"{name}_share", _share(count, of)


def _share(count: int, of: int) -> float:
    return round(count / of, 6) if of else 0.0


def _places(name: str, places: Mapping[int, int]) -> Iterator[tuple[str, Any]]:
    """Counts by place, and how likely they are where places mean nothing; both empty where no place is known."""
    last = max(places, default=-1)
    yield name, {str(place): places.get(place, 0) for place in range(last + 1)}
    yield f"{name}_p", uniform_p([places.get(place, 0) for place in range(last + 1)])
