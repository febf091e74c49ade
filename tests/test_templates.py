"""Whether every shipped template is found, renders, and refuses a value that is missing."""

from typing import Any

import jinja2
import pytest

from zephyrctl import templates
from zephyrctl.errors import ZephyrError
from zephyrctl.records import ASPECTS, Message

MESSAGES = [
    Message(role="system", content="Be <b>brief</b> & kind."),
    Message(role="user", content="What's {{ 2 }} < 3?\n{% raw %}"),
]
VALUES: dict[str, dict[str, Any]] = {
    "prompts/compare.md.jinja": {"messages": MESSAGES, "first": "one & all", "second": "<two>"},
    "prompts/critique.md.jinja": {"messages": MESSAGES, "answer": "<two>"},
    "prompts/judge.md.jinja": {"messages": MESSAGES, "answer": "<two>"},
    "prompts/opening.md.jinja": {"topic": "{{ one }}", "subtopic": "<two>"},
    "prompts/rate.md.jinja": {"messages": MESSAGES, "answers": ["one & all", "<two>", ""], "aspect": "honesty"},
    "prompts/refine.md.jinja": {"instruction": "Say <i>", "answer": "{{ x }}"},
    "prompts/subtopics.md.jinja": {"topic": "<one> & {{ two }}", "count": 7},
    "prompts/user.md.jinja": {"messages": MESSAGES},
}
"""What each prompt is filled with: text that looks like a template or HTML must pass as it is."""


def test_every_prompt_has_a_test() -> None:
    found = (templates.folder() / "prompts").rglob("*.jinja")
    assert {str(path.relative_to(templates.folder())) for path in found} == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_prompt_shows_what_it_is_given_unchanged(name: str) -> None:
    text = templates.render(name, **VALUES[name])
    given = [value for value in VALUES[name].values() if isinstance(value, str)]
    given += [message.content for message in VALUES[name].get("messages", [])]
    given += VALUES[name].get("answers", [])
    assert all(part in text for part in given)


@pytest.mark.parametrize("name", VALUES)
def test_a_prompt_refuses_a_missing_value(name: str) -> None:
    for missing in VALUES[name]:
        with pytest.raises(jinja2.UndefinedError):
            templates.render(name, **{key: value for key, value in VALUES[name].items() if key != missing})


def test_rating_asks_one_line_for_each_answer_and_explains_every_aspect() -> None:
    texts = [
        templates.render("prompts/rate.md.jinja", messages=[], answers=["a", "b"], aspect=name) for name in ASPECTS
    ]
    for text in texts:
        assert "=== Answer 2 ===" in text
        assert "=== Answer 3 ===" not in text
        assert text.count("RATING") == 2
        assert "How good is the answer in this aspect" not in text
    assert len(set(texts)) == len(ASPECTS)
    unknown = templates.render("prompts/rate.md.jinja", messages=[], answers=["a"], aspect="brevity")
    assert "How good is the answer in this aspect" in unknown


def test_html_is_escaped_and_text_is_not() -> None:
    environment = templates._environment()
    assert callable(environment.autoescape)
    assert environment.autoescape("report/report.html.jinja")
    assert not environment.autoescape("prompts/judge.md.jinja")


def test_templates_lie_within_the_package_or_the_checkout() -> None:
    assert (templates.folder() / "recipes" / "tiny.yaml").is_file()
    assert templates.read("chat/zephyr.jinja") == templates.path("chat/zephyr.jinja").read_text()


def test_a_missing_template_is_named() -> None:
    with pytest.raises(ZephyrError, match=r"the template 'chat/none\.jinja' is missing"):
        templates.read("chat/none.jinja")


def test_the_chat_template_renders_zephyrs_marks() -> None:
    chat = templates.read("chat/zephyr.jinja")
    for mark in ("<|", "generation", "eos_token", "add_generation_prompt"):
        assert mark in chat
