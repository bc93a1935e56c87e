"""Releases as sources of layers: what happens to them meanwhile, and which of them are believed."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pipeline.attest.signing import open_keys, open_signer
from pipeline.convert.convert import SquashfsFile
from pipeline.convert.from_store import StoredLayers, compared_in
from pipeline.convert.verify import verify
from pipeline.errors import VerificationError
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.release.publish import publish_again
from pipeline.squashfs.codecs import Codec
from pipeline.squashfs.layers import LayerIndex, encode_layers, read_layer
from pipeline.store import leases, signatures
from pipeline.store.layout import LAYERS
from pipeline.store.prune import no_jobs, prune
from pipeline.store.record import EXTERNAL, Release, parse_record
from pipeline.store.retention import Policy
from pipeline.store.sync import sync
from pipeline.store.trust import Required
from tests.support.images.layers import LayerBuilder
from tests.support.store.releases import new_store
from tests.unit.convert.test_from_store import BLOCK, PLATFORM, SHELL, Site, files, noise, site, top

__all__ = ["site"]  # the fixture

BASE, HIDING = files("base", 40), LayerBuilder()
for _number in range(5):  # so that several pieces are copied
    BASE.file(f"base/hidden-{_number}", noise(300 + 9000 * _number, 90 + _number))
    BASE.file(f"base/large-{_number}", noise(90_000, 80 + _number))
    HIDING.whiteout(f"base/hidden-{_number}")


@pytest.fixture
def released(site: Site) -> Release:
    return site.release("v1.0", BASE, HIDING, top(1))


@pytest.fixture
def cold(site: Site) -> bytes:
    return site.convert(BASE, HIDING, top(2), stored=False).path.read_bytes()


def convert(site: Site, **more: Any) -> SquashfsFile:
    return site.convert(BASE, HIDING, top(2), **more)


def flip_bits(site: Site, released: Release, cold: bytes, rounds: int) -> None:
    """In what is taken it is found, and the layer read; the release stays as it is, damage included."""
    rng = random.Random(4)
    good = released.path.read_bytes()
    released.path.chmod(0o644)
    read = 0
    for _ in range(rounds):
        data = bytearray(good)
        data[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        released.path.write_bytes(data)
        made = convert(site)
        assert made.path.read_bytes() == cold
        assert verify(made).checks
        assert released.path.read_bytes() == data
        read += 0 in site.opened
    assert rounds // 2 < read <= rounds


def test_a_flipped_bit_anywhere(site: Site, released: Release, cold: bytes) -> None:
    flip_bits(site, released, cold, 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_flipped_bits(site: Site, released: Release, cold: bytes) -> None:
    flip_bits(site, released, cold, 500)


def cut(release: Release) -> None:
    os.truncate(release.path, release.size // 2)


def remove(release: Release) -> None:
    release.path.unlink()


def replace_by_a_link(release: Release) -> None:
    other = release.path.with_name("other")
    release.path.rename(other)
    release.path.symlink_to(other)


def beside(release: Release) -> Path:
    return release.path.parents[2] / release.image / ".meta" / release.version / LAYERS


def remove_layers(release: Release) -> None:
    beside(release).unlink()


def damage_layers(release: Release) -> None:
    data = bytearray(beside(release).read_bytes())
    data[len(data) // 2] ^= 1
    beside(release).chmod(0o644)
    beside(release).write_bytes(data)


def link_layers(release: Release) -> None:
    beside(release).rename(beside(release).with_name("other"))
    beside(release).symlink_to("other")


def refuse_leases(release: Release) -> None:
    folder = release.path.parents[2] / "leases"
    if folder.is_dir():
        folder.rmdir()
    folder.write_text("no folder")


@pytest.mark.parametrize(
    "change", [cut, remove, replace_by_a_link, remove_layers, damage_layers, link_layers, refuse_leases]
)
def test_a_release_that_cannot_be_used(
    site: Site, released: Release, cold: bytes, change: Callable[[Release], None]
) -> None:
    change(released)
    made = convert(site)
    assert made.path.read_bytes() == cold
    assert sorted(site.opened) == [0, 1, 2, 3]


class Reads:
    """Counts what is read of one file, and does something before one of the reads."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.before: dict[int, Callable[[], None]] = {}
        self._status = path.stat()
        for name in ("pread", "preadv", "copy_file_range"):
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *args: Any, **more: Any) -> Any:
            if os.path.samestat(os.fstat(descriptor), self._status):
                self.count += 1
                self.before.get(self.count, lambda: None)()
            return real(descriptor, *args, **more)

        return call


def stale() -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.fixture
def reads(released: Release, cold: bytes, monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(released.path, monkeypatch)


def test_a_source_that_becomes_stale_between_any_two_reads(
    site: Site, released: Release, cold: bytes, reads: Reads
) -> None:
    convert(site)
    number = reads.count
    assert number > 5
    for at in range(1, number + 1):
        reads.count, reads.before = 0, {at: stale}
        made = convert(site)
        assert made.path.read_bytes() == cold, at
        assert 0 in site.opened
    assert released.path.stat().st_size == released.size


def test_a_bit_that_flips_between_any_two_reads(
    site: Site, released: Release, cold: bytes, reads: Reads
) -> None:
    """Either it is found while the file is made, or it is found when the file is read back."""
    convert(site)
    number = reads.count
    good = released.path.read_bytes()
    released.path.chmod(0o644)
    rng, found = random.Random(6), 0

    def flip() -> None:
        data = bytearray(good)
        for at in range(rng.randrange(200), len(data) - 4096, 200):
            data[at] ^= 4
        with released.path.open("r+b") as file:
            file.write(data)

    for at in range(1, number + 1):
        reads.count, reads.before = 0, {at: flip}
        made = convert(site)
        released.path.write_bytes(good)
        if made.path.read_bytes() != cold:
            found += 1
            with pytest.raises(VerificationError):
                verify(made)
    assert found < number


def pruned(site: Site) -> None:
    """All that may go at once goes: one run hides, the next one deletes."""
    at_once = Policy(keep=0, named_grace=timedelta(0), delete_after=timedelta(0))
    for _ in range(2):
        prune(site.store.layout, at_once, no_jobs)


def test_a_prune_between_any_two_reads(site: Site, released: Release, cold: bytes, reads: Reads) -> None:
    """The lease keeps what is read; when the conversion has ended the release goes."""
    site.release("v1.1", SHELL)  # else v1.0 stays, as the channel's
    convert(site)
    number = reads.count
    for at in range(1, number + 1):
        reads.count, reads.before = 0, {at: lambda: pruned(site)}
        assert convert(site).path.read_bytes() == cold
        assert sorted(site.opened) == [2]
        assert released.path.exists()
    pruned(site)
    assert not released.path.exists()
    assert convert(site).path.read_bytes() == cold
    assert sorted(site.opened) == [0, 1, 2]


def test_a_lease_is_held_while_a_release_is_read(site: Site, released: Release, reads: Reads) -> None:
    held: list[list[str]] = []
    reads.before = {1: lambda: held.append([lease.sha256 for lease in leases.read_all(site.store.layout)])}
    convert(site)
    assert held == [[released.sha256]]
    assert leases.read_all(site.store.layout) == []


def test_hidden_and_yanked_releases_are_used(site: Site, released: Release) -> None:
    site.store.mark("demo:v1.0", "yank")
    site.release("v1.1", SHELL)
    prune(site.store.layout, Policy(keep=0, named_grace=timedelta(0), delete_after=timedelta(9)), no_jobs)
    found = site.store.release("demo", "v1.0")
    assert found is not None
    assert found.state in ("hidden", "yanked")
    convert(site)
    assert sorted(site.opened) == [2]


def rewritten(release: Release, **changes: Any) -> None:
    """Give the release a record that says something else."""
    path = release.path.parents[2] / release.image / f"{release.version}.json"
    record = replace(parse_record(path.read_bytes(), path), **changes)
    path.chmod(0o644)
    path.write_bytes(record.as_bytes())


def test_a_blob_of_which_only_the_diff_id_is_known_is_read(
    site: Site, released: Release, cold: bytes
) -> None:
    """The manifest names the blob, the config the diff_id: somebody must have compared the two.

    Somebody has for the blobs of the release. For the same layers compressed anew nobody has.
    """
    made = convert(site, compression="zstd")
    assert sorted(site.opened) == [0, 1, 2, 3]
    assert made.path.read_bytes() == cold


def test_a_record_that_does_not_say_what_was_compared(site: Site, released: Release, cold: bytes) -> None:
    assert len(compared_in(released)) == 4
    rows = [{"digest": row["digest"], "size": row["size"]} for row in released.provenance["layers"]]
    rewritten(released, provenance={"layers": rows})
    assert convert(site).path.read_bytes() == cold
    assert sorted(site.opened) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "row",
    [
        {"diff_id": "sha256:abc"},
        {"diff_id": 5},
        {"unpacked": -1},
        {"unpacked": True},
        {"holes": "0"},
        {"size": 1 << 70},
        {"digest": None},
    ],
)
def test_what_a_record_says_must_be_possible(released: Release, row: dict[str, Any]) -> None:
    rows = [{**one, **row} for one in released.provenance["layers"]]
    assert compared_in(replace(released, provenance={"layers": rows})) == []


def test_where_signatures_are_required_only_signed_releases_are_used(
    site: Site, released: Release, cold: bytes, tmp_path: Path
) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    site.store.required = Required(keys=open_keys(str(public)), source=tmp_path)
    assert convert(site).path.read_bytes() == cold
    assert sorted(site.opened) == [0, 1, 2, 3]
    signatures.sign(site.store.layout, released, open_signer(str(private)))
    assert convert(site).path.read_bytes() == cold
    assert sorted(site.opened) == [2]


def test_external_releases_are_not_used(site: Site, released: Release, cold: bytes) -> None:
    rewritten(released, scan=EXTERNAL)
    assert convert(site).path.read_bytes() == cold
    assert sorted(site.opened) == [0, 1, 2, 3]


def test_what_sync_brings_is_used_only_with_the_setting(site: Site, released: Release, cold: bytes) -> None:
    """Neither the bytes nor what the record says was compared; publishing again does not make it trusted."""
    other = Site(site.folder / "other", new_store(site.folder / "other-store"))
    other.folder.mkdir()
    sync(site.store, other.store)
    assert convert(other).path.read_bytes() == cold
    assert sorted(other.opened) == [0, 1, 2, 3]
    assert convert(other, synced=True).path.read_bytes() == cold
    assert sorted(other.opened) == [2]
    again = publish_again(
        other.store.resolve("demo:v1.0"),
        store=other.store,
        image="demo",
        version="v1.0-again",
        source=pushed(),
        scan={"status": "unscanned"},
        provenance={},
    )
    assert again.packs
    assert compared_in(again) == []
    assert convert(other).path.read_bytes() == cold
    assert sorted(other.opened) == [0, 1, 2, 3]
    made = other.publish(convert(other), "v1.1")
    assert compared_in(made)
    convert(other)
    assert other.opened == []


def test_no_new_release_takes_the_file_of_one_from_elsewhere(site: Site, released: Release) -> None:
    """Their records could say that any bytes were made from an image that was scanned here."""
    source, keys = str(released.source["digest"]), [released.keys["convert"]]
    there = new_store(site.folder / "other-store")
    sync(site.store, there)
    assert there.made_from(source, keys, released.platform) is None
    assert there.made_from(source, keys, released.platform, synced=True) is not None
    assert site.store.made_from(source, keys, released.platform) is not None
    rewritten(released, scan=EXTERNAL)
    assert site.store.made_from(source, keys, released.platform) is None
    assert site.store.made_from(source, keys, released.platform, synced=True) is None


def test_a_release_that_is_published_again_is_a_source_too(site: Site, released: Release) -> None:
    again = publish_again(
        released,
        store=site.store,
        image="other",
        version="v2.0",
        source=pushed(),
        scan={"status": "unscanned"},
        provenance={},
    )
    assert again.attachments == released.attachments
    rewritten(released, attachments={})
    convert(site)
    assert sorted(site.opened) == [2]


def test_a_release_of_a_liar_is_not_read_beyond_its_end(site: Site, released: Release, cold: bytes) -> None:
    """Sections that name other positions lead to other bytes, which have not the right checksums."""
    stored = beside(released).read_bytes()
    index = read_layer(stored, released.packs[0], size=released.size)
    assert index is not None
    for change in (1, 4096, 1 << 40):
        lie = LayerIndex.decode(index.encode())
        for number, position in enumerate(lie.held_positions):
            lie.held_positions[number] = position + change
        for number, size in enumerate(lie.sizes):
            if size >= BLOCK and lie.shown[number]:
                lie.positions[number] += change
        content = encode_layers(released.size, {released.packs[0]: lie})
        assert content is not None
        beside(released).chmod(0o644)
        beside(released).write_bytes(content)
        rewritten(released, attachments={LAYERS: hashlib.sha256(content).hexdigest()})
        made = convert(site)
        assert made.path.read_bytes() == cold
        assert 0 in site.opened


def test_a_layer_of_another_codec_is_reported(
    site: Site, released: Release, cold: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codec, "versions", lambda _: {"zstd": "9.9.9"})
    made = StoredLayers(site.store)
    diff_ids = [pair.diff_id for pair, _ in compared_in(released)]
    here = ".".join(map(str, zstandard.ZSTD_VERSION))
    want = f"demo:v1.0 has it, packed with zstd {here}; here 9.9.9"
    assert made.other_codec(diff_ids, {"zstd": "9.9.9"}) == want
    assert made.other_codec(diff_ids, {"zstd": here}) == ""
    assert made.other_codec(["sha256:" + "0" * 64], {"zstd": "9.9.9"}) == ""
    convert(site)
    assert sorted(site.opened) == [0, 1, 2, 3]


def test_sources_among_many_releases(site: Site, released: Release) -> None:
    """2,000 records are read within a second or so, and no attachment of those that have other packs."""
    folder = site.store.layout.image("many")
    folder.mkdir()
    for number in range(2000):
        packs = tuple(hashlib.sha256(b"%d %d" % (number, one)).hexdigest() for one in range(7))
        record = replace(
            parse_record(site.store.layout.record("demo", "v1.0", "linux/amd64").read_bytes(), "v1.0"),
            image="many",
            version=f"v{number}",
            packs=packs,
        )
        (folder / f"v{number}.json").write_bytes(record.as_bytes())
    began = time.monotonic()
    with StoredLayers(site.store) as found:
        pack = found.open(released.packs[0], released.packs, xattrs=False, scratch=site.folder)
        assert pack is not None
        pack.close()
    assert time.monotonic() - began < 4


def test_releases_that_cannot_be_used_are_not_all_opened(site: Site, released: Release) -> None:
    """Whoever begins to keep extended attributes has a store full of releases that have none."""
    layout, stored = site.store.layout, beside(released).read_bytes()
    layout.image("many").mkdir()
    for number in range(40):
        other = replace(
            parse_record(layout.record("demo", "v1.0", "linux/amd64").read_bytes(), "v1.0"),
            image="many",
            version=f"v{number}",
            sha256=hashlib.sha256(b"%d" % number).hexdigest(),
        )
        os.link(layout.blob(released.sha256), layout.blob(other.sha256))
        layout.record("many", other.version, other.platform).write_bytes(other.as_bytes())
        folder = layout.attachments("many", other.version, other.platform)
        folder.mkdir(parents=True)
        (folder / LAYERS).write_bytes(stored)
    with StoredLayers(site.store) as found:
        for xattrs, wanted in ((True, 0), (False, 1)):
            pack = found.open(released.packs[0], released.packs, xattrs=xattrs, scratch=site.folder)
            assert (pack is not None) is not xattrs
            assert len(list(layout.leases.iterdir())) == wanted
            if pack is not None:
                pack.close()


def pushed() -> PushedImage:
    reference = Reference.parse("registry.example.com/demo")
    digest = Digest.of(b"x")
    base = BaseImage(
        reference=Reference.parse("registry.example.com/base:1"),
        platform=PLATFORM,
        digest=digest,
        index_digest=None,
        locked=True,
    )
    return PushedImage(
        repository=reference,
        digest=digest,
        config_digest=digest,
        size=1,
        base=base,
        build_key=None,
        adopted=True,
    )
