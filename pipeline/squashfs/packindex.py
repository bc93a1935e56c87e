"""What a layer pack holds, entry by entry, as columns.

A layer may have a million entries, so nothing here is an object an entry: columns load in milliseconds and
cost their own bytes. `data` is everything before the index in the pack file.

Where a file's content is follows from its size: nothing for size 0; in a fragment below the block size, with
`place` the fragment's number and `detail` the offset in it; in blocks of its own otherwise, with `place` the
position in the data and `detail` the first of its ceil(size / block size) entries in `words`.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import zstandard

from pipeline.errors import FormatError

DIGEST_SIZE = 16  # of sha256: names content that lies in a fragment
_LEVEL = 3
_MAX_PLAIN = 1 << 32
_NUL = b"\0"
_OTHER_DAMAGE = (AttributeError, OverflowError, RecursionError)

Xattrs = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True, kw_only=True)
class PackIndex:
    """The columns. `header` holds what is known once: block_size, compressor, level, diff_id, versions."""

    header: dict[str, Any]
    paths: list[bytes] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    modes: array[int] = field(default_factory=lambda: array("H"))
    uids: array[int] = field(default_factory=lambda: array("I"))
    gids: array[int] = field(default_factory=lambda: array("I"))
    mtimes: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    checksums: array[int] = field(default_factory=lambda: array("I"))
    places: array[int] = field(default_factory=lambda: array("Q"))
    details: array[int] = field(default_factory=lambda: array("I"))
    digests: bytearray = field(default_factory=bytearray)
    words: array[int] = field(default_factory=lambda: array("I"))
    fragment_positions: array[int] = field(default_factory=lambda: array("Q"))
    fragment_words: array[int] = field(default_factory=lambda: array("I"))
    fragment_sizes: array[int] = field(default_factory=lambda: array("I"))
    check_lengths: array[int] = field(
        default_factory=lambda: array("I")
    )  # the data in pieces of these lengths
    check_sums: array[int] = field(default_factory=lambda: array("I"))  # and the crc32 of each piece
    targets: dict[int, bytes] = field(default_factory=dict)
    devices: dict[int, tuple[int, int]] = field(default_factory=dict)
    xattrs: dict[int, Xattrs] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def data_size(self) -> int:
        return sum(self.check_lengths)

    def digest(self, index: int) -> bytes:
        """What names the content of an entry that lies in a fragment."""
        return bytes(self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE])

    def encode(self) -> bytes:
        """The index as stored: one zstd frame of a JSON head and the columns."""
        sections = list(_sections(self))
        head = {
            **self.header,
            "entries": len(self.paths),
            "sections": [len(section) for section in sections],
            "targets": list(self.targets),
            "devices": [[number, *device] for number, device in self.devices.items()],
            "xattrs": [
                [number, [[name.hex(), value.hex()] for name, value in pairs]]
                for number, pairs in self.xattrs.items()
            ],
        }
        text = json.dumps(head, sort_keys=True).encode()
        plain = b"".join([len(text).to_bytes(8, "little"), text, *sections])
        return zstandard.ZstdCompressor(level=_LEVEL).compress(plain)

    @classmethod
    def decode(cls, stored: bytes) -> PackIndex:
        """The index in `stored`; FormatError unless everything in it fits together."""
        try:
            if zstandard.get_frame_parameters(stored).content_size > _MAX_PLAIN:
                raise FormatError("a layer pack's index is too large")
            plain = zstandard.ZstdDecompressor().decompress(stored)
            length = int.from_bytes(plain[:8], "little")
            head = json.loads(plain[8 : 8 + length])
            return _decoded(head, plain, 8 + length)
        except (zstandard.ZstdError, LookupError, ValueError, TypeError, *_OTHER_DAMAGE) as error:
            raise FormatError(f"a layer pack's index is damaged: {error}") from error


_COLUMNS = (
    ("modes", "H"),
    ("uids", "I"),
    ("gids", "I"),
    ("mtimes", "Q"),
    ("sizes", "Q"),
    ("checksums", "I"),
    ("places", "Q"),
    ("details", "I"),
    ("words", "I"),
    ("fragment_positions", "Q"),
    ("fragment_words", "I"),
    ("fragment_sizes", "I"),
    ("check_lengths", "I"),
    ("check_sums", "I"),
)
_PER_ENTRY = ("modes", "uids", "gids", "mtimes", "sizes", "checksums", "places", "details")
_GROUPS = (
    ("fragment_positions", "fragment_words", "fragment_sizes"),
    ("check_lengths", "check_sums"),
)


def _sections(index: PackIndex) -> Iterator[bytes]:
    yield _NUL.join(index.paths)
    yield _NUL.join(index.targets.values())
    yield bytes(index.kinds)
    yield bytes(index.digests)
    for name, _ in _COLUMNS:
        yield _little(getattr(index, name)).tobytes()


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


def _decoded(head: dict[str, Any], plain: bytes, at: int) -> PackIndex:
    lengths = [int(length) for length in head.pop("sections")]
    if len(lengths) != 4 + len(_COLUMNS) or min(lengths) < 0 or at + sum(lengths) != len(plain):
        raise ValueError("its sections do not add up")
    parts = []
    for length in lengths:
        parts.append(plain[at : at + length])
        at += length
    entries = head.pop("entries")
    targets = [int(number) for number in head.pop("targets")]
    index = PackIndex(header=head, kinds=bytearray(parts[2]), digests=bytearray(parts[3]))
    index.paths = parts[0].split(_NUL) if entries else []
    index.targets = dict(zip(targets, parts[1].split(_NUL) if targets else (), strict=True))
    index.devices = {int(number): (int(major), int(minor)) for number, major, minor in head.pop("devices")}
    index.xattrs = {
        int(number): tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in pairs)
        for number, pairs in head.pop("xattrs")
    }
    for (name, code), part in zip(_COLUMNS, parts[4:], strict=True):
        column = array(code)
        column.frombytes(part)
        setattr(index, name, _little(column))
    _check(index, entries)
    return index


def _check(index: PackIndex, entries: int) -> None:
    if (
        len(index.paths) != entries
        or len(index.kinds) != entries
        or len(index.digests) != entries * DIGEST_SIZE
    ):
        raise ValueError("its columns differ in length")
    if any(len(getattr(index, name)) != entries for name in _PER_ENTRY):
        raise ValueError("its columns differ in length")
    for group in _GROUPS:
        if len({len(getattr(index, name)) for name in group}) != 1:
            raise ValueError("its columns differ in length")
