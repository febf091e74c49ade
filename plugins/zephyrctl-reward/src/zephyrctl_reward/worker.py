"""The scoring worker: one JSON request a line on standard input, one JSON reply a line on standard output.

`{"load": folder or id, "revision": ...}` is answered by `{"labels": 1}`, and `{"conversations": [[{role, content},
...], ...], "max_tokens": ...}` by `{"scores": [...]}`. Only this module of the package imports torch.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DECIMALS = 4
"""Scores are rounded so far: what stands beside a conversation in its batch changes the seventh."""


class Classifier:
    """A loaded reward model."""

    def __init__(self, model: str, revision: str | None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        self.tokenizer.truncation_side = "left"  # the answer stands at the end
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        device, precision = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            model, revision=revision, dtype=precision, use_safetensors=True
        )
        if self.model.config.num_labels != 1:
            raise ValueError(f"it has {self.model.config.num_labels} logits where a reward model has one")
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()

    def text(self, conversation: list[dict[str, str]]) -> str:
        """A conversation by the model's own template; without one, its turns under their roles."""
        if self.tokenizer.chat_template:
            rendered: str = self.tokenizer.apply_chat_template(conversation, tokenize=False)
            return rendered
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation)

    def scores(self, conversations: Sequence[list[dict[str, str]]], max_tokens: int) -> list[float]:
        """One score a conversation, in order."""
        batch = self.tokenizer(
            [self.text(conversation) for conversation in conversations],
            add_special_tokens=not self.tokenizer.chat_template,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_tokens,
        ).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return [round(score, DECIMALS) for score in logits[:, 0].float().tolist()]


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends; a failed one is answered with its problem."""
    classifier: Classifier | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if "load" in request:
                classifier = Classifier(request["load"], request["revision"])
                reply: dict[str, Any] = {"labels": 1}
            else:
                assert classifier is not None, "load a model first"
                reply = {"scores": classifier.scores(request["conversations"], request["max_tokens"])}
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "give a folder or Hub id of a sequence classifier with one logit, in safetensors"
            reply = {"problem": f"the reward model cannot be used: {reason}", "remedy": remedy}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    # Libraries may print: what they print goes to standard error, and replies alone to the real standard output.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
