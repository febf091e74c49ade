"""Whether raw result files of lm-eval, old and new, give the leaderboard's scores, and whatever is odd is said."""

import importlib.util
import json
import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import tiny
from tests.evaluation.leaderboard_made import (
    leaderboard_file,
    leaderboard_stage,
    measured,
    new_file,
    old_file,
    put,
    subject_sizes,
    subjects_measured,
    subjects_right,
    write_questions,
)
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import SUBJECTS, TASKS
from zephyrctl.evaluation.benchmarks.lm_eval_files import parse, questions_of
from zephyrctl.evaluation.benchmarks.open_llm import FIGURES, LeaderboardFigures, read_results

SIZES, RIGHT = subject_sizes(), subjects_right()
MEAN = 100 * sum(RIGHT[name] / SIZES[name] for name in SUBJECTS) / 57
BY_SIZE = 100 * sum(RIGHT.values()) / sum(SIZES.values())


def old_files(folder: Path) -> Path:
    """The four files of an old harness, a benchmark each."""
    truthful = {"mc1": 0.35, "mc1_stderr": 0.017, "mc2": 0.52, "mc2_stderr": 0.015}
    arc, hellaswag = measured("acc_norm", 753, 1172), measured("acc_norm", 8526, 10042)
    for shots, results in (
        (25, {"arc_challenge": arc}),
        (10, {"hellaswag": hellaswag}),
        (5, subjects_measured("hendrycksTest-{}")),
        (0, {"truthfulqa_mc": truthful}),
    ):
        document = old_file(results=results, versions=dict.fromkeys(results, 1))
        document["config"]["num_fewshot"] = shots
        put(folder / f"{shots}.json", document)
    return folder


def read(folder: Path, document: Any) -> LeaderboardFigures:
    """The scores of one document."""
    return read_results([put(folder / "results.json", document)])


def test_the_protocol_is_the_published_one() -> None:
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57
    assert {name: (each.shots, each.metric) for name, each in TASKS.items()} == {
        "arc": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
        "mmlu": (5, "acc"),
        "truthfulqa": (0, "mc2"),
    }


@pytest.mark.parametrize("form", [old_files, leaderboard_file, new_file])
def test_every_form_gives_the_same_scores(form: Callable[..., Any], tmp_path: Path) -> None:
    scores = read_results([old_files(tmp_path)]) if form is old_files else read(tmp_path, form())
    assert scores.figures == pytest.approx(
        {
            "arc": 100 * 753 / 1172,
            "hellaswag": 100 * 8526 / 10042,
            "mmlu": MEAN,
            "mmlu_by_size": BY_SIZE,
            "truthfulqa": 52.0,
        }
    )
    assert abs(MEAN - BY_SIZE) > 0.5
    assert scores.model == "org/model"
    assert scores.shots == {"arc": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa": 0}
    sizes = {"arc": 1172, "hellaswag": 10042, "mmlu": 14042, "mmlu_by_size": 14042}
    assert scores.n == (sizes | {"truthfulqa": 817} if form is new_file else sizes)
    expected = ["the version of lm-eval is not stated; the leaderboard ran commit b281b09"]
    assert scores.warnings == (expected if form is old_files else [])


def test_standard_errors_come_of_the_tasks_own(tmp_path: Path) -> None:
    scores = read(tmp_path, new_file())
    errors = {name: sqrt(RIGHT[name] * (SIZES[name] - RIGHT[name]) / (SIZES[name] - 1)) / SIZES[name] for name in SIZES}
    assert scores.standard_errors["mmlu"] == pytest.approx(100 * sqrt(sum(e * e for e in errors.values())) / 57)
    shares = {name: SIZES[name] / sum(SIZES.values()) for name in SIZES}
    by_size = 100 * sqrt(sum((shares[name] * errors[name]) ** 2 for name in SIZES))
    assert scores.standard_errors["mmlu_by_size"] == pytest.approx(by_size)
    assert scores.standard_errors["truthfulqa"] == pytest.approx(1.5)
    for name, (low, high) in scores.intervals.items():
        value, error = scores.figures[name], scores.standard_errors[name]
        assert value is not None
        assert (value - low, high - value) == pytest.approx((1.96 * error, 1.96 * error), rel=1e-3)


def test_a_standard_error_that_is_not_stated_follows_from_the_number_of_questions(tmp_path: Path) -> None:
    document = new_file()
    stated = read(tmp_path, document)
    for entry in document["results"].values():
        for key in [key for key in entry if "stderr" in key]:
            entry[key] = "N/A"
    follows = read(tmp_path, document)
    assert follows.standard_errors == pytest.approx(
        {name: error for name, error in stated.standard_errors.items() if name != "truthfulqa"}
    )
    assert "truthfulqa" not in follows.intervals


def test_json_begins_with_the_five_scores_and_null_is_what_nobody_knows(tmp_path: Path) -> None:
    document = new_file()
    del document["results"]["hellaswag"]
    told = read(tmp_path, document).rounded()
    assert tuple(told.as_json())[:5] == FIGURES
    assert (told.arc, told.hellaswag) == (64.25, None)
    assert [getattr(told, name)["hellaswag"] for name in ("standard_errors", "intervals", "n", "shots")] == [None] * 4
    assert told.warnings == ["hellaswag: no result"]
    assert json.loads(json.dumps(told.as_json())) == told.as_json()


def test_all_wrong_has_no_interval_of_no_width() -> None:
    intervals = LeaderboardFigures(arc=0.0, hellaswag=99.5, standard_errors={"arc": 0.0, "hellaswag": 1.0}).intervals
    assert list(intervals) == ["hellaswag"]
    assert intervals["hellaswag"] == pytest.approx((97.54, 100.0), abs=0.01)


@pytest.mark.parametrize("questions", [2, 57, 1172, 10042, 14042])
def test_a_number_of_questions_follows_from_accuracy_and_standard_error(questions: int) -> None:
    for right in range(1, questions, max(1, questions // 9)):
        share = right / questions
        assert questions_of(share, sqrt(share * (1 - share) / (questions - 1))) == questions
    assert questions_of(0.62, 0.0142) is None, "rounded"
    assert questions_of(0.0, 0.0) is questions_of(None, None) is None


def test_sizes_that_nothing_tells_are_not_made_up(tmp_path: Path) -> None:
    rounded = {
        task: {key: round(value, 4) for key, value in entry.items()}
        for task, entry in subjects_measured("mmlu_{}", ",none").items()
    }
    document = new_file(results=rounded)
    del document["n-samples"]
    scores = read(tmp_path, document)
    assert scores.mmlu == pytest.approx(MEAN, abs=0.01)
    assert scores.mmlu_by_size is None
    assert any(text.startswith("mmlu_by_size: no file states the sizes") for text in scores.warnings)
    document["results"] = rounded | {"mmlu": {"acc,none": 0.4242, "acc_stderr,none": 0.1267}}
    stated = read(tmp_path, document)
    assert stated.mmlu_by_size == pytest.approx(42.42)
    assert "mmlu_by_size" not in stated.standard_errors
    assert stated.mmlu == scores.mmlu


def test_a_group_of_other_subjects_is_not_taken(tmp_path: Path) -> None:
    first, second = (
        new_file(results={"mmlu": {"acc,none": 0.42}}),
        new_file(results={"mmlu_anatomy": {"acc,none": 0.5}}),
    )
    del first["n-samples"], second["n-samples"]
    assert read(tmp_path / "alone", first).mmlu_by_size == pytest.approx(42.0)
    put(tmp_path / "both" / "first.json", first)
    put(tmp_path / "both" / "second.json", second)
    assert read_results([tmp_path / "both"]).mmlu_by_size is None


def test_files_are_found_in_nested_folders_and_others_let_be(tmp_path: Path) -> None:
    whole = read(tmp_path / "whole", new_file())
    document = new_file()
    for name in ("arc_challenge", "hellaswag", "truthfulqa_mc2"):
        part = document | {"results": {name: document["results"].pop(name)}}
        put(tmp_path / "parts" / "org__model" / f"results_{name}.json", part)
    put(tmp_path / "parts" / "org__model" / "deeper" / "results.json", document)
    put(tmp_path / "parts" / "config.json", {"hidden_size": 1})
    put(tmp_path / "parts" / "winogrande.json", new_file(results={"winogrande": {"acc,none": 0.8}}, config={}))
    (tmp_path / "parts" / "org__model" / "samples_arc.jsonl").write_text('{"results": 1}\n')
    assert read_results([tmp_path / "parts"]) == whole
    twice = [tmp_path / "parts", tmp_path / "parts" / "org__model" / "results_hellaswag.json"]
    assert read_results(twice) == whole, "a file that is given twice counts once"


def test_several_models_are_named(tmp_path: Path) -> None:
    put(tmp_path / "one.json", new_file())
    other = new_file(config={"model": "hf", "model_args": "pretrained=org/other,dtype=bfloat16,revision=v2"})
    put(tmp_path / "two.json", other)
    with pytest.raises(ZephyrError, match=r"several models: org/model, org/other@v2"):
        read_results([tmp_path])
    assert read_results([tmp_path / "two.json"]).model == "org/other@v2"


def test_of_results_of_the_same_task_the_last_counts(tmp_path: Path) -> None:
    def arc(right: int, **changes: Any) -> dict[str, Any]:
        return new_file(results={"arc_challenge": measured("acc_norm", right, 1172, ",none")}, **changes)

    put(tmp_path / "results_2024-02-01T00-00-00.5.json", arc(900, date=1.0))
    put(tmp_path / "results_2024-01-01T00-00-00.5.json", arc(800))
    put(tmp_path / "a.json", arc(700, date=2e9))
    put(tmp_path / "b.json", arc(600))
    scores = read_results([tmp_path])
    assert scores.arc == pytest.approx(100 * 700 / 1172)
    assert "3 results were left out because the same task has a later one" in scores.warnings
    (tmp_path / "a.json").unlink()
    assert read_results([tmp_path]).arc == pytest.approx(100 * 900 / 1172)


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a document at a place."""

    def apply(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = to

    return apply


def remove(*path: str) -> Callable[[dict[str, Any]], None]:
    """A change that removes something from a document."""

    def apply(document: dict[str, Any]) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return apply


def limited(document: dict[str, Any]) -> None:
    """Say that a limit was set, and not how many questions there were."""
    document["config"]["limit"] = 10
    del document["n-samples"]


ARGUMENTS = ("config", "model_args")


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        (change("n-shot", "arc_challenge", to=0), "arc: 0 shots; the leaderboard has 25"),
        (change("n-shot", "mmlu_anatomy", to=0), "mmlu: 0 shots; the leaderboard has 5"),
        (remove("n-shot"), "hellaswag: the number of shots is not stated; the leaderboard's is 10"),
        (limited, "a limit of 10 questions per task"),
        (
            change("n-samples", "hellaswag", to={"original": 10042, "effective": 100}),
            "hellaswag: only a part of the questions was asked (--limit)",
        ),
        (
            change("n-samples", "truthfulqa_mc2", to={"original": 800, "effective": 800}),
            "truthfulqa: 800 questions; the leaderboard has 817",
        ),
        (remove("results", "mmlu_anatomy"), "mmlu: 56 of 57 subjects, without anatomy"),
        (remove("results", "truthfulqa_mc2"), "truthfulqa: no result"),
        (
            change("results", "arc_challenge", to={"acc,none": 0.5}),
            "arc: acc_norm was not measured, and acc cannot replace it: left out",
        ),
        (change("results", "arc_challenge", "acc_norm,none", to="N/A"), "arc: acc_norm is N/A, and counts as missing"),
        (change("chat_template", to="{{ messages }}"), "a chat template was applied"),
        (change("config", "apply_chat_template", to=True), "a chat template was applied"),
        (change("system_instruction", to="Be brief."), "a system instruction was given"),
        (change(*ARGUMENTS, "dtype", to="float32"), "weights in float32; the leaderboard uses 16 bits"),
        (change("config", "model_dtype", to="torch.float32"), "weights in float32; the leaderboard uses 16 bits"),
        (change(*ARGUMENTS, "load_in_4bit", to=True), "the model was run with load_in_4bit=True"),
        (change(*ARGUMENTS, to="pretrained=org/model,max_length=2048"), "the model was run with max_length=2048"),
        (change("config", "model", to="vllm"), "run by 'vllm' and not by transformers"),
        (
            change("git_hash", to="1a2b3c4"),
            "the version of lm-eval is not stated; the leaderboard ran commit b281b09",
        ),
        (change("cut_prompts", to={"arc_challenge": 3}), "arc: some prompts are longer than the model's context"),
        (change("config", to={"model": "hf"}), "results.json does not state its model"),
    ],
)
def test_what_is_not_as_on_the_leaderboard_is_said(
    changed: Callable[[dict[str, Any]], None], warning: str, tmp_path: Path
) -> None:
    document = new_file()
    assert read(tmp_path, document).warnings == []
    changed(document)
    assert any(text.startswith(warning) for text in read(tmp_path, document).warnings)


@pytest.mark.parametrize(
    "changed",
    [
        change("fewshot_as_multiturn", to=True),  # what lm-eval writes where no template is applied
        change(*ARGUMENTS, "load_in_8bit", to=False),
        change(*ARGUMENTS, to="pretrained=org/model,dtype=bfloat16,load_in_8bit=False,revision=main"),
        change(*ARGUMENTS, "trust_remote_code", to=True),
        change("results", "mmlu", to={"acc,none": 0.42}),
        change("results", "winogrande", to={"acc,none": 0.8}),
        change("date", to=None),
        change("config", "limit", to=20_000),  # more than any task has
    ],
)
def test_what_changes_no_score_is_not_warned_of(changed: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    document = new_file()
    before = read(tmp_path, document)
    changed(document)
    assert read(tmp_path, document) == before


def test_turns_are_told_where_a_template_makes_some(tmp_path: Path) -> None:
    scores = read(tmp_path, new_file(chat_template="{{ messages }}", fewshot_as_multiturn=True))
    assert scores.warnings == ["a chat template was applied and each shot was a turn"]


def test_a_version_of_the_harness_is_named(tmp_path: Path) -> None:
    scores = read(tmp_path, new_file(git_hash="1a2b3c4", lm_eval_version="0.4.13"))
    assert scores.warnings == ["computed by lm-eval 0.4.13; the leaderboard ran commit b281b09"]


def test_few_subjects_are_named_and_what_is_there_is_scored(tmp_path: Path) -> None:
    document = new_file()
    keep = ("mmlu_anatomy", "mmlu_virology")
    document["results"] = {name: document["results"][name] for name in keep}
    scores = read(tmp_path, document)
    shares = [RIGHT[name] / SIZES[name] for name in ("anatomy", "virology")]
    assert scores.mmlu == pytest.approx(100 * sum(shares) / 2)
    assert "mmlu: 2 of 57 subjects, only anatomy, virology" in scores.warnings


def test_the_refused_version_of_mmlu_is_said(tmp_path: Path) -> None:
    document = leaderboard_file()
    document["versions"]["harness|hendrycksTest-anatomy|5"] = 0
    assert read(tmp_path, document).warnings == [
        "mmlu: version 0 of hendrycksTest, which the leaderboard does not accept"
    ]


def test_a_figure_that_is_no_number_counts_as_missing_and_is_said(tmp_path: Path) -> None:
    document = leaderboard_file()
    document["results"]["harness|truthfulqa:mc|0"]["mc2"] = float("nan")
    scores = read(tmp_path, document)
    assert scores.truthfulqa is None
    assert "truthfulqa: no result" in scores.warnings
    assert "results.json is not strict JSON (NaN): such scores count as missing" in scores.warnings


def test_commas_before_closing_brackets_are_left_out_and_said(tmp_path: Path) -> None:
    whole = read(tmp_path, new_file())
    text = (tmp_path / "results.json").read_text()
    broken = re.sub(r"\n(\s*)}", r",\n\1}", text).replace('"org/model"', '"org/model,}"')
    (tmp_path / "results.json").write_text(broken)
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
    scores = read_results([tmp_path])
    assert scores.figures == whole.figures
    assert scores.model == "org/model,}", "texts stay as they are"
    assert len(scores.warnings) == 1
    assert scores.warnings[0].startswith("results.json is not JSON (line ")
    assert scores.warnings[0].endswith("read without the commas before closing brackets")


def test_a_file_that_breaks_off_after_its_results_is_read_and_said(tmp_path: Path) -> None:
    whole = read(tmp_path, new_file())
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text[: text.index('"limit"')])
    scores = read_results([tmp_path])
    assert scores.figures == whole.figures
    assert scores.model == "org/model", "what is whole of the part that is cut is read too"
    assert any("its results are complete and were read" in text for text in scores.warnings)


@pytest.mark.parametrize("where", ['"mmlu_anatomy"', '"truthfulqa_mc2": {', '"acc_norm,none"'])
def test_a_file_that_breaks_off_inside_its_results_is_refused(where: str, tmp_path: Path) -> None:
    text = put(tmp_path / "results.json", new_file()).read_text()
    (tmp_path / "results.json").write_text(text[: text.index(where) + len(where)])
    with pytest.raises(ZephyrError, match="its results are incomplete"):
        read_results([tmp_path])


def parsed(text: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The document in a text, whose members a test may look into, and the notes about it."""
    document, notes = parse(text, path)
    return dict(document), notes


def test_a_number_that_may_go_on_is_not_read(tmp_path: Path) -> None:
    text = '{"results": {"hellaswag": {"acc": 0.5}}, "config": {"model": "hf", "limit": 10'
    document, notes = parsed(text, tmp_path)
    assert document == {"results": {"hellaswag": {"acc": 0.5}}, "config": {"model": "hf"}}
    assert len(notes) == 1
    assert parsed(text + "0}}", tmp_path)[0]["config"]["limit"] == 100


def test_every_cut_of_a_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    whole = json.dumps(old_file(results={"arc_challenge": measured("acc_norm", 753, 1172)}))
    document, _ = parsed(whole, tmp_path)
    read_ones = 0
    for end in range(1, len(whole)):
        try:
            cut, notes = parsed(whole[:end], tmp_path)
        except ZephyrError:
            continue
        read_ones += 1
        assert notes
        assert cut["results"] == document["results"]
        assert cut.get("config", {}).items() <= document["config"].items()
    assert 0 < read_ones < len(whole)


def test_a_name_that_stands_twice_with_different_values_is_refused(tmp_path: Path) -> None:
    twice = '{"results": {"hellaswag": {"acc_norm": 0.5, "acc_norm": 0.6}}}'
    (tmp_path / "results.json").write_text(twice)
    with pytest.raises(ZephyrError, match="'acc_norm' twice"):
        read_results([tmp_path])
    (tmp_path / "results.json").write_text(twice.replace("0.6", "0.5"))
    assert read_results([tmp_path]).hellaswag == 50.0


@pytest.mark.parametrize(("value", "error"), [(64.25, 0.01), (-0.1, 0.01), (0.5, -0.01)])
def test_what_is_no_share_is_refused(value: float, error: float, tmp_path: Path) -> None:
    results = {"hellaswag": {"acc_norm,none": value, "acc_norm_stderr,none": error}}
    with pytest.raises(ZephyrError, match=r"results.json: hellaswag: acc_norm is"):
        read(tmp_path, new_file(results=results))


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"results": 1}', '["results"]'])
def test_a_file_that_is_no_result_is_refused_alone_and_let_be_in_a_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ZephyrError, match="contains no results"):
        read_results([tmp_path / "other.json"])
    with pytest.raises(ZephyrError, match="no results of arc, hellaswag, mmlu, truthfulqa"):
        read_results([tmp_path])


def test_a_file_that_is_no_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b'\xff\xfe"results"')
    for path in (tmp_path / "results.json", tmp_path / "nowhere.json"):
        with pytest.raises(ZephyrError, match="cannot be read"):
            read_results([path])
    with pytest.raises(ZephyrError, match="no results"):
        read_results([])


def test_a_step_says_what_it_depends_on(tmp_path: Path) -> None:
    data = write_questions(tmp_path)
    made = leaderboard_stage(tiny(), ["sft", "dpo"], task=["truthfulqa", "arc"], data=data, limit=3)
    assert (made.name, made.stage) == ("open-llm", "eval")
    assert list(made.reads) == ["sft", "dpo", "local files"]
    assert (made.reads["dpo"].artifact, made.reads["dpo"].stage) == ("dpo", "dpo")
    assert made.settings["shots"] == {"arc": 25, "truthfulqa": 0}
    assert made.settings["limit"] == 3
    assert made.settings["base_content"]
    without = leaderboard_stage(tiny(eval__base=False), ["sft"])
    assert list(without.reads) == ["sft"]
    assert without.settings["base_content"] is None
    assert list(without.settings["shots"]) == list(TASKS)


def test_what_cannot_be_asked_is_refused_at_once() -> None:
    with pytest.raises(ZephyrError, match="no task 'truthfulqa_mc2'") as refused:
        leaderboard_stage(tiny(), ["sft"], task=["truthfulqa_mc2"])
    assert "truthfulqa" in refused.value.remedy
    with pytest.raises(ZephyrError, match="no task to ask"):
        leaderboard_stage(tiny(), ["sft"], task=[])
    with pytest.raises(ZephyrError, match="a limit of 0 questions"):
        leaderboard_stage(tiny(), ["sft"], limit=0)


def test_without_lm_eval_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "zephyrctl.evaluation.benchmarks.harness.find_spec", lambda name: None if name == "lm_eval" else real(name)
    )
    with pytest.raises(ZephyrError, match="lm-eval is not installed") as refused:
        leaderboard_stage(tiny(), ["sft"]).check()
    assert refused.value.remedy == "pip install 'zephyrctl[leaderboard]'"


@pytest.fixture
def has_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at local files as where lm-eval is installed; none of it runs."""
    monkeypatch.setattr("zephyrctl.evaluation.benchmarks.harness.find_spec", lambda name: True)


@pytest.mark.usefixtures("has_lm_eval")
def test_local_files_as_published_are_taken(tmp_path: Path) -> None:
    leaderboard_stage(tiny(), ["sft"], data=write_questions(tmp_path)).check()


@pytest.mark.usefixtures("has_lm_eval")
@pytest.mark.parametrize("lost", ["arc/train.jsonl", "hellaswag/validation.jsonl", "mmlu/anatomy/dev.jsonl"])
def test_a_file_that_is_not_there_is_named_with_the_layout(lost: str, tmp_path: Path) -> None:
    (write_questions(tmp_path) / lost).unlink()
    with pytest.raises(ZephyrError, match=f"there is no .*{lost}") as refused:
        leaderboard_stage(tiny(), ["sft"], data=tmp_path).check()
    assert "mmlu/SUBJECT/{dev,test}.jsonl" in refused.value.remedy
    leaderboard_stage(tiny(), ["sft"], task=["truthfulqa"], data=tmp_path).check()


@pytest.mark.usefixtures("has_lm_eval")
@pytest.mark.parametrize(
    ("path", "field", "value", "problem"),
    [
        ("arc/test.jsonl", "answerKey", "E", "answerKey 'E' is not a label"),
        ("arc/test.jsonl", "choices", ["a", "b"], "choices"),
        ("hellaswag/train.jsonl", "label", "", "label"),
        ("hellaswag/validation.jsonl", "endings", ["a"], "endings"),
        ("mmlu/anatomy/test.jsonl", "answer", "B", "answer"),
        ("mmlu/anatomy/dev.jsonl", "choices", ["a", "b"], "choices"),
        ("truthfulqa/validation.jsonl", "mc2_targets", {"choices": ["a", "b"], "labels": [1]}, "labels"),
        ("truthfulqa/validation.jsonl", "mc2_targets", {"choices": ["a", "b"], "labels": [0, 0]}, "labels"),
    ],
)
def test_a_row_of_another_form_is_named(path: str, field: str, value: Any, problem: str, tmp_path: Path) -> None:
    file = write_questions(tmp_path) / path
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1][field] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ZephyrError, match=f"{path}:2: .*{problem}"):
        leaderboard_stage(tiny(), ["sft"], data=tmp_path).check()


@pytest.mark.usefixtures("has_lm_eval")
def test_too_few_examples_for_the_shots_are_refused(tmp_path: Path) -> None:
    path = write_questions(tmp_path) / "arc" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:24]))
    with pytest.raises(ZephyrError, match="has 24 rows, but 25 are needed"):
        leaderboard_stage(tiny(), ["sft"], data=tmp_path).check()


@pytest.mark.usefixtures("has_lm_eval")
def test_a_folder_that_is_no_subject_is_refused(tmp_path: Path) -> None:
    (write_questions(tmp_path) / "mmlu" / "anatomy").rename(tmp_path / "mmlu" / "anatomi")
    with pytest.raises(ZephyrError, match="anatomi is not a subject") as refused:
        leaderboard_stage(tiny(), ["sft"], data=tmp_path).check()
    assert refused.value.remedy == "did you mean 'anatomy'?"
