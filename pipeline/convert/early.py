"""Packing layers beside the scan, so that only stitching, verifying and publishing follow the verdict.

Nothing of it is visible: packs go into the cache folder, where a pack stands for a blob only after both were
compared. Whatever goes wrong here is no error: the conversion does the same work again, and reports it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from pipeline.config.types import ConvertOptions
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import Packing, codec_of, pack_cache, until_sound
from pipeline.convert.tree import require_sizes
from pipeline.errors import SqshpipeError
from pipeline.oci.entry import Limits
from pipeline.oci.source import ImageSource
from pipeline.progress import Meter
from pipeline.squashfs.pack import PackDamaged
from pipeline.squashfs.stitch import StitchOptions, require_all
from pipeline.squashfs.stored import StoredPack
from pipeline.system.parallel import Halt, StoppedError

log = structlog.get_logger()

_WAIT = 0.5  # seconds between two looks at the thread: a signal is handled between them
_PATIENCE = (
    5.0  # seconds that a thread which was ended may take; one that waits for a dead server takes longer
)


class EarlyPacking:
    """Packs the layers of one image in a thread of its own until `finish` or `end`."""

    def __init__(
        self,
        open_source: Callable[[], ImageSource],
        options: ConvertOptions,
        cache: Path,
        limits: Limits,
        stored: AbstractContextManager[StoredLayers | None],
    ) -> None:
        self._stored = stored
        self._open_source = open_source
        self._options = options
        self._cache = pack_cache(cache)
        self._limits = limits
        self._halt = Halt()
        self._meter = _LaterMeter()
        self._thread = threading.Thread(target=self._run, name="early-packing", daemon=True)
        self._thread.start()

    def finish(self, meter: Meter) -> None:
        """Wait until all packs are made, and report what is left of the work to `meter`."""
        self._meter.report_to(meter)
        while self._thread.is_alive():
            self._thread.join(_WAIT)

    def end(self) -> None:
        """Stop packing. A pack that is not complete is removed; complete ones stay in the cache."""
        self._halt.set()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            self._pack()
        except StoppedError:
            log.debug("packing before the verdict was ended")
        except PackDamaged as error:
            self._cache.discard(error)
        except SqshpipeError as error:
            log.debug("packing before the verdict failed", why=error.headline)
        except Exception:  # the conversion meets it again, where it is reported
            log.debug("packing before the verdict failed", exc_info=True)

    def _pack(self) -> None:
        with self._stored as stored:
            self._pack_with(stored)

    def _pack_with(self, stored: StoredLayers | None) -> None:
        packing = Packing(
            source=self._open_source(),
            options=self._options,
            codec=codec_of(self._options),
            cache=self._cache,
            limits=self._limits,
            meter=self._meter,
            halt=self._halt,
            stored=stored,
        )
        require_sizes(packing.source, self._limits)
        self._cache.refuse_others()
        self._cache.remove_leftovers()
        until_sound(packing, functools.partial(_prepare, packing))


def _prepare(packing: Packing) -> None:
    """Read here all that the conversion would lack, so that it needs no more than packs and releases."""
    with contextlib.ExitStack() as opened:
        tally = packing.tally()
        packs = packing.packs(opened, tally, None)
        packing.compare_the_rest(tally)
        if any(isinstance(pack, StoredPack) for pack in packs):
            from pipeline.convert.native import assembled

            packs, tree = assembled(packing, opened, None)
            options = StitchOptions(codec=packing.codec, block_size=packing.options.block_size)
            require_all(tree, packs, options)


@contextlib.contextmanager
def early_packing(
    open_source: Callable[[], ImageSource],
    options: ConvertOptions,
    *,
    cache: Path,
    limits: Limits,
    stored: AbstractContextManager[StoredLayers | None] | None = None,
) -> Iterator[EarlyPacking]:
    """Pack the layers of an image in the background; on leaving, what is not done is ended.

    `convert` with the same options and cache folder then finds the packs there; what releases of `stored`
    have is not packed. Nothing that goes wrong with them is raised.
    """
    early = EarlyPacking(open_source, options, cache, limits, stored or contextlib.nullcontext())
    try:
        yield early
    finally:
        early.end()


class _LaterMeter:
    """Counts bytes until somebody wants to see them, and passes on what is left from then on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._meter: Meter | None = None

    def report_to(self, meter: Meter) -> None:
        with self._lock:
            self._meter = meter
            if self._left > 0:
                meter.total(self._left)

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
