"""Gives up a connection that is too slow, as one that sends nothing.

A server that sends one byte before each read times out keeps a connection open without end: such a download
would take days. httpx limits only the time between two reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx

FLOOR = 1 << 10  # bytes a second; a layer of a gigabyte would take twelve days
WINDOW = 120.0  # seconds of waiting: a registry may be silent for one read (`http.TIMEOUT`) and then continue


class TooSlow(httpx.ReadTimeout):
    """Fewer than `FLOOR` bytes a second came, over `WINDOW` seconds of waiting for them."""


def steadily(parts: Iterator[bytes], clock: Callable[[], float]) -> Iterator[bytes]:
    """``parts`` as they come; raises TooSlow. ``clock`` gives seconds.

    Only the waiting for parts is counted: who takes them may be slower than the network.
    """
    waited, came = 0.0, 0
    while True:
        asked = clock()
        part = next(parts, None)
        if part is None:
            return
        waited += clock() - asked
        came += len(part)
        if waited >= WINDOW:
            if came < FLOOR * waited:
                raise TooSlow(f"{came} bytes in {waited:.0f} s")
            waited, came = 0.0, 0
        yield part
