"""store rebuild --layers: what is missing beside a release is made again and believed from then on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import files as cli_files
from pipeline.convert.layers_again import Again
from pipeline.convert.recheck import Recheck
from pipeline.errors import PublishError
from pipeline.node.pyxis_importer import History
from pipeline.oci.digest import Digest
from pipeline.oci.layout import open_layout
from pipeline.oci.source import ImageSource
from pipeline.release.publish import publish_again
from pipeline.store import trust
from pipeline.store.events import read_events
from pipeline.store.layout import BROUGHT, LAYERS, RANGES
from pipeline.store.reading import load, read_truth
from pipeline.store.record import Record, Release
from pipeline.store.sealed import UnreadableError
from pipeline.store.sharing import Holders, with_attached
from pipeline.store.sync import sync
from tests.support.images.layers import LayerBuilder
from tests.support.store.releases import new_store
from tests.unit.convert.test_from_store import PLATFORM, Site, files, site, top
from tests.unit.convert.test_from_store_faults import pushed

__all__ = ["site"]
LAYERS_OF_IT = (files("base", 60), LayerBuilder().whiteout("base/003"), top(1))


def beside(site: Site, release: Release) -> Path:
    return site.store.layout.attachments(release.image, release.version, release.platform)


def lose(site: Site, release: Release, *, named: bool) -> dict[str, bytes]:
    """Take away what lies beside a release, and its names in the record unless that stays `named`."""
    folder = beside(site, release)
    lost = {name: (folder / name).read_bytes() for name in (RANGES, LAYERS)}
    for name in lost:
        (folder / name).unlink()
    if not named:
        path = site.store.layout.record(release.image, release.version, release.platform)
        facts = {item.name: getattr(release, item.name) for item in dataclasses.fields(Record)}
        path.chmod(0o644)
        path.write_bytes(Record(**{**facts, "attachments": {}}).as_bytes())
    return lost


def again(site: Site, image: str = "image-1", **more: Any) -> Again:
    source: ImageSource = open_layout(site.folder / image, platform=PLATFORM)
    return Again(
        store=site.store,
        image=lambda _: contextlib.nullcontext(source),
        cache=site.folder / "cache-again",
        scratch=site.folder,
        **more,
    )


def make(site: Site, image: str = "image-1") -> list[str]:
    maker = again(site, image)
    made = [maker.make(record) for record in list(maker.missing())]
    site.store.refresh("demo")
    return made


def test_what_a_killed_release_left_out_is_made_again(site: Site) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    assert list(again(site).missing()) == []
    lost = lose(site, release, named=True)
    site.convert(*LAYERS_OF_IT)
    assert sorted(site.opened) == [0, 1, 2, 3]
    before = [event.number for event in read_events(site.store.layout, "demo", 0)]
    assert make(site) == [""]
    assert {name: (beside(site, release) / name).read_bytes() for name in lost} == lost
    assert [event.number for event in read_events(site.store.layout, "demo", 0)] == before
    site.same_as_cold(*LAYERS_OF_IT, reads=[])


def test_an_event_names_what_the_record_does_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    named = dict(release.attachments)
    lost = lose(site, release, named=False)
    record = site.store.layout.record("demo", "v1.0", "linux/amd64").read_bytes()
    assert make(site) == [""]
    assert list(again(site).missing()) == []
    layout = site.store.layout
    assert layout.record("demo", "v1.0", "linux/amd64").read_bytes() == record
    *_, event = read_events(layout, "demo", 0)
    assert (event.change.kind, event.change.attachments) == ("repaired", named)
    assert {name: (beside(site, release) / name).read_bytes() for name in lost} == lost
    # conversions, a scrub, sync and prewarm use them
    site.same_as_cold(*LAYERS_OF_IT, reads=[])
    bare = site.store.release("demo", "v1.0")
    assert bare is not None
    assert bare.attachments == {}
    assert Recheck(layout=layout)(bare) == ""
    other = site.release("v1.1", *LAYERS_OF_IT[:2], top(2))
    assert [one.record.version for one in Holders(layout).of(other)] == ["v1.0"]
    monkeypatch.setattr("pipeline.cli.stores.host_platform", lambda: "linux/amd64")
    assert cli_files.wanted("demo:v1.0", site.store.root).ranges == beside(site, release) / RANGES
    # caches agree with the truth, and the importer resolves as before
    assert load(layout, "demo").state == read_truth(layout, "demo").state
    assert History(str(layout.image("demo")), "demo").state("v1.0") == "published"
    assert site.store.resolve("demo:v1.0").state == "published"


def test_an_event_is_not_believed_where_signatures_are_required(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    lose(site, release, named=False)
    make(site)
    bare = site.store.release("demo", "v1.0")
    assert bare is not None
    required = trust.Required(keys=(), source=Path("images.yaml"))
    assert with_attached(site.store.layout, bare, required) is bare
    assert set(with_attached(site.store.layout, bare).attachments) == {RANGES, LAYERS}
    monkeypatch.setattr(trust, "of_node", lambda: required)
    assert make(site) == ["its record names none, and where signatures are required no event counts"]
    site.convert(*LAYERS_OF_IT)
    assert sorted(site.opened) == [0, 1, 2, 3]


def test_damaged_attachments_are_moved_aside_and_made_again(site: Site) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    path = beside(site, release) / LAYERS
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound[:-7] + b"damaged")
    assert make(site) == [""]
    assert path.read_bytes() == sound
    assert [one.name.split(".")[1] for one in path.parent.iterdir() if one.name.startswith(".")] == [
        "damaged"
    ]


def test_another_image_or_codec_attaches_nothing(site: Site) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    site.convert(files("base", 61), top(1))
    lose(site, release, named=False)
    assert make(site, "image-2") == ["converting its image again gives other bytes here"]
    path = site.store.layout.record("demo", "v1.0", "linux/amd64")
    record = next(iter(again(site).missing()))
    converter = {**(record.converter or {}), "versions": {"native": "3", "zstd": "0.0.1"}}
    path.write_bytes(dataclasses.replace(record, converter=converter).as_bytes())
    (why,) = make(site)
    assert "packed with zstd 0.0.1; here" in why
    odd = {**(record.converter or {}), "options": {"block_size": 4096, "colour": "red"}}
    path.write_bytes(dataclasses.replace(record, converter=odd).as_bytes())
    assert make(site) == ["its record does not name the options of a conversion that this version knows"]
    assert not any((beside(site, release) / name).exists() for name in (RANGES, LAYERS))
    assert "repaired" not in [event.change.kind for event in read_events(site.store.layout, "demo", 0)]


def test_a_release_that_was_damaged_meanwhile_stays_damaged(site: Site) -> None:
    """The event is of the kind that takes the mark of damage back: it is never written then."""
    release = site.release("v1.0", *LAYERS_OF_IT)
    lose(site, release, named=False)
    maker = again(site)
    (record,) = maker.missing()
    release.path.chmod(0o644)
    release.path.write_bytes(b"x")
    from pipeline.store.scrub import scrub

    assert len(scrub(site.store.layout).damaged) == 1
    with pytest.raises(PublishError, match="no sound bytes"):
        maker.make(record)
    assert list(maker.missing()) == []
    assert site.store.release("demo", "v1.0").state == "damaged"  # type: ignore[union-attr]


def test_what_others_made_is_left_alone(site: Site, tmp_path: Path) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    there = Site(tmp_path, new_store(tmp_path / "other"))
    sync(site.store, there.store)
    folder = beside(there, release)
    assert (folder / BROUGHT).exists()
    (folder / LAYERS).unlink()
    assert list(again(there).missing()) == []
    assert [one.version for one in again(there, synced=True).missing()] == ["v1.0"]
    assert Digest.parse(str((release.source or {})["digest"]))


def test_publishing_the_file_again_puts_what_the_event_names_into_the_record(site: Site) -> None:
    release = site.release("v1.0", *LAYERS_OF_IT)
    named = dict(release.attachments)
    lose(site, release, named=False)
    make(site)
    copy = publish_again(
        site.store.resolve("demo:v1.0"),
        store=site.store,
        image="other",
        version="v2.0",
        source=pushed(),
        scan={"status": "unscanned"},
        provenance={},
    )
    assert dict(copy.attachments) == named


def test_the_event_says_what_older_readers_take_for_a_repair(site: Site) -> None:
    """Schema 1, a kind that they know, of a platform that is not damaged; all else is a key more."""
    release = site.release("v1.0", *LAYERS_OF_IT)
    lose(site, release, named=False)
    make(site)
    layout = site.store.layout
    *_, event = read_events(layout, "demo", 0)
    path = layout.event("demo", event.number)
    data = json.loads(path.read_bytes())
    assert (data["schema"], data["event"], data["version"]) == (1, "repaired", "v1.0")
    assert (data["platform"], data["sha256"]) == ("linux/amd64", release.sha256)
    before = load(layout, "demo").state.releases["v1.0"].state()
    damaged = {**data, "attachments": {LAYERS: "no digest"}}
    damaged.pop("crc32")
    path.chmod(0o644)
    path.write_bytes(json.dumps(damaged).encode())
    with pytest.raises(UnreadableError, match="not named by 64 hex digits"):
        read_truth(layout, "demo")
    assert before == "published"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("compressor", value) for value in (None, 7, "xz", [], {})),
        *(("zstd_level", value) for value in ("3", [3], 0, 23, None, True)),
        *(("block_size", value) for value in (-1, "128K", [], 100_000)),
        *(("keep_owners", value) for value in (1, "no", None)),
        ("converter", "native"),
        ("unknown", 1),
    ],
    ids=repr,
)
def test_a_record_with_odd_options_is_left_out(option: str, value: Any, site: Site) -> None:
    """One sentence for that release; the others are made."""
    release = site.release("v1.0", top(1))
    converter = dict(release.converter or {})
    converter["options"] = {**converter["options"], option: value}
    why = again(site).make(dataclasses.replace(release, converter=converter))
    assert why == "its record does not name the options of a conversion that this version knows"
