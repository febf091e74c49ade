"""`data build`: dialogues for dSFT and prompts for AI feedback, clean, each once, and split for good by its prompt."""

import asyncio
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from zephyrctl.data import chunks, self_instruct, simulated_dialogues
from zephyrctl.data.chunks import CHUNK_BYTES, RawChunk
from zephyrctl.data.cleaning import clean_rows
from zephyrctl.data.process_pool import ProcessPool, usable_cores
from zephyrctl.data.shards import clean_share
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Build, Files, Hub, Recipe, SelfInstruct, Simulated
from zephyrctl.records import Dialogue, Prompt, Split
from zephyrctl.rows.hub_datasets import load_rows
from zephyrctl.runs.artifacts import Draft
from zephyrctl.stages import Inputs, Source, Step, sources

HUB_ORDER: tuple[Split, ...] = ("test", "train")
"""The published test side is read first: where both sides say the same, it is training that loses the row."""


def step(recipe: Recipe, max_usd: float | None = None) -> Step:
    """The build step of a recipe; `max_usd` is the most that a teacher's calls may cost, and changes no result."""
    build = recipe.build
    pool = ProcessPool(_processes(build), clean_share)

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        source = build.source
        if isinstance(source, Files):
            clean_files(recipe, source, draft, progress, pool)
        elif isinstance(source, Hub):
            clean_rows(hub_chunks(source), recipe, draft, progress, pool)
        else:
            dialogues, prompts = asyncio.run(_collect(recipe, source, draft, progress, max_usd))
            made = chain(chunks.made(dialogues, "dialogues"), chunks.made(prompts, "prompts"))
            clean_rows(made, recipe, draft, progress, pool)

    return Step(
        name="build",
        stage="build",
        does=_describe(build.source),
        settings={
            "seed": recipe.seed,
            "skip_bad_rows": recipe.skip_bad_rows,
            "decontaminate": recipe.decontaminate.model_dump(mode="json"),
            "eval": {"prompts": recipe.eval.prompts},
            **_settings(build),
        },
        reads=_reads(recipe),
        work=work,
        helpers=pool,
    )


def clean_files(
    recipe: Recipe,
    source: Files,
    draft: Draft,
    progress: Progress,
    pool: ProcessPool,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Clean the rows of local files."""
    shares = chain.from_iterable(chunks.of_file(Path(path), chunk_bytes) for path in source.paths)
    clean_rows(shares, recipe, draft, progress, pool, _size(source))


def hub_chunks(source: Hub) -> Iterator[RawChunk]:
    """The rows of a published set as they stream in.

    Published sides stay what they are; a set that is published whole is split by the hash of its prompts.
    """
    for split in HUB_ORDER:
        if published := source.splits.get(split):
            rows = load_rows(source.dataset, source.revision, published)
            yield from chunks.held(rows, source.dataset, split if len(source.splits) > 1 else None)


async def _collect(
    recipe: Recipe, source: SelfInstruct | Simulated, draft: Draft, progress: Progress, max_usd: float | None
) -> tuple[list[Dialogue], list[Prompt]]:
    if isinstance(source, SelfInstruct):
        return await self_instruct.collect(recipe, source, draft, progress, max_usd)
    return await simulated_dialogues.collect(recipe, source, draft, progress, max_usd)


def _settings(build: Build) -> dict[str, Any]:
    """What the result hangs on: no process, and no teacher's limits."""
    teachers = {name: {"limits"} for name in ("teacher", "assistant", "user")}
    return build.model_dump(mode="json", exclude={"processes": True, "source": teachers})


def _processes(build: Build) -> int:
    """How many share the cleaning: none where a teacher makes the rows, or one share holds all: they take a second."""
    source = build.source
    is_large = _size(source) > CHUNK_BYTES if isinstance(source, Files) else isinstance(source, Hub)
    return (build.processes or usable_cores()) if is_large else 1


def _size(source: Files) -> int:
    """Bytes of the files."""
    return sum(path.stat().st_size for path in map(Path, source.paths) if path.is_file())


def _describe(source: SelfInstruct | Simulated | Files | Hub) -> str:
    if isinstance(source, SelfInstruct):
        return self_instruct.describe(source)
    if isinstance(source, Simulated):
        return simulated_dialogues.describe(source)
    if isinstance(source, Files):
        return f"read dialogues from {', '.join(source.paths)}"
    return f"load the data set {source.dataset}"


def _reads(recipe: Recipe) -> dict[str, Source]:
    """The files of the source, and those of the benchmarks: where one changes, the rows are searched again."""
    source = recipe.build.source
    reads = sources("benchmark", recipe.decontaminate.against)
    if isinstance(source, Files):
        reads |= sources("file", source.paths)
    elif isinstance(source, SelfInstruct) and source.seeds != self_instruct.TINY_WORLD:
        reads["seeds"] = Source(path=Path(source.seeds))
    elif isinstance(source, Simulated) and source.topics != simulated_dialogues.SHIPPED:
        reads["topics"] = Source(path=Path(source.topics))
    return reads
