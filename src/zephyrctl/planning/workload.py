"""The work of a stage: how long its rows are, how many rows there are, and how many steps they make."""

from dataclasses import dataclass
from math import ceil

from zephyrctl.contracts import Sizes
from zephyrctl.launching.parallelism import Layout
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.memory import MicroBatchShape, TrainedModel
from zephyrctl.planning.throughput import AverageRow
from zephyrctl.recipe.schema import Expected, Launch, Packing, Sft, Training
from zephyrctl.training.kinds import training_kind

FILLED = 0.985
"""Share of a packed row that has tokens; best-fit packing leaves the rest empty."""
UNKNOWN = 0.4
"""Mean length of a sequence over `max_length` if the recipe does not say: 413 of 1,024 tokens in UltraFeedback."""


def steps_per_epoch(rows: int, settings: Training) -> int:
    """Optimizer steps of one pass over the rows; the last batch of an epoch may be short."""
    return max(1, ceil(rows / settings.global_batch))


def total_steps(rows: int, settings: Training) -> int:
    """Optimizer steps of a run over `rows` rows."""
    return settings.max_steps or max(1, ceil(steps_per_epoch(rows, settings) * settings.epochs))


@dataclass(frozen=True)
class Workload:
    """Everything that the solver reads."""

    settings: Training
    launch: Launch
    machine: Machine
    sizes: Sizes
    stage: str
    expected: Expected

    @property
    def model(self) -> TrainedModel:
        """The model that is trained."""
        return TrainedModel(self.sizes, self.launch.precision, self.settings.adapter)

    @property
    def packing(self) -> Packing | None:
        """How dialogues are packed into rows; None if the rows are pairs."""
        if training_kind(self.stage).rows == "pairs":
            return None
        return self.settings.packing if isinstance(self.settings, Sft) else "none"

    @property
    def rows_per_process(self) -> int:
        """Rows of an optimizer step for each process."""
        return self.settings.global_batch // self.machine.world

    def micro_batch_shape(self, layout: Layout) -> MicroBatchShape:
        """The largest micro-batch of a process: every row has `max_length` tokens."""
        heads = 0
        if self.launch.attention == "eager":  # heads are usually 128 wide, and 64 in small models
            heads = self.sizes.width // (128 if self.sizes.width >= 2048 else 64)
        is_dense = self.launch.attention in ("sdpa", "eager")
        length = self.settings.max_length
        if self.packing:
            # "wrapped" rows need no mask but causality; others hide padding, or documents from each other
            return MicroBatchShape(layout.micro_batch, length, is_dense and self.packing != "wrapped", heads)
        if layout.engine == "prefix-shared":
            # one row has the prompt and both answers: almost 2 x max_length tokens if the prompt is short
            return MicroBatchShape(layout.micro_batch, 2 * length, heads=heads)
        return MicroBatchShape(2 * layout.micro_batch, length, is_dense, heads)  # two sequences per pair

    def average_row(self, layout: Layout) -> AverageRow:
        """The average lengths of a row."""
        longest = float(self.settings.max_length)
        if self.packing is None:
            prompt, answer = self.pair_lengths()
            sequence = prompt + answer
            if layout.engine == "prefix-shared":  # prompt, chosen, rejected: the prompt is computed once
                return AverageRow(2 * sequence, sequence + answer, sequence, longest, padded_together=0)
            return AverageRow(2 * sequence, 2 * sequence, sequence, longest, padded_together=2)
        dialogue = min(self.expected.dialogue_tokens or UNKNOWN * longest, longest)
        if self.packing == "none":
            return AverageRow(dialogue, dialogue, dialogue, longest, padded_together=1)
        if self.packing == "wrapped":  # dialogues are cut at max_length, and attend to each other
            return AverageRow(longest, longest, longest, longest, padded_together=0)
        return AverageRow(FILLED * longest, longest, dialogue, longest, padded_together=0)

    def rows_per_epoch(self) -> int | None:
        """Rows of an epoch, after packing; None if the recipe does not say how much data there is."""
        if self.packing is None:
            return self.expected.pairs
        if self.packing == "none" or not self.expected.dialogues:
            return self.expected.dialogues
        if not self.expected.dialogue_tokens:
            return None
        filled = 1.0 if self.packing == "wrapped" else FILLED
        tokens = self.expected.dialogues * self.expected.dialogue_tokens
        return ceil(tokens / (self.settings.max_length * filled))

    def steps(self) -> int | None:
        """Optimizer steps of the run; None if the recipe does not say how much data there is."""
        rows = self.rows_per_epoch()
        if rows is None:
            return self.settings.max_steps
        return total_steps(rows, self.settings)

    def pair_lengths(self) -> tuple[float, float]:
        """Tokens of a pair's prompt and of one of its answers, shortened so that together they fit `max_length`."""
        longest = self.settings.max_length
        prompt = self.expected.prompt_tokens or UNKNOWN * longest / 3
        answer = self.expected.answer_tokens or UNKNOWN * longest * 2 / 3
        shortened = min(1.0, longest / (prompt + answer))
        return prompt * shortened, answer * shortened
