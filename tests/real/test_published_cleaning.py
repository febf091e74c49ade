"""Whether the search and the truecaser do what they should on texts that others wrote."""

import json
from pathlib import Path

import pytest

from tests.data.rows_made import tiny, write_jsonl
from zephyrctl.data import build
from zephyrctl.data.decontaminate.search import BenchmarkSearch, ContaminatedTurn, benchmark_prompts, normalize
from zephyrctl.data.truecase import is_lower_cased, truecase
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform

pytestmark = pytest.mark.real


def conversations(folder: Path) -> list[list[str]]:
    """Prompt and chosen answer of a thousand published pairs."""
    rows = [json.loads(line) for line in (folder / "ultrafeedback_binarized" / "train.jsonl").open()]
    return [[row["prompt"], row["chosen"][-1]["content"]] for row in rows if isinstance(row["chosen"], list)] or [
        [row["prompt"], row["chosen"]] for row in rows
    ]


def test_published_benchmarks_are_read_whole(real_data: Path) -> None:
    questions = [json.loads(line) for line in (real_data / "mt_bench" / "question.jsonl").open()]
    prompts = list(benchmark_prompts(real_data / "mt_bench" / "question.jsonl"))
    assert [prompt.text for prompt in prompts] == [turn for question in questions for turn in question["turns"]]
    asked = list(benchmark_prompts(real_data / "alpaca_eval" / "outputs" / "alpaca-7b.json"))
    assert len(prompts) == 160 and len(asked) == 805


def test_every_benchmark_prompt_is_found_in_each_of_its_forms(real_data: Path) -> None:
    prompts = list(benchmark_prompts(real_data / "mt_bench" / "question.jsonl"))
    search = BenchmarkSearch(prompts, 8)
    for prompt in prompts:
        assert {hit.kind for hit in search.matches(prompt.text)} >= {"exact"}
        assert search.matches(prompt.text.upper())
        words = normalize(prompt.text).split()
        is_long = len(words) >= 8
        assert bool(search.matches(f"So tell me this: {prompt.text} And soon, as I asked for it.")) == is_long
        assert normalize(normalize(prompt.text)) == normalize(prompt.text)


def test_planted_benchmark_prompts_are_all_that_is_dropped(tmp_path: Path, real_data: Path) -> None:
    benchmark = real_data / "mt_bench" / "question.jsonl"
    turns = [prompt.text for prompt in benchmark_prompts(benchmark)][:20]
    rows = [{"data": [f"Question {number} of a file?", "Yes."]} for number in range(50)]
    rows += [{"data": [f"Before {number}.", "Yes.", turn.lower(), "No."]} for number, turn in enumerate(turns)]
    source = {"kind": "files", "paths": [str(write_jsonl(tmp_path / "rows.jsonl", rows))]}
    section = {"against": [str(benchmark)], "ngram": 8, "held_out": False}
    recipe = tiny(build__source=source, build__test_share=0.0, decontaminate=section)
    artifact = perform(Run(tmp_path / "run"), build.BuildStage(recipe)).artifact
    assert artifact.manifest.metrics["dialogues"] == 50
    hits = list(artifact.read("contamination", "train", ContaminatedTurn))
    assert {hit.text for hit in hits} == {turn.lower() for turn in turns}


def test_lower_cased_conversations_get_back_capitals_that_were_there(real_data: Path) -> None:
    given, wanted, right = 0, 0, 0
    for asked, answer in conversations(real_data):
        small = answer.lower()
        assert truecase([asked, answer])[1] == answer or is_lower_cased(answer)
        if len(small) != len(answer) or not is_lower_cased(small):
            continue
        back = truecase([asked, small])[1]
        assert back.lower() == small
        capitals = {place for place, letter in enumerate(answer) if letter.isupper()}
        set_now = {place for place, letter in enumerate(back) if letter.isupper()}
        given, wanted, right = given + len(set_now), wanted + len(capitals), right + len(set_now & capitals)
    assert given > 1000
    assert right / given > 0.9, "capitals that are set were there"
    assert right / wanted > 0.35, "capitals that were there are set"
