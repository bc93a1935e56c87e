"""Many buffers with one call, also where the kernel takes fewer bytes than it is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.squashfs.writing import write_at


@pytest.mark.parametrize("most", [0, 7])
def test_all_parts_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    parts = [bytes([number % 251]) * (number % 5) for number in range(3000)]  # more than one call takes
    plain = b"".join(parts)
    if most:
        write = os.pwrite
        monkeypatch.setattr(os, "pwritev", lambda fd, some, at: write(fd, b"".join(some)[:most], at))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:most], at))
    with (tmp_path / "file").open("w+b") as file:
        assert write_at(file.fileno(), parts, 100) == len(plain)
        assert os.pread(file.fileno(), 1 << 20, 100) == plain
        assert os.fstat(file.fileno()).st_size == 100 + len(plain)
