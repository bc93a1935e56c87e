"""The memory of a conversion grows with the members of an image, as docs/explanation/conversion.md says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.peak import with_peak


@pytest.mark.parametrize(
    ("members", "most"),
    [(100_000, 0.3e9), pytest.param(1_000_000, 1.8e9, marks=pytest.mark.slow)],
    ids=["100000", "1000000"],
)
def test_one_folder_with_many_names(tmp_path: Path, members: int, most: float) -> None:
    """One folder is the worst case: squashfs writes a folder as a whole."""
    layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755).dir("many")
    for number in range(members):
        layer.file(f"many/{number:07}", b"")
    write_layout(tmp_path / "layout", [layer])
    argv = [sys.executable, "-m", "pipeline", "-q", "convert", f"oci:{tmp_path / 'layout'}"]
    argv += ["-o", str(tmp_path / "many.sqsh"), "--converter", "native"]
    variables = {"SQSHPIPE_CACHE": str(tmp_path / "cache"), "SQSHPIPE_SCRATCH": str(tmp_path / "scratch")}
    done, peak = with_peak(argv, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    assert peak < most
