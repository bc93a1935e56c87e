"""A vulnerability database for trivy, written by the test: a BoltDB file with the advisories that it wants.

Format: go.etcd.io/bbolt `internal/common` (page, meta, inline buckets) and aquasecurity/trivy-db `pkg/db`
(bucket names,
schema 2). Each bucket is small enough to lie inline in the one leaf page of its parent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Union

_PAGE = 4096
_MAGIC, _VERSION = 0xED0CDAED, 2
_LEAF, _META, _FREELIST = 0x02, 0x04, 0x10
_IS_BUCKET = 0x01
_ELEMENT = 16

Bucket = Mapping[bytes, Union[bytes, "Bucket"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One vulnerability of one package of one distribution, as in ``debian 12``."""

    id: str
    package: str
    fixed: str = ""
    severity: str = "HIGH"
    platform: str = "debian 12"


def write_database(cache: Path, *advisories: Advisory) -> None:
    """Make ``cache`` a trivy cache folder (TRIVY_CACHE_DIR) whose database knows exactly these advisories."""
    platforms: dict[bytes, dict[bytes, dict[bytes, bytes]]] = {}
    details: dict[bytes, bytes] = {}
    sources: dict[bytes, bytes] = {}
    numbers = {"LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}
    for one in advisories:
        packages = platforms.setdefault(one.platform.encode(), {})
        value = {"FixedVersion": one.fixed} if one.fixed else {"Status": 2}
        packages.setdefault(one.package.encode(), {})[one.id.encode()] = json.dumps(value).encode()
        facts = {
            "Title": f"{one.id} made up",
            "Severity": one.severity,
            "VendorSeverity": {"nvd": numbers[one.severity]},
        }
        details[one.id.encode()] = json.dumps(facts).encode()
        source = {"ID": "debian", "Name": "made up", "URL": "https://example.com"}
        sources[one.platform.encode()] = json.dumps(source).encode()
    root: Bucket = {**platforms, b"vulnerability": details, b"data-source": sources}
    folder = cache / "db"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trivy.db").write_bytes(_file(root))
    times = {"NextUpdate": "2099-01-01T00:00:00Z", "UpdatedAt": "2026-01-01T00:00:00Z"}
    (folder / "metadata.json").write_text(
        json.dumps({"Version": 2, **times, "DownloadedAt": "2026-01-01T00:00:00Z"})
    )


def _file(root: Bucket) -> bytes:
    leaf = _leaf(3, root)
    pages = -(-len(leaf) // _PAGE)
    leaf = struct.pack("<QHHI", 3, _LEAF, len(root), pages - 1) + leaf[16:]
    freelist = struct.pack("<QHHI", 2, _FREELIST, 0, 0)
    parts = [
        _meta(0, 3 + pages),
        _meta(1, 3 + pages),
        freelist.ljust(_PAGE, b"\0"),
        leaf.ljust(pages * _PAGE, b"\0"),
    ]
    return b"".join(parts)


def _meta(number: int, high_water: int) -> bytes:
    body = struct.pack("<IIII", _MAGIC, _VERSION, _PAGE, 0)
    body += struct.pack("<QQQQQ", 3, 0, 2, high_water, number)
    checksum = 0xCBF29CE484222325
    for byte in body:
        checksum = ((checksum ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    page = struct.pack("<QHHI", number, _META, 0, 0) + body + struct.pack("<Q", checksum)
    return page.ljust(_PAGE, b"\0")


def _leaf(page: int, bucket: Bucket) -> bytes:
    """A leaf page with the bucket's keys; a bucket inside it becomes an inline bucket."""
    entries = []
    for key, value in sorted(bucket.items()):
        if isinstance(value, bytes):
            entries.append((0, key, value))
        else:
            entries.append((_IS_BUCKET, key, struct.pack("<QQ", 0, 0) + _leaf(0, value)))
    header, data = b"", b""
    for number, (flags, key, value) in enumerate(entries):
        # a position counts from the element itself
        position = (len(entries) - number) * _ELEMENT + len(data)
        header += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return struct.pack("<QHHI", page, _LEAF, len(entries), 0) + header + data
