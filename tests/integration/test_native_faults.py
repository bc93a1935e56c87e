"""Native conversion killed, out of space, and on damaged caches: nothing wrong is ever believed."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert import packing
from pipeline.convert.native import convert_native
from pipeline.convert.packing import pack_cache
from pipeline.errors import ToolError
from pipeline.oci.layout import LayoutSource, open_layout
from pipeline.oci.platform import Platform
from pipeline.squashfs.pack import Pack
from tests.support.images.layers import LayerBuilder, write_layout

PLATFORM = Platform(os="linux", architecture="amd64")

KEPT = {".pack", ".pair"}
DRIVER = """
import sys
from pathlib import Path
from pipeline.config.types import ConvertOptions
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.convert.native import convert_native
image, output, cache = map(Path, sys.argv[1:])
source = open_layout(image, platform=Platform(os="linux", architecture="amd64"))
source.config()
print("go", flush=True)
convert_native(source, ConvertOptions(zstd_level=9), output=output, cache=cache)
"""


def make_image(folder: Path, *, seed: int = 1, size: int = 12_000_000) -> LayoutSource:
    rng = random.Random(seed)
    words = [rng.randbytes(6).hex().encode() for _ in range(2000)]
    layers = []
    for number in range(3):
        layer = LayerBuilder()
        left = size // 3
        while left > 0:
            content = b" ".join(rng.choices(words, k=rng.choice((20, 2000, 20_000))))
            layer.file(f"layer-{number}/file-{left}", content)
            left -= len(content)
        layers.append(layer)
    layers.append(LayerBuilder().whiteout("layer-0/file-4000000"))
    write_layout(folder, layers, compression="zstd")
    return open_layout(folder, platform=PLATFORM)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_campaign(tmp_path: Path, rounds: int) -> None:
    source = make_image(tmp_path / "image")
    options = ConvertOptions(zstd_level=9)
    started = time.monotonic()
    want = convert_native(source, options, output=tmp_path / "good", cache=tmp_path / "good-cache")
    took = time.monotonic() - started
    rng = random.Random(5)
    cache, output = tmp_path / "cache", tmp_path / "out"
    killed = 0
    for number in range(rounds):
        if number % 3 == 0:  # else continue with what the killed ones have left
            for pack in pack_cache(cache).packs():
                pack.path.unlink()
        command = [sys.executable, "-c", DRIVER, tmp_path / "image", output, cache]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"go\n"
            time.sleep(rng.random() * took * 1.2)
            child.send_signal(signal.SIGKILL)
            killed += child.wait(timeout=60) == -signal.SIGKILL
        for listed in pack_cache(cache).packs():
            if listed.complete:
                assert_sound(listed.path, tmp_path / "good-cache")
        if number % 3 == 2:
            again = convert_native(source, options, output=output, cache=cache)
            assert (again.sha256, sha256(output)) == (want.sha256, want.sha256)
            assert all(pack.complete for pack in pack_cache(cache).packs()), "a leftover stays"
    assert killed, "no run was killed in the middle, so nothing was tried"


def assert_sound(path: Path, good_cache: Path) -> None:
    """What is found under a pack's own name is the whole pack."""
    [good] = [pack.path for pack in pack_cache(good_cache).packs() if pack.path.name == path.name]
    assert sha256(path) == sha256(good)
    Pack.open(path).close()


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_campaign(tmp_path, 9)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    kill_campaign(tmp_path, 300)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    subprocess.run(mount, check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True, timeout=60)


@pytest.mark.needs("root")
@pytest.mark.parametrize("looked_before", [True, False])
@pytest.mark.parametrize("full", ["cache", "output"])
def test_a_full_disk(tmp_path: Path, full: str, looked_before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before the work where sizes show it; while writing, it is the same error and leaves nothing."""
    source = make_image(tmp_path / "image", size=6_000_000)
    if not looked_before:
        monkeypatch.setattr(packing, "require_space", lambda _needs: None)
    with small_disk(tmp_path / "small", 600_000) as small:
        folders = {"cache": tmp_path / "cache", "output": tmp_path, full: small}
        with pytest.raises(ToolError, match="space") as caught:
            convert_native(
                source, ConvertOptions(), output=folders["output"] / "out.sqsh", cache=folders["cache"]
            )
        assert str(small) in caught.value.message
        assert not (folders["output"] / "out.sqsh").exists()
        assert all(pack.complete for pack in pack_cache(folders["cache"]).packs())
        left = [path for path in small.rglob("*") if path.is_file() and path.suffix not in KEPT]
        assert left == []


def test_two_builders_at_once(tmp_path: Path) -> None:
    """Four processes on one cache make one image: each file is right, and the cache holds whole packs."""
    make_image(tmp_path / "image", size=3_000_000)
    cache = tmp_path / "cache"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, tmp_path / "image", tmp_path / f"out-{number}", cache],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(4)
    ]
    assert [child.wait(timeout=120) for child in children] == [0] * 4
    assert len({sha256(tmp_path / f"out-{number}") for number in range(4)}) == 1
    packs = pack_cache(cache).packs()
    assert len(packs) == 4
    for pack in packs:
        Pack.open(pack.path).close()
    assert all(pack.complete for pack in packs)


def test_a_flipped_bit_anywhere_in_the_cache(tmp_path: Path) -> None:
    source = make_image(tmp_path / "image", size=1_000_000)
    want = convert_native(source, ConvertOptions(), output=tmp_path / "out", cache=tmp_path / "cache")
    rng = random.Random(8)
    for _ in range(12):
        pack = rng.choice([pack.path for pack in pack_cache(tmp_path / "cache").packs()])
        data = bytearray(pack.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        pack.write_bytes(data)
        again = convert_native(source, ConvertOptions(), output=tmp_path / "out", cache=tmp_path / "cache")
        assert (again.sha256, sha256(tmp_path / "out")) == (want.sha256, want.sha256)
