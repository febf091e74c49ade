"""The report in a real browser: it draws, nothing runs off the page, and nothing is fetched."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.publishing.test_report import whole_run
from zephyrctl.publishing.report import write_report

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PROBE = """
<iframe id="page" src="report.html" style="width: {width}px; height: 2000px; border: 0"></iframe>
<script>
page.onload = () => {{
  const root = page.contentDocument.documentElement;
  document.title = JSON.stringify([root.scrollWidth, page.contentDocument.querySelectorAll("svg").length]);
}};
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_a_phone_and_a_desktop(tmp_path: Path, width: int) -> None:
    """The page is put into a frame of that width, and says itself how wide it drew."""
    assert CHROMIUM
    report = write_report(whole_run(tmp_path / "run"), None)
    (report.parent / "probe.html").write_text(PROBE.format(width=width))
    done = subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width + 40},2100",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (report.parent / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    drawn, pictures = (int(part) for part in title.strip("[]").split(","))
    assert drawn <= width
    assert pictures >= 3
