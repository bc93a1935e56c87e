"""Bringing the bytes of a release into a store: from the source of a sync, and from releases there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

from pipeline.progress import Task
from pipeline.squashfs.copying import copy_range
from pipeline.squashfs.layout import Range
from pipeline.squashfs.ranges import Piece, pieces
from pipeline.store import attachments
from pipeline.store.layout import Layout
from pipeline.store.record import Record
from pipeline.store.sharing import Holder, ranges_of
from pipeline.store.sync_source import SyncReport, SyncSource

_PIECE = 4 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fetch(
    staged: int,
    record: Record,
    source: SyncSource,
    layout: Layout,
    holders: Sequence[Holder],
    report: SyncReport,
    task: Task,
) -> tuple[str, int]:
    """Append what is missing to the open file `staged`. Returns (sha256 of the whole file, bytes reused).

    What the releases `holders` of the target's `layout` have is copied from them; the rest is read from
    `source`. Neither is trusted: the caller compares the sha256. Raises OSError and what `source` raises.
    """
    digest = hashlib.sha256()
    have = _hash(staged, 0, record.size + 1, digest)
    if have > record.size:
        os.ftruncate(staged, 0)
        digest, have = hashlib.sha256(), 0
    task.total(record.size)
    task.advance(have)
    reused = 0
    with contextlib.ExitStack() as opened:
        files = [_open(layout, holder, opened) for holder in holders]
        for piece in _plan(record, source, layout, holders):
            begin, end = max(piece.target, have), piece.target + piece.length
            if begin >= end:
                continue
            held = None if piece.held is None else files[piece.held]
            if held is not None and _copied(held, staged, piece, begin):
                _hash(staged, begin, end, digest)
                reused += end - begin
            else:
                _read(staged, record, source, begin, end, digest)
                report.bytes_copied += end - begin
            task.advance(end - begin)
    report.bytes_reused += reused
    return digest.hexdigest(), reused


def _plan(record: Record, source: SyncSource, layout: Layout, holders: Sequence[Holder]) -> list[Piece]:
    wanted = ranges_of(layout, record) if holders else None
    if wanted is None:
        return [Piece(None, 0, 0, record.size)]
    return pieces(wanted, [holder.ranges for holder in holders], shortest=source.shortest)


def _open(layout: Layout, holder: Holder, opened: contextlib.ExitStack) -> int | None:
    try:
        file = attachments.open_file(layout, layout.blob(holder.record.sha256))
    except (OSError, attachments.NotOfTheStoreError):
        return None
    if file is not None:
        opened.callback(os.close, file)
    return file


def _copied(held: int, staged: int, piece: Piece, begin: int) -> bool:
    """Copy the piece from `begin` on; False when the held file cannot be read (pruned, or stale)."""
    skipped = begin - piece.target
    try:
        copy_range(held, staged, Range(0, piece.source + skipped, piece.length - skipped, begin))
    except OSError:
        return False
    return True


def _read(staged: int, record: Record, source: SyncSource, begin: int, end: int, digest: _Hash) -> None:
    """Read bytes of the release from the source; fewer where it ends early, which its sha256 shows."""
    whole = end == record.size
    with source.open_from(record, begin) if whole else source.open_from(record, begin, end - begin) as stream:
        at = begin
        while at < end and (data := stream.read(min(_PIECE, end - at))):
            digest.update(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(staged, view, at)
                view, at = view[written:], at + written


def _hash(file: int, begin: int, end: int, digest: _Hash) -> int:
    """Feed a part of a file to `digest`; gives where it ends."""
    while begin < end and (data := os.pread(file, min(_PIECE, end - begin), begin)):
        digest.update(data)
        begin += len(data)
    return begin
