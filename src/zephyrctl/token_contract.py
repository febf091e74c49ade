"""The token contract: check that training, evaluation, chat and model card turn a conversation into the same ids.

A worker that has the tokenizer creates it. It is stored in every manifest and beside every model and checkpoint.
"""

import hashlib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.errors import ZephyrError
from zephyrctl.runs.manifest import digest

FILE = "token_contract.json"
Turn = dict[str, str]

_QUESTION = "Write   two lines,\n\tplease: naïve café, 東京, 1,024 × 3.5?"
_ANSWER = "def f(x):\n    return x ** 2\n\n  # done 🙂"
PROBES: tuple[tuple[Turn, ...], ...] = (
    ({"role": "user", "content": _QUESTION},),
    ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "</s> <|user|>"},
    ),
)
"""Conversations whose ids differ between templates and tokenizers: spaces, lines, scripts, turns, fake markers."""


class TokenContract(BaseModel):
    """How a conversation becomes ids. Two contracts with the same fingerprint agree on every conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_template: str = Field(description="sha256 of the Jinja template")
    special_tokens: dict[str, tuple[str, int]] = Field(description="bos, eos, pad, unk: the token and its id")
    vocabulary: int = Field(description="number of ids of the tokenizer")
    starts_with_bos: bool = Field(description="True if a rendered prompt begins with the bos token")
    ends_with_eos: bool = Field(description="True if an assistant turn ends with the eos token, or another stop token")
    probes: tuple[tuple[int, ...] | None, ...] = Field(
        description="ids of the probes; None if the template rejects one"
    )

    @property
    def fingerprint(self) -> str:
        """sha256 of the whole contract, as manifests and cards state it."""
        return digest(self.model_dump(mode="json"))

    def check(self, other: Self, here: str, there: str, remedy: str) -> None:
        """Raise ZephyrError that says what differs, if the two would render anything differently."""
        if self == other:
            return
        differ = [field for field in type(self).model_fields if getattr(self, field) != getattr(other, field)]
        raise ZephyrError(
            f"{here} and {there} turn a conversation into different tokens: {', '.join(_words(differ))} differ", remedy
        )

    def renders(self, chat_template: str) -> bool:
        """True if this is the template that the contract was created with."""
        return hashlib.sha256(chat_template.encode()).hexdigest() == self.chat_template

    def write(self, folder: Path) -> None:
        """Write it beside a model."""
        (folder / FILE).write_text(self.model_dump_json(indent=2))


def read(folder: Path) -> TokenContract | None:
    """The contract beside a model; None if the folder has none, as with models of other programs.

    Raises ZephyrError if it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return TokenContract.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ZephyrError(
            f"{path} is damaged or of another version of zephyrctl", "train that checkpoint again"
        ) from None


def _words(fields: list[str]) -> list[str]:
    return [field.replace("_", " ") if field != "probes" else "rendered ids" for field in fields]
