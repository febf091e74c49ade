"""The model card: its front matter holds for the Hub, and every number in it is a manifest's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from tests.publishing import runs_made
from zephyrctl import templates
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.card import front_matter, hub_id_of, render_card
from zephyrctl.runs.manifest import FileEntry, Manifest, Plan

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"
BASE = runs_made.Base("an-org/a-base")
LIBRARIES = {"torch": "2.13.0", "trl": "1.16.0"}
TRAINING = {"sft": {"learning_rate": 2e-5, "packing": "none", "max_steps": None}, "launch": {"processes": 2}}
DPO = {"dpo": {"learning_rate": 5e-7, "beta": 0.1, "loss": "sigmoid", "gradient_checkpointing": False}}
MEASURED = {"first_loss": 0.6931, "reward_accuracy": 0.95, "steps": 1200, "log": [1, 2], "note": "text"}


def _manifest(
    name: str, rows: dict[str, int] | None = None, settings: dict[str, Any] | None = None, **values: Any
) -> Manifest:
    files = {
        f"{table}.parquet": FileEntry(sha256="0" * 64, bytes=9, rows=count) for table, count in (rows or {}).items()
    }
    plan = Plan(name=name, stage=values.pop("stage", name), settings=settings or {}, inputs={}, zephyrctl="0.1.0")
    made = {
        "input_paths": {},
        "libraries": LIBRARIES,
        "finished_at": "2025-01-01T00:00:00+00:00",
        "seconds": 90.0,
    }
    return Manifest(plan=plan, files=files, **{**made, **values})


def _chain() -> list[Manifest]:
    rated = {"no parsable rating": 12}
    lost = {"tie": 140, "no difference | same text": 3}
    return [
        _manifest("build", {"dialogues/train": 19_000, "dialogues/test": 1_000, "prompts/train": 6_000}),
        _manifest("sft", settings=TRAINING, metrics={"steps": 310, "loss": 1.0625}, seconds=5400),
        _manifest("feedback", {"rated/train": 5_988}, dropped=rated, cost_usd=12.5, notes=["One rater only."]),
        _manifest("binarize", {"pairs/train": 5_845}, dropped=lost),
        _manifest("dpo", settings=DPO, metrics=MEASURED, seconds=9000),
    ]


def _evaluation(**changes: Any) -> Manifest:
    return _manifest("eval", metrics={**runs_made.METRICS, **changes}, notes=["Held-out prompts.", "One rater only."])


def _front_matter(card: ModelCard) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(str(card).split("---\n")[1])
    return values


def _card(chain: list[Manifest] | None = None, evaluations: list[Manifest] | None = None) -> str:
    template = templates.read("chat/zephyr.jinja")
    return render_card("small", chain or _chain(), evaluations or [], BASE, template, "</s>")


def test_the_card_reads_as_last_agreed(golden: Callable[[str, str], None]) -> None:
    golden("model_card.md", _card(evaluations=[_evaluation()]))


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = ModelCard(_card(evaluations=[_evaluation()]))
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "an-org/a-base", ["en"])
    assert data.tags == ["zephyrctl", "trl", "dpo", "alignment"]
    assert data.model_name == "small-dpo"
    results = {result.metric_type: result for result in data.eval_results or []}
    assert results["judge-score"].metric_value == runs_made.SCORES["dpo"]["mean"]
    assert results["win-rate"].metric_value == runs_made.PAIRWISE["dpo_over_sft"]["win_rate"]
    assert "rules" in str(results["judge-score"].metric_name)
    assert yaml.safe_load(str(data)) == _front_matter(card), "nothing is lost on the way back"


def test_without_scores_there_is_no_model_index() -> None:
    card = ModelCard(_card())
    assert _front_matter(card).keys() >= {"license", "base_model", "tags"}
    assert "model-index" not in str(card)
    assert "was not evaluated" in card.text


@pytest.mark.parametrize("missing", [["scores"], ["pairwise"], ["judge"], ["scores", "pairwise"], []])
def test_missing_metrics_are_left_out(missing: list[str]) -> None:
    metrics = {name: value for name, value in runs_made.METRICS.items() if name not in missing}
    metrics |= {"scores": {"sft": {"mean": 5.0}}} if not missing else {}
    card = ModelCard(_card(evaluations=[_manifest("eval", metrics=metrics)]))
    assert "None" not in card.text
    assert not re.search(r"\bnan\b", card.text)
    assert "( 95" not in card.text
    assert ("was not evaluated" in card.text) is ("scores" in missing)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"scores": None}, "metrics.scores"),
        ({"pairwise": None}, "metrics.pairwise"),
        ({"pairwise": {"dpo_over_sft": {"wins": 3}}}, "metrics.pairwise.dpo_over_sft.win_rate"),
        ({"judge": {}}, "metrics.judge.name"),
        ({"scores": {"dpo": {"mean": 5.0}, "sft": {"mean": None}}}, "metrics.scores.sft.mean"),
    ],
)
def test_broken_metrics_are_refused_by_name(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ZephyrError, match=f"the result of eval cannot be read: {place}"):
        _card(evaluations=[_evaluation(**changes)])


def test_a_judge_of_rules_is_said_to_be_one() -> None:
    by_rules = _card(evaluations=[_evaluation()])
    by_model = _card(evaluations=[_evaluation(judge={"name": "gpt-x", "rule_based": False})])
    assert "`offline`, is a fixed set of rules and not a language model" in by_rules
    assert "rules" not in by_model.partition("## Scores")[2].partition("##")[0]
    assert "`gpt-x`" in by_model


def test_every_number_is_a_manifest_s() -> None:
    """Numbers of the body are those of the manifests, of the template's own text, or names' parts."""
    chain, evaluation = _chain(), _evaluation()
    body = _card(chain, [evaluation]).split("---\n", 2)[2]
    shown = set(re.findall(NUMBER, body.replace("abc123", "")))
    own = {"2310.16944", "1", "10", "95", "64", "0", "2.0", "7"}
    assert shown - own <= _numbers([manifest.model_dump() for manifest in [*chain, evaluation]])


def test_every_number_of_a_benchmark_is_a_manifest_s_the_paper_s_or_their_difference() -> None:
    chain, benchmarked = _chain(), [_mt_bench(), _alpaca_eval()]
    body = _card(chain, benchmarked).split("---\n", 2)[2]
    shown = set(re.findall(NUMBER, body.replace("abc123", "").replace("gpt-4-0613", "")))
    paper = {"7.34", "90.60", f"{7.34 - 6.5:.2f}", f"{90.6 - 85.25:.2f}"}
    own = {"2310.16944", "1", "10", "95", "64", "0", "2.0", "7"}
    assert shown - own - paper <= _numbers([manifest.model_dump() for manifest in [*chain, *benchmarked]])


def _mt_bench() -> Manifest:
    one = {"score": 6.5, "low": 6.1, "high": 6.9, "turn_1": 7.0, "turn_2": 6.0, "categories": {}}
    metrics = {
        "benchmark": "mt-bench",
        "models": {"dpo": {**one, "intervals": {"turn_1": [6.6, 7.4], "turn_2": [5.5, 6.5]}}},
        "judge": {"name": "openai", "models": ["gpt-4-0613"], "rule_based": False},
        "comparability": ["judged with corrected references"],
        "contamination": {"questions": 80, "hits": 2, "searched": ["build"]},
    }
    return _manifest("mt-bench", stage="eval", metrics=metrics)


def _alpaca_eval() -> Manifest:
    one = {"win_rate": 85.25, "low": 83.5, "high": 87.0, "length_controlled": None}
    metrics = {"benchmark": "alpaca-eval", "models": {"dpo": one, "other": one}, "comparability": []}
    return _manifest("alpaca-eval", stage="eval", metrics=metrics)


def test_benchmarks_stand_beside_the_paper_with_what_keeps_them_from_being_compared() -> None:
    card = _card(evaluations=[_evaluation(), _mt_bench(), _alpaca_eval()])
    assert "| score, 1 to 10 | 6.50 | 6.10 to 6.90 | 7.34 | -0.84 |" in card
    assert "| win rate, % | 85.25 | 83.50 to 87.00 | 90.60 | -5.35 |" in card
    assert "Judged by `gpt-4-0613`." in card
    assert "- judged with corrected references" in card
    assert "2 of 80 questions are in the training data (build)" in card.casefold()
    assert "not searched for its questions" in card
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData) and data.eval_results is not None
    results = data.eval_results
    told = {(one.dataset_name, one.metric_name): one.metric_value for one in results}
    assert told["MT-Bench", "MT-Bench, score, 1 to 10"] == 6.5
    assert told["AlpacaEval", "AlpacaEval, win rate, %"] == 85.25


def test_settings_say_whose_they_are() -> None:
    shown = dict(re.findall(r"^\| `((?:sft|dpo)\.\w+)` \|.*\| (.*) \|$", _card(), re.MULTILINE))
    assert shown["dpo.beta"] == "paper"
    assert shown["dpo.learning_rate"] == "paper and handbook"
    assert shown["sft.packing"] == "handbook"
    changed = {"dpo": {**DPO["dpo"], "beta": 0.3}}
    other = _card([*_chain()[:-1], _manifest("dpo", settings=changed)])
    assert "| `dpo.beta` | 0.3 | yours |" in other


def test_settings_and_notes_of_several_lines_keep_to_one() -> None:
    last = _manifest("dpo", settings={"chat_template": "{{ one }}\n{{ two }}\n"}, notes=["It grows\n  look at it"])
    card = _card([*_chain()[:-1], last])
    assert "| `chat_template` | 2 lines, in the manifest |" in card
    assert "- It grows; look at it" in card


def test_what_was_waived_stands_in_the_card() -> None:
    template = templates.read("chat/zephyr.jinja")
    card = render_card("small", _chain(), [], BASE, template, "</s>", waived=["a.bin is a pickle"])
    assert "Published despite these problems:\n\n- a.bin is a pickle" in card
    assert "Published despite" not in _card()


def test_licences_that_clash_are_said() -> None:
    built = _manifest("build", settings={"source": {"kind": "hub", "dataset": "tatsu-lab/alpaca"}})
    card = _card([built, *_chain()[1:]])
    assert "`tatsu-lab/alpaca` is cc-by-nc-4.0, which forbids commercial use" in card
    assert "conflict" not in _card()


def test_curves_are_shown_as_pictures() -> None:
    template = templates.read("chat/zephyr.jinja")
    card = render_card("small", _chain(), [], BASE, template, "</s>", curves=["zephyrctl/dpo/reward-accuracy.svg"])
    assert "![reward accuracy of dpo](zephyrctl/dpo/reward-accuracy.svg)" in card


def _numbers(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_numbers(part) for part in [*value.keys(), *value.values()]))
    if isinstance(value, list):
        return set().union(*(_numbers(part) for part in value))
    if isinstance(value, str):
        return set(re.findall(NUMBER, value))
    if isinstance(value, bool) or value is None:
        return set()
    forms = (
        f"{value:,}",
        f"{value:.6g}",
        f"{value:.2f}",
        f"{value:.0f}",
        f"{100 * value:.1f}",
        f"{value / 3600:.1f}",
    )
    return {*forms, f"{value / 60:.0f}"}


def test_rows_and_dropped_rows_by_cause_are_listed() -> None:
    card = _card()
    assert "dialogues: 19,000 train, 1,000 test; prompts: 6,000 train" in card
    assert "140 tie; 3 no difference \\| same text" in card
    assert "12.50 USD" in card
    assert "| `dpo.beta` | 0.1 |" in card
    assert "| `first_loss` | 0.6931 |" in card


def test_every_table_has_one_width() -> None:
    for card in (_card(), _card(evaluations=[_evaluation()]), _card(_chain()[:2])):
        for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert "\n\n\n" not in card


def test_a_checkpoint_of_sft_alone_is_not_tagged_dpo() -> None:
    card = ModelCard(_card(_chain()[:2]))
    assert _front_matter(card)["tags"] == ["zephyrctl", "trl", "sft", "alignment"]
    assert "dDPO" not in card.text
    assert "prefer" not in card.text


def test_the_chat_template_is_told_in_words() -> None:
    assert "`<|assistant|>`" in _card()
    assert "by the end token `</s>`" in _card()
    other = render_card("small", _chain(), [], BASE, "{{ messages }}")
    assert "<|assistant|>" not in other
    assert "includes the chat template" in other


def test_limits_say_that_safety_is_not_addressed() -> None:
    assert "safety is not addressed" in _card()


def test_a_base_in_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "an-org" / "a-base").mkdir(parents=True)
    for place in (str(tmp_path), "an-org/a-base", "./elsewhere", "a/b/c"):
        assert hub_id_of(runs_made.Base(place)) is None
    assert "base_model" not in front_matter("small", _chain(), None, runs_made.Base(str(tmp_path)))
    assert str(tmp_path) not in render_card("small", _chain(), [], runs_made.Base(str(tmp_path)))
    assert hub_id_of(runs_made.Base("other-org/a-base")) == "other-org/a-base"


def test_published_sets_are_named() -> None:
    source = {"kind": "hub", "dataset": "an-org/chats", "revision": "abc"}
    built = _manifest("build", settings={"source": source})
    rated = _manifest("feedback", settings={"published": "an-org/rated"})
    card = ModelCard(_card([built, rated, *_chain()[3:]]))
    assert _front_matter(card)["datasets"] == ["an-org/chats", "an-org/rated"]
    assert "`an-org/chats` at revision `abc`" in card.text
    assert "`an-org/rated` with no revision pinned" in card.text
