"""Blocks of zeros were found out through a view, byte by byte: 0.3 GB/s, against 16 GB/s of bytes."""

from __future__ import annotations

import pytest

from pipeline.squashfs.packwriter import _is_zero

ZEROS = bytes(4096)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    ("block", "hole"),
    [
        (bytes(4096), True),
        (bytes(100), True),
        (b"\0", True),
        (b"x" + bytes(4095), False),
        (bytes(4095) + b"x", False),
        (bytes(2000) + b"x" + bytes(2095), False),
        (bytes(50) + b"x" + bytes(49), False),
    ],
)
def test_only_zeros_are_a_hole(kind: type[bytes], block: bytes, *, hole: bool) -> None:
    assert _is_zero(kind(block), ZEROS) is hole
