"""Data blocks and fragments: where a file's bytes are, and the words that describe them.

A word holds the stored length of a block; bit 24 says "stored as it is", and 0 a block of zeros that is not
stored at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pipeline.errors import FormatError
from pipeline.squashfs.codecs import Expand
from pipeline.squashfs.metadata import read_at, read_indexed
from pipeline.squashfs.superblock import ABSENT, Superblock

RAW = 1 << 24
LENGTH = RAW - 1
FRAGMENT_ENTRY = struct.Struct("<QII")


@dataclass(frozen=True, slots=True)
class Span:
    """One stored block: its position in the file, its word, and how many bytes it expands to."""

    position: int
    word: int
    length: int


def read_span(descriptor: int, span: Span, expand: Expand, name: str) -> bytes:
    """The plain bytes of one block: exactly `span.length`, else FormatError."""
    if not span.word:
        return bytes(span.length)
    stored = span.word & LENGTH
    raw = read_at(descriptor, stored, span.position, name)
    if len(raw) != stored:
        raise FormatError(f"{name} is damaged: the data block at {span.position} is cut short")
    try:
        plain = raw if span.word & RAW else expand(raw, span.length)
    except FormatError as error:
        raise FormatError(f"{name} is damaged: data block at {span.position}: {error.message}") from error
    if len(plain) != span.length:
        raise FormatError(
            f"{name} is damaged: the data block at {span.position} has {len(plain)} bytes, not {span.length}"
        )
    return plain


def read_fragment(descriptor: int, span: Span, expand: Expand, name: str) -> bytes:
    """The plain bytes of a fragment block, whose length only its own bytes have: at most `span.length`."""
    raw = read_at(descriptor, span.word & LENGTH, span.position, name)
    if not raw or len(raw) != span.word & LENGTH:
        raise FormatError(f"{name} is damaged: the fragment at {span.position} is empty or cut short")
    try:
        return raw if span.word & RAW else expand(raw, span.length)
    except FormatError as error:
        raise FormatError(f"{name} is damaged: fragment at {span.position}: {error.message}") from error


def cut_tail(fragment: bytes, offset: int, length: int, name: str) -> bytes:
    """A file's tail out of its expanded fragment block; FormatError when it is not all there."""
    tail = fragment[offset : offset + length]
    if len(tail) != length:
        raise FormatError(
            f"{name} is damaged: a tail of {length} bytes at {offset} of a fragment of {len(fragment)}",
            hint="make or copy the file again",
        )
    return tail


def check_span(span: Span, superblock: Superblock, name: str) -> Span:
    """The span itself, when it lies inside the file and is no longer than a block may be."""
    stored = span.word & LENGTH
    if stored > superblock.block_size or span.word >> 25 or span.position + stored > superblock.bytes_used:
        raise FormatError(f"{name} is damaged: a data block of {stored} bytes at {span.position}")
    return span


def read_fragments(
    descriptor: int, superblock: Superblock, expand: Expand, name: str
) -> list[tuple[int, int]]:
    """The (position, word) of every fragment block."""
    if not superblock.fragment_count or superblock.fragment_table == ABSENT:
        return []
    raw = read_indexed(
        descriptor,
        superblock.fragment_table,
        superblock.fragment_count,
        FRAGMENT_ENTRY.size,
        expand,
        end=superblock.bytes_used,
        name=name,
    )
    return [(position, word) for position, word, _ in FRAGMENT_ENTRY.iter_unpack(raw)]
