"""What a stage works through: how long its rows are, how many there are, how many steps they make."""

from dataclasses import dataclass
from math import ceil

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import MicroBatchShape, TrainedModel
from zephyrctl.planning.throughput import Rows
from zephyrctl.recipe.schema import Expected, Launch, Packing, Sft, Training
from zephyrctl.training.kinds import training_kind

FILLED = 0.985
"""Share of a packed row that is filled."""
UNKNOWN = 0.4
"""Mean length of a sequence beside `max_length` where nobody knows: 413 of 1,024 tokens in UltraFeedback."""


def steps_an_epoch(rows: int, settings: Training) -> int:
    """Optimizer steps of one pass; the last batch of an epoch may be short."""
    return max(1, ceil(rows / settings.global_batch))


def total_steps(rows: int, settings: Training) -> int:
    """Optimizer steps of a run over `rows` rows."""
    return settings.max_steps or max(1, ceil(steps_an_epoch(rows, settings) * settings.epochs))


@dataclass(frozen=True)
class Workload:
    """Everything that a layout is solved from."""

    settings: Training
    launch: Launch
    machine: Machine
    sizes: Sizes
    stage: str
    expected: Expected

    @property
    def model(self) -> TrainedModel:
        """What is trained."""
        return TrainedModel(self.sizes, self.launch.precision, self.settings.adapter)

    @property
    def packing(self) -> Packing | None:
        """How its dialogues are packed into rows; None if its rows are pairs."""
        if training_kind(self.stage).rows == "pairs":
            return None
        return self.settings.packing if isinstance(self.settings, Sft) else "none"

    @property
    def share(self) -> int:
        """Rows of a step for each process."""
        return self.settings.global_batch // self.machine.world

    def micro_batch_shape(self, layout: Layout) -> MicroBatchShape:
        """What a process works on at once when every row is as long as rows may be."""
        heads = self.sizes.width // (128 if self.sizes.width >= 2048 else 64) if self.launch.attention == "eager" else 0
        is_dense = self.launch.attention in ("sdpa", "eager")
        if self.packing:
            has_mask = is_dense and self.packing != "wrapped"
            return MicroBatchShape(layout.micro_batch, self.settings.max_length, has_mask, heads)
        if layout.engine == "prefix-shared":  # the prompt may be short: then it is all answers
            return MicroBatchShape(layout.micro_batch, 2 * self.settings.max_length, heads=heads)
        return MicroBatchShape(2 * layout.micro_batch, self.settings.max_length, is_dense, heads)

    def rows(self, layout: Layout) -> Rows:
        """What a row is on average."""
        longest = float(self.settings.max_length)
        if self.packing is None:
            prompt, answer = self.pair()
            sequence = prompt + answer
            if layout.engine == "prefix-shared":
                return Rows(2 * sequence, sequence + answer, sequence, longest, 0)
            return Rows(2 * sequence, 2 * sequence, sequence, longest, 2)
        dialogue = min(self.expected.dialogue_tokens or UNKNOWN * longest, longest)
        if self.packing == "none":
            return Rows(dialogue, dialogue, dialogue, longest, 1)
        if self.packing == "wrapped":
            return Rows(longest, longest, longest, longest, 0)
        return Rows(FILLED * longest, longest, dialogue, longest, 0)

    def count(self) -> int | None:
        """Rows of an epoch; None where nobody knows."""
        if self.packing is None:
            return self.expected.pairs
        if self.packing == "none" or not self.expected.dialogues:
            return self.expected.dialogues
        if not self.expected.dialogue_tokens:
            return None
        fill = 1.0 if self.packing == "wrapped" else FILLED
        return ceil(self.expected.dialogues * self.expected.dialogue_tokens / (self.settings.max_length * fill))

    def steps(self) -> int | None:
        """Optimizer steps of the run; None where nobody knows."""
        count = self.count()
        if count is None:
            return self.settings.max_steps
        return total_steps(count, self.settings)

    def pair(self) -> tuple[float, float]:
        """Tokens of a pair's prompt and of one of its answers, cut to what a sequence may hold."""
        longest = self.settings.max_length
        prompt = self.expected.prompt_tokens or UNKNOWN * longest / 3
        answer = self.expected.answer_tokens or UNKNOWN * longest * 2 / 3
        cut = min(1.0, longest / (prompt + answer))
        return prompt * cut, answer * cut
