"""The report in a real browser: it fits, it can be read and worked without a mouse, and nothing is fetched or run."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.publishing import runs_made
from tests.publishing.chromium import CHROMIUM, Page, a_page
from tests.publishing.test_report import ablation_run, whole_run
from zephyrctl.publishing.report import write_report
from zephyrctl.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")]

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
FIRST = 20
"""How many questions are shown at once."""
OVERLAPS = """
[...document.querySelectorAll(".radar")].flatMap((drawing) => {
  const texts = [...drawing.querySelectorAll("text")];
  const boxes = texts.map((text) => text.getBoundingClientRect());
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  const pairs = texts.flatMap((text, i) => texts.slice(i + 1).map((other, j) => [i, i + 1 + j]));
  const over = pairs.filter(([i, j]) => !apart(boxes[i], boxes[j]));
  const beyond = texts.filter((text, i) => boxes[i].left < 0 || boxes[i].right > innerWidth);
  const said = over.map(([i, j]) => texts[i].textContent + " on " + texts[j].textContent);
  return [...said, ...beyond.map((text) => text.textContent + " beyond the page")];
})
"""
CONTRASTS = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const read = (color) => {
    if (!known.has(color)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(color, [r, g, b, a / 255]);
    }
    return known.get(color);
  };
  const light = ([r, g, b]) => {
    const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = read(getComputedStyle(one).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return [255, 255, 255, 1];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = [];
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const isSeen = element.checkVisibility() && !element.closest(".unseen, title, desc, option");
    if (!isSeen || !walker.currentNode.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const color = read(element.closest("svg") ? style.fill : style.color);
    const [one, other] = [light(color), light(behind(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    seen += 1;
    if (ratio < needed) poor.push(walker.currentNode.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  }
  return [seen, [...new Set(poor)]];
})()
"""
UNLABELLED = """
[...document.querySelectorAll("input, select, button, summary, a")]
  .filter((one) => !(one.textContent.trim() || one.labels?.length || one.ariaLabel))
  .map((one) => one.outerHTML)
"""
HEADINGS = """[...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.tagName[1]))"""
SHOWN = """[...document.querySelectorAll(".question")].filter((one) => one.checkVisibility()).map((one) => one.id)"""
COUNT = """document.getElementById("f-count").textContent"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with a_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain run, Table 3 with every benchmark, one model with few questions, and twelve models of long names."""
    folder = tmp_path_factory.mktemp("runs")
    plain = whole_run(folder / "plain")
    ablation, recipe = ablation_run(folder / "ablation")
    runs_made.make_benchmarks(ablation, ["base", "ddpo", "dsft-1", "dsft-2", "ddpo-dsft"])
    one = whole_run(folder / "one")
    runs_made.make_benchmarks(one, ["dpo"], 8)
    many = Run(folder / "many")
    runs_made.make_benchmarks(
        many, [f"an-organisation/{'a-very-long-name-' * 3}{number:02d}"[-60:] for number in range(12)], 16
    )
    return {
        "plain": write_report(plain, None),
        "ablation": write_report(ablation, recipe),
        "one": write_report(one, None),
        "many": write_report(many, None),
    }


@pytest.fixture
def ablation(page: Page, reports: dict[str, Path]) -> Page:
    page.size(1280)
    page.open(reports["ablation"].as_uri())
    return page


def choose(page: Page, id: str, value: str) -> None:
    """Choose in a list, as a person would."""
    page.ask(
        f"(() => {{ const one = document.getElementById('{id}'); one.value = '{value}';"
        "one.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


@pytest.mark.parametrize("name", ["plain", "ablation", "one", "many"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_a_phone_and_a_desktop_and_fetches_nothing(
    page: Page, reports: dict[str, Path], name: str, width: int
) -> None:
    page.size(width)
    page.open(reports[name].as_uri())
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("document.querySelectorAll('svg').length") >= 3
    assert page.ask(OVERLAPS) == []
    assert page.requests == [reports[name].as_uri()]
    assert page.complaints == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["ablation", "one", "many"])
def test_every_text_stands_out_from_what_is_behind_it(
    page: Page, reports: dict[str, Path], name: str, scheme: str
) -> None:
    page.size(1280)
    page.scheme(scheme)
    page.open(reports[name].as_uri())
    page.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    seen, poor = page.ask(CONTRASTS)
    assert seen > 300
    assert poor == []


def test_the_two_schemes_differ(ablation: Page) -> None:
    grounds = []
    for scheme in SCHEMES:
        ablation.scheme(scheme)
        grounds.append(ablation.ask("getComputedStyle(document.body).backgroundColor"))
    assert len(set(grounds)) == 2


@pytest.mark.parametrize("name", ["plain", "ablation", "many"])
def test_headings_go_down_one_by_one_and_every_control_has_a_name(
    page: Page, reports: dict[str, Path], name: str
) -> None:
    page.open(reports[name].as_uri())
    levels = page.ask(HEADINGS)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.ask(UNLABELLED) == []


def test_what_a_model_says_is_text_and_does_nothing(ablation: Page) -> None:
    ablation.ask("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert ablation.ask("document.title").startswith("ablation")
    assert ablation.ask("[document.images.length, document.scripts.length]") == [0, 1]
    said = "document.querySelector('#questions').textContent.includes('<img src=x onerror=')"
    assert ablation.ask(said)


def test_no_other_script_may_run(ablation: Page) -> None:
    added = (
        "const one = document.createElement('script'); one.textContent = 'window.ran = 1'; document.body.append(one);"
    )
    ablation.ask(f"(() => {{ {added} }})()")
    assert ablation.ask("window.ran") is None
    assert any("Content Security Policy" in line for line in ablation.complaints)


def test_without_scripts_every_question_is_shown(page: Page, reports: dict[str, Path]) -> None:
    page.allow_scripts(False)
    try:
        page.open(reports["ablation"].as_uri())
        assert page.ask("document.getElementById('filter').checkVisibility()") is False
        assert len(page.ask(SHOWN)) == page.ask("document.querySelectorAll('.question').length") > FIRST
    finally:
        page.allow_scripts(True)


def test_filters_leave_what_they_say_and_say_how_much(ablation: Page) -> None:
    every = ablation.ask("document.querySelectorAll('.question').length")
    assert len(ablation.ask(SHOWN)) == FIRST
    assert ablation.ask(COUNT) == f"{FIRST} of {every} matching questions shown"
    choose(ablation, "f-evaluation", "mt-bench")
    choose(ablation, "f-category", "math")
    assert ablation.ask(SHOWN) == [f"q-mt-bench-{number}" for number in range(111, 121)]
    assert ablation.ask(COUNT) == "10 of 10 matching questions shown"
    choose(ablation, "f-text", "kind 33 ")
    assert ablation.ask(SHOWN) == ["q-mt-bench-114"]
    choose(ablation, "f-text", "nobody says this")
    assert ablation.ask(SHOWN) == [] and ablation.ask(COUNT) == "No question matches."
    ablation.ask("document.getElementById('f-clear').click()")
    assert ablation.ask(COUNT).startswith(f"{FIRST} of {every}")


def test_more_questions_come_when_asked_for(ablation: Page) -> None:
    ablation.ask("document.getElementById('f-more').click()")
    shown = ablation.ask(SHOWN)
    assert len(shown) == 2 * FIRST
    assert ablation.ask("document.activeElement.id") == shown[FIRST]


def test_scores_filter_and_order_the_questions(ablation: Page) -> None:
    shown = "[...document.querySelectorAll('.question')].filter((one) => !one.hidden)"
    scores = f"{shown}.map((one) => one.dataset.scores.split(','))"
    choose(ablation, "f-evaluation", "mt-bench")
    choose(ablation, "f-order", "difference")
    left, right = (int(ablation.ask(f"document.getElementById('f-{side}').value")) for side in ("left", "right"))
    apart = [abs(float(of[left]) - float(of[right])) for of in ablation.ask(scores)]
    assert apart == sorted(apart, reverse=True) and apart[0] > apart[-1]
    choose(ablation, "f-order", "lowest")
    lowest = [float(of[left]) for of in ablation.ask(scores)]
    assert lowest == sorted(lowest)
    choose(ablation, "f-score", "low")
    assert all(float(of[left]) < 1 / 3 for of in ablation.ask(scores))
    choose(ablation, "f-left", "0")
    choose(ablation, "f-score", "none")
    assert ablation.ask(scores) and all(of[0] == "" for of in ablation.ask(scores))


def test_models_are_shown_and_hidden(ablation: Page) -> None:
    shown = "[...document.querySelectorAll('.answer')].filter((one) => one.checkVisibility())"
    seen = f"[...new Set({shown}.map((one) => one.dataset.model))]"
    choose(ablation, "f-evaluation", "mt-bench")
    assert len(ablation.ask(seen)) == 4
    ablation.ask("document.querySelector('.models input:checked').click()")
    assert len(ablation.ask(seen)) == 3
    ablation.ask("document.querySelectorAll('.models input:not(:checked)').forEach((one) => one.click())")
    assert len(ablation.ask(seen)) == 5


def test_a_radar_shows_the_models_that_are_ticked(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["many"].as_uri())
    seen = "[...document.querySelectorAll('.outline')].filter((one) => getComputedStyle(one).display !== 'none').length"
    assert page.ask("document.querySelectorAll('.outline').length") == 12
    assert page.ask(seen) == 5
    page.ask("document.querySelector('.pick input:not(:checked)').click()")
    assert page.ask(seen) == 6


def test_questions_can_be_walked_through_and_searched_by_keys(ablation: Page) -> None:
    focused = "document.activeElement.id"
    shown = ablation.ask(SHOWN)
    walked = []
    for key in ("j", "j", "k", "ArrowRight", "ArrowRight", "ArrowLeft"):
        ablation.press(key)
        walked.append(ablation.ask(focused))
    assert walked == [shown[place] for place in (0, 1, 0, 1, 2, 1)]
    ablation.press("/")
    assert ablation.ask(focused) == "f-text"
    for key in "jk/":
        ablation.press(key)
    assert ablation.ask("document.getElementById('f-text').value") == "jk/"
    ablation.ask("document.getElementById('f-keys').click()")
    ablation.ask("document.getElementById('f-text').blur()")
    ablation.press("j")
    assert ablation.ask("document.activeElement.tagName") == "BODY"


def test_every_control_is_reached_by_tab(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["one"].as_uri())
    controls = "[...document.querySelectorAll('#filter [id], .pick input')].filter((one) => one.tabIndex >= 0)"
    wanted = set(page.ask(f"{controls}.map((one) => one.id || one.className)"))
    assert {"f-text", "f-evaluation", "f-order", "pick-0"} <= wanted
    reached = set()
    for _ in range(120):
        page.press("Tab")
        reached.add(page.ask("document.activeElement.id || document.activeElement.className"))
    assert wanted <= reached


def test_a_link_to_a_question_opens_there_whatever_is_filtered(page: Page, reports: dict[str, Path]) -> None:
    page.open("about:blank")
    page.open(f"{reports['ablation'].as_uri()}#q-mt-bench-150")
    assert page.ask("document.activeElement.id") == "q-mt-bench-150"
    assert abs(page.ask("document.activeElement.getBoundingClientRect().top")) < 900
    choose(page, "f-evaluation", "arena")
    assert "q-mt-bench-150" not in page.ask(SHOWN)
    page.ask("(location.hash = '#q-mt-bench-149', new Promise((done) => setTimeout(done, 100)))")
    assert page.ask("document.activeElement.id") == "q-mt-bench-149"
    assert page.ask("document.getElementById('f-evaluation').value") == ""
