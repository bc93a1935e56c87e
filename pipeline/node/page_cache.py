"""How much of a file the node keeps in its page cache: what a prewarm brings in, and what ranks share.

mincore(2) reports it for a mapping, without reading the file in. For a file that the caller neither owns nor
may write it answers that all of it is there: root asks.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.system import untrusted

_WINDOW = 1 << 30  # bytes that are mapped at a time: a vector of 256 KiB


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache now. Raises ToolError when the kernel does not report it."""
    library = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    total = 0
    with os.fdopen(untrusted.open_regular(path, follow=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            both = mmap.PROT_READ | mmap.PROT_WRITE  # ctypes takes the address of writable memory only
            with mmap.mmap(file.fileno(), length, mmap.MAP_PRIVATE, both, offset=start) as view:
                pages = (length + page - 1) // page
                vector = (ctypes.c_ubyte * pages)()
                anchor = ctypes.c_char.from_buffer(view)
                try:
                    address = ctypes.c_void_p(ctypes.addressof(anchor))
                    if library.mincore(address, ctypes.c_size_t(length), vector) != 0:
                        raise ToolError(f"mincore of {path}: {os.strerror(ctypes.get_errno())}")
                finally:
                    del anchor
                total += sum(each & 1 for each in bytes(vector)) * page
    return min(total, size)


def forget(path: Path) -> None:
    """Ask the kernel to drop a file from the page cache, so that a measurement starts cold."""
    with os.fdopen(untrusted.open_regular(path, follow=True), "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
