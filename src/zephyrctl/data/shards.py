"""What one share of the input becomes: clean rows as columns on the disk, their keys, and what was changed or left out.

This is the work that runs in every process. A share is read once; a few hundred rows are in memory at a time.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from zephyrctl.data import cleaning_rules
from zephyrctl.data.chunks import Made, RawChunk
from zephyrctl.data.cleaning_rules import Change, Dropped, Kind, Rules
from zephyrctl.data.duplicates import KEY_BYTES, Flags, content_key, layout, sketch
from zephyrctl.data.word_hashes import Hashes, Places
from zephyrctl.errors import BadRow
from zephyrctl.recipe.schema import Clean
from zephyrctl.records import Dialogue, Role, Split, prompt_id, split_of
from zephyrctl.rows.files import Raw, opened
from zephyrctl.rows.published_rows import RowFormats, row_formats
from zephyrctl.rows.turns import check_dialogue
from zephyrctl.runs.parquet import arrow_schema

ROWS_AT_ONCE = 256
"""Rows whose texts are in memory at once: 6 kB each in UltraChat."""
SCHEMA = arrow_schema(Dialogue)
SIDE = pa.field("test", pa.bool_())
NOTED = {
    "changes": arrow_schema(Change).append(SIDE),
    "dropped": arrow_schema(Dropped).append(SIDE),
    "asked": pa.schema([("place", pa.int64()), ("text", pa.string())]),
}
"""What is noted beside the rows: both ledgers, and what eval may ask."""
KEY = f"S{KEY_BYTES}"


@dataclass(frozen=True)
class Settings:
    """What the rows of every share are cleaned by."""

    clean: Clean
    test_share: float
    skip_bad_rows: bool
    near: float | None
    folder: Path


@dataclass
class Keys:
    """What other shares must know of the rows of one: arrays, an entry a row."""

    rows: Places
    is_test: Flags
    prompts: "npt.NDArray[np.bytes_]"
    contents: "npt.NDArray[np.bytes_]"
    bands: Hashes

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def join(cls, parts: Sequence["Keys"]) -> Self:
        """The keys of several shares as those of one."""
        return cls(*(np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(cls)))


def no_keys(near: float | None, rows: int = 0) -> Keys:
    """The keys of no rows, or of rows whose keys are all empty; without `near` there are no bands."""
    return Keys(
        np.zeros(rows, np.int64),
        np.zeros(rows, np.bool_),
        np.zeros(rows, KEY),
        np.zeros(rows, KEY),
        np.zeros((rows, layout(near)[0] if near else 0), np.uint64),
    )


@dataclass
class Sheet:
    """A share that was cleaned: where its rows lie, and what the other shares must know of them."""

    path: Path
    kind: Kind
    source: str
    split: Split | None
    bytes: int
    keys: Keys
    count: int = 0
    read: int = 0
    losses: "Counter[str]" = field(default_factory=Counter)
    rules: "Counter[str]" = field(default_factory=Counter)

    def beside(self, name: str) -> Path:
        """The file of what is noted beside the rows."""
        return self.path.with_suffix(f".{name}.arrow")

    def remove(self) -> None:
        """Remove its files."""
        for path in (self.path, *map(self.beside, (*NOTED, "hits"))):
            path.unlink(missing_ok=True)


@dataclass(slots=True)
class Line:
    """A row on its way."""

    row: int
    id: str
    roles: list[str]
    texts: list[str]
    source: str
    origin: str
    is_test: bool

    def as_row(self) -> Raw:
        """In the form that `--input` reads."""
        turns = [{"role": role, "content": text} for role, text in zip(self.roles, self.texts, strict=True)]
        return {"id": self.id, "messages": turns, "source": self.source, "origin": self.origin}


class Share:
    """A share while it is cleaned."""

    def __init__(self, chunk: RawChunk | Made, settings: Settings) -> None:
        self.chunk = chunk
        self.settings = settings
        self.rules = Rules(settings.clean)
        path = settings.folder / f"{chunk.kind}-{chunk.first_row:012}.arrow"
        self.near = settings.near if chunk.kind == "dialogues" else None
        self.sheet = Sheet(path, chunk.kind, chunk.source, chunk.split, chunk.bytes, no_keys(self.near))
        self.noted: dict[str, list[dict[str, Any]]] = {name: [] for name in NOTED}

    def clean(self) -> Sheet:
        """Its rows, cleaned and written. Raises ZephyrError at the first bad row, unless such rows are skipped."""
        rows = self._lines()
        keys: list[Keys] = []
        with ExitStack() as files:
            file = files.enter_context(ArrowFile(self.sheet.path, SCHEMA))
            beside = {name: files.enter_context(ArrowFile(self.sheet.beside(name), NOTED[name])) for name in NOTED}
            while some := list(islice(rows, ROWS_AT_ONCE)):
                if kept := [line for line in some if self._is_kept(line)]:
                    self._note_asked(kept, sum(map(len, keys)))
                    file.write(_columns(kept))
                    keys.append(self._keys(kept))
                for name, noted in self.noted.items():
                    if noted:
                        beside[name].write(pa.RecordBatch.from_pylist(noted, NOTED[name]))
                        noted.clear()
        self.sheet.keys = Keys.join([self.sheet.keys, *keys])
        self.sheet.count = len(self.sheet.keys)
        return self.sheet

    def _lines(self) -> Iterator[Line]:
        if isinstance(self.chunk, Made):
            for number, record in enumerate(self.chunk.made, self.chunk.first_row):
                self.sheet.read += 1
                made = [turn.role for turn in record.messages], [turn.content for turn in record.messages]
                yield self._line(number, *made, record.source, record.origin)
            return
        formats = row_formats()
        for number, where, row in self.chunk.rows():
            self.sheet.read += 1
            try:
                roles, texts, unanswered = _read_turns(opened(row), where, formats)
            except BadRow as error:
                if not self.settings.skip_bad_rows:
                    raise
                self.sheet.losses[error.cause] += 1
                content = error.line or json.dumps(row, default=str)
                self._drop(number, "", cleaning_rules.BAD_ROW, content, False, details=f"{where}: {error.cause}")
                continue
            line = self._line(number, roles, texts, self.chunk.source, where)
            if unanswered is not None:
                self.sheet.losses[cleaning_rules.CUT] += 1
                self._change(line, len(texts), cleaning_rules.UNANSWERED, unanswered, None)
            yield line

    def _line(self, number: int, roles: Sequence[Role], before: Sequence[str], source: str, origin: str) -> Line:
        after = self.rules.mend(before)
        id = prompt_id(next((text for role, text in zip(roles, after, strict=True) if role == "user"), ""))
        side = self.chunk.split or split_of(id, self.settings.test_share)
        line = Line(number, id, list(roles), list(after), source, origin, side == "test")
        if after is not before:
            for change in cleaning_rules.changes(cleaning_rules.TRUECASE, before, after):
                self._change(line, *change)
        return line

    def _is_kept(self, line: Line) -> bool:
        found = self.rules.opening(line.roles, line.texts)
        if not found:
            return True
        rule, words = found
        self.sheet.losses[f"assistant openings: {rule.removeprefix(cleaning_rules.OPENINGS)}"] += 1
        self._drop(line.row, line.id, rule, row_json(line.as_row()), line.is_test, details=words)
        return False

    def _change(self, line: Line, turn: int, rule: str, before: str, after: str | None) -> None:
        self.sheet.rules[rule] += 1
        change = {"kind": self.chunk.kind, "id": line.id, "row": line.row, "turn": turn, "rule": rule}
        self.noted["changes"].append({**change, "before": before, "after": after, "test": line.is_test})

    def _drop(self, row: int, id: str, rule: str, content: str, is_test: bool, details: str) -> None:
        self.sheet.rules[rule] += 1
        dropped = {"kind": self.chunk.kind, "id": id, "row": row, "rule": rule, "content": content}
        self.noted["dropped"].append({**dropped, "like": "", "details": details, "test": is_test})

    def _note_asked(self, lines: Sequence[Line], first: int) -> None:
        """What eval may ask: the first user turn of a test dialogue, every user turn of a test prompt."""
        for place, line in enumerate(lines, first):
            if line.is_test:
                said = [text for role, text in zip(line.roles, line.texts, strict=True) if role == "user"]
                asked = said if self.chunk.kind == "prompts" else said[:1]
                self.noted["asked"] += [{"place": place, "text": text} for text in asked]

    def _keys(self, lines: Sequence[Line]) -> Keys:
        return Keys(
            rows=np.array([line.row for line in lines], np.int64),
            is_test=np.array([line.is_test for line in lines], np.bool_),
            prompts=np.array([bytes.fromhex(line.id[: 2 * KEY_BYTES]) for line in lines], KEY),
            contents=np.array([content_key(line.roles, line.texts) for line in lines], KEY),
            bands=sketch([line.texts for line in lines], self.near) if self.near else no_keys(None, len(lines)).bands,
        )


def clean_share(task: tuple[RawChunk | Made, Settings]) -> Sheet:
    """Clean one share; this is what the processes are given."""
    return Share(*task).clean()


def _read_turns(row: Raw, where: str, formats: RowFormats) -> tuple[list[Role], list[str], str | None]:
    """The roles and texts of a dialogue, and the last user turn if it was cut for want of an answer.

    UltraChat has dialogues that end on the user; the turns before the last are sound. Raises BadRow.
    """
    form = formats.dialogue_format(row, where)
    roles, texts = form.conversation(row, where)
    unanswered = None
    if form.may_end_on_user and len(roles) > 1 and roles[-1] == "user":
        roles.pop()
        unanswered = texts.pop()
    check_dialogue(roles, texts, where)
    return roles, texts, unanswered


def row_json(row: Raw) -> str:
    """A row of ours as one line of JSON."""
    return orjson.dumps(row).decode()


def batches(path: Path) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """The batches of an Arrow file, one in memory at a time, each with where its rows stand; none without a file."""
    if path.is_file():
        start = 0
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield slice(start, start + batch.num_rows), batch
                start += batch.num_rows


class ArrowFile:
    """An Arrow file that is there once something was written into it."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._open = ExitStack()
        self._writer: Any = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch, as it is: LZ4 halves what goes to the disk, and takes a tenth of the whole time."""
        if self._writer is None:
            sink = self._open.enter_context(pa.OSFile(str(self.path), "wb"))
            self._writer = self._open.enter_context(pa.ipc.new_file(sink, self.schema))
        self._writer.write_batch(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _columns(lines: Sequence[Line]) -> pa.RecordBatch:
    """Rows as columns, without an object a row."""
    offsets = np.zeros(len(lines) + 1, np.int32)
    np.cumsum([len(line.texts) for line in lines], out=offsets[1:])
    roles = pa.array([role for line in lines for role in line.roles], pa.string())
    texts = pa.array([text for line in lines for text in line.texts], pa.string())
    turns = pa.StructArray.from_arrays([roles, texts], fields=list(SCHEMA.field("messages").type.value_type))
    columns = [
        pa.array([line.id for line in lines], pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), turns).cast(SCHEMA.field("messages").type),
        pa.array([line.source for line in lines], pa.string()),
        pa.array([line.origin for line in lines], pa.string()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)
