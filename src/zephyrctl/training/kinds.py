"""The kinds of training: one description of each, which the other modules read instead of comparing names."""

from dataclasses import dataclass
from typing import Literal

from zephyrctl.errors import ZephyrError, did_you_mean

RowForm = Literal["dialogues", "pairs"]
DataName = Literal["dialogues", "chosen", "pairs"]


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a metric as `metrics.jsonl` names it."""

    label: str
    metric: str
    colour: str
    """The colour, as the report's style sheet names it."""


@dataclass(frozen=True)
class TrainingChart:
    """A chart of metrics over steps; the report leaves it out if the log has none of its metrics."""

    key: str
    """Part of the chart's anchor in the report."""
    title: str
    curves: tuple[Curve, ...]
    bounds: tuple[float, ...] = ()
    """Values that the vertical axis must include."""
    shows_initial_loss: bool = False
    """True if a horizontal line marks what the loss must be before the first step."""


@dataclass(frozen=True)
class TrainingKind:
    """What the command, the planner, the workers and the report need to know of one kind of training.

    To add a kind: add an entry to `KINDS`, its section to the recipe, its job to `launching/job.py` and its worker.
    """

    name: str
    """What `checkpoints.NAME.stage`, manifests and job files call it."""
    title: str
    """What tables and pages call a model trained this way."""
    command: str
    """What a user types to train it, for remedies."""
    section: str
    """The recipe's section with its settings; an attribute of `Recipe`."""
    rows: RowForm
    """The form of its prepared rows: a dialogue and its labels, or a prompt with two answers."""
    data: tuple[DataName, ...]
    """What `checkpoints.NAME.data` may name; the first is the default."""
    row_settings: tuple[str, ...]
    """Settings of its section that the prepared rows depend on, beside `max_length`."""
    job: str
    """The job type, as `module:class`; `launching.job.job_type` imports it."""
    worker: str
    """The module of `zephyrctl.workers` that trains it."""
    makes: Literal["chat model", "reward model"]
    """A chat model can answer prompts, so it can be evaluated and published."""
    checks_initial_loss: bool
    """True if the loss before the first step is known: the worker compares, and the report shows the result."""
    results: tuple[str, ...]
    """The fields of `TrainingResult` that `zephyrctl run` shows for each checkpoint."""
    rules: tuple[str, ...]
    """The groups of rules, of `training.diagnostics.RULES`, that watch its metrics."""
    loss_rise: float
    """Nats above the lowest mean loss so far at which a warning says that the loss is rising."""
    charts: tuple[TrainingChart, ...]

    @property
    def default_data(self) -> DataName:
        """What it trains on if the checkpoint does not say."""
        return self.data[0]


def _with_held_out(metric: str, colour: str) -> tuple[Curve, Curve]:
    """A metric of the training rows and the same metric of the held-out rows."""
    return Curve("training", metric, colour), Curve("held out", f"eval_{metric}", "held-out")


SFT = TrainingKind(
    name="sft",
    title="dSFT",
    command="zephyrctl sft",
    section="sft",
    rows="dialogues",
    data=("dialogues", "chosen"),
    row_settings=("packing", "assistant_only_loss"),
    job="zephyrctl.launching.job:SftJob",
    worker="sft",
    makes="chat model",
    checks_initial_loss=False,
    results=(),
    rules=("likelihood",),
    loss_rise=0.1,
    charts=(
        TrainingChart("loss", "Loss", _with_held_out("loss", "sft")),
        TrainingChart("rate", "Learning rate", (Curve("learning rate", "learning_rate", "sft"),), bounds=(0,)),
    ),
)
DPO = TrainingKind(
    name="dpo",
    title="dDPO",
    command="zephyrctl dpo",
    section="dpo",
    rows="pairs",
    data=("pairs",),
    row_settings=(),
    job="zephyrctl.launching.job:DpoJob",
    worker="dpo",
    makes="chat model",
    checks_initial_loss=True,
    results=("first_loss", "reward_accuracy", "reward_margin", "held_out_pairs", "steps"),
    rules=("preference",),
    # in three epochs of dDPO on `tiny`, means of 200 pairs rise by up to 0.09
    loss_rise=0.2,
    charts=(
        TrainingChart("loss", "Loss", _with_held_out("loss", "dpo"), bounds=(0,), shows_initial_loss=True),
        TrainingChart("accuracy", "Reward accuracy", _with_held_out("rewards/accuracies", "dpo"), bounds=(0, 1)),
        TrainingChart("margin", "Reward margin", _with_held_out("rewards/margins", "dpo"), bounds=(0,)),
        TrainingChart(
            "reward",
            "Rewards",
            (Curve("chosen", "rewards/chosen", "dpo"), Curve("rejected", "rewards/rejected", "rejected")),
            bounds=(0,),
        ),
    ),
)
KINDS: dict[str, TrainingKind] = {kind.name: kind for kind in (SFT, DPO)}
"""Every kind of training, by name."""


def training_kind(name: str) -> TrainingKind:
    """The kind of that name. Raises ZephyrError if there is none, so that no unknown kind is trained as another."""
    if name in KINDS:
        return KINDS[name]
    raise ZephyrError(
        f"there is no kind of training {name!r}", did_you_mean(name, KINDS, otherwise=f"one of: {', '.join(KINDS)}")
    )
