"""`ulimit -v` ended in "unexpected MemoryError", or in a thread that could not be started."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert import convert as stage
from pipeline.convert.mksquashfs_program import Mksquashfs, memory_budget
from pipeline.errors import ToolError
from pipeline.oci.entry import Limits
from pipeline.system.memory import out_of_memory
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("can't start new thread")]
)
def test_each_way_in_which_memory_ends_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_name: str) -> object:
        raise error

    monkeypatch.setattr(stage, "_converter", short)
    source = image(tmp_path / "image", [LayerBuilder().file("a", b"1")])
    with pytest.raises(ToolError, match="memory that this process may use is used up") as caught:
        stage.convert(
            source,
            ConvertOptions(),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
            limits=Limits(),
        )
    assert "ulimit -v" in caught.value.hint


@pytest.mark.parametrize("error", [ValueError(), OSError(28, "full"), RuntimeError("another")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert out_of_memory(error) is None


@pytest.mark.parametrize(("converter", "megabytes"), [("native", 100), ("mksquashfs", 130)])
def test_a_command_with_little_memory_ends_in_a_sentence(
    tmp_path: Path, converter: str, megabytes: int
) -> None:
    """At the very end of its memory Python hung while it left a function by an exception."""
    layer = LayerBuilder().dir("bin").file("bin/sh", b"#!\n", mode=0o755)
    for number in range(120_000):
        layer.file(f"a-folder/a-file-with-a-long-name-{number:08}")
    image(tmp_path / "image", [layer])
    argv = [
        sys.executable,
        "-m",
        "pipeline",
        "convert",
        f"oci:{tmp_path / 'image'}",
        "-o",
        str(tmp_path / "x.sqsh"),
    ]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SQSHPIPE_SCRATCH": str(tmp_path / "scratch"),
        "SQSHPIPE_CACHE": str(tmp_path / "cache"),
    }
    ended = subprocess.run(
        [*argv, "--converter", converter],
        preexec_fn=limited,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 3, ended.stderr
    assert "memory that this process may use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "unexpected" not in ended.stderr


def test_the_last_lines_of_mksquashfs_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mksquashfs"
    program.write_text("#!/bin/sh\necho 'FATAL ERROR: Out of memory (cache_alloc)' >&2\nexit 1\n")
    program.chmod(0o755)
    tool = Mksquashfs(path=program, version=(4, 6, 1))
    with pytest.raises(ToolError, match="memory that this process may use is used up"):
        tool.pack(tmp_path, tmp_path / "x.sqsh", compressor="zstd", zstd_level=3, block_size=131072)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 << 30, 2 << 30))
    assert memory_budget(root=tmp_path) == 512 << 20
