"""A machine without packs takes what releases have of the layers; the file has the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import random
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import zstandard

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile, convert
from pipeline.convert.from_bucket import BucketReleases
from pipeline.convert.from_store import StoredLayers
from pipeline.convert.packing import pack_cache
from pipeline.convert.verify import QUICK_CHECKS, verify
from pipeline.errors import FormatError
from pipeline.oci.layout import open_layout
from pipeline.oci.platform import Platform
from pipeline.release.publish import publish
from pipeline.squashfs.layers import read_layer
from pipeline.store.layout import LAYERS
from pipeline.store.record import Release
from pipeline.store.store import Store
from tests.support.images.layers import LayerBuilder, write_layout
from tests.support.store.releases import new_store

BLOCK = 4096
SHELL = LayerBuilder().dir("bin").file("bin/sh", b"#!", mode=0o755)  # the last layer of each image
PLATFORM = Platform(os="linux", architecture="amd64")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def files(prefix: str, count: int, *, seed: int = 0, size: int = 300) -> LayerBuilder:
    """Files of which some have blocks of their own, and most share fragments."""
    layer = LayerBuilder().dir(prefix)
    for number in range(count):
        layer.file(f"{prefix}/{number:03}", noise(size + number * 97, seed * 1000 + number))
    return layer


@dataclass
class Site:
    """A store, and machines that convert for it: each has a cache of its own, empty at first."""

    folder: Path
    store: Store
    copy: Callable[[], BucketReleases] | None = None
    """Opens the store's copy, which takes the place of the store."""
    opened: list[int] = field(default_factory=list)
    """Numbers of the layers that the last conversion read."""
    count: int = 0

    def convert(
        self,
        *layers: LayerBuilder,
        stored: bool = True,
        cache: str | None = None,
        synced: bool = False,
        compression: str = "gzip",
        **options: Any,
    ) -> SquashfsFile:
        self.count += 1
        folder = self.folder / f"image-{self.count}"
        write_layout(folder, [*layers, SHELL], compression=compression)
        source = open_layout(folder, platform=PLATFORM)
        site, opened = self, self.opened
        opened.clear()

        class Counting:
            name, manifest, config = source.name, source.manifest, source.config

            def open_layer(self, index: int) -> AbstractContextManager[BinaryIO]:
                opened.append(index)
                return source.open_layer(index)

        with contextlib.ExitStack() as opening:
            found = None
            if stored:
                copy = opening.enter_context(self.copy()) if self.copy else None
                store = None if self.copy else site.store
                found = opening.enter_context(StoredLayers(store, synced=synced, copy=copy))
            return convert(
                Counting(),
                ConvertOptions(converter="native", block_size=BLOCK, **options),
                output=self.folder / f"{self.count}.sqsh",
                scratch=self.folder,
                cache=self.folder / (cache or f"cache-{self.count}"),
                stored=found,
            )

    def publish(self, file: SquashfsFile, version: str, image: str = "demo") -> Release:
        return publish(
            verify(file), store=self.store, image=image, version=version, scan={"status": "unscanned"}
        )

    def release(self, version: str, *layers: LayerBuilder, image: str = "demo", **more: Any) -> Release:
        """Convert on a new machine and publish."""
        return self.publish(self.convert(*layers, **more), version, image)

    def same_as_cold(self, *layers: LayerBuilder, reads: list[int], **more: Any) -> SquashfsFile:
        """Convert with what the store has: only `reads` is read, and the bytes are those of a cold one."""
        made = self.convert(*layers, **more)
        assert sorted(self.opened) == reads
        assert verify(made).checks
        more.pop("synced", None)
        cold = self.convert(
            *layers, stored=False, **{name: one for name, one in more.items() if name != "cache"}
        )
        assert made.path.read_bytes() == cold.path.read_bytes()
        assert (made.sha256, made.ranges, made.layer_indexes) == (
            cold.sha256,
            cold.ranges,
            cold.layer_indexes,
        )
        assert hashlib.sha256(made.path.read_bytes()).hexdigest() == made.sha256
        return made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, new_store(tmp_path / "store"))


def top(number: int) -> LayerBuilder:
    return files("top", 20, seed=900 + number, size=50)


def proven(file: SquashfsFile) -> set[bytes]:
    """Paths of files that the quick check need not expand."""
    assert file.read is not None
    return {path for path, inode in file.read.inodes.items() if file.read.proves(inode, file.tree[path])}


def test_the_quick_check_needs_no_more_of_a_release_than_of_a_pack(site: Site) -> None:
    base = files("base", 60)
    site.release("v1.0", base, LayerBuilder().whiteout("base/003").whiteout("base/050"), top(1))
    layers = (base, LayerBuilder().whiteout("base/003").whiteout("base/050"), top(2))
    made = site.convert(*layers)
    assert verify(made).checks == QUICK_CHECKS
    assert proven(made) == proven(site.convert(*layers, stored=False))
    assert len(proven(made)) > 50


def test_only_the_changed_layer_is_read(site: Site) -> None:
    base, middle = files("base", 60), files("middle", 30, seed=2, size=5000)
    site.release("v1.0", base, middle, top(1))
    assert sorted(site.opened) == [0, 1, 2, 3]
    site.same_as_cold(base, middle, top(2), reads=[2])
    site.release("v1.1", base, middle, top(2))
    site.same_as_cold(base, middle, top(2), reads=[])


def test_nothing_of_the_store_gets_into_the_cache(site: Site) -> None:
    base = files("base", 60)
    site.release("v1.0", base, top(1))
    before = {path: path.stat() for path in site.store.root.rglob("*")}
    site.convert(base, top(2), cache="new")
    assert len(pack_cache(site.folder / "new").packs()) == 1
    after = {path: path.stat() for path in site.store.root.rglob("*")}
    leases = site.store.layout.leases
    assert {path: status.st_mtime_ns for path, status in before.items() if path != leases} == {
        path: status.st_mtime_ns for path, status in after.items() if path != leases
    }
    assert list(leases.iterdir()) == [], "a lease stays"


def test_a_duplicate_inside_one_layer(site: Site) -> None:
    base = files("base", 10)
    for name, size in (("small", 900), ("large", 3 * BLOCK + 7)):
        base.file(f"base/{name}-1", noise(size, 5)).file(f"base/{name}-2", noise(size, 5))
    site.release("v1.0", base, top(1))
    site.same_as_cold(base, top(2), reads=[1])


def test_a_layer_that_is_only_another_ones_copy_and_then_alone(site: Site) -> None:
    """Nothing of the upper layer is stored: its fragments are compressed again, its blocks lie elsewhere."""
    lower, upper = files("a", 40), LayerBuilder().dir("b")
    for number in range(40):
        upper.file(f"b/{number:03}", noise(300 + number * 97, number))
    upper.file("b/large", noise(70_000, 77))
    lower.file("a/other-large", noise(70_000, 77))
    site.release("v1.0", lower, upper)
    site.same_as_cold(upper, reads=[])
    site.same_as_cold(upper, top(1), reads=[1])


def test_one_hidden_tail_in_each_fragment(site: Site) -> None:
    base, hiding = LayerBuilder().dir("base"), LayerBuilder()
    for number in range(100):
        base.file(f"base/{number:03}", noise(300, number))
        if number % 13 == 5:
            hiding.whiteout(f"base/{number:03}")
    site.release("v1.0", base, hiding, top(1))
    made = site.same_as_cold(base, hiding, top(2), reads=[2])
    assert made.ranges is not None
    site.publish(made, "v1.1")
    site.same_as_cold(base, hiding, top(3), reads=[2])


@pytest.mark.parametrize("size", [300, 3 * BLOCK])
def test_a_new_version_shows_what_the_old_one_hid(site: Site, size: int) -> None:
    """What no release has must be read: left out silently, the file would lack it."""
    base = files("base", 40).file("base/secret", noise(size, 4711))
    site.release("v1.0", base, LayerBuilder().whiteout("base/secret"), top(1))
    made = site.same_as_cold(base, top(1), reads=[0])
    assert b"base/secret" in made.tree
    site.publish(made, "v1.1")
    site.same_as_cold(base, top(2), reads=[1])


def test_several_releases_together_have_a_layer(site: Site) -> None:
    """One hides the first half, another one the second: none has all, both together have."""
    base = files("base", 40)
    halves = [LayerBuilder(), LayerBuilder()]
    for number in range(40):
        halves[number % 2].whiteout(f"base/{number:03}")
    site.release("v1.0", base, halves[0])
    site.release("v1.0", base, halves[1], image="other")
    site.same_as_cold(base, halves[0], top(1), reads=[2])
    site.convert(base, top(1))
    assert 0 in site.opened, "fragments with tails of both are not known"
    large = LayerBuilder().file("one", noise(50_000, 1)).file("two", noise(50_000, 2))
    site.release("v2.0", large, LayerBuilder().whiteout("one"))
    site.release("v2.0", large, LayerBuilder().whiteout("two"), image="other")
    site.same_as_cold(large, top(1), reads=[1])


def test_links_whiteouts_and_folders(site: Site) -> None:
    base = files("base", 12).symlink("lib", "base").hardlink("base/again", "base/003").dir("gone")
    base.file("gone/x", b"x").hardlink("gone/y", "gone/x").symlink("gone/z", "/base").fifo("pipe")
    middle = LayerBuilder().file("lib/through", noise(700, 3)).opaque("gone").hardlink("moved", "gone/x")
    middle.whiteout("base/003").file("base/004", noise(20, 8))
    site.release("v1.0", base, middle, top(1))
    site.same_as_cold(base, middle, top(2), reads=[2])
    site.same_as_cold(base, top(2), reads=[0, 1])


def test_a_link_to_a_hidden_link(site: Site) -> None:
    """What it is a name of is not in the release: both layers are read."""
    base = files("base", 12).dir("gone").file("gone/x", b"x" * 99).hardlink("gone/y", "gone/x")
    moving = LayerBuilder().opaque("gone").hardlink("moved", "gone/y")
    site.release("v1.0", base, moving, top(1))
    made = site.same_as_cold(base, moving, top(2), reads=[0, 1, 2])
    assert made.tree[b"moved"].entry.size == 99


def test_a_hidden_symlink_through_which_a_layer_goes(site: Site) -> None:
    """Its target is not in the release any more, and merging needs it."""
    base = LayerBuilder().dir("usr/lib").symlink("lib", "usr/lib").file("usr/lib/a", noise(500))
    through = LayerBuilder().file("lib/b", noise(500, 2))
    over = LayerBuilder().whiteout("lib").file("lib/c", noise(500, 3))
    site.release("v1.0", base, through, over)
    made = site.same_as_cold(base, through, over, top(1), reads=[0, 3])
    assert b"usr/lib/b" in made.tree


def test_a_hidden_link_that_decides_where_enroots_files_lie(site: Site) -> None:
    base = files("base", 5).dir("usr/etc").file("usr/etc/a", b"a" * 99).symlink("etc", "usr/etc")
    site.release("v1.0", base, LayerBuilder().whiteout("etc").dir("etc").file("etc/b", b"b"))
    made = site.same_as_cold(base, top(1), reads=[0, 1])
    assert b"usr/etc/rc" in made.tree


def test_an_image_that_cannot_be_is_refused_with_its_own_error(site: Site) -> None:
    """What is wrong is said of the layers as they are, not of what is left of them."""
    base = files("base", 5).dir("a").symlink("a/loop", "loop").file("b", b"b" * 99)
    site.release("v1.0", base, LayerBuilder().whiteout("a/loop"))
    broken = LayerBuilder().file("a/loop/x", b"x")
    with pytest.raises(FormatError, match="circle") as cold:
        site.convert(base, broken, stored=False)
    with pytest.raises(FormatError, match="circle") as found:
        site.convert(base, broken)
    assert cold.value.message.partition(": ")[2] == found.value.message.partition(": ")[2]
    missing = LayerBuilder().hardlink("link", "nowhere")
    with pytest.raises(FormatError, match="not there"):
        site.convert(base, LayerBuilder().whiteout("a/loop"), missing)


def test_one_layer_twice(site: Site) -> None:
    layer = files("a", 20)
    site.release("v1.0", layer, LayerBuilder().whiteout("a/003"), layer)
    site.same_as_cold(layer, LayerBuilder().whiteout("a/003"), layer, top(1), reads=[3])


def test_owners_and_attributes(site: Site) -> None:
    layer = files("a", 5).file("a/with", noise(99), uid=7, gid=8, xattrs={"user.note": b"n"})
    site.release("v1.0", layer, top(1))
    site.same_as_cold(layer, top(2), reads=[1], keep_owners=True)
    site.same_as_cold(layer, top(2), reads=[0, 1, 2], keep_xattrs=True)
    site.release("v1.1", layer, top(2), keep_xattrs=True)
    site.same_as_cold(layer, top(3), reads=[1], keep_xattrs=True)


def test_nothing_of_what_is_hidden_is_in_the_store(site: Site) -> None:
    """Neither the content nor a digest or checksum of it, nor a link's target, in any file of the store."""
    secrets = {f"base/secret-{size}": noise(size, size) for size in (40, 500, BLOCK, 5 * BLOCK + 3)}
    base, hiding = files("base", 40), LayerBuilder().whiteout("base/link").whiteout("base/other-link")
    for name, content in secrets.items():
        base.file(name, content, xattrs={"user.secret": b"value-of-the-attribute"})
        hiding.whiteout(name)
    base.symlink("base/link", "/the/target/of/the/symlink")
    release = site.release("v1.0", base, hiding, compression="none", keep_xattrs=True)
    packs = b"".join(pack.path.read_bytes() for pack in pack_cache(site.folder / "cache-1").packs())
    stored = site.store.layout.attachments("demo", "v1.0", "linux/amd64") / LAYERS
    index = read_layer(stored.read_bytes(), release.packs[0], size=release.size)
    assert index is not None
    plain = index.encode()
    everything = [path.read_bytes() for path in site.store.root.rglob("*") if path.is_file()]
    everything.append(zstandard.ZstdDecompressor().decompress(plain))
    names = [path.decode() for path in index.paths]
    for name, content in secrets.items():
        assert index.sizes[names.index(name)] == len(content), "size and name may be there"
        digest = hashlib.sha256(content).digest()
        for start in range(0, len(content), BLOCK):
            piece = content[start : start + BLOCK]
            assert piece in packs, "else this test looks for nothing"
            needles = [piece[:30], hashlib.sha256(piece).digest()[:16], digest[:16]]
            needles += [hashlib.sha256(piece).hexdigest().encode(), hashlib.md5(piece).digest()]
            for checksum in (zlib.crc32(piece), zlib.crc32(content)):
                needles += [checksum.to_bytes(4, "little"), b"%08x" % checksum, b"%d" % checksum]
            for data in everything:
                assert not [needle for needle in needles if needle in data]
    for needle in (b"/the/target/of/the/symlink", b"value-of-the-attribute"):
        assert not [data for data in everything if needle in data]
        assert needle.hex().encode() not in everything[-1]
    site.same_as_cold(base, hiding, top(1), reads=[2], compression="none")
