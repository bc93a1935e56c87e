"""The tree that a .sqsh must hold: an image's layers read, merged, and made what enroot expects of a root."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.convert.names import shown
from pipeline.errors import FormatError, LimitError
from pipeline.oci.entry import DEFAULT_LIMITS, HOLES, Entry, EntryKind, Limits, beyond_ratio
from pipeline.oci.layer import PIECE, Content, Readable, decompressed, read_layer
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import enroot_rootfs
from pipeline.oci.source import ImageSource
from pipeline.oci.tree import Tree
from pipeline.progress import NO_TASK, Task
from pipeline.system.memory import require_memory
from pipeline.system.parallel import CancelToken, run_all

MAX_WORKERS = 8
NODE = 400  # bytes that merging takes for a member, beside the entry itself
Copy = Callable[[bytes], object]  # takes the plain bytes of a layer, piece by piece


def read_tree(
    source: ImageSource,
    *,
    keep_owners: bool = False,
    keep_xattrs: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    task: Task,
    copies: Callable[[int], AbstractContextManager[Copy | None]] = lambda _: nullcontext(),
) -> Tree:
    """Read every layer of ``source`` to its end, in parallel, and merge them.

    ``copies(index)`` gives what takes a copy of that layer's tar while it is read, and learns by how it is
    left whether the layer was sound. The digests of unpacked layers are checked, the crc32 of every file is
    in its entry. Raises FormatError for bytes that are not an image or beyond ``limits``, and what ``source``
    raises.
    """
    layers = source.manifest().layers
    names = list(zip((layer.digest for layer in layers), source.config().diff_ids, strict=True))
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    # The same layer twice is read once, and merged and counted twice. The largest first: they end together,
    # and a size that lies is noticed before anything is measured by it.
    once = sorted(first.values(), key=lambda index: -layers[index].size)
    times = Counter(names)
    task.total(sum(layers[index].size for index in once))
    workers = worker_count()
    ahead = len(once) < workers  # processors to spare: decompress in threads of their own

    count = _Count(limits)
    tally = RatioGuard(sum(layers[index].size for index in once), limits)

    def entries_of(index: int, cancel: CancelToken) -> list[Entry]:
        with (
            copies(index) as copy,
            open_entries(
                source,
                index,
                cancel=cancel,
                task=task,
                background=ahead,
                limits=limits,
                copy=copy,
                tally=tally,
            ) as members,
        ):
            found = [entry for entry, _ in members]
        count.add(found, times[names[index]])
        return found

    read = run_all([functools.partial(entries_of, index) for index in once], workers=workers)
    by_index = dict(zip(once, read, strict=True))
    require_memory(sum(map(len, read)) * NODE)
    try:
        merged = merge([by_index[first[name]] for name in names])
        tree = enroot_rootfs(merged, source.config(), keep_owners=keep_owners, keep_xattrs=keep_xattrs)
        require_allowed(tree, limits)
    except FormatError as error:
        raise FormatError(f"the layers of {source.name}: {error.message}", hint=error.hint) from error
    return tree


class _Count:
    """Members of all layers together, counted by the threads that read them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._entries = self._metadata = 0

    def add(self, entries: list[Entry], times: int) -> None:
        metadata = sum(len(entry.path) for entry in entries)
        metadata += sum(len(key) + len(value) for entry in entries for key, value in entry.xattrs)
        with self._lock:
            self._entries += len(entries) * times
            self._metadata += metadata * times
            require_entries(self._entries, self._metadata, self._limits)


@dataclass(slots=True)
class Seen:
    """Of a layer that was read to its end: bytes of its tar, and of sparse files that are not in it."""

    unpacked: int = 0
    holes: int = 0


def require_layer(unpacked: int, stored: int, limits: Limits) -> None:
    """Raise LimitError when a layer of ``unpacked`` bytes is more than one may be, as reading it would."""
    if unpacked > limits.max_unpacked:
        raise LimitError(
            f"a layer unpacks to more than {limits.max_unpacked} bytes",
            hint="limits: {unpacked: …} in images.yaml says how many may be",
        )
    if unpacked > max(limits.ratio_floor, stored * limits.max_ratio):
        raise LimitError(f"a layer of {unpacked} bytes was stored in {stored}", hint=beyond_ratio(limits))


def require_sizes(source: ImageSource, limits: Limits) -> None:
    """Raise LimitError when the layers are larger as stored than they may be unpacked.

    A manifest may claim any sizes: nothing is measured by them before, such as the room on a disk.
    """
    stored = source.manifest().size
    most = limits.max_unpacked + limits.max_unpacked // 8  # what cannot be compressed grows a little
    if stored > max(most, limits.ratio_floor):
        raise LimitError(
            f"the manifest of {source.name} claims {stored} bytes of layers,"
            f" more than the {limits.max_unpacked} that they may unpack to",
            hint="limits: {unpacked: …} in images.yaml says how many may be",
        )


class RatioGuard:
    """Bytes that the layers of an image come to, all together, counted by the threads that read them.

    What one layer may come to, whatever it is stored in, would be too much a thousand times. ``stored`` is
    the sum that the manifest claims, so the largest layer must be read first: one that lies ends there.
    """

    def __init__(self, stored: int, limits: Limits) -> None:
        self._most = max(limits.ratio_floor, stored * limits.max_ratio)
        self._stored = stored
        self._limits = limits
        self._lock = threading.Lock()
        self._sum = 0

    def add(self, size: int) -> None:
        """Count a layer that was read to its end. Raises LimitError when all are beyond the ratio."""
        with self._lock:
            self._sum += size
            if self._sum > self._most:
                raise LimitError(
                    f"layers of {self._sum} bytes so far are stored in {self._stored}",
                    hint=beyond_ratio(self._limits),
                )


def require_entries(entries: int, metadata: int, limits: Limits) -> None:
    """Raise LimitError when the layers of an image have more members, or longer names, than it may have."""
    if metadata > limits.max_metadata:
        raise LimitError(f"the names and attributes of all layers take more than {limits.max_metadata} bytes")
    if entries > limits.max_entries:
        raise LimitError(
            f"the layers of an image have more than {limits.max_entries} members together",
            hint="limits: {entries: …} in images.yaml says how many may be",
        )


def require_allowed(tree: Tree, limits: Limits) -> None:
    """Raise LimitError when the finished tree holds more than an image may, FormatError for what policy
    forbids.
    """
    size = content_size(tree)
    if size > limits.max_unpacked:
        raise LimitError(
            f"the files of the image take {size} bytes, more than {limits.max_unpacked}",
            hint="limits: {unpacked: …} in images.yaml says how many may be",
        )
    if limits.devices and limits.setuid:
        return
    for path, node in tree.items():
        kind = node.entry.kind
        if not limits.devices and kind in (EntryKind.CHAR, EntryKind.BLOCK):
            raise FormatError(
                f"the image has the device node {shown(path)}", hint="limits: {devices: refuse} forbids it"
            )
        if not limits.setuid and kind is EntryKind.FILE and node.entry.mode & 0o6000:
            raise FormatError(
                f"the image has the setuid file {shown(path)}", hint="limits: {setuid: refuse} forbids it"
            )


@contextlib.contextmanager
def open_entries(
    source: ImageSource,
    index: int,
    *,
    cancel: CancelToken,
    task: Task = NO_TASK,
    background: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    copy: Copy | None = None,
    tally: RatioGuard | None = None,
    seen: Seen | None = None,
) -> Iterator[Iterator[tuple[Entry, Content]]]:
    """The entries of layer ``index`` with their content; ``task`` counts the bytes as they are stored, and
    ``copy`` gets them unpacked; ``tally`` counts how many they and the holes of sparse files were, ``seen``
    has both afterwards.

    Who iterates to the end has compared the stored bytes with the digest that the manifest names, and the
    unpacked bytes with the diff_id. What is wrong with the layer is raised as FormatError that names it;
    bytes that have not that digest raise what ``source`` raises for them, whatever else is wrong with them.
    """
    descriptor = source.manifest().layers[index]
    try:
        with source.open_layer(index) as blob:
            try:
                stored = cast("BinaryIO", _Counted(blob, task, cancel))
                plain = decompressed(stored, descriptor.compression, limits=limits)
                diff_id = source.config().diff_ids[index]
                tar = plain if copy is None else _Copied(plain, copy)
                with read_layer(tar, diff_id=diff_id, limits=limits, background=background) as layer:
                    yield iter(layer)
                    if seen is not None:
                        seen.unpacked, seen.holes = plain.unpacked, layer.holes
                    if tally is not None:
                        tally.add(plain.unpacked + layer.holes // HOLES)
            except LimitError:
                raise  # as much as the limits allow was read, and no more shall be
            except FormatError:
                _pass(blob, cancel)  # bytes that were damaged on their way are not the image's fault
                raise
    except FormatError as error:
        if error.message.startswith("layer "):
            raise
        number = f"layer {index + 1} of {len(source.manifest().layers)}"
        raise FormatError(
            f"{number} ({descriptor.digest}) of {source.name}: {error.message}", hint=error.hint
        ) from error


def _pass(blob: BinaryIO, cancel: CancelToken) -> None:
    """Read the rest of a blob, which raises when all of it has not the digest that it should have."""
    while blob.read(PIECE):
        cancel.check()


def content_size(tree: Tree) -> int:
    """Bytes of all files, each hard link once: what a converter reads or writes."""
    return sum(
        node.entry.size for node in tree.values() if node.entry.kind is EntryKind.FILE and not node.link_to
    )


def worker_count() -> int:
    """Threads that are worth having: the processors that this process may use, within bounds."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


class _Copied:
    """A layer's tar of which each piece is handed on as it passes."""

    def __init__(self, plain: Readable, copy: Copy) -> None:
        self._plain = plain
        self._copy = copy

    def read(self, size: int) -> bytes:
        data = self._plain.read(size)
        self._copy(data)
        return data


class _Counted:
    """A binary stream whose bytes are counted as they pass, and that ends when the others failed."""

    def __init__(self, stream: BinaryIO, task: Task, cancel: CancelToken) -> None:
        self._stream = stream
        self._meter = task
        self._halt = cancel

    def read(self, size: int = -1) -> bytes:
        self._halt.check()
        require_memory()
        data = self._stream.read(size)
        self._meter.advance(len(data))
        return data
