"""One release: what its record file says, and the value that the rest of the program holds.

Record files never change. Schema 1 is what this version writes; schema 0 (hand-made records without `schema`,
`platform`, `scan`) is read with defaults; a newer one is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.names import DEFAULT_PLATFORM, is_platform, is_version, stem
from pipeline.store import sealed

SCHEMA = 1
_HEX = re.compile(r"[0-9a-f]{64}")
IMAGE, DATA = "image", "data"
"""Kinds of releases: what is started as a container, and what is mounted for its files alone."""
EXTERNAL: Mapping[str, Any] = {"status": "external", "scanner": "none"}
"""The scan entry of a .sqsh that was made elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The facts of a release as its record holds them; sizes in bytes, digests in hex, `created` in UTC."""

    image: str
    version: str
    platform: str
    """Of data it says nothing: every node takes it."""
    sha256: str
    size: int
    kind: str = IMAGE
    source: Mapping[str, str] | None = None
    base: Mapping[str, str] | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    converter: Mapping[str, Any] | None = None
    scan: Mapping[str, Any] = field(default_factory=lambda: dict(EXTERNAL))
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    """Keys of the layer packs of which the bytes are, where the converter was native."""
    attachments: Mapping[str, str] = field(default_factory=dict)
    """sha256 in hex by name, of what lies beside the record and is believed only with that digest."""
    created: str

    @property
    def file(self) -> str:
        """Where the bytes lie, relative to the root."""
        return f"blobs/sha256/{self.sha256}.sqsh"

    @property
    def external(self) -> bool:
        """Whether what would be run was made elsewhere, so that nothing is known about what is in it."""
        return self.scan.get("status") == "external" and self.kind != DATA

    def as_json(self) -> dict[str, Any]:
        """The record as it is written, keys in the order in which people read them."""
        return {
            "schema": SCHEMA,
            "image": self.image,
            "version": self.version,
            "platform": self.platform,
            "file": self.file,
            "sha256": self.sha256,
            "size": self.size,
            **({"kind": self.kind} if self.kind != IMAGE else {}),
            "source": None if self.source is None else dict(self.source),
            "base": None if self.base is None else dict(self.base),
            "keys": dict(self.keys),
            "converter": None if self.converter is None else dict(self.converter),
            "scan": dict(self.scan),
            "provenance": dict(self.provenance),
            "checks": list(self.checks),
            "packs": list(self.packs),
            "attachments": dict(self.attachments),
            "created": self.created,
        }

    def as_bytes(self) -> bytes:
        return sealed.seal(json.dumps(self.as_json(), indent=2, ensure_ascii=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Record):
    """A record and its present state: published, yanked, hidden, pruned or damaged."""

    path: Path
    """The file by its digest: this name always has the same bytes."""
    link: Path
    """The path for people: <root>/<image>/<version>.sqsh."""
    state: str = "published"

    @property
    def name(self) -> str:
        return f"{self.image}:{self.version}"

    @property
    def public_path(self) -> Path:
        """`link` when it leads to the right file, otherwise `path`."""
        try:
            leads = self.link.samefile(self.path)
        except OSError:
            leads = False
        return self.link if leads else self.path


def release_of(record: Record, *, path: Path, link: Path, state: str) -> Release:
    """The release that `record` describes."""
    facts = {item.name: getattr(record, item.name) for item in dataclasses.fields(Record)}
    return Release(**facts, path=path, link=link, state=state)


def parse_record(raw: bytes, path: str | Path) -> Record:
    """Read the bytes of a record file. Raises UnreadableError naming `path` when they are not one."""
    return _record(sealed.parse(raw, path), path)


def parse_own(raw: bytes, path: str | Path) -> Record | None:
    """Read the bytes of the record file at `path`; None when they only claim its name for a channel.

    Raises UnreadableError when they are neither, or belong to another release than the file's name says.
    """
    data = sealed.parse(raw, path)
    folder, _, name = str(path).removesuffix(".json").rpartition("/")
    image = folder.rpartition("/")[2]
    if "channel" in data and "sha256" not in data:
        sealed.check_schema(data, path, newest=SCHEMA)
        if (data.get("image"), data["channel"]) != (image, name):
            raise sealed.damaged(path, f"it claims the channel {data['channel']!r} of {data.get('image')!r}")
        return None
    record = _record(data, path)
    if (record.image, stem(record.version, record.platform)) != (image, name):
        what = f"the record of {record.image}:{record.version} for {record.platform}"
        raise sealed.damaged(path, f"it is {what}; a record must not be moved or copied by hand")
    return record


def claim(image: str, channel: str) -> bytes:
    """The file that takes the record name of a channel."""
    return sealed.seal(json.dumps({"schema": SCHEMA, "image": image, "channel": channel}))


def _record(data: dict[str, Any], path: str | Path) -> Record:
    sealed.check_schema(data, path, newest=SCHEMA)
    try:
        record = Record(
            image=_text(data, "image"),
            version=_text(data, "version"),
            platform=_text(data, "platform", DEFAULT_PLATFORM),
            sha256=_text(data, "sha256"),
            size=_count(data, "size"),
            kind=_text(data, "kind", IMAGE),
            source=_object(data, "source"),
            base=_object(data, "base"),
            keys=_object(data, "keys") or {},
            converter=_object(data, "converter"),
            scan=_object(data, "scan") or dict(EXTERNAL),
            provenance=_object(data, "provenance") or {},
            checks=_texts(data, "checks"),
            packs=_texts(data, "packs"),
            attachments=_object(data, "attachments") or {},
            created=_text(data, "created", "1970-01-01T00:00:00Z"),
        )
        if not is_sha256(record.sha256):
            raise ValueError(f"sha256 {record.sha256!r}")
        if data.get("file", record.file) != record.file:
            raise ValueError(f"file {data['file']!r}")
        if not is_version(record.version) or not is_platform(record.platform):
            raise ValueError(f"version {record.version!r} for {record.platform!r}")
        if record.kind not in (IMAGE, DATA):
            raise ValueError(f"kind {record.kind!r}")
        if not isinstance((record.source or {}).get("digest", ""), str):
            raise ValueError("the digest of its source is not text")
        named = (*record.packs, *record.attachments.values())
        if not all(isinstance(one, str) and is_sha256(one) for one in named):
            raise ValueError("a pack or an attachment is not named by 64 hex digits")
    except ValueError as error:
        raise sealed.damaged(path, error) from error
    return record


def is_sha256(text: str) -> bool:
    """Whether `text` is a sha256 as the store writes it: 64 lower-case hex digits."""
    return _HEX.fullmatch(text) is not None


def _text(data: dict[str, Any], key: str, default: str | None = None) -> str:
    value = data.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {'missing' if value is None else 'not text'}")
    return value


def _texts(data: dict[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{key} is not a list of texts")
    return tuple(value)


def _count(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is not a size")
    return value


def _object(data: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """`value` when it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows(value: object) -> list[Mapping[str, Any]]:
    """The JSON objects in `value` when it is a list, else nothing."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
