"""A gzip header larger than the reader's buffer ended as an unexpected OverflowError."""

from __future__ import annotations

import gzip
import io

import pytest

from pipeline.errors import FormatError
from pipeline.oci.layer import decompressed


@pytest.mark.parametrize("flags", [8, 16, 24])
@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
def test_it_is_a_damaged_layer(flags: int, size: int) -> None:
    member = gzip.compress(bytes(1024))
    header = member[:3] + bytes([flags]) + member[4:10]
    texts = b"n" * size + b"\0" + (b"c\0" if flags == 24 else b"")
    with pytest.raises(FormatError, match="damaged or cut short"):
        decompressed(io.BytesIO(header + texts + member[10:]), "gzip").read()
