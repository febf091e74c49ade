"""The token contract: training, evaluation and generation render a conversation to the same ids, by one template.

The template writes every marker and the tokenizer adds nothing: no `<s>` in front (Zephyr's template has none).
"""

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

Turn = dict[str, str]
IGNORED = -100


def load_tokenizer(model: str, revision: str | None, chat_template: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with our chat template and a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    tokenizer.chat_template = chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn]) -> list[int]:
    """The ids of a conversation up to where the assistant begins to answer."""
    rendered = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids: list[int] = rendered["input_ids"]
    return ids


def dialogue_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn], assistant_only: bool
) -> tuple[list[int], list[int]]:
    """The ids of a whole dialogue and its labels; with `assistant_only` the other turns carry no loss."""
    rendered: dict[str, Any] = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=assistant_only
    )
    ids: list[int] = rendered["input_ids"]
    if not assistant_only:
        return ids, list(ids)
    return ids, [token if mask else IGNORED for token, mask in zip(ids, rendered["assistant_masks"], strict=True)]
