"""Turn conversations into token ids with one template, for training, evaluation and generation alike.

The template writes every marker and the tokenizer adds none: no `<s>` at the start (Zephyr's template has none).
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zephyrctl.errors import ZephyrError
from zephyrctl.token_contract import PROBES, TokenContract, Turn

IGNORED = -100
"""The label of a token that is not part of the loss."""


class Rendered(TypedDict, total=False):
    """What the tokenizer makes of conversations, one list each."""

    input_ids: list[list[int]]
    assistant_masks: list[list[int]]
    """1 for a token of an assistant's turn, within `{% generation %}`; only if asked for."""


@contextlib.contextmanager
def refusing_code(model: str) -> Iterator[None]:
    """Raise ZephyrError, with the setting that allows it, if a model that is loaded here needs untrusted code."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ZephyrError(
            f"{model} needs Python code that comes with it, and that code could do anything here",
            f"read that code, and if you trust it: --set base.options.trust_remote_code={model}",
        ) from None


def load_tokenizer(
    model: str, revision: str | None, chat_template: str, trusts_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with our chat template and a padding token.

    Its end of text is the token that ends an answer in the template (Llama 3's `<|eot_id|>`, while the base's own token
    ends a document). It is saved with every checkpoint, so that generation stops there.
    """
    with refusing_code(model):
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trusts_code)
    tokenizer.chat_template = chat_template
    # <unk> before the end of text: padding of the same id as the end would hide the end from a loss that skips padding
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if end_token := _answer_end_token(tokenizer):
        tokenizer.eos_token = end_token
    return tokenizer


def _answer_end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The last special token of an answer; empty if the template has none, or marks no answers."""
    # the last and not the very end: templates write a newline behind it
    added = tokenizer.added_tokens_decoder
    special = [added[token].content for token in _answer_ids(tokenizer) if token in added and added[token].special]
    return special[-1] if special else ""


def contract(tokenizer: PreTrainedTokenizerBase) -> TokenContract:
    """The token contract of a tokenizer and its template."""
    roles = {role: getattr(tokenizer, f"{role}_token", None) for role in ("bos", "eos", "pad", "unk")}
    special = {role: (token, tokenizer.convert_tokens_to_ids(token)) for role, token in roles.items() if token}
    probes = tuple(_probe(tokenizer, probe) for probe in PROBES)
    return TokenContract(
        chat_template=hashlib.sha256(tokenizer.chat_template.encode()).hexdigest(),
        special_tokens=special,
        vocabulary=len(tokenizer),
        starts_with_bos=(probes[0] or (None,))[0] == tokenizer.bos_token_id,
        ends_with_eos=tokenizer.eos_token_id in _answer_ids(tokenizer),
        probes=probes,
    )


def _probe(tokenizer: PreTrainedTokenizerBase, probe: Sequence[Turn]) -> tuple[int, ...] | None:
    try:
        if probe[-1]["role"] == "assistant":
            return tuple(_render(tokenizer, [list(probe)])["input_ids"][0])
        return tuple(prompt_ids(tokenizer, probe))
    except ZephyrError:
        return None


def _answer_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a short answer that are part of the loss."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    ((_, labels),) = dialogues_ids(tokenizer, [turns], assistant_only=True)
    return [label for label in labels if label != IGNORED]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Turn]) -> list[int]:
    """The ids of a conversation up to the start of the assistant's answer."""
    return prompts_ids(tokenizer, [messages])[0]


def prompts_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Turn]]) -> list[list[int]]:
    """The ids of conversations up to the start of the assistant's answer."""
    return _render(tokenizer, prompts, add_generation_prompt=True)["input_ids"]


def dialogues_ids(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Turn]], assistant_only: bool
) -> list[tuple[list[int], list[int]]]:
    """The ids of whole dialogues and their labels; with `assistant_only` other turns are not part of the loss."""
    rendered = _render(tokenizer, dialogues, return_assistant_tokens_mask=assistant_only)
    if not assistant_only:
        return [(ids, list(ids)) for ids in rendered["input_ids"]]
    # The masks follow from character offsets of tokens, which a post-processor with trim_offsets=true shifts: an answer
    # that begins with a space then ends the mask for the rest of its dialogue.
    dialogues_and_labels: list[tuple[list[int], list[int]]] = []
    for ids, masks in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True):
        labels = [token if mask else IGNORED for token, mask in zip(ids, masks, strict=True)]
        dialogues_and_labels.append((ids, labels))
    return dialogues_and_labels


def _render(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Turn]], **options: bool) -> Rendered:
    turns = [list(conversation) for conversation in conversations]
    try:
        # Not rendered first and tokenized then: to a text the tokenizer would add its own `<s>`.
        rendered: Rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)
        return rendered
    except jinja2.exceptions.TemplateError as error:
        raise ZephyrError(
            f"the chat template refuses a conversation: {error}",
            "remove its system turn, let user and assistant alternate, or use another base",
        ) from None
