"""A folder where everything is done already: for verbs that then have nothing to do, or only look."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pipeline.config.lock import Lock, LockedBase, write_lock
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.store.layout import SIGNATURE
from pipeline.store.store import Store
from tests.support.servers.registry import Quiet, serving
from tests.support.store.releases import new_store, record_for

BASE = Digest.of(b"a base")


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Path]:
    """images.yaml with the locked, mirrored image ``demo``, its release ``demo:v1``, and a quiet registry."""

    class Registry(Quiet):
        def do_HEAD(self) -> None:  # noqa: N802 - the name that the server calls
            kind = "application/vnd.oci.image.manifest.v1+json"
            self.answer(200, Docker_Content_Digest=str(BASE), Content_Type=kind)

    with serving(Registry) as address:
        base, store = Reference.parse(f"{address}/team/base:1"), tmp_path / "store"
        (tmp_path / "images.yaml").write_text(
            f"version: 1\nregistry: {{url: '{address}/team'}}\nstore: {{root: {store}}}\n"
            f"images: {{demo: {{base: '{base}', scan: {{scanner: none}}}}}}\n"
        )
        locked = LockedBase(digest=BASE, locked_at=datetime(2026, 1, 1, tzinfo=timezone.utc))
        write_lock(tmp_path / "images.lock", Lock().updated(base, Platform.parse("linux/amd64"), locked))
        record = dataclasses.replace(record_for(b"bytes", "v1"), source={"digest": str(BASE)})
        (tmp_path / "bytes").write_bytes(b"bytes")
        made = new_store(store).publish(record, tmp_path / "bytes")
        beside = Store(store).layout.attachments(made.image, made.version, made.platform)
        beside.mkdir(parents=True)
        (beside / SIGNATURE).write_text('{"status": "unsigned"}')
        yield tmp_path
