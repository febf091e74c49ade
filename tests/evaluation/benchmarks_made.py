"""Benchmarks of our own in the published files' form: instructions of the tiny world, which its models can answer."""

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tests.chat_server import Call
from zephyrctl.records import Message
from zephyrctl.tiny import world
from zephyrctl.tiny.teacher import OfflineTeacher

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
GUIDED = ("reasoning", "math", "coding")
SINGLE = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
TEMPLATES = {
    "single-v1": "ASKED<<{question}>> SAID<<{answer}>>",
    "single-math-v1": "ASKED<<{question}>> KEY<<{ref_answer_1}>> SAID<<{answer}>>",
    "single-v1-multi-turn": "FIRST<<{question_1}>> THEN<<{answer_1}>> ASKED<<{question_2}>> SAID<<{answer_2}>>",
    "single-math-v1-multi-turn": (
        "KEYS<<{ref_answer_1} / {ref_answer_2}>> "
        "FIRST<<{question_1}>> THEN<<{answer_1}>> ASKED<<{question_2}>> SAID<<{answer_2}>>"
    ),
}
RANKING = (
    "<|im_start|>system\nYou rank.\n<|im_end|>\n<|im_start|>user\n"
    "ASKED<<{instruction}>> ONE<<{output_1}>> TWO<<{output_2}>>\n<|im_end|>"
)
MARKED = re.compile(r"(\w+)<<(.*?)>>", re.DOTALL)


def mt_bench_files(folder: Path, questions: int = 8, first: str = "") -> Path:
    """Questions of two turns, one a category by turns, with prompts and references in FastChat's form.

    `first` is what the first of them asks, where that matters.
    """
    rng = Random(0)
    rows, guides = [], []
    for number in range(questions):
        category = CATEGORIES[number % len(CATEGORIES)]
        drawn = world.draw(rng).prompt
        asked = first if first and not number else drawn
        turns = [asked, world.follow_up([{"role": "user", "content": asked}], rng)]
        id = 81 + 10 * (number % len(CATEGORIES)) + number // len(CATEGORIES)
        rows.append({"question_id": id, "category": category, "turns": turns})
        if category in GUIDED:
            guides.append({"question_id": id, "choices": [{"index": 0, "turns": ["the key", "the other key"]}]})
    prompts = [
        {"name": name, "system_prompt": f"You rate. {name}", "prompt_template": TEMPLATES[name], "type": "single"}
        for name in SINGLE
    ]
    write_lines(folder / "question.jsonl", rows)
    write_lines(folder / "judge_prompts.jsonl", prompts)
    write_lines(folder / "reference_answer" / "gpt-4.jsonl", guides)
    return folder


def alpaca_files(folder: Path, instructions: int = 30) -> Path:
    """Instructions with reference outputs, and a ranking prompt, in AlpacaEval's form."""
    rng = Random(1)
    asked = list(dict.fromkeys(world.draw(rng).prompt for _ in range(4 * instructions)))[:instructions]
    rows = [
        {"dataset": f"set {number % 2}", "instruction": text, "output": f"A reference, {number}.", "generator": "old"}
        for number, text in enumerate(asked)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alpaca_eval.json").write_text(json.dumps(rows))
    (folder / "alpaca_eval.txt").write_text(RANKING)
    return folder


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge_by_rules(call: Call) -> str:
    """A judge behind a server: it rates or ranks by the rules of the tiny world, in the form that it was asked for."""
    marked = dict(MARKED.findall(call.text))
    teacher = OfflineTeacher(OfflineTeacher.Options())
    if "ONE" in marked:
        ahead = asyncio.run(teacher.compare(said(marked), marked["ONE"], marked["TWO"]))
        first, second = (1, 2) if ahead and ahead >= 0.5 else (2, 1)
        return f"[{{'model': 'model_1', 'rank': {first}}}, {{'model': 'model_2', 'rank': {second}}}]"
    verdict = asyncio.run(teacher.judge(said(marked), marked["SAID"]))
    return f"{verdict.reason} Rating: [[{verdict.score:g}]]"


def said(marked: dict[str, str]) -> list[Message]:
    """The conversation up to the answer that is judged."""
    before = [("user", marked["FIRST"]), ("assistant", marked["THEN"])] if "FIRST" in marked else []
    return [
        Message.model_validate({"role": role, "content": text}) for role, text in [*before, ("user", marked["ASKED"])]
    ]
