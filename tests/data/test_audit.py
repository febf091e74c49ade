"""Whether an audit counts what is there, in every form, and stops at no row."""

import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import Command
from tests.data.rows_made import rated, ultrafeedback_row, write_jsonl
from zephyrctl.cli.audit import TITLES
from zephyrctl.data import audit as auditing
from zephyrctl.data.audit import PromptSample, audit, refusal, uniform_p
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Dialogue, Message, PreferencePair, RatedPrompt, prompt_id
from zephyrctl.runs.parquet import write_parquet


def pair(prompt: str, chosen: str, rejected: str, scores: tuple[float | None, float | None] = (8, 5)) -> dict[str, Any]:
    """A row of the published binarized form."""
    asked = {"role": "user", "content": prompt}
    return {
        "prompt": prompt,
        "chosen": [asked, {"role": "assistant", "content": chosen}],
        "rejected": [asked, {"role": "assistant", "content": rejected}],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def figures(path: Path, *against: Path) -> dict[str, Any]:
    """The figures of a file."""
    return audit(path, against).figures()


def test_pairs_are_counted_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    rows = [
        pair("Why?", "Because it is so.", "No idea"),
        pair("Who?", "same", "same", (3, 3)),
        pair("When?", " ", "Now, and not later", (2, 7)),
        pair("Where?", "Here", ""),
        pair("why so low cased?", "I'm sorry, but I cannot say.", "it is what it is, my friend", (None, 1)),
    ]
    told = figures(write_jsonl(tmp_path / "pairs.jsonl", rows))
    expected = {
        "rows": 5, "form": "pairs", "ties": 1, "identical": 1, "empty_chosen": 1, "empty_rejected": 1,
        "scores_missing": 1, "score_disagreements": 1, "longer_chosen": 3, "bad_rows": 0, "ties_share": 0.2,
        "lower_cased_user_turns": 1, "lower_cased_answers": 1, "refusal_openings": 1, "duplicate_rows": 0,
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    assert told["longer_chosen_share"] == 0.75, "of the four whose lengths differ"
    assert told["refusal_openings_by_phrase"] == {"I'm sorry": 1}
    assert told["lengths"]["chosen"]["median_characters"] == 4
    assert told["keys"]["score_chosen"] == 5


def test_our_own_pairs_tell_the_places(tmp_path: Path) -> None:
    """A rejected answer that nearly always stands first is no accident."""

    def row(number: int, place: int) -> PreferencePair:
        asked = [Message(role="user", content=f"Why {number}?")]
        return PreferencePair(
            id=prompt_id(asked[0].content), messages=asked, chosen="a", rejected="b", score_chosen=2, score_rejected=1,
            chosen_place=3, rejected_place=place,
        )  # fmt: skip

    for name, places, is_skewed in (("fair", [0, 1, 2, 3] * 25, False), ("skewed", [0] * 90 + [1, 2, 3] * 3, True)):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, (row(number, place) for number, place in enumerate(places)), PreferencePair)
        told = figures(path)
        assert told["rejected_places"] == {str(place): count for place, count in sorted(Counter(places).items())}
        assert (told["rejected_places_p"] < 1e-6) is is_skewed


def test_rated_prompts_in_either_form(tmp_path: Path) -> None:
    rows = [
        ultrafeedback_row("Why?", {"good": "5", "bad": "1", "odd": "N/A"}),
        ultrafeedback_row("Who?", {"one": "3", "two": "3"}),
    ]
    rows[0]["completions"][1]["overall_score"] = 10
    told = figures(write_jsonl(tmp_path / "rated.jsonl", rows))
    expected = {
        "rows": 2, "form": "rated prompts", "ties": 1, "ties_of_all": 1, "ratings": 20, "ratings_missing": 4,
        "overall_of_10_with_low_ratings": 1, "score_disagreements": 1, "identical": 0, "empty_answers": 0,
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    assert told["best_places"] == {"0": 1}
    assert told["mean_rating"]["honesty"] == 3.0
    ours = tmp_path / "rated.parquet"
    write_parquet(ours, [rated("Why?", ("a", 1), ("b", 5)), rated("Who?", ("a", None), ("a", 2))], RatedPrompt)
    told = figures(ours)
    assert (told["form"], told["ratings_missing"], told["identical"], told["best_places"]) == (
        "rated prompts", 4, 1, {"0": 0, "1": 1}
    )  # fmt: skip


def test_dialogues_have_turns(tmp_path: Path) -> None:
    rows = [{"data": ["Hi", "Hello"]}, {"data": ["Hi", "Hello", "Why?", "As an AI, I cannot say."]}, {"data": ["Hi"]}]
    told = figures(write_jsonl(tmp_path / "chat.jsonl", rows))
    assert (told["rows"], told["form"], told["turns"]) == (2, "dialogues", {"2": 1, "4": 1})
    assert told["bad_rows_by_cause"] == {"no answer to the last user turn": 1}
    assert told["refusal_openings_by_phrase"] == {"as an AI": 1}


def test_no_row_stops_it_and_each_is_counted(tmp_path: Path) -> None:
    rows: list[Any] = [pair("Why?", "a", "b"), {"text": "no form"}, {"chosen": 1, "rejected": 2}, {"messages": []}]
    path = write_jsonl(tmp_path / "mixed.jsonl", rows)
    with path.open("a") as file:
        file.write('[1]\n{"cut": "of')
    told = figures(path)
    assert (told["rows"], told["bad_rows"]) == (1, 5)
    assert told["bad_rows_by_cause"].items() >= {"no known form": 1, "not an object": 1, "not JSON": 1}.items()
    with pytest.raises(ZephyrError, match="no row can be read"):
        figures(write_jsonl(tmp_path / "none.jsonl", rows[1:]))


def test_repeats_are_exact_and_near(tmp_path: Path) -> None:
    words = Random(0).sample([f"word{number}" for number in range(500)], 200)
    near = [*words[:-2], "another", "end"]
    rows = [pair("Why?", " ".join(words), "b")] * 2
    rows += [pair("Why?", " ".join(near), "b"), pair("Who?", " ".join(reversed(words)), "b")]
    told = figures(write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert (told["duplicate_prompts"], told["duplicate_rows"], told["near_duplicate_rows"]) == (2, 1, 2)


def test_benchmarks_are_looked_for(tmp_path: Path) -> None:
    question = "Write a story about nine brave cats who sail around the world together"
    against = write_jsonl(tmp_path / "question.jsonl", [{"turns": [question, "Now shorter."]}])
    rows = [pair(f"Please {question.lower()}!", "a", "b"), pair("now  shorter", "a", "b"), pair("Why?", "a", "b")]
    told = figures(write_jsonl(tmp_path / "pairs.jsonl", rows), against)
    assert (told["benchmark_overlap"], told["benchmark_overlap_by_kind"]) == (2, {"ngram": 1, "normalised": 1})
    assert {hit["benchmark_text"] for hit in told["benchmark_matches"]} == {question, "Now shorter."}


@pytest.mark.parametrize(
    ("counts", "p"),
    [((10, 10), 1.0), ((60, 40), 0.0455), ((60, 40, 50), 0.135335), ((30, 20, 25, 25), 0.572407), ((5,), None)],
)
def test_the_chance_of_uneven_counts(counts: tuple[int, ...], p: float | None) -> None:
    """Against the tail of the chi-square distribution for one, two and three degrees of freedom."""
    if p is None:
        assert uniform_p(counts) is None
    else:
        assert uniform_p(counts) == pytest.approx(p, abs=2e-4)


def test_the_chance_is_a_chance_for_any_number_of_places() -> None:
    """Of counts drawn evenly, about one in twenty has a p below 0.05, whatever the places."""
    rng = Random(0)
    for places in (2, 3, 4, 5, 8):
        drawn = [Counter(rng.choices(range(places), k=200)) for _ in range(400)]
        low = sum((uniform_p([counts[place] for place in range(places)]) or 0) < 0.05 for counts in drawn)
        assert 6 <= low <= 36, places


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("I\u2019m sorry, but no.", "I'm sorry"),
        ("**As an AI language model**, I ...", "as an AI"),
        ("I do not have personal opinions.", "I have no opinions"),
        ("Unfortunately, I can't help.", "I cannot"),
        ("As an airline pilot, I fly.", None),
        ("I cannoli bake.", None),
        ("Sure! I cannot wait.", None),
    ],
)
def test_how_refusals_open(text: str, name: str | None) -> None:
    assert refusal(text) == name


def test_a_sample_does_not_depend_on_order() -> None:
    ids = [str(number) for number in range(500)]
    drawn = []
    for order in (ids, list(reversed(ids)), Random(0).sample(ids, 500)):
        sample = PromptSample(40)
        for id in order:
            sample.add(id, id)
        drawn.append(sorted(sample.texts()))
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == 40


def test_languages_are_told_apart() -> None:
    texts = ["How do I bake bread without yeast at home?", "Wie backe ich zu Hause Brot ohne Hefe?", "¿Cómo hago pan?"]
    assert auditing.languages(texts) == {"en": 1, "de": 1, "es": 1}


def test_the_command_prints_one_object_and_holds_gates(zephyrctl: Command, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "pairs.jsonl", [pair("Why?", "a", "b", (1, 1)), pair("Who?", "a", "b")])
    outcome = zephyrctl("data", "audit", file, "--json", "--gate", "ties_share=0.5")
    assert outcome.code == 0
    assert (outcome.json["ties"], outcome.json["gates_failed"]) == (1, [])
    outcome = zephyrctl("data", "audit", file, "--json", "--gate", "ties_share=0.4", "--set", "audit.gates={ties: 5}")
    assert outcome.code == 3
    assert outcome.json["gates_failed"] == ["ties_share"]
    assert "ties_share is 0.5, at most 0.4" in outcome.err
    for gate, said in (
        ("ties_shar=1", "did you mean 'ties_share'?"),
        ("ties", "has no limit"),
        ("ties=x", "the limit is not a number"),
    ):
        outcome = zephyrctl("data", "audit", file, "--gate", gate)
        assert outcome.code == 1 and said in outcome.err
    assert zephyrctl("data", "audit", tmp_path / "none.jsonl").code == 1


def test_the_table_has_a_title_for_every_figure(tmp_path: Path) -> None:
    files = (
        write_jsonl(tmp_path / "pairs.jsonl", [pair("Why?", "a", "b", (1, 1)), pair("Who?", "a", "b")]),
        write_jsonl(tmp_path / "rated.jsonl", [ultrafeedback_row("Why?", {"Good.": "5", "Bad.": "1"})]),
        write_jsonl(tmp_path / "chat.jsonl", [{"id": "1", "data": ["Why?", "Because."]}]),
    )
    for file in files:
        assert {name for name in figures(file) if not name.endswith("_share")} <= {*TITLES, "benchmark_matches"}


def test_the_command_reads_a_stage_and_says_what_it_shows(zephyrctl: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "build"
    (folder / "dialogues").mkdir(parents=True)
    said = [Message(role="user", content="Why?"), Message(role="assistant", content="Because.")]
    rows = [Dialogue(id=prompt_id("Why?"), messages=said, source="s")]
    write_parquet(folder / "dialogues" / "train.parquet", rows, Dialogue)
    outcome = zephyrctl("data", "audit", folder)
    assert outcome.code == 0 and "dialogues" in outcome.out
    assert "contains no rows" in zephyrctl("data", "audit", tmp_path).err
    outcome = zephyrctl("data", "audit", folder, "--dry-run", "--json")
    assert outcome.json["dry_run"]["reads"] == [str(folder / "dialogues" / "train.parquet")]


def test_json_has_no_number_that_json_has_not(tmp_path: Path) -> None:
    told = figures(write_jsonl(tmp_path / "pairs.jsonl", [pair("Why?", "a", "b", (None, None))]))
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in told.values())
    assert json.loads(json.dumps(told)) == told
