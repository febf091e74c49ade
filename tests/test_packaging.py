"""What is installed is what is in the checkout: templates, recipes and the base model travel in the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("zephyrctl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_template_travels(installed: Path) -> None:
    shipped = {path.relative_to(ROOT / "templates") for path in (ROOT / "templates").rglob("*") if path.is_file()}
    arrived = {
        path.relative_to(installed / "zephyrctl" / "templates")
        for path in (installed / "zephyrctl" / "templates").rglob("*")
        if path.is_file()
    }
    assert shipped and shipped == arrived


def test_the_installed_command_finds_recipes_and_base(installed: Path, tmp_path: Path) -> None:
    """Run from the wheel alone: the checkout is not on the path."""
    script = (
        "import zephyrctl, sys; from zephyrctl.cli.app import main; "
        "assert zephyrctl.__file__.startswith(sys.argv[1]), zephyrctl.__file__; "
        "sys.exit(main(['run', '--recipe', 'ablation-tiny', '--dry-run', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(installed)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"would_fail": null' in done.stdout
