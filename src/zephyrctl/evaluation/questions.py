"""What a benchmark asks: questions of one turn or more, each with its category and temperature."""

from dataclasses import dataclass

from zephyrctl.records import Message


@dataclass(frozen=True)
class Question:
    """One question; a later turn sees the model's own answers to the earlier ones."""

    id: str
    category: str
    turns: tuple[str, ...]
    temperature: float = 0.0

    def conversation(self, answers: tuple[str, ...]) -> tuple[Message, ...]:
        """The conversation up to the first turn that has no answer yet."""
        messages: list[Message] = []
        for turn, text in enumerate(self.turns[: len(answers) + 1]):
            messages.append(Message(role="user", content=text))
            if turn < len(answers):
                messages.append(Message(role="assistant", content=answers[turn]))
        return tuple(messages)
