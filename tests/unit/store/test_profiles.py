"""Start-up profiles that are false or damaged: ignored with a warning where they are used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import FormatError, PublishError, SqshpipeError
from pipeline.node import prefetch, pyxis_importer
from pipeline.node.image_file import ImageFile
from pipeline.squashfs import startup
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.startup import FileBlocks, Profile
from pipeline.store import profiles
from pipeline.store.record import Release
from pipeline.store.store import Store
from tests.support.images import squashed
from tests.support.store.handmade_store import sealed
from tests.support.store.releases import new_store, publish
from tests.unit.node.test_prefetch import BAD

MORE: dict[str, dict[str, Any]] = {
    "invalid files": {"files": [["a", "b"]]},
    "too many blocks": {"files": [["a", "b", [[0, 1]] * (startup.MOST_RUNS + 1)]]},
    "a path without end": {"files": [["a" * (startup.LONGEST_PATH + 1), "b", []]]},
    "a million files": {"files": [["a", "b", []]] * 1_000_000},
    "tails of numbers": {"tails": [[1]]},
    "no name": {"sha256": "../../etc"},
}
ALL = {**BAD, **MORE}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def release(store: Store) -> Release:
    return publish(store, "v1.0", bytes(4096))


def sound(release: Release) -> dict[str, Any]:
    ranges = ((0, 96), (release.size - 10, 10))
    return Profile(sha256=release.sha256, size=release.size, ranges=ranges).as_table()


def of_another(change: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": "0" * 64} if change.get("sha256") == "other" else change


def plant(store: Store, release: Release, table: dict[str, Any]) -> Path:
    """A profile as whoever can write to the store's folders makes it."""
    path = store.layout.attachments(release.image, release.version, release.platform) / "startup-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(table))
    return path


def on_a_node(release: Release, folder: Path) -> list[startup.Range]:
    return prefetch.ranges(ImageFile(path=release.path, sha256=release.sha256, startup=folder))


def test_a_sound_one_is_used(store: Store, release: Release) -> None:
    folder = plant(store, release, sound(release)).parent
    assert on_a_node(release, folder) == [(0, 96), (release.size - 10, 10)]
    found = profiles.newest(store.layout, release)
    assert found is not None
    assert found.bytes_read == 106


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_a_false_one_is_ignored_with_a_warning(
    store: Store, release: Release, change: dict[str, Any]
) -> None:
    path = plant(store, release, sound(release) | of_another(change))
    for use in (lambda: profiles.newest(store.layout, release), lambda: on_a_node(release, path.parent)):
        with capture_logs() as said:
            found = use()
        if found:  # a node looks at the ranges alone
            assert change in MORE.values()
            assert found == [(0, 96), (release.size - 10, 10)]
            continue
        assert [each["log_level"] for each in said] == ["warning"]
        assert "startup-1.json" in said[0]["why"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 99, b"[]\n", b"[" * 100_000], ids=repr)
def test_damaged_bytes_are_ignored_with_a_warning(store: Store, release: Release, content: bytes) -> None:
    path = plant(store, release, sound(release))
    path.write_bytes(content)
    with capture_logs() as said:
        assert profiles.newest(store.layout, release) is None
        assert on_a_node(release, path.parent) == []
    assert [each["log_level"] for each in said] == ["warning", "warning"]


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_a_false_one_is_not_read_from_a_file(
    release: Release, tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(sealed(sound(release) | of_another(change)))
    if change in (BAD["another file"], BAD["another size"]):  # `attach` resolves it
        found = profiles.read(file)
        assert (found.sha256, found.size) != (release.sha256, release.size)
        return
    with pytest.raises(SqshpipeError, match=r"p\.json"):
        profiles.read(file)


def test_the_limit_holds_whatever_the_profile_says(
    store: Store, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plant(store, release, sound(release) | {"ranges": [[0, release.size]]}).parent
    monkeypatch.setattr(pyxis_importer, "prefetch_limit", lambda _: 50)
    assert on_a_node(release, folder) == [(0, 50)]


def test_a_profile_of_another_image_leaves_the_tables(store: Store, tmp_path: Path) -> None:
    """Files that are not there, blocks beyond their end: nothing of them, and what each start needs."""
    if squashed.missing():
        pytest.skip(squashed.missing())
    file = squashed.squash(tmp_path, megabytes=1)
    with SquashfsImage.open(file) as image:
        data = image.resolve(b"data")
        stored = startup.fingerprint(image, data)
        blocks = ((0, 1), (1 << 40, 1 << 40), (7_000, 5))
        files = (
            FileBlocks(path=b"data", stored=stored, runs=blocks),
            FileBlocks(path=b"no", stored="", runs=blocks),
        )
        other = Profile(
            sha256="0" * 64, size=1 << 62, ranges=((1 << 61, 1),), files=files, tails=((b"no", b"etc"),)
        )
        found = startup.resolve(other, image, "1" * 64)
    assert found.size == file.stat().st_size
    assert [each.path for each in found.files] == [b"data"]
    assert all(start + length <= found.size for start, length in found.ranges)
    assert Profile.from_table(found.as_table(), "it") == found


def test_one_that_is_too_large_is_not_attached(store: Store, release: Release) -> None:
    paths = tuple((bytes([65 + number]) * startup.LONGEST_PATH,) for number in range(26))
    large = Profile(sha256=release.sha256, size=release.size, ranges=((0, 1),), tails=paths * 25)
    with pytest.raises(PublishError, match="at most"):
        profiles.attach(store.layout, release, large)
    assert profiles.newest(store.layout, release) is None
    with pytest.raises(FormatError):
        profiles.attach(store.layout, release, dataclasses.replace(large, sha256="0" * 64))


def test_the_checksum_is_compared(store: Store, release: Release) -> None:
    path = plant(store, release, sound(release))
    table = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: table[name] for name in table if name in sound(release)}) + "\n")
    with capture_logs() as said:
        assert profiles.newest(store.layout, release) is None
    assert "checksum" in said[0]["why"]
