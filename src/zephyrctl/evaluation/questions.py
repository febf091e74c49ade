"""The questions of a benchmark: one or more turns, a category and a temperature."""

from dataclasses import dataclass

from zephyrctl.records import Message


@dataclass(frozen=True)
class Question:
    """One question. In a later turn the model sees its own answers to the earlier turns."""

    id: str
    category: str
    turns: tuple[str, ...]
    temperature: float = 0.0

    def conversation(self, answers: tuple[str, ...]) -> tuple[Message, ...]:
        """The conversation up to the first turn without an answer."""
        messages: list[Message] = []
        for turn, text in enumerate(self.turns[: len(answers) + 1]):
            messages.append(Message(role="user", content=text))
            if turn < len(answers):
                messages.append(Message(role="assistant", content=answers[turn]))
        return tuple(messages)
