"""Answers to a benchmark's questions: our batches against a loop over prompts, as FastChat's gen_model_answer has it.

`python -m benchmarks.generation RUN` takes a finished run of `tiny` and its last checkpoint; both ways load it once,
draw greedily, and answer the same questions in turns, interleaved in one process with the same threads. The result goes
to generation.json. With `--assets DIR`, where MT-Bench's files are, it answers those questions too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import describe
from zephyrctl.evaluation import answering
from zephyrctl.evaluation.assets import Assets
from zephyrctl.evaluation.benchmarks import mt_bench
from zephyrctl.evaluation.held_out import held_out_prompts
from zephyrctl.evaluation.questions import Question
from zephyrctl.recipe.loading import load
from zephyrctl.runs.run import Run
from zephyrctl.workers.generate import GenerationRequest, Generator

RESULT = Path(__file__).with_suffix(".json")
ROUNDS = 3
BATCH = 64
"""What `eval.batch` is unless a recipe says otherwise."""
GOAL = 9
"""Times as fast as the loop."""

Answers = list[list[str]]


def in_batches(generator: Generator, questions: Sequence[Question], max_tokens: int) -> Answers:
    """Our way, as `eval` goes: batches of like length, turn by turn."""
    given: Answers = [[] for _ in questions]
    for turn in range(1, max(len(question.turns) for question in questions) + 1):
        asked = [place for place, question in enumerate(questions) if len(question.turns) >= turn]
        for places in answering.batches(questions, turn, asked, BATCH):
            conversations = [
                [message.model_dump() for message in questions[place].conversation(tuple(given[place]))]
                for place in places
            ]
            request: GenerationRequest = {"max_tokens": max_tokens, "batch": BATCH}
            for place, reply in zip(places, generator.answer(conversations, request), strict=True):
                given[place].append(reply["text"])
    return given


def one_by_one(model: Any, tokenizer: Any, questions: Sequence[Question], max_tokens: int) -> Answers:
    """The loop: one prompt after another, each through `generate` alone."""
    given: Answers = []
    for question in questions:
        texts: list[str] = []
        for _ in question.turns:
            messages = [message.model_dump() for message in question.conversation(tuple(texts))]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            with torch.inference_mode():
                made = model.generate(**ids, do_sample=False, max_new_tokens=max_tokens)
            new = made[0][ids["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        given.append(texts)
    return given


def measure(folder: Path, questions: Sequence[Question], max_tokens: int) -> dict[str, Any]:
    """Both ways, interleaved: seconds of each round, their ratio, and how many answers are the same."""
    generator = Generator(str(folder), None, None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ways: dict[str, Callable[[], Answers]] = {
        "batches": lambda: in_batches(generator, questions, max_tokens),
        "loop": lambda: one_by_one(model, tokenizer, questions, max_tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Answers] = {}
    in_batches(generator, questions[:4], 4)  # first calls allocate
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            made[name] = way()
            seconds[name].append(round(time.perf_counter() - began, 3))
    pairs = [
        (mine, theirs)
        for ours, loop in zip(made["batches"], made["loop"], strict=True)
        for mine, theirs in zip(ours, loop, strict=True)
    ]
    ratios = [loop / ours for ours, loop in zip(seconds["batches"], seconds["loop"], strict=True)]
    return {
        "questions": len(questions),
        "answers": len(pairs),
        "max_new_tokens": max_tokens,
        "mean_characters": round(statistics.mean(len(mine) for mine, _ in pairs), 1),
        "seconds": seconds,
        "times_the_loop": round(statistics.median(ratios), 2),
        "times_by_round": [round(ratio, 2) for ratio in ratios],
        "same_answers": sum(mine == theirs for mine, theirs in pairs),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--assets", type=Path, help="folder of MT-Bench's files")
    given = parser.parse_args()
    run = Run(given.run)
    recipe = load("tiny", {}, []).recipe
    folder = run.require("dpo", "zephyrctl run").path / "model"
    held_out = [Question(one.id, "", tuple(one.user_turns())) for one in held_out_prompts(run, recipe.eval)]
    found = {"held-out prompts": measure(folder, held_out, recipe.eval.max_new_tokens)}
    if given.assets:
        found["MT-Bench"] = measure(folder, mt_bench.load(Assets("mt-bench", given.assets)).questions, 64)
    told = {
        "command": "python -m benchmarks.generation RUN --assets DIR",
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "rounds": ROUNDS,
        **found,
        "holds": {f"{name}: {GOAL} times the loop": one["times_the_loop"] >= GOAL for name, one in found.items()},
    }
    RESULT.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
