"""Keys of a recipe that have been renamed: the old name works for one version, with a note."""

from collections.abc import Mapping

from pydantic import JsonValue

from zephyrctl.errors import ZephyrError

RENAMED = {"launch.door": "launch.launcher"}
"""New key by old key."""
RENAMED_OPTIONS = {"launch.door": ("--door", "--launcher")}
"""Old and new option of the command line, by old key."""


def rename_keys(origin: str, layer: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], list[str]]:
    """One layer of a recipe with today's keys, and a note for each old key that it has.

    Raises ZephyrError if the layer gives a value by both names.
    """
    renamed, notes = dict(layer), []
    for old, new in RENAMED.items():
        section, _, old_name = old.partition(".")
        new_name = new.rpartition(".")[2]
        values = renamed.get(section)
        if not isinstance(values, dict) or old_name not in values:
            continue
        old_word, new_word = RENAMED_OPTIONS[old] if origin == "option" else (old, new)
        if new_name in values:
            raise ZephyrError(
                f"{origin}: {old_word} is the old name of {new_word}, and both are given", f"remove {old_word}"
            )
        renamed[section] = {new_name if name == old_name else name: value for name, value in values.items()}
        prefix = "" if origin == "option" else f"{origin}: "
        notes.append(f"{prefix}{old_word} is now called {new_word}; the old name will go in the next version")
    return renamed, notes
