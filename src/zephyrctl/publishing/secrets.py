"""Find keys and passwords in files that are about to be published; they are named and never shown."""

import json
import re
from collections.abc import Iterator

import yaml

SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)
"""Tokens of Hugging Face, OpenAI, GitHub and AWS, private keys, and passwords in URLs."""
SECRET_KEY = re.compile(r"(api_?key|password|secret|(access|auth|hf|bearer)_token)$", re.IGNORECASE)
TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".jinja", ".py", ".cfg", ".ini", ".toml", ".csv", ".log")
"""Extensions of text files, which are searched; weights are not."""


def secrets_in(name: str, text: str) -> list[str]:
    """Why a file must not be published, one sentence for each cause; empty if nothing is found."""
    problems = [f"{name} contains what looks like a key or a password"] if SECRET.search(text) else []
    if name.endswith((".json", ".yaml", ".yml")):
        problems += [f"{name} has a value under {key!r}" for key in dict.fromkeys(_secret_keys(name, text))]
    return problems


def _secret_keys(name: str, text: str) -> Iterator[str]:
    """The keys that are named like secrets and whose value is a text, not an environment variable."""
    try:
        values = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return
    for key, value in _leaves(values):
        if SECRET_KEY.search(key) and isinstance(value, str) and value and not value.startswith("$"):
            yield key


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(nearest key, value) of every scalar in nested JSON."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value
