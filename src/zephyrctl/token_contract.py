"""The token contract: training, evaluation, chat and the model card render a conversation to the same ids, or refuse.

A worker that has the tokenizer makes one; it is stored in every manifest and beside every model and checkpoint.
"""

import hashlib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.errors import ZephyrError
from zephyrctl.runs.manifest import digest

FILE = "token_contract.json"
Turn = dict[str, str]

_ASKED = "Write   two lines,\n\tplease: naïve café, 東京, 1,024 × 3.5?"
_ANSWERED = "def f(x):\n    return x ** 2\n\n  # done 🙂"
PROBES: tuple[tuple[Turn, ...], ...] = (
    ({"role": "user", "content": _ASKED},),
    ({"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "</s> <|user|>"},
    ),
)
"""Conversations whose ids tell templates and tokenizers apart: spaces, line ends, scripts, turns, text like markers."""


class TokenContract(BaseModel):
    """How a conversation becomes ids; two with the same fingerprint render everything alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chat_template: str = Field(description="sha256 of the Jinja template")
    special_tokens: dict[str, tuple[str, int]] = Field(description="bos, eos, pad, unk: the token and its id")
    vocabulary: int = Field(description="ids that the tokenizer knows")
    starts_with_bos: bool = Field(description="True where a rendered prompt begins with the token for it")
    ends_with_eos: bool = Field(
        description="True where an assistant's turn ends with the token for it, or another stop"
    )
    probes: tuple[tuple[int, ...] | None, ...] = Field(description="ids of the probes; None where the template refuses")

    @property
    def fingerprint(self) -> str:
        """What manifests and cards hold: sha256 over all of it."""
        return digest(self.model_dump(mode="json"))

    def check(self, other: Self, here: str, there: str, remedy: str) -> None:
        """Raise ZephyrError that says what differs, where the two would render anything differently."""
        if self == other:
            return
        differ = [field for field in type(self).model_fields if getattr(self, field) != getattr(other, field)]
        raise ZephyrError(
            f"{here} and {there} turn a conversation into different tokens: {', '.join(_words(differ))} differ", remedy
        )

    def renders(self, chat_template: str) -> bool:
        """True where this is the template that it was made with."""
        return hashlib.sha256(chat_template.encode()).hexdigest() == self.chat_template

    def write(self, folder: Path) -> None:
        """Put it beside a model."""
        (folder / FILE).write_text(self.model_dump_json(indent=2))


def read(folder: Path) -> TokenContract | None:
    """The contract beside a model; None where the folder has none, as models of other programs do.

    Raises ZephyrError where it is damaged.
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
