"""The storage half of the Xet protocol: takes xorbs and shards, and puts the files together that they describe.

Formats: huggingface.co/docs/xet, "Xorb format" and "MDB shard file format". A xorb holds compressed chunks; a shard
says of each file which chunks of which xorbs it is made of. Integers are little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

BLOCK = 48
"""Bytes of a shard's header and of every entry in it."""
BOOKEND = b"\xff" * 32
"""The hash that ends the list of files."""
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
LZ4, GROUPED_LZ4 = 1, 2


@dataclass
class XetStorage:
    """What was uploaded: chunks by the hash of their xorb."""

    xorbs: dict[str, list[bytes]] = field(default_factory=dict)

    def add_xorb(self, name: str, body: bytes) -> bool:
        """Keep a xorb; False where it was there."""
        is_new = name not in self.xorbs
        self.xorbs[name] = list(chunks(body))
        return is_new

    def add_shard(self, body: bytes) -> list[bytes]:
        """The content of every file that the shard describes. Raises KeyError where a xorb of one was not uploaded."""
        return [
            b"".join(b"".join(self.xorbs[xorb][first:last]) for xorb, first, last in segments)
            for segments in files(body)
        ]


def chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of a xorb, unpacked; what follows them is a footer that begins with its name."""
    place = 0
    while place < len(body) and body[place] == 0:
        packed, scheme, size = _u24(body, place + 1), body[place + 4], _u24(body, place + 5)
        content = body[place + 8 : place + 8 + packed]
        place += 8 + packed
        if scheme in (LZ4, GROUPED_LZ4):
            content = pa.decompress(content, decompressed_size=size, codec="lz4", asbytes=True)
        yield _ungrouped(content) if scheme == GROUPED_LZ4 else content


def files(shard: bytes) -> Iterator[list[tuple[str, int, int]]]:
    """For each file of a shard its segments: the xorb's name, and its first chunk and the one after its last."""
    place = BLOCK
    while (hash := shard[place : place + 32]) != BOOKEND:
        assert len(hash) == 32
        flags, count = struct.unpack_from("<II", shard, place + 32)
        entries = [place + BLOCK * (1 + number) for number in range(count)]
        yield [(_name(shard[entry : entry + 32]), *struct.unpack_from("<II", shard, entry + 40)) for entry in entries]
        place += BLOCK * (1 + count + (count if flags & HAS_VERIFICATION else 0) + bool(flags & HAS_METADATA))


def _u24(body: bytes, place: int) -> int:
    return int.from_bytes(body[place : place + 3], "little")


def _ungrouped(content: bytes) -> bytes:
    """Bytes that were sorted by their place in groups of four, in their own order again."""
    whole = bytearray(len(content))
    place = 0
    for first in range(4):
        count = len(range(first, len(content), 4))
        whole[first::4] = content[place : place + count]
        place += count
    return bytes(whole)


def _name(hash: bytes) -> str:
    """A hash as it stands in an address: four numbers of 64 bits in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))
