"""Watch the metrics of a training and say, in plain sentences with numbers and a remedy, what they mean.

A diagnostic appears when its condition begins, and again only if the condition was gone for a tenth of the run. It is
based on means over recent lines, at least 3 lines, 200 rows and 2 % of the steps, so that one odd batch means nothing.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from zephyrctl.training.kinds import TrainingKind
from zephyrctl.training.losses import LossSettings, PreferenceLoss

MetricLine = Mapping[str, float]
"""One line of metrics.jsonl: names as TRL logs them, with `step` and `epoch`."""
LENGTH_CORRELATION = "margins/length_correlation"
"""Pearson's correlation, over the pairs since the last line, between the reward margin of a pair and how many tokens
longer its chosen answer is than its rejected one. The worker adds it to what TRL logs, and may leave it out."""

MUST_BE_FINITE = ("loss", "grad_norm", "rewards/", "logps/")
"""The metrics that are NaN or infinite only if the weights are, or will be after this step."""

LINES = 3
ROWS = 200
"""One standard error of an accuracy over 200 pairs is 0.035 near one half and 0.012 near 0.97."""
WINDOW_SHARE = 0.02
"""Of the steps: 116 of the 5,811 of Zephyr's dDPO."""
AGAIN_SHARE = 0.1
AGAIN_LINES = 5
"""A diagnostic may be repeated if its condition was absent for this share of the run and for this many lines."""

NOTED_FALL = 0.1
WORRYING_FALL = 0.5
"""Shares of their initial log-likelihood that the chosen answers lost. HuggingFaceH4/zephyr-7b-beta ended at 0.18 (-45
of -254 nats), alignment-handbook/zephyr-7b-dpo-full, with a beta of 0.01, at 0.40 (-105 of -263); from the
eval_results.json of both."""
WORRYING_PACE = 0.8
"""Nats that the chosen answers lose for each nat that the rejected ones lose; for both of those models 0.5."""
COLLAPSED_ENTROPY = 0.4
"""Share of the first entropy. No publication gives a bound; over three epochs of dDPO on `tiny` it is 0.9 to 2.8."""
NEAR_ONE = 0.97
"""In the paper's Figure 3 training accuracy is perfect after one epoch; this leaves room for contradictory pairs."""
SUSPICIOUS_SHARE = 0.1
"""The warm-up of the published recipes: hardly anything can be learnt in that time."""
MOVED_NATS = 0.1
"""A tenth of a nat for a whole answer. A public run of Zephyr's recipe had a margin of 2.8 nats after 2 % of its steps
(tianlinliu0121/zephyr-7b-dpo-full-beta-0.083)."""
JUDGED_SHARE = 0.2
"""Of the steps: twice the published warm-up, so that as many steps were made at nearly the full learning rate."""
DEAD_GRADIENT = 1e-6
"""A gradient norm before clipping; those of `tiny` are between 0.3 and 8."""
DEAD_LR = 1e-4
"""Share of the peak learning rate. A cosine schedule still has 6e-3 of it with 5 % of the steps left."""
REMAINING_SHARE = 0.05
"""Of the steps: closer to the end, a learning rate near 0 is what the schedule intends."""
FALL_BEFORE_END = 0.05
"""Nats above the lowest mean so far: a loss that is this much higher did fall before."""
FALLEN = 0.99
"""Share of the first loss: a fall of less than 1 % is no progress."""
NEAR_ZERO_LOSS = 0.1
"""Nats per token, a ninth of where a 7B model ends on UltraChat (alignment-handbook/zephyr-7b-sft-full: 0.94)."""
FOLLOWS_LENGTH = 0.5
"""A correlation; its square is a quarter. Where DPO exploited length it explained 30 to 46 % of the reward's variance
(arXiv 2403.19159)."""


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a training before its first step."""

    kind: TrainingKind
    steps: int
    """optimizer steps of the whole run"""
    warmup_steps: int
    rows_per_step: int
    """the global batch"""
    beta: float = 1.0
    """what rewards are divided by to get nats"""
    initial_loss: float = math.inf
    """the loss before the first step, if rises should be measured from there too"""
    is_logistic: bool = False
    """True if the loss of a pair is -log sigmoid(margin)"""
    has_reference: bool = True
    """True if rewards are changes since the start"""

    def with_loss(self, loss: PreferenceLoss, settings: LossSettings) -> Self:
        """The facts of a training with a preference loss."""
        facts = replace(self, beta=settings.beta, is_logistic=loss.is_logistic, has_reference=loss.needs_reference)
        if loss.is_logistic and loss.needs_reference:
            return replace(facts, initial_loss=loss.initial_value(settings, None).loss)
        return facts


@dataclass(frozen=True)
class Reading:
    """The state of a training: its last line, means over recent lines and over the first ones, and the lowest mean.

    `recent` is empty until enough lines were read; `is_warm` is True if all of them come after warm-up.
    """

    facts: TrainingFacts
    step: int
    line: MetricLine
    recent: MetricLine
    rows: int
    is_warm: bool
    first: MetricLine
    lowest_loss: float
    norms: tuple[float, ...]
    """gradient norms of the last lines"""
    peak_lr: float
    """highest learning rate so far"""

    @property
    def share(self) -> float:
        """The share of the run that is done."""
        return self.step / self.facts.steps

    @property
    def epoch(self) -> float:
        """Passes over the data so far; if the line does not say, the run counts as one epoch."""
        return self.line.get("epoch", self.share)

    def nats(self, key: str) -> float | None:
        """A mean reward as a change of log-likelihood since the start, as the reward is beta times that change.

        None without a reference: then rewards are not changes since the start.
        """
        if key not in self.recent or not self.facts.has_reference:
            return None
        return self.recent[key] / self.facts.beta


Rule = Callable[[Reading], str | None]


@dataclass(frozen=True)
class _LoggedLine:
    begins: int
    step: int
    values: MetricLine

    @property
    def steps(self) -> int:
        return self.step - self.begins


class Interpreter:
    """Reads the metrics of a training line by line; after a resume, give it the kept lines first, for its memory.

    It remembers some lines and which conditions held, and writes nothing.
    """

    def __init__(self, facts: TrainingFacts) -> None:
        self._facts = facts
        self._rules = [rule for group in ("always", *facts.kind.rules) for rule in RULES[group]]
        self._window: deque[_LoggedLine] = deque()
        self._norms: deque[float] = deque(maxlen=LINES)
        self._first: MetricLine = {}
        self._lowest = facts.initial_loss
        self._peak_lr = 0.0
        self._step = 0
        self._lines = 0
        self._held: dict[str, tuple[int, int]] = {}

    def read(self, line: MetricLine) -> list[str]:
        """The diagnostics that begin with this line; lines without a training loss are summaries and have none."""
        if "loss" not in line:
            return []
        reading = self._take(line)
        holding = [(rule.__name__, text) for rule in self._rules if (text := rule(reading))]
        return [f"step {reading.step}: {text}" for name, text in holding if self._begins(name)]

    def _take(self, line: MetricLine) -> Reading:
        step = int(line.get("step", self._step + 1))
        self._window.append(_LoggedLine(min(self._step, step - 1), step, _finite(line)))
        # the shortest window that is enough: the oldest line goes as soon as the others suffice
        while self._is_enough(list(self._window)[1:]):
            self._window.popleft()
        self._step, self._lines = step, self._lines + 1
        self._peak_lr = max(self._peak_lr, line.get("learning_rate", 0.0))
        if "grad_norm" in line:
            self._norms.append(line["grad_norm"])
        # no means until there are 3 lines, 200 rows and 2 % of the steps: the rules then see nothing and stay silent
        recent = _means(self._window) if self._is_enough(self._window) else {}
        self._first = self._first or recent  # the first mean that was enough, and not the first line
        self._lowest = min(self._lowest, recent.get("loss", math.inf))
        return Reading(
            facts=self._facts,
            step=step,
            line=line,
            recent=recent,
            rows=sum(logged.steps for logged in self._window) * self._facts.rows_per_step,
            is_warm=self._window[0].begins >= self._facts.warmup_steps,
            first=self._first,
            lowest_loss=self._lowest,
            norms=tuple(self._norms),
            peak_lr=self._peak_lr,
        )

    def _is_enough(self, lines: Iterable[_LoggedLine]) -> bool:
        steps = [logged.steps for logged in lines]
        has_rows = sum(steps) * self._facts.rows_per_step >= ROWS
        return len(steps) >= LINES and has_rows and sum(steps) >= WINDOW_SHARE * self._facts.steps

    def _begins(self, name: str) -> bool:
        """True if the condition was not true recently; to be called for every line for which it is."""
        last = self._held.get(name)
        self._held[name] = (self._step, self._lines)  # also while it lasts, so that only its absence counts
        if last is None:
            return True
        return self._step - last[0] > AGAIN_SHARE * self._facts.steps and self._lines - last[1] > AGAIN_LINES


def not_finite(line: MetricLine) -> list[str]:
    """The metrics of a line that are NaN or infinite and must not be: training must stop there."""
    return [key for key, value in line.items() if key.startswith(MUST_BE_FINITE) and not math.isfinite(value)]


def _finite(line: MetricLine) -> MetricLine:
    return {key: value for key, value in line.items() if math.isfinite(value)}


def _means(lines: Iterable[_LoggedLine]) -> MetricLine:
    """The mean of each metric, with every line weighted by its steps."""
    sums: dict[str, float] = {}
    steps: dict[str, int] = {}
    for logged in lines:
        for key, value in logged.values.items():
            sums[key] = sums.get(key, 0.0) + value * logged.steps
            steps[key] = steps.get(key, 0) + logged.steps
    return {key: total / steps[key] for key, total in sums.items()}


def _is_not_finite(reading: Reading) -> str | None:
    broken = not_finite(reading.line)
    if not broken:
        return None
    section = reading.facts.kind.section
    problem = (
        f"{', '.join(f'{key} is {reading.line[key]}' for key in broken[:3])}: the weights are unusable from here on"
    )
    remedy = (
        f"training stops and the last good checkpoint is kept: lower {section}.learning_rate or {section}.max_grad_norm"
    )
    return f"{problem}\n  {remedy}"


def _gradient_is_zero(reading: Reading) -> str | None:
    remaining = reading.facts.steps - reading.step
    if remaining <= 0 or len(reading.norms) < LINES or not all(norm <= DEAD_GRADIENT for norm in reading.norms):
        return None
    problem = (
        f"the gradient is zero: its norm was at most {max(reading.norms):.1g} in the last {LINES} lines, with "
        f"{remaining} steps to go"
    )
    remedy = (
        "nothing is learnt any more: if it was so from the start, no trained weight affects the loss (check frozen "
        "layers and adapter targets); if it began later, training can stop here"
    )
    return f"{problem}\n  {remedy}"


def _lr_is_zero(reading: Reading) -> str | None:
    lr = reading.line.get("learning_rate")
    remaining = reading.facts.steps - reading.step
    is_judged = reading.is_warm and remaining >= REMAINING_SHARE * reading.facts.steps
    if lr is None or not is_judged or lr > DEAD_LR * reading.peak_lr:
        return None
    problem = (
        f"the learning rate is {lr:.1g} with {remaining} of {reading.facts.steps} steps to go (its peak was "
        f"{reading.peak_lr:.1g})"
    )
    remedy = "the remaining steps change nothing: the schedule was made for another number of steps, or never started"
    return f"{problem}\n  {remedy}"


def _loss_rises(reading: Reading) -> str | None:
    loss, kind = reading.recent.get("loss"), reading.facts.kind
    if loss is None or loss - reading.lowest_loss < kind.loss_rise:
        return None
    problem = f"the loss is rising: recently {loss:.3f}, at its lowest {reading.lowest_loss:.3f}"
    remedy = (
        f"the steps are too large, or the rows are of another kind now: lower {kind.section}.learning_rate, or read "
        "the rows of the last steps"
    )
    return f"{problem}\n  {remedy}"


def _loss_does_not_fall(reading: Reading) -> str | None:
    loss, first = reading.recent.get("loss"), reading.first.get("loss")
    if loss is None or first is None or not reading.is_warm or reading.share < JUDGED_SHARE:
        return None
    # below 99 % of the first mean, or above the lowest so far, from which it rose again
    has_fallen = loss < FALLEN * first or loss - reading.lowest_loss > FALL_BEFORE_END
    if has_fallen:
        return None
    problem = f"the loss does not fall: {loss:.3f} after {reading.share:.0%} of the steps, {first:.3f} at the start"
    remedy = (
        f"raise {reading.facts.kind.section}.learning_rate; check that the weights are trained (adapter targets, "
        "fp32 masters under bf16); a model that was trained on these rows before has nothing left to learn from them"
    )
    return f"{problem}\n  {remedy}"


def _loss_is_near_zero(reading: Reading) -> str | None:
    loss = reading.recent.get("loss")
    if loss is None or loss > NEAR_ZERO_LOSS:
        return None
    problem = f"the loss is suspiciously near zero: {loss:.4f} nats per token"
    remedy = (
        "the answers are copied or memorised: look for repeated rows (zephyrctl data audit), for prompts that "
        "contain their answers, and for too many epochs"
    )
    return f"{problem}\n  {remedy}"


def _chosen_fall(reading: Reading) -> str | None:
    fall = _fall(reading)
    if fall is None or fall.share < NOTED_FALL or fall.is_worrying:
        return None
    problem = f"the chosen answers lose likelihood while the margin grows: {fall}"
    remedy = (
        "common in dDPO, whose loss rewards a gap and not likelihood (Zephyr-7B-beta itself ended 18% lower): no "
        f"action is needed; it is a problem beyond {WORRYING_FALL:.0%}, or if they fall nearly as fast as the rejected"
    )
    return f"{problem}\n  {remedy}"


def _chosen_are_lost(reading: Reading) -> str | None:
    fall = _fall(reading)
    if fall is None or fall.share < NOTED_FALL or not fall.is_worrying:
        return None
    problem = f"the chosen answers lose more likelihood than is usual in dDPO: {fall}"
    remedy = (
        "probability moves to texts that are neither answer (likelihood displacement, arXiv 2410.08847): lower "
        "dpo.learning_rate, raise dpo.beta or --set dpo.loss=apo_zero, and read answers before using this model"
    )
    return f"{problem}\n  {remedy}"


@dataclass(frozen=True)
class _Fall:
    """How much log-likelihood the answers have lost since the start, in nats per answer."""

    start: float
    chosen: float
    rejected: float
    entropies: tuple[float, float] | None

    @property
    def share(self) -> float:
        return self.chosen / abs(self.start)

    @property
    def is_worrying(self) -> bool:
        return self.share >= WORRYING_FALL or self.chosen >= WORRYING_PACE * self.rejected

    def __str__(self) -> str:
        entropy = (
            f"; entropy {self.entropies[0]:.2f} -> {self.entropies[1]:.2f} nats per token" if self.entropies else ""
        )
        return (
            f"{self.start:.1f} -> {self.start - self.chosen:.1f} nats per answer, {self.share:.0%} lower; the rejected "
            f"changed by {-self.rejected:+.1f}{entropy}"
        )


def _fall(reading: Reading) -> _Fall | None:
    """The fall of the recent rows. Their own log-likelihood at the start follows from their rewards, so that batches of
    longer or shorter answers do not look like a fall. None without a reference."""
    chosen, rejected = reading.nats("rewards/chosen"), reading.nats("rewards/rejected")
    now = reading.recent.get("logps/chosen")
    if chosen is None or rejected is None or now is None or not now - chosen:
        return None
    entropies = reading.first.get("entropy", 0.0), reading.recent.get("entropy", 0.0)
    # now = start + change, and the reward is beta x change: start = now - reward / beta, of the same rows
    return _Fall(now - chosen, -chosen, -rejected, entropies if entropies[0] != entropies[1] else None)


def _entropy_collapses(reading: Reading) -> str | None:
    first, entropy = reading.first.get("entropy"), reading.recent.get("entropy")
    if first is None or entropy is None or entropy >= COLLAPSED_ENTROPY * first:
        return None
    problem = (
        f"the entropy collapses: {first:.2f} -> {entropy:.2f} nats per token, the model is nearly certain of every word"
    )
    remedy = (
        "its answers will all be similar: lower dpo.learning_rate, raise dpo.beta, or stop at an earlier checkpoint"
    )
    return f"{problem}\n  {remedy}"


def _margins_are_saturated(reading: Reading) -> str | None:
    accuracy, margin = reading.recent.get("rewards/accuracies", 0.0), reading.recent.get("rewards/margins", 0.0)
    if accuracy < NEAR_ONE:
        return None
    problem = f"margins are saturated: training accuracy {accuracy:.3f}, margin {margin:.2f}{_force(reading)}"
    remedy = f"{_saturation(reading)}"
    return f"{problem}\n  {remedy}"


def _force(reading: Reading) -> str:
    """The gradient of a pair relative to its start: sigmoid(-margin) = 1 - exp(-loss), over sigmoid(0) = 1/2.

    1 - exp(-x) is concave, so its mean over the pairs is at most its value at their mean loss.
    """
    if not reading.facts.is_logistic or "loss" not in reading.recent:
        return ""
    # (1 - exp(-loss)) / (1/2); expm1 keeps the digits of a loss near 0
    force = min(1.0, -2 * math.expm1(-reading.recent["loss"]))
    return f", and the gradient of a pair is at most {force:.0%} of what it was at first"


def _saturation(reading: Reading) -> str:
    if reading.epoch >= 1:
        return (
            "normal after one epoch, as pairs are repeated: the paper's Figure 3 shows it, and three epochs did not "
            "harm a model with one epoch of dSFT; held-out accuracy says if the last epochs still help"
        )
    if reading.share <= SUSPICIOUS_SHARE:
        return (
            f"suspicious after {reading.share:.0%} of the steps: something other than quality separates the answers. "
            "Read pairs and compare length, cut answers, refusals, and end tokens on one side (zephyrctl data explain)"
        )
    return (
        f"no memorisation, as the first epoch is {reading.epoch:.0%} done and no pair was repeated: the pairs are "
        "easy. More epochs will teach little; another binarize.strategy gives harder pairs"
    )


def _accuracy_is_below_half(reading: Reading) -> str | None:
    accuracy = reading.recent.get("rewards/accuracies")
    # before the policy has moved, margins are rounding errors and accuracy is a coin toss
    if accuracy is None or not reading.is_warm or not _has_moved(reading):
        return None
    # two standard errors of a share of one half over so many pairs: 0.5 / sqrt(n) each
    if accuracy >= 0.5 - 2 * 0.5 / math.sqrt(reading.rows):
        return None
    problem = (
        f"the model prefers the rejected answers of what it is trained on: accuracy {accuracy:.3f} over the last "
        f"{reading.rows} pairs, after warm-up"
    )
    remedy = (
        "swapped labels alone do not cause this, as training follows them: look for pairs that contradict each "
        "other, for a reference that is not the start, and at dpo.loss"
    )
    return f"{problem}\n  {remedy}"


def _model_does_not_move(reading: Reading) -> str | None:
    if "rewards/margins" not in reading.recent or not reading.is_warm or reading.share < JUDGED_SHARE:
        return None
    if _has_moved(reading):
        return None
    problem = (
        f"the model is still its reference after {reading.share:.0%} of the steps: a margin of "
        f"{reading.nats('rewards/margins'):.1g} nats"
    )
    remedy = (
        "raise dpo.learning_rate; check that the weights are trained (adapter targets; bf16 weights without fp32 "
        "masters hardly move at 5e-7) and that the answers of a pair differ"
    )
    return f"{problem}\n  {remedy}"


def _has_moved(reading: Reading) -> bool:
    """True if the policy is no longer the start; always, if rewards cannot say."""
    if not reading.facts.has_reference:
        return True
    changes = [reading.nats(key) for key in ("rewards/chosen", "rewards/rejected", "rewards/margins")]
    return any(change is not None and abs(change) >= MOVED_NATS for change in changes)


def _margin_follows_length(reading: Reading) -> str | None:
    correlation = reading.recent.get(LENGTH_CORRELATION, 0.0)
    if abs(correlation) < FOLLOWS_LENGTH or not _has_moved(reading):
        return None
    kind = "longer" if correlation > 0 else "shorter"
    # r^2 is the share of the margin's variance that a straight line over the length difference explains
    problem = (
        f"the model learns that {kind} answers are better: length explains {correlation**2:.0%} of the margin (r = "
        f"{correlation:+.2f} with how much longer the chosen answer is)"
    )
    remedy = (
        f"its own answers may become {kind} than any it was trained on (arXiv 2403.19159): compare its answers in "
        "`zephyrctl eval` with the start's, and balance the lengths of chosen and rejected (zephyrctl data audit)"
    )
    return f"{problem}\n  {remedy}"


RULES: Mapping[str, tuple[Rule, ...]] = {
    "always": (_is_not_finite, _gradient_is_zero, _lr_is_zero, _loss_rises),
    "likelihood": (_loss_does_not_fall, _loss_is_near_zero),
    "preference": (
        _model_does_not_move,
        _accuracy_is_below_half,
        _margins_are_saturated,
        _chosen_fall,
        _chosen_are_lost,
        _entropy_collapses,
        _margin_follows_length,
    ),
}
"""The rules that are applied to every line of metrics; a kind of training names the groups for it."""
