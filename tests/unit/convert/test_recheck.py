"""scrub --full expands what was published and compares it with the layers beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.convert.convert import SquashfsFile
from pipeline.convert.recheck import Recheck
from pipeline.convert.verify import VerifiedSquashfs
from pipeline.errors import PublishError, VerificationError
from pipeline.oci.layout import open_layout
from pipeline.oci.source import ImageSource
from pipeline.release.publish import publish
from pipeline.store.events import read_events
from pipeline.store.layout import BROUGHT, LAYERS
from pipeline.store.record import Release
from pipeline.store.scrub import Deep, ScrubReport, last_finding
from pipeline.store.scrub import scrub as run
from pipeline.store.sync import sync
from tests.support.command_line import app
from tests.support.images.layers import LayerBuilder
from tests.support.store import releases
from tests.support.store.releases import new_store
from tests.unit.convert.test_from_store import PLATFORM, Site, files, noise, site, top

__all__ = ["site"]
UPPER = LayerBuilder().whiteout("base/003").file("base/050", b"other")


def lower(*, content: bytes = noise(9000, 7), mode: int = 0o644, target: str = "007") -> LayerBuilder:
    base = files("base", 60).file("base/large", content).file("base/mode", b"x", mode=mode)
    return base.hardlink("base/second", "base/large").symlink("base/link", target)


def full(site: Site, *names: str, synced: bool = False) -> ScrubReport:
    recheck = Recheck(layout=site.store.layout, synced=synced)
    return run(site.store.layout, names=names, deep=Deep(name="full", compare=recheck))


def published_wrong(site: Site, right: SquashfsFile, wrong: SquashfsFile) -> Release:
    """A release of one file with the record and the layers of another one of the same size."""
    assert wrong.size == right.size
    assert wrong.sha256 != right.sha256
    file = dataclasses.replace(right, path=wrong.path, sha256=wrong.sha256)
    verified = VerifiedSquashfs(file=file, checks=())
    return publish(verified, store=site.store, image="demo", version="v1.0", scan={"status": "unscanned"})


@pytest.mark.parametrize("options", [{}, {"keep_owners": True, "keep_xattrs": True}, {"compressor": "gzip"}])
def test_a_right_file_is_compared_without_a_registry(site: Site, options: dict[str, Any]) -> None:
    site.release("v1.0", lower(), UPPER, top(1), **options)
    site.release("v1.1", lower(), UPPER, top(1), top(1), **options)  # a layer twice
    report = full(site)
    assert (report.checked, report.compared, report.damaged, report.by_sha256_only) == (2, 2, [], [])
    assert last_finding(site.store.layout) is not None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"content": noise(9000, 8)}, "/base/second: content"),
        ({"mode": 0o755}, "base/mode: mode"),
        ({"target": "008"}, "/base/link: link target"),
    ],
)
def test_a_wrong_file_whose_sha256_is_right_is_marked(site: Site, change: dict[str, Any], what: str) -> None:
    wrong = site.convert(lower(**change), UPPER, top(1))
    release = published_wrong(site, site.convert(lower(), UPPER, top(1)), wrong)
    assert run(site.store.layout).damaged == []
    assert site.store.resolve("demo:v1.0").sha256 == release.sha256
    (damage,) = full(site).damaged
    assert damage.releases == ("demo:v1.0",)
    assert what in damage.what
    with pytest.raises(VerificationError, match="wrong content"):
        site.store.resolve("demo:v1.0")


def test_the_same_bytes_do_not_repair_wrong_content(site: Site, tmp_path: Path) -> None:
    wrong = site.convert(lower(content=noise(9000, 8)), UPPER)
    release = published_wrong(site, site.convert(lower(), UPPER), wrong)
    other = new_store(tmp_path / "other")
    sync(site.store, other)
    full(site)
    assert len(run(site.store.layout).damaged) == 1  # a scrub by sha256 alone leaves the mark
    assert len(run(site.store.layout).damaged) == 1
    copy = tmp_path / "copy.sqsh"
    copy.write_bytes(release.path.read_bytes())
    with pytest.raises(PublishError, match=r"do not repair demo:v1\.0: its content is wrong: /base/second"):
        site.store.publish(release, copy)
    refused = sync(other, site.store).refused
    assert [one.partition(" at the target")[0] for one in refused] == ["demo:v1.0 stays damaged"]
    assert site.store.release("demo", "v1.0").state == "damaged"  # type: ignore[union-attr]
    kinds = [event.change.kind for event in read_events(site.store.layout, "demo", 0)]
    assert kinds.count("damaged") == 1
    assert "repaired" not in kinds


def test_layers_that_were_wrong_and_are_right_again_take_the_mark_back(site: Site) -> None:
    made = site.convert(lower(), UPPER)
    layout = site.store.layout
    site.publish(made, "v1.0")

    def compare(*_: object) -> str:
        raise VerificationError("differs", details=["  base/large: content differs"])

    run(layout, deep=Deep(name="full", compare=compare))
    assert site.store.release("demo", "v1.0").state == "damaged"  # type: ignore[union-attr]
    assert full(site).damaged == []
    assert site.store.resolve("demo:v1.0").sha256 == made.sha256


def test_what_has_no_layers_is_said_to_be_checked_by_sha256_only(site: Site, tmp_path: Path) -> None:
    releases.publish(site.store, "v1.0", image="elsewhere", external=True, allow_external=True)
    lost = site.release("v1.0", lower(), image="lost")
    (site.store.layout.attachments("lost", "v1.0", "linux/amd64") / LAYERS).unlink()
    site.release("v1.0", lower(), top(1), image="old")
    brought = new_store(tmp_path / "other")
    sync(site.store, brought, names=["old"])
    there = Site(tmp_path, brought)
    assert (brought.layout.attachments("old", "v1.0", "linux/amd64") / BROUGHT).exists()
    report = full(site)
    assert sorted(one.partition(":v1.0: ")[0] for one in report.by_sha256_only) == ["elsewhere", "lost"]
    assert (report.checked, report.compared, report.damaged) == (3, 1, [])
    assert full(there).compared == 0
    assert full(there, synced=True).compared == 1
    found = CliRunner().invoke(
        app, ["store", "scrub", "--full", "--store", str(site.store.root), "--config", str(tmp_path / "none")]
    )
    assert found.exit_code == 0, found.output
    assert "checked by its sha256 only: lost:v1.0: it has no layers beside it" in found.output
    assert "the content of 1 releases compared" in found.output
    assert lost.sha256


def test_a_file_that_cannot_be_expanded_has_wrong_content(site: Site) -> None:
    made = site.convert(lower(), UPPER)
    release = site.publish(made, "v1.0")
    broken = bytearray(release.path.read_bytes())
    broken[4096:8192] = bytes(4096)
    made.path.write_bytes(broken)
    again = dataclasses.replace(made, sha256=hashlib.sha256(broken).hexdigest())
    publish(
        VerifiedSquashfs(file=again, checks=()),
        store=site.store,
        image="demo",
        version="v1.1",
        scan={"status": "unscanned"},
    )
    assert [damage.releases for damage in full(site).damaged] == [("demo:v1.1",)]


def test_an_interrupted_full_run_is_resumed_apart_from_plain_ones(site: Site) -> None:
    for number in range(3):
        site.release(f"v1.{number}", top(number))
    layout, seen = site.store.layout, list[str]()

    def compare(record: object, _: object) -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(str(record))
        return ""

    with pytest.raises(KeyboardInterrupt):
        run(layout, deep=Deep(name="full", compare=compare))
    assert run(layout).checked == 3
    report = full(site)
    assert (report.checked, report.compared, report.skipped) == (1, 1, 2)


def test_an_image_is_compared_whatever_lies_beside(site: Site) -> None:
    release = site.release("v1.0", lower(), UPPER)
    beside = site.store.layout.attachments("demo", "v1.0", "linux/amd64")
    (beside / LAYERS).unlink()
    right = open_layout(site.folder / "image-1", platform=PLATFORM)
    site.convert(lower(mode=0o755), UPPER)
    wrong = open_layout(site.folder / "image-2", platform=PLATFORM)

    def recheck(source: ImageSource) -> Recheck:
        return Recheck(
            layout=site.store.layout, image=lambda _: contextlib.nullcontext(source), cache=site.folder
        )

    assert recheck(right)(release) == ""
    with pytest.raises(VerificationError, match="differs") as caught:
        recheck(wrong)(release)
    assert "  /base/mode: mode 644, should be 755" in caught.value.details


@pytest.mark.parametrize("against", ["layers", "image"])
def test_a_file_of_another_version_is_not_judged_by_the_rules_of_this_one(site: Site, against: str) -> None:
    release = site.release("v1.0", lower(), UPPER)
    old = dataclasses.replace(release, converter={**(release.converter or {}), "format": 1})
    source: ImageSource = open_layout(site.folder / "image-1", platform=PLATFORM)
    image = None if against == "layers" else lambda _: contextlib.nullcontext(source)
    recheck = Recheck(layout=site.store.layout, image=image, cache=site.folder)
    assert "another version of sqshpipe" in recheck(old)
    assert recheck(release) == ""
