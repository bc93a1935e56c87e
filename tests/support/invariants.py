"""What must be true of a store at any moment, whoever was killed before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pipeline.store import leases
from pipeline.store.reading import load
from pipeline.store.store import Store
from pipeline.store.writer import is_temporary


def check(store: Store, contents: Mapping[str, bytes]) -> None:
    """Raises AssertionError unless every record's file is there with its digest, caches are whole, no version
    has other bytes than `contents` (version -> bytes) says, and everything leased is there.
    """
    for image in store.layout.images():
        state = load(store.layout, image).state
        for _, version, platform, held in state.stems():
            if state.releases[version].pruned:
                continue
            data = (store.root / held.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == held.sha256, (version, platform)
            assert data == contents.get(version, data), f"{version} changed its bytes"
        _check_names(store, image)
    for lease in leases.read_all(store.layout):
        assert store.layout.blob(lease.sha256).exists(), f"{lease.name}: the file is gone"
    if store.layout.manifest.exists():
        _check_manifest(store)


def _check_manifest(store: Store) -> None:
    manifest = json.loads(store.layout.manifest.read_bytes())
    assert manifest["schema"] == 1
    for image, index in manifest["images"].items():
        assert json.loads(store.layout.index(image).read_bytes())["schema"] == 1
        state = load(store.layout, image).state
        for version, release in index["releases"].items():
            gone = state.releases[version].pruned
            for held in release["platforms"].values():
                there = (store.root / held["file"]).exists()
                assert there or gone, f"the manifest names {version}, which has no file"


def _check_names(store: Store, image: str) -> None:
    """Every visible name is whole: links lead somewhere, records and caches are JSON."""
    for path in store.layout.image(image).iterdir():
        if is_temporary(path.name) or path.name == ".meta" or path.name == "SHA256SUMS":
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.is_symlink() and not path.exists():
            version = path.readlink().name
            state = load(store.layout, image).state.releases.get(path.stem)
            assert state is not None, f"{path} leads to {version}, which is not there"
            assert state.pruned, f"{path} leads to {version}, which is not there"
