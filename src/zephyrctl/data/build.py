"""`data build`: make dialogues for dSFT and prompts for AI feedback, clean, deduplicated and split by prompt."""

import asyncio
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from zephyrctl.data import chunks, self_instruct, simulated_dialogues
from zephyrctl.data.chunks import CHUNK_BYTES, RawChunk
from zephyrctl.data.cleaning import CleaningPlan, clean_rows
from zephyrctl.data.process_pool import ProcessPool, usable_cores
from zephyrctl.data.shards import clean_chunk
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Build, Files, Hub, Recipe, SelfInstruct, Simulated
from zephyrctl.records import Dialogue, Prompt, Split
from zephyrctl.rows.hub_datasets import load_rows
from zephyrctl.runs.artifacts import Draft
from zephyrctl.stages import Inputs, Source, Stage, sources

HUB_ORDER: tuple[Split, ...] = ("test", "train")
"""The published test split is read first: of a row that both splits have, the training copy is dropped."""


class BuildStage(Stage):
    """The stage `build`. `max_usd` is the most that the teacher's calls may cost; it changes no result."""

    def __init__(self, recipe: Recipe, max_usd: float | None = None) -> None:
        self.recipe = recipe
        self.max_usd = max_usd
        self.pool = ProcessPool(_processes(recipe.build), clean_chunk)
        self.name = self.stage = "build"
        self.does = _describe(recipe.build.source)
        self.settings = {
            "seed": recipe.seed,
            "skip_bad_rows": recipe.skip_bad_rows,
            "decontaminate": recipe.decontaminate.model_dump(mode="json"),
            "eval": {"prompts": recipe.eval.prompts},
            **_settings(recipe.build),
        }
        self.reads = sources("benchmark", recipe.decontaminate.against) | _reads(recipe.build)

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Read or generate the rows, clean them, and write the tables."""
        source = self.recipe.build.source
        plan = CleaningPlan.of(self.recipe)
        if isinstance(source, Files):
            clean_files(source, plan, draft, progress, self.pool)
        elif isinstance(source, Hub):
            clean_rows(hub_chunks(source), plan, draft, progress, self.pool)
        else:
            dialogues, prompts = asyncio.run(self._generate(source, draft, progress))
            generated = chain(chunks.record_chunks(dialogues, "dialogues"), chunks.record_chunks(prompts, "prompts"))
            clean_rows(generated, plan, draft, progress, self.pool)

    def helpers(self) -> ProcessPool:
        """The processes that share the cleaning."""
        return self.pool

    async def _generate(
        self, source: SelfInstruct | Simulated, draft: Draft, progress: Progress
    ) -> tuple[list[Dialogue], list[Prompt]]:
        if isinstance(source, SelfInstruct):
            return await self_instruct.collect(self.recipe, source, draft, progress, self.max_usd)
        return await simulated_dialogues.collect(self.recipe, source, draft, progress, self.max_usd)


def clean_files(
    source: Files,
    plan: CleaningPlan,
    draft: Draft,
    progress: Progress,
    pool: ProcessPool,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Clean the rows of local files."""
    parts = chain.from_iterable(chunks.file_chunks(Path(path), chunk_bytes) for path in source.paths)
    clean_rows(parts, plan, draft, progress, pool, _size(source))


def hub_chunks(source: Hub) -> Iterator[RawChunk]:
    """The rows of a published data set as they are streamed.

    Published splits stay as they are. If only one is read, it is split by the hash of its prompts.
    """
    for split in HUB_ORDER:
        if published := source.splits.get(split):
            rows = load_rows(source.dataset, source.revision, published)
            yield from chunks.row_chunks(rows, source.dataset, split if len(source.splits) > 1 else None)


def _settings(build: Build) -> dict[str, JsonValue]:
    """The settings that the result depends on: not the number of processes, and not a teacher's limits."""
    teachers = {name: {"limits"} for name in ("teacher", "assistant", "user")}
    return build.model_dump(mode="json", exclude={"processes": True, "source": teachers})


def _processes(build: Build) -> int:
    """How many processes clean: one if a teacher generates the rows or one chunk has all, which takes a second."""
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


def _reads(build: Build) -> dict[str, Source]:
    """The files of the source."""
    source = build.source
    if isinstance(source, Files):
        return sources("file", source.paths)
    if isinstance(source, SelfInstruct) and source.seeds != self_instruct.TINY_WORLD:
        return {"seeds": Source(path=Path(source.seeds))}
    if isinstance(source, Simulated) and source.topics != simulated_dialogues.SHIPPED:
        return {"topics": Source(path=Path(source.topics))}
    return {}
