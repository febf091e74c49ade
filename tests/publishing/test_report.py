"""The report: one well-formed file that needs nothing beside it and says where each number came from."""

import json
import math
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.publishing import charts
from zephyrctl.publishing.report import render_report, write_report
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message, Record, Split, prompt_id
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
NASTY = "<script>alert('x')</script> & \"quotes\""
QUESTIONS = (
    "Which of these is larger: 17 or 71? Answer with the number first.",
    "Write two sentences that thank a neighbour for watering the plants.",
    "Turn this list into one sentence: apples, bread, a dozen eggs.",
    "Name three things that one packs for a walk in the rain.",
)


class Row(Record):
    """Enough of a row to be counted."""

    id: str


class Page(HTMLParser):
    """Checks that tags are balanced while it collects ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute stands twice in <{tag}>"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                self.references.append((name, value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "walk")


def whole_run(path: Path) -> Run:
    """A run with all six artifacts."""
    run = Run(path)
    data = make_data(run)
    sft = make_sft(run, "sft", data["build"])
    dpo = make_dpo(run, "dpo", [data["binarize"], sft])
    make_eval(run, {"base": 1.0, "sft": 5.62, "dpo": 7.93}, [("dpo", "sft")], [data["build"], sft, dpo])
    return run


def ablation_run(path: Path) -> tuple[Run, Recipe]:
    """The paper's Table 3 in small: four checkpoints, and the recipe that carries the paper's figures."""
    run = Run(path)
    data = make_data(run)
    first = make_sft(run, "dsft-1", data["build"])
    second = make_sft(run, "dsft-2", data["binarize"])
    alone = make_dpo(run, "ddpo", [data["binarize"]])
    both = make_dpo(run, "ddpo-dsft", [data["binarize"], first])
    means = {"base": 1.0, "ddpo": 1.31, "dsft-1": 5.62, "dsft-2": 6.05, "ddpo-dsft": 7.93}
    pairs = [("ddpo-dsft", "dsft-1"), ("dsft-2", "dsft-1"), ("ddpo", "base")]
    make_eval(run, means, pairs, [data["build"], first, second, alone, both])
    return run, recipe()


def recipe() -> Recipe:
    teacher = {"name": "offline"}
    source = {
        "kind": "self-instruct",
        "teacher": teacher,
        "seeds": "tiny-world",
        "dialogues": 10,
        "prompts": 10,
    }
    training = {
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "epochs": 1,
        "global_batch": 8,
        "micro_batch": 8,
        "max_length": 64,
    }
    return Recipe.model_validate(
        {
            "name": "ablation-tiny",
            "description": "Table 3 of the paper on a model of a few million parameters.",
            "base": {"name": "tiny-mistral"},
            "build": {"source": source},
            "feedback": {},
            "sft": training,
            "dpo": {**training, "beta": 0.1},
            "checkpoints": {
                "ddpo": {
                    "stage": "dpo",
                    "label": "dDPO - dSFT",
                    "published": {"mt_bench": 4.76, "alpaca_eval": 30.76},
                },
                "dsft-1": {
                    "stage": "sft",
                    "label": "dSFT-1",
                    "published": {"mt_bench": 6.64, "alpaca_eval": 85.65},
                },
                "dsft-2": {
                    "stage": "sft",
                    "start": "dsft-1",
                    "label": "dSFT-2",
                    "published": {"mt_bench": 6.19, "alpaca_eval": 78.54},
                },
                "ddpo-dsft": {
                    "stage": "dpo",
                    "start": "dsft-1",
                    "label": "dDPO + dSFT",
                    "published": {"mt_bench": 7.0, "alpaca_eval": 86.07},
                },
            },
            "eval": {"judge": teacher},
        }
    )


def begin(
    run: Run, name: str, stage: str, inputs: Iterable[Artifact] = (), settings: dict[str, Any] | None = None
) -> Draft:
    made_from = list(inputs)
    plan = Plan(
        name=name,
        stage=stage,
        settings=settings or {"seed": 0},
        inputs={one.manifest.plan.name: one.content_hash for one in made_from},
    )
    draft = run.draft(plan, {one.manifest.plan.name: one.path for one in made_from}, {"zephyrctl": "0.1.0"})
    draft._started -= 20 + len(name)
    return draft


def make_data(run: Run) -> dict[str, Artifact]:
    source = {"kind": "self-instruct", "teacher": {"name": "offline"}, "dialogues": 950}
    with begin(run, "build", "build", settings={"source": source, "test_share": 0.05, "seed": 0}) as draft:
        write_rows(draft, "dialogues", train=950, test=50)
        write_rows(draft, "prompts", train=1200, test=200)
        draft.drop("exact duplicate", 37)
        draft.drop("refusal of the teacher", 4)
        build = draft.finish()
    with begin(run, "feedback", "feedback", [build]) as draft:
        write_rows(draft, "rated", train=1193, test=200)
        draft.drop("rating could not be read", 7)
        feedback = draft.finish()
    with begin(run, "binarize", "binarize", [feedback], {"strategy": "random-rejected", "seed": 0}) as draft:
        write_rows(draft, "pairs", train=1010, test=160)
        draft.drop("tie: no answer is better", 223)
        return {"build": build, "feedback": feedback, "binarize": draft.finish()}


def write_rows(draft: Draft, table: str, **counts: int) -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        draft.write(table, split, (Row(id=f"{split}-{n}") for n in range(counts[split])), Row)


def make_sft(run: Run, name: str, data: Artifact, steps: int = 240) -> Artifact:
    random = Random(name)
    lines: list[dict[str, float]] = []
    for step in range(10, steps + 1, 10):
        rate = 1e-3 * min(step / 24, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = 0.9 + 3.2 * math.exp(-step / 60) + random.gauss(0, 0.04)
        lines.append({"step": step, "epoch": step / steps, "loss": loss, "learning_rate": rate})
        if step % 60 == 0:
            lines.append({"step": step, "eval_loss": loss + 0.08})
    settings = {
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "epochs": 1,
        "global_batch": 8,
        "packing": "none",
    }
    with begin(run, name, "sft", [data], {"sft": settings, "seed": 0}) as draft:
        write_log(draft, lines)
        draft.metrics = {"steps": steps, "train_loss": 1.4321, "eval_loss": lines[-1]["eval_loss"]}
        return draft.finish()


def make_dpo(
    run: Run,
    name: str,
    inputs: list[Artifact],
    steps: int = 380,
    first_loss: float = 0.693147,
    epochs: float = 3,
    start: str | None = None,
) -> Artifact:
    random = Random(name)
    lines: list[dict[str, float]] = []
    for step in [1, *range(10, steps + 1, 10)]:
        done = 1 - math.exp(-step / 90)
        margin = 3.1 * done + random.gauss(0, 0.08)
        rewards = {"chosen": 0.6 * done, "rejected": 0.6 * done - margin, "margins": margin}
        rewards["accuracies"] = min(1.0, 0.5 + 0.47 * done + random.gauss(0, 0.02))
        loss = first_loss if step == 1 else math.log1p(math.exp(-margin)) + random.gauss(0, 0.01)
        rate = 1e-5 * (1 - step / steps)
        line = {"step": step, "epoch": epochs * step / steps, "loss": loss, "learning_rate": rate}
        lines.append(line | {f"rewards/{key}": value for key, value in rewards.items()})
        if step % 95 == 0:
            lines.append(
                {
                    "step": step,
                    "eval_loss": loss + 0.05,
                    "eval_rewards/accuracies": 0.93,
                    "eval_rewards/margins": margin - 0.2,
                }
            )
    settings = {
        "beta": 0.1,
        "loss": "sigmoid",
        "learning_rate": 1e-5,
        "schedule": "linear",
        "epochs": epochs,
        "global_batch": 8,
    }
    begun = {"start": start} if start else {}
    with begin(run, name, "dpo", inputs, {"dpo": settings, "seed": 0, **begun}) as draft:
        write_log(draft, lines)
        draft.metrics = {
            "first_loss": first_loss,
            "reward_accuracy": 0.95,
            "steps": steps,
            "train_loss": 0.2153,
        }
        draft.drop("completion tokens beyond max_length", 11)
        return draft.finish()


def write_log(draft: Draft, lines: list[dict[str, float]]) -> None:
    (draft.path / "model").mkdir()
    (draft.path / "model" / "config.json").write_text("{}")
    (draft.path / "model" / "model.safetensors").write_bytes(b"0" * 5_200_000)
    (draft.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_eval(
    run: Run,
    means: dict[str, float],
    pairs: list[tuple[str, str]],
    inputs: list[Artifact],
    is_rule_based: bool = True,
) -> Artifact:
    scores = {
        key: {"mean": mean, "low": max(1.0, mean - 0.21), "high": mean + 0.21, "n": 200} for key, mean in means.items()
    }
    for left, right in pairs:
        gap = means[left] - means[right]
        scores[f"{left}_minus_{right}"] = {"mean": gap, "low": gap - 0.26, "high": gap + 0.26, "n": 200}
    wins = {"win_rate": 0.805, "low": 0.749, "high": 0.861, "wins": 152, "losses": 30, "draws": 18}
    with begin(run, "eval", "eval", inputs, {"judge": {"name": "offline"}, "prompts": 200}) as draft:
        judged = list(judged_answers(means))
        draft.write("answers", "test", [answer for answer, _ in judged], AnswerRow)
        draft.write("judgments", "test", [judgment for _, judgment in judged], JudgmentRow)
        draft.metrics = {
            "scores": scores,
            "pairwise": {f"{left}_over_{right}": wins for left, right in pairs},
            "judge": {"name": "offline", "rule_based": is_rule_based},
            "unparsed": 2,
        }
        return draft.finish()


def judged_answers(means: dict[str, float]) -> Iterable[tuple[AnswerRow, JudgmentRow]]:
    for question in QUESTIONS:
        for checkpoint, mean in means.items():
            answer = (
                "the the of of and of"
                if mean < 2
                else f"As asked: {question.split(':')[0].lower()}. " * (1 + int(mean > 6))
            )
            asked = [Message(role="user", content=question)]
            row: dict[str, Any] = {"model": checkpoint, "question": prompt_id(question)}
            reason = "follows the request" if mean > 2 else "not a sentence"
            yield (
                AnswerRow(**row, turn=1, messages=asked, answer=answer),
                JudgmentRow(**row, turn=1, score=round(mean), text=reason, judge="offline"),
            )
            if question == QUESTIONS[0]:
                asked = [
                    *asked,
                    Message(role="assistant", content=answer),
                    Message(role="user", content="And the smaller one?"),
                ]
                yield (
                    AnswerRow(**row, turn=2, messages=asked, answer=NASTY),
                    JudgmentRow(**row, turn=2, score=None, judge="offline"),
                )


def test_is_well_formed_and_needs_nothing_beside_it(run: Run) -> None:
    html = render_report(run, None)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(page.ids) == len(set(page.ids))
    assert {value for name, value in page.references if name != "href"} == set()
    assert all(value.startswith("#") for _, value in page.references)
    assert {value.removeprefix("#") for _, value in page.references} <= set(page.ids)
    assert not re.search(r"https?://|@import|url\(", html)
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_drawings_and_tables_say_what_they_show(run: Run) -> None:
    page = Page(render_report(run, None))
    named = {
        attributes.get("aria-labelledby") for tag, attributes in page.tags if tag == "svg" and "role" in attributes
    }
    assert named and all(set(str(ids).split()) <= set(page.ids) for ids in named)
    assert all("aria-hidden" in attributes or "role" in attributes for tag, attributes in page.tags if tag == "svg")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") > 0
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert tags.count("h1") == 1


def test_shows_every_score_and_names_the_judge_as_a_rule(run: Run) -> None:
    page = Page(render_report(run, None))
    for shown in (
        "1.00",
        "5.62 [5.41, 5.83]",
        "7.93 [7.72, 8.14]",
        "+2.31 [2.05, 2.57]",
        "80.5 % [74.9, 86.1]",
        "152 wins",
    ):
        assert shown in page.text
    assert (
        "dDPO raised the rule-based judge’s score by 2.31 [2.05, 2.57] over dSFT on 200 held-out prompts." in page.text
    )
    assert page.text.count("rule-based judge offline") >= 4
    assert "2 judgments could not be read" in page.text


def test_a_language_model_that_judges_is_not_called_a_rule(tmp_path: Path) -> None:
    run = Run(tmp_path)
    make_eval(run, {"sft": 5.0, "dpo": 5.0}, [("dpo", "sft")], [], is_rule_based=False)
    text = Page(render_report(run, None)).text
    assert "ule-based" not in text
    assert "cannot be told apart" in text and "differs by 0.00 [−0.26, +0.26]" in text


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    run = Run(tmp_path)
    make_eval(run, {"sft": 6.0, "dpo": 5.0}, [("dpo", "sft")], [])
    assert (
        "dDPO lowered the rule-based judge’s score by 1.00 [0.74, 1.26] against dSFT"
        in Page(render_report(run, None)).text
    )


def test_scores_link_to_their_artifact(run: Run) -> None:
    html = render_report(run, None)
    for number in ("5.62", "7.93"):
        assert f'<a href="#artifact-eval">{number}</a>' in html
    assert 'id="artifact-eval"' in html


def test_what_a_model_says_is_escaped(run: Run) -> None:
    html = render_report(run, None)
    assert NASTY in " ".join(Page(html).words)
    assert html.count("<script") == html.count("</script") == 1


def test_shows_the_first_dpo_loss_beside_ln_2(run: Run) -> None:
    text = Page(render_report(run, None)).text
    assert "First loss 0.6931, expected ln 2 = 0.6931: equal within 0.0001" in text


def test_a_first_loss_that_is_not_ln_2_stands_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    make_dpo(run, "dpo", [], first_loss=0.7421)
    html = render_report(run, None)
    assert "did not start as the same model" in html and "is-wrong" in html


def test_losses_come_with_rows_in_and_out(run: Run) -> None:
    text = Page(render_report(run, None)).text
    assert "223 tie: no answer is better" in text
    assert "rated: 1,193 train, 200 test" in text and "pairs: 1,010 train, 160 test" in text


def test_the_papers_figures_are_marked_and_only_their_order_compared(tmp_path: Path) -> None:
    run, loaded = ablation_run(tmp_path / "table-3")
    text = Page(render_report(run, loaded)).text
    assert "dDPO + dSFT raised" in text and "over dSFT-1" in text
    for shown in ("paper, 7B MT-Bench", "86.07", "6.19", "compare the order of the checkpoints, not the numbers"):
        assert shown in text
    assert "MT-Bench: 5 of 6 pairs in the paper’s order; AlpacaEval: 5 of 6" in text


@pytest.mark.parametrize("stages", range(1, 6))
def test_a_run_with_only_some_stages_says_what_is_missing(tmp_path: Path, stages: int) -> None:
    run = whole_run(tmp_path / "part")
    names = ("build", "feedback", "binarize", "sft", "dpo", "eval")
    for name in names[stages:]:
        (run.path / name / "manifest.json").unlink()
    text = Page(render_report(run, None)).text
    assert f"Still missing: {', '.join(names[stages:])}." in text
    assert "Nothing has been judged yet" in text and "There are no judged answers to show" in text


def test_a_run_without_stages_has_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError, match="has nothing to report yet") as caught:
        render_report(Run(tmp_path / "none"), None)
    assert caught.value.remedy.startswith("zephyrctl run")


def test_an_input_that_was_made_anew_is_pointed_out(run: Run) -> None:
    assert "Out of date" not in render_report(run, None)
    build = run.artifact("build")
    assert build
    make_sft(run, "sft", build, steps=120)
    text = Page(render_report(run, None)).text
    assert "dpo was made from an earlier sft" in text and "rebuilt since" in text


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with begin(run, "sft", "sft") as draft:
        write_log(draft, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 2.0}])
        draft.metrics = {"train_loss": math.nan}
        draft.finish()
    html = render_report(run, None)
    Page(html)
    assert "Training: 2 at step 2." in html


def test_a_damaged_log_is_named_with_its_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with begin(run, "sft", "sft") as draft:
        (draft.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n')
        draft.finish()
    with pytest.raises(ZephyrError, match=r"metrics\.jsonl:2"):
        render_report(run, None)


def test_is_written_whole_and_the_same_each_time(run: Run) -> None:
    path = write_report(run, None)
    assert path == run.path / "report.html"
    first = path.read_text(encoding="utf-8")
    assert write_report(run, None).read_text(encoding="utf-8") == first == render_report(run, None)
    assert not list(run.path.glob(".report*"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0, 0.0), (-3.2, 7.9), (5e-7, 2e-5), (1, 61135), (0.69, 0.69)])
def test_ticks_are_round_and_cover_their_range(low: float, high: float) -> None:
    marks = charts.round_numbers(low, high)
    assert marks[0] <= low and marks[-1] >= high - 1e-9 * max(1.0, high) and 2 <= len(marks) <= 8
    labels = [label for _, label in charts.labelled(marks)]
    assert len(set(labels)) == len(labels)


def test_charts_stay_inside_their_box() -> None:
    points = [(float(step), math.sin(step)) for step in range(5000)]
    chart = charts.line_chart("c", "C", [charts.Series("training", "sft", points)])
    assert chart
    places = [tuple(map(float, pair.split(","))) for pair in chart.lines[0].path[1:].split(" L")]
    assert len(places) <= charts.MOST_POINTS + 1
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in places)
