"""A store as docs/explanation/store.md describes it, read with code that shares nothing with it."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Image:
    """What records and events say of one image."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stem: those that are sound."""
    unreadable: list[Path] = field(default_factory=list)
    """Records and events that are not sound."""
    channels: dict[str, list[str]] = field(default_factory=dict)
    marks: dict[str, set[str]] = field(default_factory=dict)
    """By version: yank, hide, delete, keep, damaged."""

    def current(self, channel: str) -> str | None:
        names = self.channels.get(channel)
        return names[-1] if names else None

    def resolves(self, version: str) -> bool:
        return version in self.records and not self.marks.get(version, set()) & {
            "yank",
            "hide",
            "delete",
            "damaged",
        }

    def digests(self, version: str) -> set[str]:
        return {one["sha256"] for one in self.records.values() if one["version"] == version}


def sealed(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file whose checksum, if it has one, is right."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 24:
        return None
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    if "crc32" in data:
        start = raw.rindex(b'"crc32": "')
        if list(data)[-1] != "crc32" or data["crc32"] != f"{zlib.crc32(raw[:start]):08x}":
            return None
    return data


def read(root: Path) -> dict[str, Image]:
    """Every image of the store; none where there is no store."""
    if not root.exists():
        return {}
    return {
        folder.name: _image(folder)
        for folder in sorted(root.iterdir())
        if folder.name not in ("blobs", "leases") and not folder.name.startswith(".") and folder.is_dir()
    }


def _image(folder: Path) -> Image:
    image = Image()
    for path in sorted(folder.glob("*.json")):
        if path.name == "index.json":
            continue
        data = sealed(path)
        if data is None or data.get("image") != folder.name:
            image.unreadable.append(path)
        elif "channel" not in data or "sha256" in data:
            platform = data.get("platform", "linux/amd64")
            suffix = "" if platform == "linux/amd64" else "." + platform.replace("/", "-")
            if path.name == f"{data['version']}{suffix}.json":
                image.records[path.stem] = data
            else:
                image.unreadable.append(path)
        elif data["channel"] != path.stem:
            image.unreadable.append(path)
    events = sorted(folder.glob(".meta/events/[0-9]*.json"))
    for number, path in enumerate(events, 1):
        data = sealed(path)
        own = data is not None and data.get("image") == folder.name and data.get("number", number) == number
        if data is None or not own or int(path.stem) != number:
            image.unreadable.append(path)
            break
        _apply(image, data)
    return image


def _apply(image: Image, event: dict[str, Any]) -> None:
    kind, version = event["event"], event["version"]
    marks = image.marks.setdefault(version, set())
    names = image.channels.setdefault(event["channel"], []) if "channel" in event else []
    if kind == "promote":
        if names[-1:] != [version]:
            names.append(version)
    elif kind == "rollback":
        while names and names[-1] != version:
            names.pop()
    elif kind in ("unyank", "unkeep", "unhide", "repaired"):
        marks.discard({"unyank": "yank", "unkeep": "keep", "unhide": "hide", "repaired": "damaged"}[kind])
    elif kind == "restore":
        marks -= {"delete", "hide"}
    else:
        marks.add(kind)
    if kind == "yank":
        for named in image.channels.values():
            if named[-1:] == [version]:
                while named and image.marks.get(named[-1], set()) & {"yank", "hide", "delete", "damaged"}:
                    named.pop()


def blobs(root: Path) -> dict[str, str]:
    """Digest in the name -> digest of the content, of every regular file among the bytes."""
    return {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (root / "blobs/sha256").glob("*.sqsh")
        if path.is_file() and not path.is_symlink()
    }
