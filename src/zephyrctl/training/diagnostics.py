"""What the metrics of a training mean: plain sentences, each with its numbers and what to do, as the lines come.

A sentence is said when what it tells begins, and again only after that has been gone for a tenth of the run. It is
built on means over recent lines: at least 3 lines, 200 rows and 2 % of the steps, so that one odd batch says nothing.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from zephyrctl.training.kinds import TrainingKind

Line = Mapping[str, float]
"""One line of metrics.jsonl: names as TRL logs them, with `step` and `epoch`."""
LENGTH_CORRELATION = "margins/length_correlation"
"""Pearson's correlation, over the pairs since the last line, of a pair's reward margin with how many tokens its chosen
answer is longer than its rejected one. TRL logs no such thing: the worker adds it, and may leave it out."""

VITAL = ("loss", "grad_norm", "rewards/", "logps/")
"""What can only be NaN or infinite where the weights are, or will be at this step."""

LINES = 3
ROWS = 200
"""200 pairs hold an accuracy near one half to +-0.035, and one near 0.97 to +-0.012 (one standard error)."""
WINDOW_SHARE = 0.02
"""Of the steps: 116 of the 5,811 of Zephyr's dDPO."""
AGAIN_SHARE = 0.1
AGAIN_LINES = 5
"""A sentence may come again after it was not the case for so much of the run, and for so many lines."""

NOTED_FALL = 0.1
WORRYING_FALL = 0.5
"""Shares of the start's log-likelihood that the chosen answers lost. HuggingFaceH4/zephyr-7b-beta ended at 0.18 (-45 of
-254 nats), alignment-handbook/zephyr-7b-dpo-full, at a beta of 0.01, at 0.40 (-105 of -263); eval_results.json of both.
"""
WORRYING_PACE = 0.8
"""Nats that the chosen answers lose for each nat of the rejected ones; both of those models: 0.5."""
COLLAPSED_ENTROPY = 0.4
"""Share of the first entropy. Nothing published fixes it; dDPO of `tiny` over three epochs lies between 0.9 and 2.8."""
NEAR_ONE = 0.97
"""The paper's Figure 3 has perfect training accuracy after one epoch; this leaves room for pairs that contradict."""
SUSPICIOUS_SHARE = 0.1
"""Warm-up, in the published recipes: hardly anything can have been learnt by then."""
MOVED_NATS = 0.1
"""A tenth of a whole answer's probability. A public run of Zephyr's recipe had a margin of 2.8 nats after 2 % of its
steps (tianlinliu0121/zephyr-7b-dpo-full-beta-0.083)."""
JUDGED_SHARE = 0.2
"""Of the steps: twice the published warm-up, so that as many were made at nearly the full rate."""
DEAD_GRADIENT = 1e-6
"""A norm before clipping; those of `tiny` lie between 0.3 and 8."""
DEAD_RATE = 1e-4
"""Share of the peak rate. A cosine still has 6e-3 of it with 5 % of the steps to go."""
REMAINING_SHARE = 0.05
"""Of the steps: nearer to the end a rate of nearly nothing is what a schedule is for."""
FALL_BEFORE_END = 0.05
"""Nats above the lowest mean so far that count as a rise, and so as a loss that did fall before."""
FALLEN = 0.99
"""Share of the first loss: less than 1 % is no progress that anybody trains for."""
NEAR_ZERO_LOSS = 0.1
"""Nats a token, a ninth of where a 7B model ends on UltraChat (alignment-handbook/zephyr-7b-sft-full: 0.94)."""
FOLLOWS_LENGTH = 0.5
"""A quarter of the variance. Where dDPO exploited length it explained 30 to 46 % of the reward (arXiv 2403.19159)."""


@dataclass(frozen=True)
class Course:
    """What is known of a training before its first step."""

    kind: TrainingKind
    steps: int
    """optimizer steps of the whole run"""
    warmup_steps: int
    rows_a_step: int
    """the global batch"""
    beta: float = 0.1
    loss: str = "sigmoid"


@dataclass(frozen=True)
class Reading:
    """Where a training stands: its last line, means over the recent and the first lines, and the lowest mean loss.

    `recent` is empty while too few lines were read to judge by; `is_warm` says that all of them come after warm-up.
    """

    course: Course
    step: int
    line: Line
    recent: Line
    rows: int
    is_warm: bool
    first: Line
    lowest_loss: float
    norms: tuple[float, ...]
    """gradient norms of the last lines"""
    peak_rate: float
    """highest learning rate so far"""

    @property
    def share(self) -> float:
        """How much of the run is done."""
        return self.step / self.course.steps

    @property
    def epoch(self) -> float:
        """Passes over the data so far; one epoch is taken for the whole run where the line does not say."""
        return self.line.get("epoch", self.share)

    def nats(self, key: str) -> float | None:
        """A mean reward as a change of log-likelihood: it is beta times that."""
        return self.recent[key] / self.course.beta if key in self.recent else None


Rule = Callable[[Reading], str | None]


@dataclass(frozen=True)
class _Logged:
    begins: int
    step: int
    values: Line

    @property
    def steps(self) -> int:
        return self.step - self.begins


class Interpreter:
    """Reads a training's metrics line by line; after a resume, read the lines that were kept first and drop the words.

    Pure: it remembers some lines and what it said, and writes nothing.
    """

    def __init__(self, course: Course) -> None:
        self._course = course
        self._rules = [rule for group in ("always", *course.kind.rules) for rule in RULES[group]]
        self._window: deque[_Logged] = deque()
        self._norms: deque[float] = deque(maxlen=LINES)
        self._first: Line = {}
        self._lowest = math.log(2) if course.kind.checks_initial_loss and course.loss == "sigmoid" else math.inf
        self._peak_rate = 0.0
        self._step = 0
        self._lines = 0
        self._held: dict[str, tuple[int, int]] = {}

    def read(self, line: Line) -> list[str]:
        """The sentences that this line gives rise to; lines without a training loss are summaries and give none."""
        if "loss" not in line:
            return []
        reading = self._take(line)
        found = [(rule.__name__, text) for rule in self._rules if (text := rule(reading))]
        return [f"step {reading.step}: {text}" for name, text in found if self._begins(name)]

    def _take(self, line: Line) -> Reading:
        step = int(line.get("step", self._step + 1))
        self._window.append(_Logged(min(self._step, step - 1), step, _finite(line)))
        while self._is_enough(list(self._window)[1:]):
            self._window.popleft()
        self._step, self._lines = step, self._lines + 1
        self._peak_rate = max(self._peak_rate, line.get("learning_rate", 0.0))
        if "grad_norm" in line:
            self._norms.append(line["grad_norm"])
        recent = _means(self._window) if self._is_enough(self._window) else {}
        self._first = self._first or recent
        self._lowest = min(self._lowest, recent.get("loss", math.inf))
        return Reading(
            course=self._course,
            step=step,
            line=line,
            recent=recent,
            rows=sum(logged.steps for logged in self._window) * self._course.rows_a_step,
            is_warm=self._window[0].begins >= self._course.warmup_steps,
            first=self._first,
            lowest_loss=self._lowest,
            norms=tuple(self._norms),
            peak_rate=self._peak_rate,
        )

    def _is_enough(self, lines: Iterable[_Logged]) -> bool:
        steps = [logged.steps for logged in lines]
        return (
            len(steps) >= LINES
            and sum(steps) * self._course.rows_a_step >= ROWS
            and sum(steps) >= WINDOW_SHARE * self._course.steps
        )

    def _begins(self, name: str) -> bool:
        """True where this was not the case of late; to be called for every line where it is."""
        last = self._held.get(name)
        self._held[name] = (self._step, self._lines)
        if last is None:
            return True
        return self._step - last[0] > AGAIN_SHARE * self._course.steps and self._lines - last[1] > AGAIN_LINES


def not_finite(line: Line) -> list[str]:
    """The names of what is NaN or infinite in a line, of what must not be: training is to stop there."""
    return [key for key, value in line.items() if key.startswith(VITAL) and not math.isfinite(value)]


def _finite(line: Line) -> Line:
    return {key: value for key, value in line.items() if math.isfinite(value)}


def _means(lines: Iterable[_Logged]) -> Line:
    """Means of what the lines hold, each weighted by its steps."""
    sums: dict[str, float] = {}
    steps: dict[str, int] = {}
    for logged in lines:
        for key, value in logged.values.items():
            sums[key] = sums.get(key, 0.0) + value * logged.steps
            steps[key] = steps.get(key, 0) + logged.steps
    return {key: total / steps[key] for key, total in sums.items()}


def _is_no_number(reading: Reading) -> str | None:
    broken = not_finite(reading.line)
    if not broken:
        return None
    section = reading.course.kind.section
    return (
        f"{', '.join(f'{key} is {reading.line[key]}' for key in broken[:3])}: the weights are lost from here on\n"
        f"  training stops and the last good checkpoint stays: lower {section}.learning_rate or {section}.max_grad_norm"
    )


def _gradient_is_dead(reading: Reading) -> str | None:
    remaining = reading.course.steps - reading.step
    if remaining <= 0 or len(reading.norms) < LINES or not all(norm <= DEAD_GRADIENT for norm in reading.norms):
        return None
    return (
        f"the gradient is dead: its norm was at most {max(reading.norms):.1g} in the last {LINES} lines, with "
        f"{remaining} steps to go\n"
        "  nothing is learnt any more: where it was so from the start, no trained weight takes part in the loss (look "
        "at frozen layers and adapter targets); where it came later, training may end here"
    )


def _rate_is_zero(reading: Reading) -> str | None:
    rate = reading.line.get("learning_rate")
    remaining = reading.course.steps - reading.step
    is_judged = reading.is_warm and remaining >= REMAINING_SHARE * reading.course.steps
    if rate is None or not is_judged or rate > DEAD_RATE * reading.peak_rate:
        return None
    return (
        f"the learning rate is {rate:.1g} with {remaining} of {reading.course.steps} steps to go (its peak was "
        f"{reading.peak_rate:.1g})\n"
        "  these steps change nothing: the schedule was made for another number of steps, or never began"
    )


def _loss_rises(reading: Reading) -> str | None:
    loss, kind = reading.recent.get("loss"), reading.course.kind
    if loss is None or loss - reading.lowest_loss < kind.loss_rise:
        return None
    return (
        f"the loss is rising: {loss:.3f} of late, {reading.lowest_loss:.3f} at its lowest\n"
        f"  the steps are too large, or rows of another kind have begun: lower {kind.section}.learning_rate, or look "
        "at what was trained on since"
    )


def _loss_does_not_fall(reading: Reading) -> str | None:
    loss, first = reading.recent.get("loss"), reading.first.get("loss")
    if loss is None or first is None or not reading.is_warm or reading.share < JUDGED_SHARE:
        return None
    has_fallen = loss < FALLEN * first or loss - reading.lowest_loss > FALL_BEFORE_END
    if has_fallen:
        return None
    return (
        f"the loss does not fall: {loss:.3f} after {reading.share:.0%} of the steps, {first:.3f} at first\n"
        "  raise sft.learning_rate; see that the weights are trained (adapter targets, fp32 masters under bf16); a "
        "model that was trained on these rows before has nothing left to learn from them"
    )


def _loss_is_near_zero(reading: Reading) -> str | None:
    loss = reading.recent.get("loss")
    if loss is None or loss > NEAR_ZERO_LOSS:
        return None
    return (
        f"the loss is suspiciously near zero: {loss:.4f} nats a token\n"
        "  the answers are copied or known by heart: look for repeated rows (zephyrctl data audit), for answers that "
        "stand in their own prompts, and for too many epochs"
    )


def _chosen_fall(reading: Reading) -> str | None:
    fall = _fall(reading)
    if fall is None or fall.share < NOTED_FALL or fall.is_worrying:
        return None
    return (
        f"the chosen answers lose likelihood while the margin grows: {fall}\n"
        "  common in dDPO, whose loss asks for a gap and not for likelihood (Zephyr-7B-beta itself ended 18% lower): "
        f"go on; a worry beyond {WORRYING_FALL:.0%}, or where they fall nearly as fast as the rejected"
    )


def _chosen_are_lost(reading: Reading) -> str | None:
    fall = _fall(reading)
    if fall is None or fall.share < NOTED_FALL or not fall.is_worrying:
        return None
    return (
        f"the chosen answers lose more likelihood than is usual in dDPO: {fall}\n"
        "  the model moves to texts that are neither answer (likelihood displacement, arXiv 2410.08847): lower "
        "dpo.learning_rate, raise dpo.beta or --set dpo.loss=apo_zero, and read answers before using this model"
    )


@dataclass(frozen=True)
class _Fall:
    """How much log-likelihood the answers have lost since the start, in nats an answer."""

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
        entropy = f"; entropy {self.entropies[0]:.2f} -> {self.entropies[1]:.2f} nats a token" if self.entropies else ""
        return (
            f"{self.start:.1f} -> {self.start - self.chosen:.1f} nats an answer, {self.share:.0%} lower; the rejected "
            f"changed by {-self.rejected:+.1f}{entropy}"
        )


def _fall(reading: Reading) -> _Fall | None:
    """From a row's reward its start is known too: both are of the same rows, whatever batches have come since."""
    chosen, rejected = reading.nats("rewards/chosen"), reading.nats("rewards/rejected")
    now = reading.recent.get("logps/chosen")
    if chosen is None or rejected is None or now is None or not now - chosen:
        return None
    entropies = reading.first.get("entropy", 0.0), reading.recent.get("entropy", 0.0)
    return _Fall(now - chosen, -chosen, -rejected, entropies if entropies[0] != entropies[1] else None)


def _entropy_collapses(reading: Reading) -> str | None:
    first, entropy = reading.first.get("entropy"), reading.recent.get("entropy")
    if first is None or entropy is None or entropy >= COLLAPSED_ENTROPY * first:
        return None
    return (
        f"the entropy collapses: {first:.2f} -> {entropy:.2f} nats a token, the model is nearly certain of every word\n"
        "  its answers will be alike: lower dpo.learning_rate, raise dpo.beta, or stop at an earlier checkpoint"
    )


def _pairs_are_told_apart(reading: Reading) -> str | None:
    accuracy, margin = reading.recent.get("rewards/accuracies", 0.0), reading.recent.get("rewards/margins", 0.0)
    if accuracy < NEAR_ONE:
        return None
    return (
        f"margins are saturated: training accuracy {accuracy:.3f}, margin {margin:.2f}{_force(reading)}\n"
        f"  {_saturation(reading)}"
    )


def _force(reading: Reading) -> str:
    """The most that pairs pull with, against their pull at the start: sigmoid(-margin) = 1 - exp(-loss), over 1/2.

    1 - exp(-x) is concave, so its mean over the pairs is at most its value at their mean loss.
    """
    if reading.course.loss != "sigmoid" or "loss" not in reading.recent:
        return ""
    force = min(1.0, -2 * math.expm1(-reading.recent["loss"]))
    return f", and pairs pull with at most {force:.0%} of their first force"


def _saturation(reading: Reading) -> str:
    if reading.epoch >= 1:
        return (
            "normal after one epoch, as pairs are seen again: the paper's Figure 3 shows it, and three epochs did no "
            "harm to a model with one epoch of dSFT; held-out accuracy says whether the last ones still help"
        )
    if reading.share <= SUSPICIOUS_SHARE:
        return (
            f"suspicious after {reading.share:.0%} of the steps: something other than quality tells the answers apart. "
            "Look at pairs for length, answers cut off, refusals, or an end token on one side (zephyrctl data explain)"
        )
    return (
        f"no memory, as the first epoch is {reading.epoch:.0%} done and no pair was seen twice: the pairs are easy. "
        "Further epochs will teach little; harder pairs come of another binarize.strategy"
    )


def _accuracy_is_below_half(reading: Reading) -> str | None:
    accuracy = reading.recent.get("rewards/accuracies")
    if accuracy is None or not reading.is_warm or not _has_moved(reading):
        return None
    if accuracy >= 0.5 - 2 * 0.5 / math.sqrt(reading.rows):
        return None
    return (
        f"the model prefers the rejected answers of what it is trained on: accuracy {accuracy:.3f} over the last "
        f"{reading.rows} pairs, after warm-up\n"
        "  swapped labels alone do not do this, as training follows them: look for pairs that contradict one another, "
        "for a reference that is not the start, and at dpo.loss"
    )


def _model_does_not_move(reading: Reading) -> str | None:
    if "rewards/margins" not in reading.recent or not reading.is_warm or reading.share < JUDGED_SHARE:
        return None
    if _has_moved(reading):
        return None
    return (
        f"the model is still its reference after {reading.share:.0%} of the steps: a margin of "
        f"{reading.nats('rewards/margins'):.1g} nats\n"
        "  raise dpo.learning_rate; see that the weights are trained (adapter targets; bf16 weights without fp32 "
        "masters hardly move at 5e-7) and that the answers of a pair differ"
    )


def _has_moved(reading: Reading) -> bool:
    changes = [reading.nats(key) for key in ("rewards/chosen", "rewards/rejected", "rewards/margins")]
    return any(change is not None and abs(change) >= MOVED_NATS for change in changes)


def _margin_follows_length(reading: Reading) -> str | None:
    correlation = reading.recent.get(LENGTH_CORRELATION, 0.0)
    if abs(correlation) < FOLLOWS_LENGTH or not _has_moved(reading):
        return None
    kind = "longer" if correlation > 0 else "shorter"
    return (
        f"the model learns that {kind} answers are better: length explains {correlation**2:.0%} of the margin (r = "
        f"{correlation:+.2f} with how much longer the chosen answer is)\n"
        f"  its own answers may become {kind} than any it was shown (arXiv 2403.19159): read what `zephyrctl eval` "
        "has it answer beside the start's, and balance the lengths of chosen and rejected (zephyrctl data audit)"
    )


RULES: Mapping[str, tuple[Rule, ...]] = {
    "always": (_is_no_number, _gradient_is_dead, _rate_is_zero, _loss_rises),
    "likelihood": (_loss_does_not_fall, _loss_is_near_zero),
    "preference": (
        _model_does_not_move,
        _accuracy_is_below_half,
        _pairs_are_told_apart,
        _chosen_fall,
        _chosen_are_lost,
        _entropy_collapses,
        _margin_follows_length,
    ),
}
"""What is looked for at every line of metrics; a kind of training names the groups that apply to it."""
