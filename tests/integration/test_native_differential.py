"""Random layers through both converters of ours: the two mounts must agree in everything."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.types import ConvertOptions
from pipeline.convert.mksquashfs import convert_mksquashfs
from pipeline.convert.native import convert_native
from pipeline.errors import FormatError
from pipeline.oci.entry import DEFAULT_LIMITS
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.progress import NO_TASK
from pipeline.system.mount import mounted
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.images.snapshot import Seen, snapshot

pytestmark = pytest.mark.needs("mksquashfs", "root", "/dev/loop-control")

BLOCK = 4096
PLATFORM = Platform(os="linux", architecture="amd64")

names = st.sampled_from([b"a", b"b", b"cc", b"d" * 40, b"\xff\xfe", b"e f"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
sizes = st.sampled_from([0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 9])
contents = st.tuples(sizes, st.sampled_from([b"\0", b"ab", b"0123456789abc"])).map(
    lambda pair: (pair[1] * (pair[0] // len(pair[1]) + 1))[: pair[0]]
)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o000, 0o1777])
times = st.integers(min_value=0, max_value=2**32 - 1)
xattrs = st.dictionaries(
    st.sampled_from(["user.a", "trusted.b"]), st.binary(min_size=1, max_size=40), max_size=2
)
entries = st.one_of(
    st.tuples(st.just("file"), paths, contents, modes, times, xattrs),
    st.tuples(st.just("dir"), paths, modes, times, xattrs),
    st.tuples(st.just("symlink"), paths, paths),
    st.tuples(st.just("hardlink"), paths, paths),
    st.tuples(st.just("fifo"), paths),
    st.tuples(st.just("whiteout"), paths),
    st.tuples(st.just("opaque"), paths),
)
layers = st.lists(st.lists(entries, max_size=12), min_size=1, max_size=4)


def built(recipe: list[list[tuple]]) -> list[LayerBuilder]:  # type: ignore[type-arg]
    result = []
    for entries_of_one in recipe:
        layer, files = LayerBuilder(), set()
        for kind, path, *rest in entries_of_one:
            if kind == "hardlink" and rest[0] not in files:
                continue  # a link to nothing is an error in both, which shows little
            files.discard(path)
            if kind == "file":
                files.add(path)
                layer.file(path, rest[0], mode=rest[1], mtime=rest[2], xattrs=rest[3], uid=rest[2] % 5)
            elif kind == "dir":
                layer.dir(path, rest[0], mtime=rest[1], xattrs=rest[2])
            elif kind in ("symlink", "hardlink"):
                getattr(layer, kind)(path, rest[0])
            else:
                getattr(layer, kind)(path)
        result.append(layer)
    return result


def mounted_snapshot(file: Path, folder: Path) -> dict[bytes, Seen]:
    folder.mkdir()
    with mounted(file, folder, kind="kernel"):
        return snapshot(folder)


def compare(recipe: list[list[tuple]], block_size: int) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory(prefix="sqshpipe-differential-") as name:
        folder = Path(name)
        write_layout(folder / "image", built(recipe))
        source = open_layout(folder / "image", platform=PLATFORM)
        options = ConvertOptions(block_size=block_size, keep_owners=True, keep_xattrs=True)
        (folder / "scratch").mkdir()
        ways = {"native": convert_native, "mksquashfs": convert_mksquashfs}
        seen: dict[str, object] = {}
        for way, converter in ways.items():
            try:
                converter(  # type: ignore[operator]
                    source,
                    options,
                    output=folder / f"{way}.sqsh",
                    scratch=folder / "scratch",
                    cache=folder / "cache",
                    limits=DEFAULT_LIMITS,
                    task=NO_TASK,
                )
            except FormatError as error:  # noqa: PERF203 - two rounds
                seen[way] = type(error)
            else:
                seen[way] = mounted_snapshot(folder / f"{way}.sqsh", folder / way)
        assert seen["native"] == seen["mksquashfs"]


quick = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@quick
@given(recipe=layers)
def test_random_layers_give_one_tree(recipe: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    compare(recipe, BLOCK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(quick, max_examples=1500, derandomize=False)
@given(recipe=layers, block_size=st.sampled_from([4096, 8192, 131072]))
def test_many_random_layers_give_one_tree(recipe: list[list[tuple]], block_size: int) -> None:  # type: ignore[type-arg]
    compare(recipe, block_size)
