"""Packing layers beside build and scan, so that only stitch, verification and publishing follow the verdict.

Nothing of it is visible: packs go into the cache folder, where a pack stands for a blob only after both were
compared. A failure here does not end the run: the conversion does the same work again, and reports it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.config.types import ConvertOptions
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import Packing, codec_of, pack_cache, until_sound
from pipeline.convert.tree import require_sizes
from pipeline.errors import SqshpipeError
from pipeline.oci.entry import Limits
from pipeline.oci.source import ImageSource
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.pack import PackDamaged
from pipeline.squashfs.stitch import StitchOptions, require_all
from pipeline.squashfs.stored import StoredPack
from pipeline.system.log import log
from pipeline.system.parallel import CancelToken, StoppedError
from pipeline.system.polite import PoliteHalt, lowest_priority

_WAIT = 0.5  # seconds between two looks at the thread: a signal is handled between them
_PATIENCE = (
    5.0  # seconds that a thread which was ended may take; one that waits for a dead server takes longer
)


OpenStored = Callable[[], AbstractContextManager[StoredLayers | None]]


class EarlyPacking:
    """Packs the layers of images in threads of its own until `finish` or `end`, one image after the other."""

    def __init__(self, options: ConvertOptions, cache: Path, limits: Limits, stored: OpenStored) -> None:
        self._open_stored = stored
        self._options = options
        self._cache = pack_cache(cache)
        self._limits = limits
        self._halt = CancelToken()
        self._behind = PoliteHalt(self._halt)
        self._meter = _LaterMeter()
        self._threads: list[threading.Thread] = []

    def begin(self, open_source: Callable[[], ImageSource], *, behind: bool = False) -> None:
        """Pack the layers of an image too.

        `behind`: with what processor time other processes leave. The next image ends that, since threads may
        not raise their priority again, and what is left of those layers is not worth waiting for.
        """
        self._behind.set()
        if behind:
            self._behind = PoliteHalt(self._halt)
        cancel = self._behind if behind else self._halt
        arguments = (open_source, cancel, tuple(self._threads))
        thread = threading.Thread(target=self._run, args=arguments, name="early-packing", daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self, task: Task) -> None:
        """Wait until all packs are made, and report what is left of the work to `task`."""
        self._meter.report_to(task)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_WAIT)

    def end(self) -> None:
        """Stop packing. A pack that is not complete is removed; complete ones stay in the cache."""
        self._halt.set()
        until = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(
        self,
        open_source: Callable[[], ImageSource],
        cancel: CancelToken,
        before: tuple[threading.Thread, ...],
    ) -> None:
        for thread in before:  # they may be at the same layers
            thread.join()
        if isinstance(cancel, PoliteHalt):
            lowest_priority()
        try:
            cancel.check()
            self._pack(open_source(), cancel, whole=not isinstance(cancel, PoliteHalt))
        except StoppedError:
            log.debug("packing before the verdict was ended")
        except PackDamaged as error:
            self._cache.discard(error)
        except SqshpipeError as error:
            log.debug("packing before the verdict failed", why=error.headline)
        except Exception:  # noqa: BLE001 - the conversion meets it again, where it is reported
            log.debug("packing before the verdict failed", exc_info=True)

    def _pack(self, source: ImageSource, cancel: CancelToken, *, whole: bool) -> None:
        require_sizes(source, self._limits)
        self._cache.refuse_others()
        self._cache.remove_leftovers()
        with self._open_stored() as stored:
            packing = Packing(
                source=source,
                options=self._options,
                codec=codec_of(self._options),
                cache=self._cache,
                limits=self._limits,
                task=self._meter if whole else NO_TASK,  # it may be ended before its end
                cancel=cancel,
                stored=stored,
            )
            until_sound(packing, functools.partial(_prepare, packing, whole=whole))


def _prepare(packing: Packing, *, whole: bool) -> None:
    """Read here all that the conversion would lack, so that it needs no more than packs and releases.

    Without `whole` these are not all layers of the image: what it hides of them is not known yet.
    """
    with contextlib.ExitStack() as opened:
        tally = packing.tally()
        packs = packing.packs(opened, tally, None)
        stored = any(isinstance(pack, StoredPack) for pack in packs)
        if whole or not stored:
            packing.compare_the_rest(tally)
        if whole and stored:
            from pipeline.convert.native import assembled

            packs, tree = assembled(packing, opened, None)
            options = StitchOptions(codec=packing.codec, block_size=packing.options.block_size)
            require_all(tree, packs, options)


@contextlib.contextmanager
def early_packing(
    options: ConvertOptions,
    *,
    cache: Path,
    limits: Limits,
    stored: OpenStored = contextlib.nullcontext,
) -> Iterator[EarlyPacking]:
    """Pack layers in the background; on leaving, what is not done is ended.

    `convert` with the same options and cache folder then finds the packs there; what releases of `stored`
    have is not packed. Nothing that goes wrong with them is raised.
    """
    early = EarlyPacking(options, cache, limits, stored)
    try:
        yield early
    finally:
        early.end()


class _LaterMeter:
    """Counts bytes until somebody wants to see them, and passes on what is left from then on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._meter: Task | None = None

    def report_to(self, task: Task) -> None:
        with self._lock:
            self._meter = task
            if self._left > 0:
                task.total(self._left)

    def total(self, amount: int) -> None:
        with self._lock:
            self._left += amount
            if self._meter is not None:
                self._meter.total(amount)

    def advance(self, amount: int) -> None:
        with self._lock:
            self._left -= amount
            if self._meter is not None:
                self._meter.advance(amount)

    def line(self, text: str) -> None:
        """Packing has no lines."""
