"""Whether metrics become the right sentences: each said once, with its numbers, and none where all is well."""

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from zephyrctl import plugins
from zephyrctl.training.diagnostics import LENGTH_CORRELATION, RULES, Interpreter, TrainingFacts, not_finite
from zephyrctl.training.kinds import KINDS
from zephyrctl.training.losses import LossSettings

Stage = Literal["sft", "dpo"]

RECORDED = Path(__file__).parent / "recorded"
"""Metrics of real trainings of `tiny`: dDPO over three epochs (`dpo.epochs=3 dpo.log_every=2`), dDPO at 25 times its
rate and at next to none (`dpo.learning_rate=5e-3` and `1e-9`, `dpo.log_every=1`), and dSFT as it ships."""

Curve = Callable[[float], float]
"""A metric over the share of the run that is done."""
STEPS = 1000


def rate(share: float) -> float:
    """A linear schedule after a warm-up of a tenth."""
    return 5e-7 * min(share / 0.1, (1 - share) / 0.9)


HEALTHY: dict[str, dict[str, Curve]] = {
    "dpo": {
        "loss": lambda share: 0.693 - 0.25 * share,
        "grad_norm": lambda share: 20.0,
        "learning_rate": rate,
        "entropy": lambda share: 1.0 - 0.1 * share,
        "rewards/chosen": lambda share: -1.0 * share,
        "rewards/rejected": lambda share: -2.4 * share,
        "rewards/margins": lambda share: 1.4 * share,
        "rewards/accuracies": lambda share: 0.5 + 0.3 * share,
        "logps/chosen": lambda share: -250.0 - 10 * share,
        "logps/rejected": lambda share: -240.0 - 24 * share,
        LENGTH_CORRELATION: lambda share: 0.15,
    },
    "sft": {
        "loss": lambda share: 0.94 + 0.2 * math.exp(-10 * share),
        "grad_norm": lambda share: 1.5,
        "learning_rate": rate,
        "entropy": lambda share: 1.0,
        "mean_token_accuracy": lambda share: 0.75,
    },
}
"""Curves like those of the published recipes at a beta of 0.1: a training of which there is nothing to say."""
NOISE = {"loss": 0.02, "rewards/accuracies": 0.025, LENGTH_CORRELATION: 0.06}
"""Standard deviations of a line of 10 steps of 32 pairs."""


def lines(
    stage: str, every: int = 10, seed: int = 0, epochs: float = 1.0, **changes: Curve
) -> Iterator[dict[str, Any]]:
    """The lines that a training logs: its first step, then every so many; `changes` replace healthy curves."""
    normal = random.Random(seed).gauss
    spread = {name: deviation * math.sqrt(10 / every) for name, deviation in NOISE.items()}
    curves = HEALTHY[stage] | {name.replace("__", "/"): curve for name, curve in changes.items()}
    for step in [1, *range(max(every, 2), STEPS + 1, every)]:
        share = step / STEPS
        values = {name: curve(share) + normal(0, spread.get(name, 0.0)) for name, curve in curves.items()}
        yield {"step": step, "epoch": epochs * share, **values}
    yield {"step": STEPS, "train_runtime": 1.0, "train_loss": 0.5, "rewards/chosen": -100.0, "epoch": epochs}


def interpreter(stage: Stage, **known: Any) -> Interpreter:
    """One for the runs that `lines` makes."""
    facts = TrainingFacts(kind=KINDS[stage], steps=STEPS, warmup_steps=STEPS // 10, rows_per_step=32)
    return Interpreter(with_loss(facts, **known))


def with_loss(facts: TrainingFacts, loss: str = "sigmoid") -> TrainingFacts:
    """The facts of a run with Zephyr's beta; dSFT has no preference loss."""
    if facts.kind.rows == "dialogues":
        return facts
    return facts.with_loss(plugins.load().loss(loss, {}), LossSettings(0.1))


def said(stage: Stage, loss_type: str = "sigmoid", **made: Any) -> list[str]:
    """Everything that is said of a run."""
    reader = interpreter(stage, loss=loss_type)
    return [sentence for line in lines(stage, **made) for sentence in reader.read(line)]


def before(share: float, first: float, then: float) -> Curve:
    """A curve that jumps."""
    return lambda done: first if done < share else then


CASES: list[tuple[str, Stage, dict[str, Any], list[str]]] = [
    ("_is_not_finite", "dpo", {"loss": before(0.5, 0.6, math.nan)}, ["step 500:", "loss is nan", "dpo.learning_rate"]),
    ("_is_not_finite", "sft", {"grad_norm": before(0.5, 1.0, math.inf)}, ["grad_norm is inf", "sft.learning_rate"]),
    ("_gradient_is_zero", "dpo", {"grad_norm": before(0.5, 9.0, 0.0)}, ["step 520:", "480 steps to go"]),
    ("_gradient_is_zero", "sft", {"grad_norm": lambda share: 1e-9}, ["step 20:", "980 steps to go"]),
    ("_lr_is_zero", "sft", {"learning_rate": before(0.6, 2e-5, 0.0)}, ["step 600:", "400 of 1000", "2e-05"]),
    ("_lr_is_zero", "dpo", {"learning_rate": lambda share: 0.0}, ["the learning rate is 0"]),
    ("_loss_rises", "sft", {"loss": lambda share: 1.1 if share < 0.1 else 0.95 + share / 2}, ["rising", "1.0"]),
    ("_loss_rises", "dpo", {"loss": before(0.4, 0.65, 1.5)}, ["rising", "0.6"]),
    ("_loss_does_not_fall", "sft", {"loss": lambda share: 1.1}, ["20%", "1.1", "sft.learning_rate"]),
    ("_loss_is_near_zero", "sft", {"loss": lambda share: max(0.05, 1.1 - 3 * share)}, ["near zero", "0.0"]),
    (
        "_chosen_fall",
        "dpo",
        {
            "rewards__chosen": lambda share: -4.5 * share,
            "rewards__rejected": lambda share: -8.3 * share,
            "logps__chosen": lambda share: -254.0 - 45 * share,
        },
        ["-254.0 -> -27", "10% lower", "common in dDPO"],
    ),
    (
        "_chosen_are_lost",
        "dpo",
        {
            "rewards__chosen": before(0.3, 0.0, -60.0),
            "rewards__rejected": before(0.3, 0.0, -120.0),
            "logps__chosen": before(0.3, -250.0, -850.0),
        },
        ["-250.0 -> -450.0", "80% lower", "changed by -400.0", "apo_zero"],
    ),
    (
        "_chosen_are_lost",
        "dpo",
        {
            "rewards__chosen": before(0.3, 0.0, -3.0),
            "rewards__rejected": before(0.3, 0.0, -3.3),
            "logps__chosen": before(0.3, -250.0, -280.0),
        },
        ["12% lower", "-33.0", "displacement"],
    ),
    ("_entropy_collapses", "dpo", {"entropy": before(0.5, 1.0, 0.2)}, ["0.2", "nearly certain"]),
    (
        "_margins_are_saturated",
        "dpo",
        {"rewards__accuracies": before(0.02, 0.5, 1.0)},
        ["suspicious after", "% of the steps"],
    ),
    (
        "_margins_are_saturated",
        "dpo",
        {"rewards__accuracies": before(0.5, 0.8, 1.0)},
        ["no memorisation", "the pairs are easy"],
    ),
    (
        "_margins_are_saturated",
        "dpo",
        {"rewards__accuracies": before(0.35, 0.8, 1.0), "loss": before(0.35, 0.5, 0.08), "epochs": 3.0},
        ["normal after one epoch", "Figure 3", "of what it was at first"],
    ),
    ("_accuracy_is_below_half", "dpo", {"rewards__accuracies": lambda share: 0.3}, ["accuracy 0.", "after warm-up"]),
    (
        "_model_does_not_move",
        "dpo",
        {name: (lambda share: 0.0) for name in ("rewards__chosen", "rewards__rejected")}
        | {"rewards__margins": lambda share: 0.0, "loss": lambda share: 0.693},
        ["still its reference", "20% of the steps"],
    ),
    (
        "_margin_follows_length",
        "dpo",
        {"margins__length_correlation": lambda share: 0.7},
        ["longer answers", "% of the"],
    ),
    (
        "_margin_follows_length",
        "dpo",
        {"margins__length_correlation": lambda share: -0.7},
        ["shorter answers", "r = -0."],
    ),
]


@pytest.mark.parametrize("every", [5, 10, 20])
@pytest.mark.parametrize(
    ("rule", "stage", "changes", "parts"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_goes_wrong_is_said_once_with_numbers_and_what_to_do(
    rule: str, stage: Stage, changes: dict[str, Any], parts: list[str], every: int
) -> None:
    sentences = said(stage, every=every, **changes)
    assert len(sentences) == 1, f"{rule}: {sentences}"
    what, remedy = sentences[0].split("\n")
    assert what.startswith("step ") and remedy.startswith("  ")
    if every == 10:
        assert [part for part in parts if part not in sentences[0]] == []


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rules in RULES.values() for rule in rules} == {case[0] for case in CASES}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("every", [2, 10, 50])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_of_a_healthy_training_nothing_is_said(stage: Stage, every: int, seed: int) -> None:
    assert said(stage, every=every, seed=seed) == []


def test_a_sentence_comes_again_only_when_what_it_says_was_gone_for_long() -> None:
    def high(share: float) -> float:
        return 1.0 if 0.2 < share < 0.3 or 0.34 < share < 0.4 or share > 0.8 else 0.8

    told = [int(sentence.split()[1].rstrip(":")) for sentence in said("dpo", rewards__accuracies=high)]
    assert len(told) == 2
    assert 200 < told[0] < 260 and 800 < told[1] < 860


@pytest.mark.parametrize("seed", range(5))
def test_noise_around_a_threshold_does_not_repeat_a_sentence(seed: int) -> None:
    told = said("dpo", seed=seed, rewards__accuracies=lambda share: 0.97)
    assert 1 <= len(told) <= 3


def test_a_fall_that_goes_on_is_noted_first_and_then_warned_of() -> None:
    told = said(
        "dpo",
        rewards__chosen=lambda share: -20 * share,
        rewards__rejected=lambda share: -40 * share,
        logps__chosen=lambda share: -250.0 - 200 * share,
    )
    assert ["common in dDPO" in sentence for sentence in told] == [True, False]
    assert "more likelihood than is usual" in told[1]


def test_the_published_run_has_a_note_on_its_chosen_and_saturated_margins_and_no_warning() -> None:
    """HuggingFaceH4/zephyr-7b-beta: three epochs, chosen -4.52, rejected -8.32, log-likelihood -299.5 at the end."""
    told = said(
        "dpo",
        epochs=3.0,
        rewards__chosen=lambda share: -4.52 * share,
        rewards__rejected=lambda share: -8.32 * share,
        rewards__margins=lambda share: 3.8 * share,
        logps__chosen=lambda share: -254.2 - 45.2 * share,
        rewards__accuracies=lambda share: 0.78 if share < 1 / 3 else 1.0,
        loss=lambda share: 0.69 - share / 2 if share < 1 / 3 else 0.05,
    )
    assert len(told) == 2
    assert "normal after one epoch" in told[0]
    assert "common in dDPO" in told[1]


@pytest.mark.parametrize(
    ("name", "stage", "rises"),
    [
        (
            "dpo_three_epochs",
            "dpo",
            ["longer answers", "common in dDPO", "more likelihood than is usual", "normal after one epoch"],
        ),
        ("dpo_rate_too_high", "dpo", ["more likelihood than is usual", "loss is rising"]),
        ("dpo_rate_too_low", "dpo", ["still its reference"]),
        ("sft", "sft", []),
    ],
)
def test_real_trainings_are_read_as_what_they_were(name: str, stage: Stage, rises: list[str]) -> None:
    read = [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]
    steps = read[-1]["step"]
    reader = Interpreter(
        with_loss(TrainingFacts(kind=KINDS[stage], steps=steps, warmup_steps=math.ceil(0.1 * steps), rows_per_step=16))
    )
    told = [sentence for line in read for sentence in reader.read(line)]
    assert [next(part for part in rises if part in sentence) for sentence in dict.fromkeys(told)][: len(rises)] == rises
    assert len(told) <= len(rises) + 1


def test_the_start_of_the_chosen_answers_is_the_same_however_far_they_fell() -> None:
    """It comes of reward and log-likelihood, so batches of longer or shorter answers do not look like a fall."""
    for length in (1.0, 3.0):
        (told,) = said(
            "dpo",
            rewards__chosen=lambda share: -4.0 * share,
            rewards__rejected=lambda share: -8.0 * share,
            logps__chosen=lambda share, length=length: -200.0 * length - 40 * share,
        ) or [""]
        assert (f"{-200.0 * length:.1f} -> " in told) == (length == 1.0)


def test_the_force_of_saturated_pairs_is_said_only_where_the_loss_tells_it() -> None:
    high: dict[str, Any] = {"rewards__accuracies": lambda share: 1.0, "loss": lambda share: 0.3}
    assert "at most 5" in said("dpo", **high)[0]
    assert (
        "of what it was at first"
        not in said("dpo", loss_type="ipo", **{**high, "rewards__margins": lambda share: 9.0})[0]
    )


def test_any_figure_may_be_missing_or_no_number() -> None:
    chance = random.Random(1)
    for stage in get_args(Stage):
        reader = interpreter(stage)
        for line in lines(stage, rewards__accuracies=lambda share: 1.0, rewards__margins=lambda share: 0.0):
            kept = {key: value for key, value in line.items() if key in {"step", "loss"} or chance.random() < 0.6}
            reader.read(kept | {key: math.nan for key in kept if key != "step" and chance.random() < 0.2})
        assert reader.read({"loss": 0.5}) == []


def test_what_must_not_be_nan_is_named_and_what_may_be_is_not() -> None:
    line = {"step": 3, "loss": math.nan, "rewards/chosen": -math.inf, LENGTH_CORRELATION: math.nan, "grad_norm": 1.0}
    assert not_finite(line) == ["loss", "rewards/chosen"]
    assert interpreter("dpo").read({**line, "loss": 0.6, "rewards/chosen": 0.0}) == []


def test_after_a_resume_nothing_is_said_twice_and_nothing_is_forgotten() -> None:
    made = list(lines("dpo", rewards__accuracies=before(0.3, 0.8, 1.0), grad_norm=before(0.7, 9.0, 0.0)))
    unbroken = interpreter("dpo")
    told = [sentence for line in made for sentence in unbroken.read(line)]
    assert len(told) == 2
    resumed = interpreter("dpo")
    for line in made[:50]:
        resumed.read(line)
    assert [sentence for line in made[50:] for sentence in resumed.read(line)] == told[1:]


def test_too_few_rows_are_not_judged() -> None:
    reader = Interpreter(with_loss(TrainingFacts(kind=KINDS["dpo"], steps=12, warmup_steps=1, rows_per_step=4)))
    wild = {
        "loss": 3.0,
        "rewards/accuracies": 1.0,
        "rewards/chosen": -9.0,
        "rewards/rejected": 0.0,
        "logps/chosen": -9.0,
    }
    assert [reader.read({"step": step, "epoch": 0.1, **wild}) for step in range(1, 13)] == [[]] * 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_small_real_run_gives_rise_to_no_sentence(small_run: Path, name: Stage) -> None:
    """Its 3 and 4 steps of 16 rows are too few to judge by, and sound."""
    read = [json.loads(line) for line in (small_run / f"runs/small/{name}/metrics.jsonl").read_text().splitlines()]
    steps = read[-1]["step"]
    reader = Interpreter(with_loss(TrainingFacts(kind=KINDS[name], steps=steps, warmup_steps=1, rows_per_step=16)))
    trained = [line for line in read if "loss" in line]
    assert [line["step"] for line in trained] == list(range(1, steps + 1))
    assert [sentence for line in read for sentence in reader.read(line)] == []
    assert [not_finite(line) for line in trained] == [[]] * steps
