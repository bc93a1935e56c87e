"""What must be true of a store at any moment, whoever was killed before.

It reads the store with `documented_store`, by the documented layout, and shares no code with what it checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pipeline.store.store import Store
from tests.support.store import documented_store
from tests.support.store.documented_store import Image


def check(store: Store, contents: Mapping[str, bytes]) -> None:
    """Raises AssertionError unless every record's file is there with its digest, caches are whole, no version
    has other bytes than `contents` (version -> bytes) says, and everything leased is there.
    """
    images = documented_store.read(store.root)
    for name, image in images.items():
        assert image.unreadable == [], name
        for record in image.records.values():
            version = record["version"]
            if "delete" in image.marks.get(version, ()):
                continue
            data = (store.root / record["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == record["sha256"], (version, record["platform"])
            assert data == contents.get(version, data), f"{version} changed its bytes"
        _check_names(store, name, image)
    leases = store.root / "leases"
    for path in sorted(leases.iterdir()) if leases.exists() else ():
        lease = None if path.name.startswith(".") else documented_store.sealed(path)
        if lease is not None:
            blob = store.root / "blobs/sha256" / f"{lease['sha256']}.sqsh"
            assert blob.exists(), f"{path.name}: the file is gone"
    if (store.root / "manifest.json").exists():
        _check_manifest(store, images)


def _check_manifest(store: Store, images: Mapping[str, Image]) -> None:
    manifest = documented_store.sealed(store.root / "manifest.json")
    assert manifest is not None
    assert manifest["schema"] == 1
    for name, index in manifest["images"].items():
        own = documented_store.sealed(store.root / name / "index.json")
        assert own is not None
        assert own["schema"] == 1
        for version, release in index["releases"].items():
            gone = "delete" in images[name].marks.get(version, ())
            for held in release["platforms"].values():
                there = (store.root / held["file"]).exists()
                assert there or gone, f"the manifest names {version}, which has no file"


def _check_names(store: Store, name: str, image: Image) -> None:
    """Every visible name is whole: links lead somewhere, records and caches are JSON."""
    for path in (store.root / name).iterdir():
        if path.name.startswith(".tmp.") or path.name in (".meta", "SHA256SUMS"):
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.is_symlink() and not path.exists():
            what = f"{path} leads to {path.readlink().name}, which is not there"
            assert "delete" in image.marks.get(path.stem, ()), what
