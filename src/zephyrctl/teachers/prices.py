"""Look up what a model's tokens cost: in the user's price file first, then in the shipped one."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl import templates
from zephyrctl.errors import ZephyrError

WORKING_FILE = "prices.yaml"
SHIPPED = "prices.yaml"
DATED = re.compile(r"-(?:\d{4}|\d{8}|\d{4}-\d{2}-\d{2}|latest|preview)$")
"""The end of a dated id: gpt-4-0613, claude-sonnet-4-20250514, gpt-4o-2024-08-06."""


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of one call, in US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class PriceFile(BaseModel):
    """A price file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, Price]


class Prices:
    """Prices by model name, dated id or pattern."""

    def __init__(self, models: dict[str, Price]) -> None:
        self.models = models
        self._found: dict[str, Price | None] = {}

    def of(self, model: str) -> Price | None:
        """A model's price: its own entry, that of its undated name, or of the longest pattern; None without one."""
        if model not in self._found:
            self._found[model] = self._find(model)
        return self._found[model]

    def _find(self, model: str) -> Price | None:
        for name in (model, DATED.sub("", model)):
            if name in self.models:
                return self.models[name]
        patterns = [name for name in self.models if "*" in name and fnmatchcase(model, name)]
        return self.models[max(patterns, key=len)] if patterns else None

    def usd(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The cost of one call in US dollars, or None for a model without a price."""
        price = self.of(model)
        return price.usd(prompt_tokens, completion_tokens) if price else None


def load(path: str | None = None) -> Prices:
    """The shipped prices, overridden by those of `path`, or else of prices.yaml in the working folder.

    Raises ZephyrError if the file is missing or is not a price file.
    """
    own = Path(path) if path else Path(WORKING_FILE)
    if path and not own.is_file():
        raise ZephyrError(f"there is no price file {path}", "check `prices` in the recipe, or leave it out")
    shipped = _read(templates.path(SHIPPED))
    return Prices({**shipped, **(_read(own) if own.is_file() else {})})


def _read(path: Path) -> dict[str, Price]:
    try:
        return PriceFile.model_validate(yaml.safe_load(path.read_text())).models
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in problem["loc"])
        raise ZephyrError(f"{path}: {where}: {problem['msg']}", _FORM) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ZephyrError(f"{path} is not YAML", _FORM) from None


_FORM = "a price file says `models: {NAME: {input: 2.5, output: 10}}`, in US dollars per million tokens"
