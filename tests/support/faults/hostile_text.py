"""Text that gives orders wherever it is printed, and places that are full of it.

The store, registry, tools and files made here hold it in every field where others may write.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.store.layout import SBOM, SIGNATURE, Layout
from pipeline.store.store import Store
from tests.support.servers.registry import Quiet, serving
from tests.support.store.releases import publish

FAKE = "FAKE LINE"
"""No printed line begins with it: it stands behind every kind of line break."""
FIELD = (
    f"\x1b[31m\x1b]0;title\x07a\n{FAKE}\n::error::{FAKE}\r\n"
    f"  ::set-output name=a::{FAKE}\n##[error]{FAKE}\x0b{FAKE}"
    f"\x85{FAKE}\u2028{FAKE}\u202e\u2066\u200b\x9b2J\x7f\t[bold]x[/bold][link=http://evil.example]y[/link]"
    "<script>alert(1)</script>{{7*7}}|`x`@everyone"
)
"""Valid Unicode, so that every format can hold it."""
JSON_FIELD = FIELD + "\x00\udc9b\ud800"
"""With what JSON alone can hold: NUL and lone surrogates."""
LONG_FIELD = "long \x1b[1m" * 10_000
NAME = FIELD.replace("/", "|")[:240].encode()[:230] + b"\xff\x9b"
"""A file name: no slash, at most 255 bytes, and not UTF-8."""

_KEPT = {"schema", "image", "version", "platform", "file", "sha256", "size", "event", "channel", "from"}
_RECORD = {
    *(
        "schema",
        "image",
        "version",
        "platform",
        "file",
        "sha256",
        "size",
        "source",
        "base",
        "keys",
        "converter",
    ),
    *("scan", "provenance", "checks", "created"),
}
_EVENT = {*_KEPT, "reason", "by", "at"}


def hostile(value: Any, text: str = JSON_FIELD) -> Any:
    """`value` with all text in it replaced, and an entry more in every object."""
    if isinstance(value, dict):
        return {key: hostile(inner, text) for key, inner in value.items()} | {text[:300]: text}
    if isinstance(value, list):
        return [hostile(inner, text) for inner in value] or [text, {"id": text}]
    return text if isinstance(value, str) else value


def hostile_store(root: Path) -> Store:
    """A store of the images ``demo`` (hostile in all that is free), ``long`` (the same, 100 kB a field) and
    ``broken`` (hostile names in a record), with hostile leases and strays.
    """
    store = Store(root)
    for image in ("demo", "long", "broken"):
        for version in ("v1", "v2", "v3"):
            publish(store, version, f"{image} {version}".encode() * 100, image=image)
        store.promote(f"{image}:v2", "stable", reason="good")
        store.mark(f"{image}:v1", "keep", reason="good")
    store.mark("demo:v3", "yank", reason="bad")
    layout = store.layout
    for image, text in (("demo", JSON_FIELD), ("long", LONG_FIELD)):
        for version in ("v1", "v2", "v3"):
            _rewrite(layout.record(image, version, "linux/amd64"), _RECORD, text)
            _attach(layout, image, version, text)
        for path in layout.events(image).iterdir():
            _rewrite(path, _EVENT, text)
    path = layout.record("broken", "v1", "linux/amd64")
    path.chmod(0o644)
    path.write_text(json.dumps(dict.fromkeys(_RECORD, JSON_FIELD) | {"schema": 1, "size": 1}))
    _leases(layout)
    for folder in (root, root / "demo", layout.blobs, layout.leases):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + NAME))).write_text(
            JSON_FIELD.encode(errors="replace").decode()
        )
    store.rebuild()
    return store


def store_with_a_hostile_event(root: Path) -> Store:
    """A store whose image ``demo`` has an event of a hostile kind."""
    store = Store(root)
    publish(store, "v1", b"v1" * 100)
    store.promote("demo:v1", "stable")
    path = max(store.layout.events("demo").iterdir())
    path.chmod(0o644)
    path.write_text(json.dumps(dict.fromkeys(_EVENT, JSON_FIELD) | {"schema": 1}))
    store.layout.index("demo").unlink()
    return store


def _rewrite(path: Path, known: set[str], text: str) -> None:
    found = json.loads(path.read_bytes())
    data: dict[str, Any] = {key: value for key, value in found.items() if key in known}  # no checksum of it
    if "created" in known:
        data |= {
            "source": {"repository": "r.example/a", "digest": "sha256:" + "a" * 64, "tag": ""},
            "base": {"reference": "", "digest": ""},
            "keys": {"build": ""},
            "converter": {"name": "", "options": {"level": ""}},
            "scan": {"status": "", "scanner": "", "completed_at": "", "warnings": [""]}
            | {"waived": [{"id": "", "package": "", "until": "", "reason": ""}], "counts": {"critical": 1}},
            "provenance": {"revision": "", "layers": [{"digest": "", "size": 5}], "inputs": {"a": ""}}
            | {"dockerfile": "", "sqshpipe": ""},
            "checks": [""],
        }
    changed = {key: value if key in _KEPT else hostile(value, text) for key, value in data.items()}
    path.chmod(0o644)
    path.write_text(json.dumps(changed))


def _attach(layout: Layout, image: str, version: str, text: str) -> None:
    folder = layout.attachments(image, version, "linux/amd64")
    folder.mkdir(parents=True, exist_ok=True)
    component = {"type": "library", "name": f"{version}{text}", "version": version + text, "purl": text}
    sbom = {"bomFormat": "CycloneDX", "specVersion": "1.5", "components": [component]}
    (folder / SBOM).write_text(json.dumps(sbom))
    (folder / SIGNATURE).write_text(json.dumps({"status": text, "tool": text, "why": text}))


def _leases(layout: Layout) -> None:
    layout.leases.mkdir(exist_ok=True)
    sha256 = next(layout.blobs.glob("*.sqsh")).stem
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    text = dict.fromkeys(("image", "version", "host", "job", "step", "cluster", "user", "by"), JSON_FIELD)
    lease = {"schema": 1, "sha256": sha256, "uid": os.getuid(), "expires": until}
    (layout.leases / "hostile").write_text(json.dumps(lease | text))
    (layout.leases / "hostile-digest").write_text(json.dumps(lease | text | {"sha256": JSON_FIELD}))
    (layout.leases / "hostile-times").write_text(json.dumps(lease | text | {"expires": JSON_FIELD}))


_TOOLS = (
    *(
        "docker",
        "skopeo",
        "enroot",
        "mksquashfs",
        "squashfuse",
        "trivy",
        "syft",
        "cosign",
        "notation",
        "squeue",
    ),
    *(
        "sinfo",
        "scontrol",
        "srun",
        "sbatch",
        "sacct",
        "sbcast",
        "git",
        "lfs",
        "nvidia-smi",
        "mount",
        "umount",
    ),
)


def hostile_tools(folder: Path) -> None:
    """Programs of all names that sqshpipe starts; each prints hostile text and fails."""
    text = folder / "text"
    folder.mkdir()
    text.write_bytes(FIELD.encode() + b"\n" + NAME + b"\n")
    for name in _TOOLS:
        (folder / name).write_text(f"#!/bin/sh\n/bin/cat {text}\n/bin/cat {text} >&2\nexit 9\n")
        (folder / name).chmod(0o755)


@contextmanager
def hostile_registry(mode: str) -> Iterator[str]:
    """A registry of hostile answers: ``errors`` (a status with a body), ``challenge``, ``manifests``."""

    class Registry(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - the name that the server calls
            # what a header can hold: no control characters of ASCII, else the client tries again for long
            line = "".join(char for char in FIELD if " " <= char <= "\xff" and char != "\x7f")
            if mode == "errors":
                problem = {"code": JSON_FIELD, "message": JSON_FIELD, "detail": JSON_FIELD}
                self.answer(418, json.dumps({"errors": [problem]}).encode(), Warning=line)
            elif mode == "challenge":
                self.answer(
                    401, JSON_FIELD.encode(errors="replace"), WWW_Authenticate=f'Bearer realm="{line}"'
                )
            else:
                manifest = {"schemaVersion": 2, "mediaType": JSON_FIELD, "config": {"mediaType": JSON_FIELD}}
                body = json.dumps(
                    manifest | {"layers": [{"digest": JSON_FIELD}], "tags": [JSON_FIELD]}
                ).encode()
                kind = "application/vnd.oci.image.manifest.v1+json"
                self.answer(
                    200, body, Content_Type=kind, Docker_Content_Digest=line, Link=f"<{line}>; rel=next"
                )

        do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    with serving(Registry) as address:
        yield address


def hostile_settings(folder: Path, registry: str, store: Path) -> Path:
    """images.yaml with hostile text where a fork may write it, and a base in `registry`."""
    image = {
        "base": f"{registry}/base:1",
        "scan": {"scanner": "none"},
        "dockerfile": "Dockerfile",
        "test": [FIELD],
    }
    text = {
        "version": 1,
        "registry": {"url": f"http://{registry}/team"},
        "store": {"root": str(store)},
        "images": {
            "demo": image | {"build_args": {"A": FIELD}},
            "plain": {"base": f"{registry}/base:2", "scan": {"scanner": "none"}},
        },
    }
    (folder / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN echo '{FAKE}'\n")
    path = folder / "images.yaml"
    path.write_text(json.dumps(text))
    return path


def bad_settings(folder: Path) -> list[Path]:
    """Files instead of images.yaml in which something is wrong that has to be quoted."""
    texts: list[Any] = [
        {"version": 1, FIELD: FIELD},
        {"version": FIELD, "images": {FIELD: {"base": FIELD}}},
        {
            "version": 1,
            "images": {"demo": {"base": FIELD, FIELD: 1, "scan": {"scanner": FIELD}, "limits": FIELD}},
        },
        {"version": 1, "registry": {"url": FIELD}, "store": {"root": 5}, "notify": [{"on": [FIELD]}]},
    ]
    paths = [folder / f"bad{number}.yaml" for number in range(len(texts) + 1)]
    for path, text in zip(paths, texts, strict=False):
        path.write_text(json.dumps(text))
    paths[-1].write_bytes(b"version: 1\n\x1b[31m: [\n" + NAME)
    return paths
