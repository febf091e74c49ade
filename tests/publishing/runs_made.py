"""A small finished run with real artifacts and real safetensors weights, for tests of what is published."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import numpy
from safetensors.numpy import save_file

from zephyrctl import templates
from zephyrctl.contracts import ModelBase, Sizes
from zephyrctl.evaluation.judged_rows import AnswerRow, JudgmentRow
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message, Record, Split
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

SCORES = {
    "base": {"mean": 1.4, "low": 1.25, "high": 1.55, "n": 200},
    "sft": {"mean": 5.875, "low": 5.5, "high": 6.25, "n": 200},
    "dpo": {"mean": 7.125, "low": 6.75, "high": 7.5, "n": 200},
    "dpo_minus_sft": {"mean": 1.25, "low": 1.0, "high": 1.5, "n": 200},
}
PAIRWISE = {"dpo_over_sft": {"win_rate": 0.7125, "low": 0.65, "high": 0.775, "wins": 130, "losses": 45, "draws": 25}}
METRICS = {"scores": SCORES, "pairwise": PAIRWISE, "judge": {"name": "offline", "rule_based": True}}


def make_recipe(**changes: Any) -> Recipe:
    """A recipe of few values, all of the run's own."""
    training = {"learning_rate": 5e-4, "schedule": "cosine", "epochs": 1, "global_batch": 8, "micro_batch": 8}
    values: dict[str, Any] = {
        "name": "small",
        "base": {"name": "huggingface", "options": {"model": "an-org/a-base"}},
        "build": {"source": {"kind": "files", "paths": ["dialogues.jsonl"]}},
        "feedback": {"completers": [{"name": "offline"}], "rater": {"name": "offline"}},
        "sft": {**training, "max_length": 64},
        "dpo": {**training, "max_length": 64, "beta": 0.1},
        "checkpoints": {"sft": {"stage": "sft"}, "dpo": {"stage": "dpo", "start": "sft"}},
        "eval": {"judge": {"name": "offline"}},
    }
    return Recipe.model_validate({**values, **changes})


class Row(Record):
    """A row; what is published counts rows and reads none."""

    id: str


class Base(ModelBase):
    """A base of which a push asks only the place, the revision and the licence."""

    name = "a-base"

    def location(self) -> str:
        """As given."""
        return str(self.options)

    def sizes(self) -> Sizes:
        """Nobody asks."""
        raise NotImplementedError

    @property
    def revision(self) -> str:
        """A pinned one."""
        return "abc123"

    @property
    def license(self) -> str:
        """A licence that the Hub knows."""
        return "apache-2.0"


def make_run(path: Path, metrics: dict[str, Any] | None = METRICS) -> Run:
    """A run from build to dpo, and eval unless its metrics are None."""
    run = Run(path)
    build = make_build(run)
    feedback = make_artifact(run, "feedback", {"build": build}, _rows("rated", 3), losses={"no parsable rating": 2})
    pairs = make_artifact(
        run, "binarize", {"feedback": feedback}, _rows("pairs", 1200), losses={"tie": 3, "empty | blank": 1}
    )
    sft = make_checkpoint(run, "sft", {"build": build}, {"sft.learning_rate": 5e-4}, {"steps": 31, "loss": 0.75})
    measured = {"first_loss": 0.6931, "reward_accuracy": 0.95, "steps": 1200}
    dpo = make_checkpoint(run, "dpo", {"sft": sft, "pairs": pairs}, {"dpo": {"beta": 0.1, "loss": "sigmoid"}}, measured)
    if metrics is not None:
        make_evaluation(run, {"sft": sft, "dpo": dpo}, metrics)
    return run


def make_build(run: Run, dialogues: int = 4) -> Artifact:
    """The first artifact; another count of dialogues makes another content."""
    return make_artifact(run, "build", {}, lambda draft: _write_dialogues(draft, dialogues), losses={"duplicate": 5})


def make_checkpoint(
    run: Run,
    stage: str,
    inputs: dict[str, Artifact],
    settings: dict[str, Any],
    metrics: dict[str, Any],
    seed: int = 0,
) -> Artifact:
    """A checkpoint with a `model/` folder."""
    return make_artifact(run, stage, inputs, lambda draft: write_model(draft, seed), settings=settings, metrics=metrics)


def make_evaluation(run: Run, inputs: dict[str, Artifact], metrics: dict[str, Any]) -> Artifact:
    """An evaluation of checkpoints."""
    note = "The prompts were held out of all training."
    return make_artifact(run, "eval", inputs, lambda draft: None, metrics=metrics, notes=[note])


def make_artifact(
    run: Run,
    stage: str,
    inputs: dict[str, Artifact],
    write: Callable[[Draft], None],
    settings: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    losses: dict[str, int] | None = None,
    notes: list[str] | None = None,
) -> Artifact:
    """A finished artifact of a stage."""
    hashes = {name: artifact.content_hash for name, artifact in inputs.items()}
    plan = Plan(name=stage, stage=stage, settings=settings or {}, inputs=hashes)
    with run.draft(plan, {name: artifact.path for name, artifact in inputs.items()}, {}) as draft:
        write(draft)
        draft.metrics, draft.dropped, draft.notes = metrics or {}, losses or {}, notes or []
        return draft.finish()


def _write_dialogues(draft: Draft, count: int) -> None:
    _write_rows(draft, "dialogues", "train", count)
    _write_rows(draft, "dialogues", "test", 1)
    _write_rows(draft, "prompts", "train", 2)


def _rows(rows: str, count: int) -> Callable[[Draft], None]:
    return lambda draft: _write_rows(draft, rows, "train", count)


def _write_rows(draft: Draft, rows: str, split: Split, count: int) -> None:
    draft.write(rows, split, [Row(id=str(number)) for number in range(count)], Row)


def write_model(draft: Draft, seed: int) -> None:
    """A model's folder with random weights."""
    folder = draft.path / "model"
    folder.mkdir()
    weights = numpy.random.default_rng(seed).standard_normal((64, 64)).astype("float32")
    save_file({"model.embed_tokens.weight": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 64}))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (folder / "chat_template.jinja").write_text(templates.read("chat/zephyr.jinja"))


CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"> & <b>bold</b>"
FIXTURE_JUDGE = {"name": "remote", "models": ["a-judge-0613"], "rule_based": False}


def make_benchmarks(run: Run, models: Sequence[str], questions: int = 80) -> list[Artifact]:
    """All four public benchmarks with these models, as `zephyrctl eval` writes them."""
    return [
        make_mt_bench(run, models, questions),
        make_alpaca_eval(run, models, questions),
        make_open_llm(run, models),
        make_arena(run, models),
    ]


def make_mt_bench(
    run: Run, models: Sequence[str], questions: int = 80, changes: dict[str, Any] | None = None
) -> Artifact:
    """MT-Bench: one question in 16 has a hostile answer, and the first model has no score in coding."""
    rated = [row for place, model in enumerate(models) for row in _rated(model, place, questions)]
    metrics = {
        "benchmark": "mt-bench",
        "models": {model: _mt_bench_scores([row for row in rated if row.model == model]) for model in models},
        "judge": FIXTURE_JUDGE,
        "judge_quality": {"repeats": {"answers": 40, "all_equal": 0.5, "equal": 0.55, "mean_gap": 0.4}},
        "comparability": [
            "the judge was a-judge-0613, and not gpt-4 of June 2023",
            "13 references are corrected ones",
        ],
        "contamination": {"questions": questions, "hits": 2, "rows": 31, "searched": ["build", "binarize"]},
    }
    if len(models) > 1:
        paired = {"mean": 0.42, "low": -0.05, "high": 0.89, "n": questions, "p": 0.081}
        metrics["differences"] = {f"{models[-1]}_minus_{models[-2]}": paired}

    def write(draft: Draft) -> None:
        draft.write("answers", "test", [row for model in models for row in _answered(model, questions)], AnswerRow)
        draft.write("judgments", "test", rated, JudgmentRow)

    return make_evaluated(run, "mt-bench", write, {**metrics, **(changes or {})})


def make_alpaca_eval(
    run: Run, models: Sequence[str], questions: int = 80, changes: dict[str, Any] | None = None
) -> Artifact:
    """AlpacaEval with the reference's answers as rows; the first model has no length-controlled rate."""
    reference = "the-reference"
    rows = [row for place, model in enumerate(models) for row in _preferred(model, reference, place, questions)]
    found = {
        model: _win_rates([row for row in rows if row.model == model], 300 + 40 * place)
        for place, model in enumerate(models)
    }
    found[models[0]] |= {"length_controlled": None, "length_controlled_low": None, "length_controlled_high": None}
    metrics = {"benchmark": "alpaca-eval", "models": found, "reference": reference, "judge": FIXTURE_JUDGE}
    metrics |= {"comparability": [], "contamination": {"questions": questions, "hits": 0, "rows": 0, "searched": []}}

    def write(draft: Draft) -> None:
        answered = [row for model in (*models, reference) for row in _answered(model, questions, turns=1)]
        draft.write("answers", "test", answered, AnswerRow)
        draft.write("judgments", "test", rows, JudgmentRow)

    return make_evaluated(run, "alpaca-eval", write, {**metrics, **(changes or {})})


def make_open_llm(run: Run, models: Sequence[str], changes: dict[str, Any] | None = None) -> Artifact:
    """Leaderboard tasks without answers; the first model has no TruthfulQA."""
    found: dict[str, Any] = {}
    for place, model in enumerate(models):
        base = 35.0 + 25 * place / len(models)
        figures = {
            "arc": base,
            "hellaswag": base + 20,
            "mmlu": base - 2,
            "mmlu_by_size": base - 3,
            "truthfulqa": base - 5,
        }
        if not place:
            figures["truthfulqa"] = None  # type: ignore[assignment]
        reach = {name: [value - 1.4, value + 1.4] for name, value in figures.items() if value is not None}
        found[model] = {**figures, "standard_errors": dict.fromkeys(reach, 0.7), "intervals": reach}
        found[model] |= {"n": {"arc": 1172}, "warnings": [] if place else ["truthfulqa was not run"]}
    metrics = {"benchmark": "open-llm", "models": found, "comparability": ["lm-eval 0.4.13, and not the leaderboard's"]}
    return make_evaluated(run, "open-llm", lambda draft: None, {**metrics, **(changes or {})})


def make_arena(run: Run, models: Sequence[str], changes: dict[str, Any] | None = None) -> Artifact:
    """Ratings of models laid side by side, every match on record once, in both orders."""
    ratings = {
        model: {"rating": 900 + 200 * place / len(models), "low": 860 + 200 * place / len(models)}
        | {"high": 940 + 200 * place / len(models), "wins": 20, "losses": 10, "draws": 10, "n": 40}
        for place, model in enumerate(models)
    }
    matches, rows = {}, []
    for place, left in enumerate(models):
        for right in models[place + 1 :]:
            matches[f"{right}_over_{left}"] = {
                "win_rate": 0.65,
                "low": 0.5,
                "high": 0.8,
                "wins": 11,
                "losses": 5,
                "draws": 4,
            }
            for question in range(4):
                for swapped in (False, True):
                    rows.append(
                        JudgmentRow(
                            model=right,
                            question=f"arena {question}",
                            category="",
                            turn=1,
                            score=(1.0, 0.5, 0.0, None)[(question + swapped) % 4],
                            judge="a-judge-0613",
                            text="The second one says more.",
                            opponent=left,
                            is_swapped=swapped,
                        )
                    )
    metrics = {
        "benchmark": "arena",
        "ratings": ratings,
        "matches": matches,
        "judge": {"name": "offline", "rule_based": True},
    }

    def write(draft: Draft) -> None:
        draft.write(
            "answers", "test", [row for model in models for row in _answered(model, 4, turns=1, of="arena ")], AnswerRow
        )
        draft.write("judgments", "test", rows, JudgmentRow)

    return make_evaluated(run, "arena", write, {**metrics, "comparability": [], **(changes or {})})


def make_evaluated(run: Run, name: str, write: Callable[[Draft], None], metrics: dict[str, Any]) -> Artifact:
    """A finished evaluation on a public benchmark."""
    with run.draft(Plan(name=name, stage="eval", settings={}, inputs={}), {}, {}) as draft:
        write(draft)
        draft.metrics = metrics
        return draft.finish()


def _answered(model: str, questions: int, turns: int = 2, of: str = "") -> Iterator[AnswerRow]:
    for number in range(questions):
        asked = [Message(role="user", content=f"What does a {CATEGORIES[number % 8]} of kind {number} look like?")]
        for turn in range(1, turns + 1):
            length = 1 + (number * 7 + len(model)) % 23
            answer = HOSTILE if number % 16 == 3 else f"As {model} sees it, it has {number} sides and a lid. " * length
            yield AnswerRow(
                model=model,
                question=f"{of}{number}" if of else str(81 + number),
                category="" if of else CATEGORIES[number // 10 % 8],
                turn=turn,
                messages=asked,
                answer=answer,
                finish_reason="length" if number % 11 == 5 else "stop",
            )
            asked = [
                *asked,
                Message(role="assistant", content=answer),
                Message(role="user", content="And without the lid?"),
            ]


def _rated(model: str, place: int, questions: int) -> Iterator[JudgmentRow]:
    random = Random(model)
    for number in range(questions):
        for turn in (1, 2):
            score = min(10.0, max(1.0, round(random.gauss(4.0 + 3 * place / 12 + (number // 10 % 8) * 0.35, 1.5))))
            is_lost = (place == 0 and number // 10 % 8 == 4) or (number == 7 and turn == 2)
            yield JudgmentRow(
                model=model,
                question=str(81 + number),
                category=CATEGORIES[number // 10 % 8],
                turn=turn,
                score=None if is_lost else score,
                cause="no rating in the judge's words" if is_lost else "",
                judge="a-judge-0613",
                prompt="single-v1",
                text=f"The answer names the sides and stops there. {HOSTILE} " * 3 + f"Rating: [[{score:.0f}]]",
            )


def _mt_bench_scores(rows: Sequence[JudgmentRow]) -> dict[str, Any]:
    def mean(found: Sequence[JudgmentRow]) -> float | None:
        scores = [row.score for row in found if row.score is not None]
        return fmean(scores) if scores else None

    by_category = {}
    for category in CATEGORIES:
        score = mean([row for row in rows if row.category == category])
        low, high = (None, None) if score is None else (score - 0.8, min(10.0, score + 0.8))
        by_category[category] = {"score": score, "low": low, "high": high, "rated": 20}
    score = mean(rows)
    assert score is not None
    lost = sum(row.score is None for row in rows)
    counts = {"rated": len(rows) - lost, "unparsed": lost, "duplicates": 0, "out_of_range": 0, "missing": 0}
    turns = {f"turn_{turn}": mean([row for row in rows if row.turn == turn]) for turn in (1, 2)}
    return {"score": score, "low": score - 0.3, "high": score + 0.3, **turns, **counts, "categories": by_category}


def _preferred(model: str, reference: str, place: int, questions: int) -> Iterator[JudgmentRow]:
    random = Random(f"preferred {model}")
    for number in range(questions):
        yield JudgmentRow(
            model=model,
            question=str(81 + number),
            category=CATEGORIES[number // 10 % 8],
            turn=1,
            score=1.0 if random.random() < 0.3 + 0.05 * place else 0.0,
            judge="a-judge-0613",
            text="[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]",
            opponent=reference,
            is_swapped=number % 2 == 1,
        )


def _win_rates(rows: Sequence[JudgmentRow], length: int) -> dict[str, Any]:
    scores = [row.score for row in rows if row.score is not None]
    rate = 100 * fmean(scores)
    error = 100 * stdev(scores) / len(scores) ** 0.5
    wins = sum(score == 1 for score in scores)
    return {
        "win_rate": rate,
        "standard_error": error,
        "low": max(0.0, rate - 1.96 * error),
        "high": min(100.0, rate + 1.96 * error),
        "n": len(scores),
        "wins": wins,
        "losses": len(scores) - wins,
        "draws": 0,
        "missing": 0,
        "length_controlled": 0.9 * rate,
        "length_controlled_low": 0.9 * rate - 2 * error,
        "length_controlled_high": 0.9 * rate + 2 * error,
        "length_controlled_by": "a logistic regression",
        "mean_length": length,
        "reference_length": 395.0,
        "categories": {"a-data-set": {"win_rate": rate, "low": rate - 9, "high": rate + 9, "n": len(scores)}},
    }
