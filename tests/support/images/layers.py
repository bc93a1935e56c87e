"""Layers and images made in a test: a builder of tars, OCI layouts and docker archives.

The tar members are made by the standard library's tarfile, so that what pipeline.oci reads was written by
another hand; `raw` puts in what no sane writer makes. The table of cases with their expected trees is in
layer_cases.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import zstandard

MTIME = 1_700_000_000
_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_FORMATS: dict[str, Literal[0, 1, 2]] = {
    "pax": tarfile.PAX_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "ustar": tarfile.USTAR_FORMAT,
}


class LayerBuilder:
    """Collects tar members in order; every method returns the builder."""

    def __init__(self, *, tar_format: str = "pax") -> None:
        self._format = _FORMATS[tar_format]
        self._parts: list[bytes] = []

    def member(
        self,
        path: str | bytes,
        kind: bytes,
        *,
        data: bytes = b"",
        target: str | bytes = "",
        mode: int = 0o644,
        mtime: float = MTIME,
        uid: int = 0,
        gid: int = 0,
        xattrs: Mapping[str, bytes] | None = None,
        device: tuple[int, int] = (0, 0),
    ) -> LayerBuilder:
        """Any member: `kind` is a tarfile type such as tarfile.REGTYPE."""
        info = tarfile.TarInfo(_text(path))
        info.type, info.linkname, info.mode, info.mtime = kind, _text(target), mode, mtime
        info.uid, info.gid, info.size = uid, gid, len(data)
        info.devmajor, info.devminor = device
        info.pax_headers = {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
            for name, value in (xattrs or {}).items()
        }
        header = info.tobuf(self._format, encoding="utf-8", errors="surrogateescape")
        self._parts += [header, data, bytes(-len(data) % 512)]
        return self

    def file(self, path: str | bytes, data: bytes = b"", **more: Any) -> LayerBuilder:
        return self.member(path, tarfile.REGTYPE, data=data, **more)

    def dir(self, path: str | bytes, mode: int = 0o755, **more: Any) -> LayerBuilder:
        return self.member(_text(path).rstrip("/") + "/", tarfile.DIRTYPE, mode=mode, **more)

    def symlink(self, path: str | bytes, target: str | bytes, **more: Any) -> LayerBuilder:
        return self.member(path, tarfile.SYMTYPE, target=target, **{"mode": 0o777, **more})

    def hardlink(self, path: str | bytes, target: str | bytes, **more: Any) -> LayerBuilder:
        return self.member(path, tarfile.LNKTYPE, target=target, **more)

    def whiteout(self, path: str | bytes) -> LayerBuilder:
        """Hide `path` of lower layers."""
        parent, slash, name = _text(path).rpartition("/")
        return self.file(f"{parent}{slash}.wh.{name}", mode=0)

    def opaque(self, path: str | bytes) -> LayerBuilder:
        """Hide what lower layers have in the folder `path`."""
        return self.file(f"{_text(path)}/.wh..wh..opq", mode=0)

    def fifo(self, path: str | bytes, **more: Any) -> LayerBuilder:
        return self.member(path, tarfile.FIFOTYPE, **more)

    def device(
        self, path: str | bytes, major: int, minor: int, *, block: bool = False, **more: Any
    ) -> LayerBuilder:
        return self.member(path, tarfile.BLKTYPE if block else tarfile.CHRTYPE, device=(major, minor), **more)

    def raw(self, data: bytes) -> LayerBuilder:
        """Bytes as they are, in whole 512-byte blocks if a sane member shall follow."""
        self._parts.append(data)
        return self

    def raw_header(self, path: bytes, kind: bytes, *, size: int = 0, **fields: bytes) -> LayerBuilder:
        """One header block with a right checksum and whatever in its fields (see `raw_header` below)."""
        return self.raw(raw_header(path, kind, size=size, **fields))

    def tar(self, compression: str = "none") -> bytes:
        """The whole tar with its end marker, stored plain or as gzip or zstd."""
        return compressed(b"".join(self._parts) + bytes(1024), compression)


def raw_header(path: bytes, kind: bytes, *, size: int = 0, **fields: bytes) -> bytes:
    """512 bytes of tar header. `fields` are raw: mode, uid, gid, size_field, mtime, linkname, magic, prefix,
    tail.
    """
    parts = (
        (path, 100),
        (fields.get("mode", b"0000644\0"), 8),
        (fields.get("uid", b"0000000\0"), 8),
        (fields.get("gid", b"0000000\0"), 8),
        (fields.get("size_field", b"%011o\0" % size), 12),
        (fields.get("mtime", b"%011o\0" % MTIME), 12),
        (b" " * 8, 8),
        (kind, 1),
        (fields.get("linkname", b""), 100),
        (fields.get("magic", b"ustar\x0000"), 8),
        (b"", 32),
        (b"", 32),
        (fields.get("devmajor", b"0000000\0"), 8),
        (fields.get("devminor", b"0000000\0"), 8),
        (fields.get("prefix", b""), 155),
        (b"", 12),
    )
    block = b"".join(value[:width].ljust(width, b"\0") for value, width in parts)
    if "tail" in fields:  # what GNU keeps from offset 345 on
        block = (block[:345] + fields["tail"]).ljust(512, b"\0")[:512]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def compressed(data: bytes, compression: str) -> bytes:
    """`data` as gzip (without a time, so the same bytes each time), zstd or none."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    if compression != "none":
        raise ValueError(compression)
    return data


def write_layout(
    folder: Path,
    layers: Sequence[LayerBuilder | bytes],
    *,
    config: Mapping[str, Any] | None = None,
    tag: str | None = "latest",
    compression: str | Sequence[str] = "gzip",
    platform: str = "linux/amd64",
    in_index: bool = False,
) -> str:
    """Write an OCI image layout, or add an image to one that is there; returns the manifest's digest.

    `layers` are builders or plain tars, lowest first; `compression` is one for all or one for each. `config`
    is the config's inner object (`Env`, `Cmd`, …). `in_index` puts the manifest behind an index of its own,
    beside an attestation, as builders do.
    """
    tars = [layer if isinstance(layer, bytes) else layer.tar() for layer in layers]
    kinds = [compression] * len(tars) if isinstance(compression, str) else list(compression)
    os_name, architecture = platform.split("/")[:2]
    entries = []
    for tar, kind in zip(tars, kinds, strict=True):
        media_type = f"application/vnd.oci.image.layer.v1.tar{_SUFFIX[kind]}"
        entries.append(_put_blob(folder, compressed(tar, kind), media_type))
    raw_config = image_config(tars, config, platform=platform)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put_blob(folder, raw_config, "application/vnd.oci.image.config.v1+json"),
        "layers": entries,
    }
    top = _put_blob(folder, json.dumps(manifest).encode(), str(manifest["mediaType"]))
    digest = str(top["digest"])
    if in_index:
        top["platform"] = {"os": os_name, "architecture": architecture}
        unknown = {"os": "unknown", "architecture": "unknown"}
        index = {"schemaVersion": 2, "manifests": [{**top, "platform": unknown}, top]}
        top = _put_blob(folder, json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json")
    _add_to_index(folder, top, tag)
    return digest


def image_config(
    tars: Sequence[bytes], config: Mapping[str, Any] | None = None, *, platform: str = "linux/amd64"
) -> bytes:
    """The config blob of an image of these plain tars."""
    os_name, architecture = platform.split("/")[:2]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    value = {
        "os": os_name,
        "architecture": architecture,
        "created": "2024-01-01T00:00:00Z",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return json.dumps(value).encode()


def write_docker_archive(
    path: Path,
    layers: Sequence[LayerBuilder | bytes],
    *,
    config: Mapping[str, Any] | None = None,
    tags: Sequence[str] = ("test:latest",),
) -> None:
    """Write what `docker save` of an engine before 25 wrote: manifest.json beside a folder for each layer."""
    tars = [layer if isinstance(layer, bytes) else layer.tar() for layer in layers]
    raw_config = image_config(tars, config)
    config_name = f"{hashlib.sha256(raw_config).hexdigest()}.json"
    names = [f"{hashlib.sha256(b'%d' % number).hexdigest()}/layer.tar" for number in range(len(tars))]
    manifest = [{"Config": config_name, "RepoTags": list(tags), "Layers": names}]
    with tarfile.open(path, "w") as archive:
        files = {
            config_name: raw_config,
            **dict(zip(names, tars, strict=True)),
            "manifest.json": json.dumps(manifest).encode(),
        }
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _put_blob(folder: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _add_to_index(folder: Path, descriptor: dict[str, Any], tag: str | None) -> None:
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    path = folder / "index.json"
    index: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "manifests": []}
    )
    if tag is not None:
        descriptor = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
    index["manifests"].append(descriptor)
    path.write_text(json.dumps(index))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
