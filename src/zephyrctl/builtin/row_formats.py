"""The built-in row formats: the forms in which the field publishes dialogues, prompts, ratings and pairs."""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import ClassVar

from pydantic import ValidationError

from zephyrctl.errors import BadRow
from zephyrctl.records import ASPECTS, Completion, PreferencePair, Prompt, RatedPrompt, Rating, prompt_id
from zephyrctl.rows.formats import DialogueFormat, PairFormat, PromptFormat, RatedFormat, Row, Turns
from zephyrctl.rows.turns import parse_turns, to_messages, to_prompt

PAIR_KEYS = frozenset({"chosen", "rejected", "score_chosen", "score_rejected", "metadata"})


class Messages(DialogueFormat):
    """The chat form of OpenAI and Hugging Face."""

    name = "messages"
    title = "`messages`"
    keys = frozenset({"messages"})
    example: ClassVar[Row] = {
        "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    }

    def matches(self, row: Row) -> bool:
        """True if `messages` is a list."""
        return isinstance(row.get("messages"), list)

    def turns(self, row: Row) -> Turns:
        """`role` and `content` of each message."""
        return _message_turns(row["messages"])


class ShareGPT(DialogueFormat):
    """ShareGPT's form."""

    name = "sharegpt"
    title = "ShareGPT's `conversations`"
    keys = frozenset({"conversations"})
    example: ClassVar[Row] = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}

    def matches(self, row: Row) -> bool:
        """True if `conversations` is a list."""
        return isinstance(row.get("conversations"), list)

    def turns(self, row: Row) -> Turns:
        """`from` and `value` of each turn."""
        return _sharegpt_turns(row["conversations"])


class UltraChat(DialogueFormat):
    """UltraChat's form: a list of texts, of which the user says the first."""

    name = "ultrachat"
    title = "UltraChat's `data`"
    keys = frozenset({"data"})
    example: ClassVar[Row] = {"data": ["Hi?", "Hello."]}
    may_end_on_user = True

    def matches(self, row: Row) -> bool:
        """True if `data` is a list."""
        return isinstance(row.get("data"), list)

    def turns(self, row: Row) -> Turns:
        """User and assistant in turn."""
        return zip(cycle(("user", "assistant")), row["data"])


class Alpaca(DialogueFormat):
    """Alpaca's form: one instruction with an optional input, and its answer."""

    name = "alpaca"
    title = "instruction/input/output"
    keys = frozenset({"instruction", "input", "output"})
    example: ClassVar[Row] = {"instruction": "Add.", "input": "1, 2", "output": "3"}

    def matches(self, row: Row) -> bool:
        """True if there is an `instruction`."""
        return "instruction" in row

    def turns(self, row: Row) -> Turns:
        """The instruction with its input below, and the output if there is one."""
        yield "user", row["instruction"] + _input_below(row)
        if row.get("output") is not None:
            yield "assistant", row["output"]


class PromptText(PromptFormat):
    """A prompt as one text."""

    name = "prompt"
    title = "a text as `prompt` or `instruction`"
    keys = frozenset({"prompt", "instruction", "input"})
    example: ClassVar[Row] = {"prompt": "Hi?"}

    def matches(self, row: Row) -> bool:
        """True if `prompt`, or else `instruction`, is text; `messages` beside it tell more and come first."""
        return isinstance(row.get("prompt", row.get("instruction")), str) and "messages" not in row

    def read(self, row: Row, where: str, source: str) -> Prompt:
        """The text with its `input` below, if there is one. Raises BadRow if the text is empty."""
        text: str = row.get("prompt", row.get("instruction"))
        if not text.strip():
            raise BadRow(where, "an empty prompt")
        roles, texts = parse_turns(lambda: [("user", text + _input_below(row))], where)
        return to_prompt(roles, texts, where, source)


class UltraFeedback(RatedFormat):
    """UltraFeedback's nested form: an instruction and its completions with annotations by aspect."""

    name = "ultrafeedback"
    title = "UltraFeedback's `instruction` and `completions`"
    keys = frozenset({"instruction", "completions", "source"})
    example: ClassVar[Row] = {
        "instruction": "Hi?",
        "completions": [
            {"model": "a", "response": "Hello.", "annotations": {"honesty": {"Rating": "5", "Rationale": "Polite."}}},
            {"model": "b", "response": "No.", "annotations": {"honesty": {"Rating": "2", "Rationale": "Rude."}}},
        ],
    }

    def matches(self, row: Row) -> bool:
        """True if there is an `instruction` and `completions` is a list."""
        return "instruction" in row and isinstance(row.get("completions"), list)

    def read(self, row: Row, where: str) -> RatedPrompt:
        """The rated prompt; an aspect's annotation is an object, or a list with one object."""
        text = row["instruction"]
        if not isinstance(text, str) or not text.strip():
            raise BadRow(where, "an empty instruction")
        messages = to_messages(*parse_turns(lambda: [("user", text)], where))
        return RatedPrompt(
            id=prompt_id(text),
            messages=messages,
            completions=[_completion(entry, where) for entry in row["completions"]],
            source=str(row.get("source") or "ultrafeedback"),
        )

    def prompt_text(self, row: Row, where: str) -> str:
        """The instruction. Raises BadRow if it is not text."""
        text = row["instruction"]
        if not isinstance(text, str):
            raise BadRow(where, "an empty instruction")
        return text


class ScoredPair(PairFormat):
    """A form with `chosen` and `rejected`: texts, turns, or lists of turns of which the last is the answer."""

    def answers(self, row: Row) -> tuple[object, object]:
        """The texts of the two answers."""
        return _last_text(row["chosen"]), _last_text(row["rejected"])

    def scores(self, row: Row) -> tuple[float | None, float | None]:
        """`score_chosen` and `score_rejected` of the row, or of its `metadata`, where some sets keep them."""
        metadata = row.get("metadata")
        nested: Row = metadata if isinstance(metadata, dict) else {}
        chosen, rejected = (row.get(key, nested.get(key)) for key in ("score_chosen", "score_rejected"))
        return _number(chosen), _number(rejected)


class PairAfterConversation(ScoredPair):
    """Turns in ShareGPT's form, continued by a chosen and a rejected turn."""

    name = "pair-conversations"
    title = "`conversations` with a `chosen` and a `rejected` turn"
    keys = PAIR_KEYS | {"conversations"}
    example: ClassVar[Row] = {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "No."},
    }

    def matches(self, row: Row) -> bool:
        """True if `conversations` is a list and both answers are there."""
        return _has_answers(row) and isinstance(row.get("conversations"), list)

    def prompt_turns(self, row: Row) -> Turns:
        """The turns of `conversations`."""
        return _sharegpt_turns(row["conversations"])


class PairAfterMessages(ScoredPair):
    """A prompt as messages, with two answers."""

    name = "pair-prompt-messages"
    title = "a `prompt` as messages with `chosen` and `rejected`"
    keys = PAIR_KEYS | {"prompt"}
    example: ClassVar[Row] = {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }

    def matches(self, row: Row) -> bool:
        """True if `prompt` is a list and both answers are there."""
        return _has_answers(row) and isinstance(row.get("prompt"), list)

    def prompt_turns(self, row: Row) -> Turns:
        """The messages of `prompt`."""
        return _message_turns(row["prompt"])


class PairOfDialogues(ScoredPair):
    """The published binarized form: two whole dialogues that differ in the last turn."""

    name = "pair-messages"
    title = "`chosen` and `rejected` as messages"
    keys = PAIR_KEYS | {"prompt"}
    example: ClassVar[Row] = {
        "prompt": "Hi?",
        "chosen": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No."}],
        "score_chosen": 9.0,
        "score_rejected": 5.0,
    }

    def matches(self, row: Row) -> bool:
        """True if `chosen` has more turns than its answer."""
        return _has_answers(row) and isinstance(row["chosen"], list) and len(row["chosen"]) > 1

    def prompt_turns(self, row: Row) -> Turns:
        """The turns of `chosen` before its last: all of them, where `prompt` has the first alone."""
        return _message_turns(row["chosen"][:-1])


class PairOfTexts(ScoredPair):
    """A prompt and two answers as text."""

    name = "pair-text"
    title = "`prompt`, `chosen` and `rejected` as text"
    keys = PAIR_KEYS | {"prompt"}
    example: ClassVar[Row] = {
        "prompt": "Hi?",
        "chosen": "Hello.",
        "rejected": "No.",
        "score_chosen": 9.0,
        "score_rejected": 5.0,
    }

    def matches(self, row: Row) -> bool:
        """True if both answers are there: it comes last, and says of rows without a prompt that they have none."""
        return _has_answers(row)

    def prompt_turns(self, row: Row) -> Turns:
        """The text of `prompt`."""
        return [("user", row["prompt"])]

    def read(self, row: Row, where: str) -> PreferencePair:
        """The pair. Raises BadRow if there is no prompt."""
        if not isinstance(row.get("prompt"), str):
            raise BadRow(where, "no `prompt`")
        return super().read(row, where)


def rating_value(raw: object) -> float | None:
    """A published rating as a number from 1 to 5; None for "N/A", other text and numbers out of range."""
    value = _number(raw)
    return value if value is not None and 1 <= value <= 5 else None


def _message_turns(messages: Sequence[Row]) -> Turns:
    return [(turn["role"], turn["content"]) for turn in messages]


def _sharegpt_turns(conversations: Sequence[Row]) -> Turns:
    return [(turn["from"], turn["value"]) for turn in conversations]


def _input_below(row: Row) -> str:
    return f"\n\n{row['input']}" if row.get("input") else ""


def _has_answers(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


def _completion(entry: object, where: str) -> Completion:
    if not isinstance(entry, dict) or not isinstance(entry.get("response"), str):
        raise BadRow(where, "a completion without a `response`")
    annotations = entry.get("annotations")
    given: Row = annotations if isinstance(annotations, dict) else {}
    try:
        return Completion(
            model=str(entry.get("model") or "unknown"),
            text=entry["response"],
            ratings=[_rating(aspect, given[aspect]) for aspect in ASPECTS if aspect in given],
            overall=_number(entry.get("overall_score")),
        )
    except ValidationError:
        raise BadRow(where, "a completion that is not made of text") from None


def _rating(aspect: str, annotation: object) -> Rating:
    rated = annotation[0] if isinstance(annotation, list) and annotation else annotation
    if not isinstance(rated, dict):
        return Rating(aspect=aspect, value=None)
    rationale = rated.get("Rationale For Rating") or rated.get("Rationale") or ""
    return Rating(aspect=aspect, value=rating_value(rated.get("Rating")), rationale=str(rationale))


def _last_text(answer: object) -> object:
    """The text of an answer, of a turn, or of the last of several turns; anything else as it is."""
    if isinstance(answer, list) and answer:
        answer = answer[-1]
    if isinstance(answer, dict):
        answer = answer.get("content", answer.get("value"))
    return answer


def _number(raw: object) -> float | None:
    try:
        value = float(raw)  # type: ignore[arg-type]  # anything that float refuses is None
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
