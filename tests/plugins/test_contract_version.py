"""Whether a plugin that is written for another version of the contract says which it wants, and is left out."""

from pathlib import Path

import pytest

from tests.plugins.packages import install
from tests.plugins.test_broken import GOOD, loaded, site
from zephyrctl.hooks import CONTRACT

__all__ = ["site"]


@pytest.mark.parametrize("stated", ["", f'zephyrctl_contract = "{CONTRACT}"\n'], ids=["unstated", "stated"])
def test_a_plugin_of_this_version_is_loaded(site: Path, stated: str) -> None:
    install(site, "zephyrctl-parrot", stated + GOOD)
    assert loaded().find("teacher", "parrot").origin == "zephyrctl-parrot 1.0"


@pytest.mark.parametrize(
    "code",
    [
        'zephyrctl_contract = "7"\n' + GOOD,
        'from zephyrctl.contracts import Tutor\nzephyrctl_contract = "7"\n' + GOOD,
        "zephyrctl_contract = 7\n" + GOOD.replace("hookimpl", "hookimplementation"),
    ],
    ids=["that imports", "that imports what is not here", "whose hooks are other ones"],
)
def test_a_plugin_of_another_version_says_which(site: Path, code: str) -> None:
    """Also where it cannot even be imported; a sound plugin beside it is loaded."""
    install(site, "zephyrctl-later", code)
    install(site, "zephyrctl-parrot", GOOD)
    found = loaded()
    assert list(found.versions) == ["zephyrctl-parrot"]
    (reason,) = found.failures.values()
    assert reason.startswith("zephyrctl-later 1.0: ")
    assert "it wants version " in reason and "7" in reason
    assert f"has version '{CONTRACT}'" in reason
    assert "the plugin 'zephyrctl-later' failed to load and is left out" in next(iter(found.warnings()))


def test_a_broken_plugin_of_this_version_says_what_is_broken(site: Path) -> None:
    """The version is not to blame."""
    install(site, "zephyrctl-broken", f'import nowhere\nzephyrctl_contract = "{CONTRACT}"\n')
    assert loaded().failures["zephyrctl-broken"].endswith("ModuleNotFoundError: No module named 'nowhere'")
