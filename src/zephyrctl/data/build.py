"""`data build`: dialogues for dSFT and prompts for AI feedback, split for good by the hash of the prompt."""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from zephyrctl import plugins
from zephyrctl.builtin.tiny import world
from zephyrctl.concurrency import gather
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.data import shapes
from zephyrctl.data.files import Raw, read_rows
from zephyrctl.data.hub import load_rows
from zephyrctl.errors import ZephyrError
from zephyrctl.journal import Journal
from zephyrctl.progress import Progress
from zephyrctl.recipe import Files, Hub, Recipe, SelfInstruct
from zephyrctl.records import Dialogue, Message, Prompt, Split, split_of
from zephyrctl.runs import SPLITS, Draft
from zephyrctl.stages import Inputs, Source, Step

AT_ONCE = 64
LONGEST_REPLY = 1024
TINY_WORLD = "tiny-world"


def step(recipe: Recipe) -> Step:
    """The build step of a recipe."""
    source = recipe.build.source

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        if isinstance(source, SelfInstruct):
            asyncio.run(_self_instruct(recipe, source, draft, progress))
        elif isinstance(source, Files):
            files = map(Path, source.paths)
            dialogues = [row for path in files for row in _dialogues(read_rows(path), path.name, recipe, draft)]
            write(draft, dialogues, _prompts_of(dialogues), recipe.build.test_share)
        else:
            _write_hub(recipe, source, draft)

    return Step(
        name="build",
        stage="build",
        does=_describe(source),
        settings={
            "seed": recipe.seed,
            "skip_bad_rows": recipe.skip_bad_rows,
            **recipe.build.model_dump(mode="json"),
        },
        reads=_reads(source),
        work=work,
    )


def write(draft: Draft, dialogues: Sequence[Dialogue], prompts: Sequence[Prompt], test_share: float) -> None:
    """Write dialogues and prompts, each to the side on which the hash of its id puts it for good.

    A prompt asked more than once is kept once and counted. Raises ZephyrError where no dialogue is left.
    """
    _write_sides(
        draft,
        {split: [row for row in dialogues if split_of(row.id, test_share) == split] for split in SPLITS},
        {split: [row for row in prompts if split_of(row.id, test_share) == split] for split in SPLITS},
    )


def _write_sides(
    draft: Draft, dialogues: Mapping[Split, Sequence[Dialogue]], prompts: Mapping[Split, Sequence[Prompt]]
) -> None:
    if not any(dialogues.values()):
        raise ZephyrError(f"no dialogue is left ({draft.losses})", "mend the rows that were lost, by the causes above")
    for split in SPLITS:
        unique = {prompt.id: prompt for prompt in reversed(prompts[split])}
        draft.lose("prompts asked before", len(prompts[split]) - len(unique))
        draft.write("dialogues", split, dialogues[split], Dialogue)
        draft.write("prompts", split, reversed(unique.values()), Prompt)
        draft.metrics["dialogues"] = draft.metrics.get("dialogues", 0) + len(dialogues[split])
        draft.metrics["prompts"] = draft.metrics.get("prompts", 0) + len(unique)


def _write_hub(recipe: Recipe, source: Hub, draft: Draft) -> None:
    """Published splits stay what they are; a prompt that both sides have is left out of training."""
    sides: dict[Split, list[Dialogue]] = {"train": [], "test": []}
    held_out: set[str] = set()
    for split in ("test", "train"):
        if published := source.splits.get(split):
            rows = load_rows(source.dataset, source.revision, published)
            for row in _dialogues(rows, source.dataset, recipe, draft):
                if row.id in held_out:
                    draft.lose("training dialogues whose prompt is held out")
                else:
                    sides[split].append(row)
            held_out = {row.id for row in sides["test"]}
    _write_sides(draft, sides, {split: _prompts_of(rows) for split, rows in sides.items()})


def _describe(source: SelfInstruct | Files | Hub) -> str:
    if isinstance(source, SelfInstruct):
        calls = round(source.dialogues * (1 + 2 * source.two_turn_share + 2 * source.refined_share))
        made = f"build {source.dialogues} dialogues and {source.prompts} prompts"
        return f"{made} in about {calls} calls of {source.teacher.name!r}"
    if isinstance(source, Files):
        return f"read dialogues from {', '.join(source.paths)}"
    return f"load the data set {source.dataset}"


def _reads(source: SelfInstruct | Files | Hub) -> dict[str, Source]:
    if isinstance(source, Files):
        return {f"file {number}": Source(path=Path(path)) for number, path in enumerate(source.paths, 1)}
    if isinstance(source, SelfInstruct) and source.seeds != TINY_WORLD:
        return {"seeds": Source(path=Path(source.seeds))}
    return {}


def _dialogues(rows: Iterable[tuple[str, Raw]], name: str, recipe: Recipe, draft: Draft) -> Iterator[Dialogue]:
    """Dialogues from raw rows; those that cannot be used stop the stage, or are counted where the recipe says so."""

    def read(row: Raw, where: str) -> Dialogue:
        return shapes.dialogue(_answered(row, draft), where, name)

    return shapes.each(rows, read, recipe.skip_bad_rows, draft.lose)


def _answered(row: Raw, draft: Draft) -> Raw:
    """UltraChat has dialogues that end on the user: the last turn is cut and counted, as the rest is sound."""
    data = row.get("data")
    if isinstance(data, list) and len(data) % 2 and len(data) > 1:
        draft.lose("last user turns without an answer, cut")
        return {**row, "data": data[:-1]}
    return row


def _prompts_of(dialogues: Sequence[Dialogue]) -> list[Prompt]:
    """The first user turn of every dialogue."""
    return [Prompt(id=row.id, messages=_first_turn(row.messages), source=row.source) for row in dialogues]


def _first_turn(messages: Sequence[Message]) -> list[Message]:
    place = next(place for place, message in enumerate(messages) if message.role == "user")
    return list(messages[: place + 1])


async def _self_instruct(recipe: Recipe, source: SelfInstruct, draft: Draft, progress: Progress) -> None:
    """Seeds, answers, refinements and second turns; finished rows are journalled, so that a restart repeats no call."""
    teacher = plugins.load().teacher(source.teacher.name, source.teacher.options)
    wanted = [("dialogue", n) for n in range(source.dialogues)] + [("prompt", n) for n in range(source.prompts)]
    seeds = _seeds(recipe, source, len(wanted), draft)
    items = [(f"{kind}:{n}", seed) for (kind, n), seed in zip(wanted, seeds, strict=True)]
    try:
        with Journal(draft.scratch / "rows.journal") as journal:
            todo = [item for item in items if item[0] not in journal]

            async def make(item: tuple[str, str]) -> list[Message]:
                return await _conversation(teacher, source, recipe.seed, *item)

            async for (key, _), messages in gather(make, todo, AT_ONCE):
                journal.add(key, [message.model_dump() for message in messages])
                progress.advance(len(journal.rows), len(items), "conversations")
            rows = {key: [Message.model_validate(turn) for turn in journal.rows[key]] for key, _ in items}
    finally:
        await teacher.close()
    _write_self_instruct(recipe, source, draft, rows)


def _write_self_instruct(recipe: Recipe, source: SelfInstruct, draft: Draft, rows: dict[str, list[Message]]) -> None:
    """Dialogues as they are; prompts without their last answer.

    A teacher leaves a turn empty at times: such a conversation is counted, and not asked for again.
    """
    name = f"self-instruct:{source.teacher.name}"
    dialogues: list[Dialogue] = []
    prompts: list[Prompt] = []
    for key, turns in rows.items():
        row = {"messages": _dump(turns)}
        try:
            if key.startswith("dialogue:"):
                dialogues.append(shapes.dialogue(row, key, name))
            else:
                prompts.append(shapes.prompt(row, key, name))
        except shapes.BadRow as error:
            draft.lose(f"conversations of the teacher with {error.cause}")
    write(draft, dialogues, prompts, recipe.build.test_share)


async def _conversation(teacher: Teacher, source: SelfInstruct, seed: int, key: str, instruction: str) -> list[Message]:
    """One conversation: perhaps a refined instruction, its answer, and perhaps a second turn with its answer."""
    rng = Random(f"{seed}:{key}")
    sampling = Sampling(temperature=1.0, max_tokens=LONGEST_REPLY, seed=_number(seed, key))
    if rng.random() < source.refined_share:
        first = await teacher.reply([Message(role="user", content=instruction)], sampling)
        instruction = await teacher.refine(instruction, first.text, sampling.seed) or instruction
    turns = [Message(role="user", content=instruction)]
    turns.append(Message(role="assistant", content=(await teacher.reply(turns, sampling)).text))
    if rng.random() < source.two_turn_share and (more := await teacher.speak_as_user(turns, sampling.seed)):
        turns.append(Message(role="user", content=more))
        turns.append(Message(role="assistant", content=(await teacher.reply(turns, sampling)).text))
    return turns


def _seeds(recipe: Recipe, source: SelfInstruct, count: int, draft: Draft) -> list[str]:
    """As many seed prompts as wanted: drawn from the tiny world, or from a file in its order, again from the top."""
    if source.seeds == TINY_WORLD:
        return [world.draw(Random(f"{recipe.seed}:seed:{number}")).prompt for number in range(count)]

    def read_seed(row: Raw, where: str) -> str:
        return shapes.prompt(row, where, source.seeds).messages[-1].content

    read = list(shapes.each(read_rows(Path(source.seeds)), read_seed, recipe.skip_bad_rows, draft.lose))
    if not read:
        raise ZephyrError(f"{source.seeds} holds no seed that can be used ({draft.losses})", "mend the rows")
    return [read[number % len(read)] for number in range(count)]


def _number(seed: int, key: str) -> int:
    return int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16)


def _dump(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [turn.model_dump() for turn in turns]
