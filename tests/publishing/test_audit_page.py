"""The page of an audit: it shows the figures of every form, runs nothing, fetches nothing, and fits its screen."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.data.rows_made import rated, ultrafeedback_row, write_jsonl
from tests.publishing.chromium import CHROMIUM, Page, a_page
from zephyrctl.data.audit import audit
from zephyrctl.publishing.audit_page import HEADINGS, render_page, write_page
from zephyrctl.records import PreferencePair
from zephyrctl.runs.parquet import write_parquet

HOSTILE = "<script>alert(1)</script> & <img src=x onerror=alert(2)> tell me which of the two is larger, please"


def pairs(folder: Path) -> Path:
    """Forty of our own pairs whose rejected answer stands first, with ties, refusals and a hostile prompt."""
    rows = [
        PreferencePair(
            id=str(n),
            messages=rated(f"{HOSTILE if n == 0 else 'Which is larger?'} {n}").messages,
            chosen="It is the second one. " * (n + 1),
            rejected="As an AI, I cannot say." if n % 2 else "The first one.",
            score_chosen=5 - n % 3,
            score_rejected=3,
            chosen_place=1 + n % 3,
            rejected_place=0,
        )
        for n in range(40)
    ]
    folder.mkdir(exist_ok=True)
    write_parquet(folder / "pairs.parquet", rows, PreferencePair)
    return folder / "pairs.parquet"


def answers(folder: Path) -> Path:
    """Rated rows, one of them bad."""
    rows: list[Any] = [
        ultrafeedback_row(f"Why {n}?", {"Long and good.": "5", "Bad.": str(1 + n % 3)}) for n in range(9)
    ]
    return write_jsonl(folder / "rated.jsonl", [*rows, {"instruction": "", "completions": []}])


def dialogues(folder: Path) -> Path:
    """Dialogues of one and of two rounds."""
    rows = [
        {"id": str(n), "data": [f"what is {n}?", "A number.", "And more?", "No."][: 2 + 2 * (n % 2)]} for n in range(9)
    ]
    return write_jsonl(folder / "dialogues.jsonl", rows)


def shown(page: str) -> dict[str, str]:
    """The first table of a page: heading -> count."""
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td class="number">([^<]*)</td>', page)
    return {heading: count for heading, count in rows if heading in HEADINGS.values()}


@pytest.mark.parametrize(
    ("make", "charts"),
    [
        (pairs, {"lengths", "prompts", "difference", "scores", "places"}),
        (answers, {"lengths", "prompts", "places"}),
        (dialogues, {"lengths", "prompts", "turns"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_form_has_its_figures_and_charts(tmp_path: Path, make: Any, charts: set[str]) -> None:
    seen = audit(make(tmp_path))
    page, figures = render_page("a name", seen), seen.figures()
    assert shown(page) == {HEADINGS[key]: f"{figures[key]:,}" for key in HEADINGS if key in figures}
    assert set(re.findall(r'<desc id="(\w+)-d">', page)) == charts
    assert page.count("<svg") == page.count('role="img"') + page.count('aria-hidden="true"><rect')
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^" ]+)', page)) <= set(ids)


def test_texts_of_the_data_run_nothing_and_nothing_is_fetched(tmp_path: Path) -> None:
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", [{"question": f"{HOSTILE} 0"}])
    page = render_page("<b>name</b>", audit(pairs(tmp_path), [benchmark]))
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>name" not in page
    assert "&lt;script&gt;alert(1)" in page, "a hit is quoted"
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "url(" not in page


def test_the_page_says_when_nothing_was_searched_for(tmp_path: Path) -> None:
    path = dialogues(tmp_path)
    assert "Not searched" in render_page("x", audit(path))
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", [{"question": "Where is the moon?"}, {"question": "Who?"}])
    assert "No row contains one of the 2 benchmark prompts" in render_page("x", audit(path, [benchmark]))


def test_the_chance_of_skewed_places_is_told(tmp_path: Path) -> None:
    path = pairs(tmp_path)
    assert "positions of the rejected answers would be this uneven" not in render_page("x", audit(path)), (
        "one place, nothing to compare"
    )
    mixed = [
        PreferencePair(
            id=str(n),
            messages=rated(f"Which {n}?").messages,
            chosen="a",
            rejected="b",
            score_chosen=2,
            score_rejected=1,
            chosen_place=2,
            rejected_place=int(n == 0),
        )
        for n in range(40)
    ]
    write_parquet(path, mixed, PreferencePair)
    assert (
        "the positions of the rejected answers would be this uneven with a probability of less than one in a million"
        in render_page("x", audit(path))
    )


def test_the_command_writes_the_page_where_it_is_told(zephyrctl: Command, tmp_path: Path) -> None:
    path = pairs(tmp_path)
    done = zephyrctl("data", "audit", path, "--html", tmp_path / "page.html", "--json")
    assert done.json["rows"] == 40
    assert "40 pairs." in (tmp_path / "page.html").read_text()
    assert not list(tmp_path.glob(".*unfinished"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with a_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("make", [pairs, answers, dialogues], ids=lambda make: make.__name__)
def test_the_page_fits_a_phone_and_a_desktop(page: Page, tmp_path: Path, make: Any, width: int) -> None:
    write_page(tmp_path / "audit.html", "a_name_that_is_long_" * 6, audit(make(tmp_path)))
    page.size(width)
    page.open((tmp_path / "audit.html").as_uri())
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("document.querySelectorAll('svg').length") >= 3
    assert page.requests == [(tmp_path / "audit.html").as_uri()]
