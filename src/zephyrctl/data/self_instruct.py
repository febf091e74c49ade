"""Generate dialogues and prompts from seed prompts that a teacher answers and refines in turn (paper section 3).

Each seed prompt begins a chain: the teacher answers the instruction, refines it given the answer, and so on. All chains
of a round are asked at once. Their refined instructions are accepted or rejected in the order of the chains, so that
the same seeds and replies give the same rows, whichever reply comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.data import novelty
from zephyrctl.data.conversations import run_conversations, seed_of
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe, SelfInstruct
from zephyrctl.records import Dialogue, Message, Prompt, first_user_turn
from zephyrctl.rows.files import Raw, rows_of
from zephyrctl.rows.published_rows import read_each, row_formats
from zephyrctl.rows.turns import to_dialogue, to_prompt
from zephyrctl.runs.artifacts import Draft
from zephyrctl.teachers import prices
from zephyrctl.teachers.client import Calls
from zephyrctl.tiny import world

TINY_WORLD = "tiny-world"
CHECKED_PER_UPDATE = 500
"""Instructions that are checked between two progress updates: about a second with a pool of 50,000."""
Kind = Literal["dialogue", "prompt"]
TIMES = {1: "refined once", 2: "refined twice"}

EMPTY = "instructions of the teacher that are empty"
UNANSWERED = "instructions that were not refined because their answer was empty"
AGAIN = "chains that ended on the instruction of another chain"
CUT = "conversations with an answer cut at the maximum length"
ONE_SIDED = "empty second user turns, left out"


@dataclass(frozen=True)
class Seed:
    """A seed prompt and its origin; `bare` is the instruction without its input."""

    text: str
    origin: str
    bare: str


@dataclass
class Chain:
    """A conversation that is being generated: the last accepted instruction, and the answer to it if there is one."""

    kind: Kind
    key: str
    seed: Seed
    instruction: str
    sampling: Sampling
    rounds_left: int
    has_second_turn: bool
    answer: Reply | None = None
    refined: int = 0
    is_cut: bool = False

    @property
    def origin(self) -> str:
        """The seed and the number of refinements: `seeds.jsonl:4, refined twice`."""
        times = TIMES.get(self.refined, f"refined {self.refined} times")
        return f"{self.seed.origin}, {times}" if self.refined else self.seed.origin


def describe(source: SelfInstruct) -> str:
    """What the source generates, and in about how many calls."""
    rows = f"build {source.dialogues} dialogues and {source.prompts} prompts"
    return f"{rows} in about {calls_of(source)} calls of {source.teacher.name!r}"


def calls_of(source: SelfInstruct) -> int:
    """The expected calls if every instruction is accepted: two for each refinement, then the answers that are kept."""
    refining = 2 * source.rounds * source.refined_share
    each_dialogue = refining + 1 + 2 * source.two_turn_share
    each_prompt = refining + 2 * source.two_turn_share
    return round(source.dialogues * each_dialogue + source.prompts * each_prompt)


async def collect(
    recipe: Recipe, source: SelfInstruct, draft: Draft, progress: Progress, max_usd: float | None = None
) -> tuple[list[Dialogue], list[Prompt]]:
    """Dialogues, and prompts that end on the user; what was rejected or failed is counted by cause in the draft.

    Raises ZephyrError if no seed can be used, if the teacher cannot be reached, or when `max_usd` is spent.
    """
    seeds = Seeds(recipe, source, draft)
    async with Calls(draft.run.path, "build", prices.load(recipe.prices), max_usd, progress) as calls:
        teacher = calls.teacher(source.teacher)
        rows = await Collector(recipe, source, seeds, teacher, draft, progress).collect()
        calls.close_into(draft)
    return rows


class Seeds:
    """The seed prompts by number: those of a file, in its order and again from the top, or those of the tiny world."""

    def __init__(self, recipe: Recipe, source: SelfInstruct, draft: Draft) -> None:
        self._seed = recipe.seed
        self.read = [] if source.seeds == TINY_WORLD else list(_read(recipe, Path(source.seeds), draft))

    def __getitem__(self, number: int) -> Seed:
        if self.read:
            return self.read[number % len(self.read)]
        text = world.draw(Random(f"{self._seed}:seed:{number}")).prompt
        return Seed(text, f"{TINY_WORLD} seed {number}", text)


class Collector:
    """The rows so far, the pool of accepted instructions, and the number of chains."""

    def __init__(
        self, recipe: Recipe, source: SelfInstruct, seeds: Seeds, teacher: Teacher, draft: Draft, progress: Progress
    ) -> None:
        self._seed = recipe.seed
        self._source = source
        self._seeds = seeds
        self._teacher = teacher
        self._draft = draft
        self._progress = progress
        self._name = f"self-instruct:{source.teacher.name}"
        self._pool = novelty.Pool()
        self._ended: set[str] = set()
        self._begun: dict[Kind, int] = {"dialogue": 0, "prompt": 0}
        self._dialogues: list[Dialogue] = []
        self._prompts: list[Prompt] = []
        for seed in seeds.read:
            self._pool_seed(seed)

    async def collect(self) -> tuple[list[Dialogue], list[Prompt]]:
        """All rows. Each wave begins new chains for the missing rows, until a wave adds none."""
        for wave in range(1, self._source.waves + 1):
            before = len(self._dialogues) + len(self._prompts)
            if chains := list(self._begin()):
                await self._follow(chains, wave)
                self._draft.metrics["waves"] = wave
            if len(self._dialogues) + len(self._prompts) == before:
                break
        self._note_missing()
        return self._dialogues, self._prompts

    def _missing(self) -> dict[Kind, int]:
        return {
            "dialogue": self._source.dialogues - len(self._dialogues),
            "prompt": self._source.prompts - len(self._prompts),
        }

    def _begin(self) -> Iterator[Chain]:
        """A chain for each missing row, from the next seeds. Its draws are seeded by its number, not by its wave."""
        for kind, count in self._missing().items():
            for _ in range(count):
                seed = self._seeds[sum(self._begun.values())]
                if not self._seeds.read:
                    self._pool_seed(seed)
                yield self._chain(kind, f"{kind}:{self._begun[kind]}", seed)
                self._begun[kind] += 1

    def _chain(self, kind: Kind, key: str, seed: Seed) -> Chain:
        rng = Random(f"{self._seed}:{key}")
        sampling = Sampling(temperature=1.0, max_tokens=self._source.longest_reply, seed=seed_of(self._seed, key))
        is_refined = rng.random() < self._source.refined_share
        has_second_turn = rng.random() < self._source.two_turn_share
        rounds = self._source.rounds if is_refined else 0
        return Chain(kind, key, seed, seed.text, sampling, rounds, has_second_turn)

    async def _follow(self, chains: list[Chain], wave: int) -> None:
        """Refine the chains round by round, then finish those whose last instruction is not that of another chain."""
        suffix = f", wave {wave}" if wave > 1 else ""
        for number in range(1, self._source.rounds + 1):
            chains = await self._round(chains, f"instructions refined, round {number}{suffix}")
        ends = list(self._ends(chains))
        limit = self._source.teacher.limits.concurrency
        finished = await run_conversations(
            self._finish, ends, limit, self._draft, self._progress, f"conversations{suffix}"
        )
        for chain, turns in finished:
            self._keep(chain, turns)

    async def _round(self, chains: list[Chain], note: str) -> list[Chain]:
        """Refine every chain that has rounds left; the result leaves out chains whose call failed."""
        refining = [chain for chain in chains if chain.rounds_left]
        limit = self._source.teacher.limits.concurrency
        refined = await run_conversations(self._refine, refining, limit, self._draft, self._progress, note)
        for number, (chain, text) in enumerate(refined, 1):
            self._accept_or_end(chain, text)
            if number % CHECKED_PER_UPDATE == 0:
                self._progress.advance(number, len(refined), f"{note}, checked")
        failed = {chain.key for chain in refining} - {chain.key for chain, _ in refined}
        return [chain for chain in chains if chain.key not in failed]

    async def _refine(self, chain: Chain) -> str:
        """The refined instruction, given the teacher's own answer; empty if that answer is empty."""
        chain.answer = await self._teacher.ask([Message(role="user", content=chain.instruction)], chain.sampling)
        if not chain.answer.text.strip():
            return ""
        return _unwrapped(await self._teacher.refine(chain.instruction, chain.answer.text, chain.sampling.seed))

    def _accept_or_end(self, chain: Chain, text: str) -> None:
        """Accept a refined instruction, or count why not and end the chain at its last instruction."""
        if cause := self._rejection(chain, text):
            self._draft.drop(cause)
            chain.rounds_left = 0
            return
        self._add(text)
        chain.instruction, chain.answer = text, None
        chain.refined += 1
        chain.rounds_left -= 1

    def _rejection(self, chain: Chain, text: str) -> str | None:
        if not text:
            return EMPTY if chain.answer and chain.answer.text.strip() else UNANSWERED
        return novelty.rejection(text, self._source.novelty, self._pool) if self._source.novelty else None

    def _ends(self, chains: list[Chain]) -> Iterator[Chain]:
        """The chains whose last instruction no earlier chain has; without a novelty rule, every chain."""
        seen = set(self._ended)
        for chain in chains:
            end = _key(chain.instruction)
            if self._source.novelty and end in seen:
                self._draft.drop(AGAIN)
            else:
                seen.add(end)
                yield chain

    async def _finish(self, chain: Chain) -> list[Message]:
        """The turns: the instruction, its answer, and a second round for some. A prompt's last turn gets no answer."""
        turns = [Message(role="user", content=chain.instruction)]
        if chain.kind == "prompt" and not chain.has_second_turn:
            return turns
        turns.append(await self._answer(chain, turns, chain.answer))
        if not chain.has_second_turn or not turns[-1].content.strip():
            return turns
        if follow_up := await self._teacher.speak_as_user(turns, chain.sampling.seed):
            turns.append(Message(role="user", content=follow_up))
            if chain.kind == "dialogue":
                turns.append(await self._answer(chain, turns))
        return turns

    async def _answer(self, chain: Chain, turns: list[Message], known: Reply | None = None) -> Message:
        reply = known or await self._teacher.ask(turns, chain.sampling)
        chain.is_cut |= reply.finish_reason == "length"
        return Message(role="assistant", content=reply.text)

    def _keep(self, chain: Chain, turns: list[Message]) -> None:
        """Keep the row, or count why it cannot be used."""
        if chain.is_cut:
            self._draft.drop(CUT)
            return
        roles, texts = [turn.role for turn in turns], [turn.content for turn in turns]
        origin = {"origin": chain.origin}
        try:
            if chain.kind == "dialogue":
                self._dialogues.append(to_dialogue(roles, texts, chain.key, self._name).model_copy(update=origin))
            else:
                self._prompts.append(to_prompt(roles, texts, chain.key, self._name).model_copy(update=origin))
        except BadRow as error:
            self._draft.drop(f"conversations of the teacher with {error.cause}")
            return
        self._ended.add(_key(chain.instruction))
        self._draft.drop(ONE_SIDED, int(chain.has_second_turn and len(turns) < 3))

    def _note_missing(self) -> None:
        for kind, count in self._missing().items():
            if count:
                self._draft.drop(f"requested {kind}s that were not generated", count)
                self._draft.notes.append(
                    f"{count} of the {getattr(self._source, f'{kind}s')} requested {kind}s are missing after "
                    f"{self._draft.metrics['waves']} waves: give more seeds, rounds or waves"
                )

    def _pool_seed(self, seed: Seed) -> None:
        """Add a seed with and without its input: a refined instruction may repeat either."""
        for text in dict.fromkeys((seed.text, seed.bare)):
            self._add(text)

    def _add(self, text: str) -> None:
        if self._source.novelty:
            self._pool.add(text)


def _read(recipe: Recipe, path: Path, draft: Draft) -> Iterator[Seed]:
    """The seeds of a file: prompts in any form, and tasks with `instances`, of which the first instance is used.

    Of a conversation, the first user turn is the seed. Raises ZephyrError if no seed can be used.
    """
    is_empty = True
    formats = row_formats()

    def seed_from(row: Raw, where: str) -> Seed:
        prompt = formats.prompt(_with_input(row), where, path.name)
        text = first_user_turn(prompt.messages)
        instruction = row.get("instruction")
        bare = instruction if isinstance(instruction, str) and text.startswith(instruction) else text
        return Seed(text, f"{path.name}{where.removeprefix(str(path))}", bare)

    for seed in read_each(rows_of(path), seed_from, recipe.skip_bad_rows, draft.drop):
        is_empty = False
        yield seed
    if is_empty:
        raise ZephyrError(f"{path} contains no usable seed ({draft.dropped})", "fix the rows")


def _with_input(row: Raw) -> Raw:
    """A task in self-instruct's form, with the input of its first instance as `input`: most instructions need it."""
    instances = row.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict) and not row.get("input"):
        return {**row, "input": instances[0].get("input") or ""}
    return row


def _unwrapped(text: str) -> str:
    """An instruction without the label and the quotation marks that some teachers put around it."""
    text = text.strip()
    label, colon, rest = text.partition(":")
    if colon and label.casefold().strip("*# ") in ("instruction", "new instruction", "refined instruction"):
        text = rest.strip("* \n\t")
    is_quoted = len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"))
    return text[1:-1].strip() if is_quoted and not set('"“”') & set(text[1:-1]) else text


def _key(instruction: str) -> str:
    """A key that is equal for instructions with the same words; the text itself if it has no words."""
    return " ".join(novelty.words(instruction)) or instruction
