"""Whether the answers that four models published to 805 shared prompts are joined, rated and kept to the last one."""

import json
from pathlib import Path

import pytest

from tests.data.rows_made import tiny
from zephyrctl.feedback import collect
from zephyrctl.records import ASPECTS, Judgment, RatedPrompt, prompt_id
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform

pytestmark = [pytest.mark.real, pytest.mark.slow]
MODELS = ("alpaca-7b", "falcon-40b-instruct", "gpt-3.5-turbo-0301", "vicuna-13b")


def test_answers_of_four_models_to_805_prompts_are_rated_four_times_each(tmp_path: Path, real_data: Path) -> None:
    files = [real_data / "alpaca_eval" / "outputs" / f"{model}.json" for model in MODELS]
    said = {model: json.loads(file.read_text()) for model, file in zip(MODELS, files, strict=True)}
    artifact = perform(Run(tmp_path), collect.FeedbackStage(tiny(), None, files)).artifact
    rows = {row.id: row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)}
    assert len(rows) == 805
    for model, published in said.items():
        for row in published:
            completions = rows[prompt_id(row["instruction"])].completions
            assert [made.model for made in completions] == list(MODELS)
            assert completions[MODELS.index(model)].text == row["output"]
    for rated in rows.values():
        for made in rated.completions:
            assert [mark.aspect for mark in made.ratings] == list(ASPECTS)
            assert all(mark.value is not None and 1 <= mark.value <= 5 for mark in made.ratings)
    metrics = artifact.manifest.metrics
    assert (metrics["prompts"], metrics["completions"], metrics["ratings"]) == (805, 3220, 12880)
    assert artifact.manifest.dropped == {}
    calls = [call for split in SPLITS for call in artifact.read("judgments", split, Judgment)]
    assert len(calls) == 805 * 4
    assert {tuple(sorted(call.order)) for call in calls} == {(0, 1, 2, 3)}
    shown_first = [sum(call.order[0] == place for call in calls) / len(calls) for place in range(4)]
    assert all(0.22 < share < 0.28 for share in shown_first), "no model is shown first more often than the others"


def test_a_fifth_file_with_other_prompts_leaves_what_is_shared(tmp_path: Path, real_data: Path) -> None:
    files = [real_data / "alpaca_eval" / "outputs" / f"{model}.json" for model in MODELS[:2]]
    half = tmp_path / "half.json"
    published = json.loads((real_data / "alpaca_eval" / "outputs" / "vicuna-13b.json").read_text())
    half.write_text(json.dumps([*published[:400], {"instruction": "Nobody else was asked this.", "output": "So?"}]))
    artifact = perform(Run(tmp_path / "run"), collect.FeedbackStage(tiny(), None, [*files, half])).artifact
    rows = [row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)]
    assert sorted(len(row.completions) for row in rows) == [2] * 405 + [3] * 400
    assert artifact.manifest.dropped == {
        "prompts with an answer of one file only": 1,
        "answers that a file lacks": 405,
    }
