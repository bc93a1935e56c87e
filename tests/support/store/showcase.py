"""A store as teams have it after some months, for the page, its test and its pictures; also a hostile one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.store.layout import SBOM
from pipeline.store.leases import prepare
from pipeline.store.record import Record
from pipeline.store.store import Store
from tests.support.images.squashfs import Stitcher
from tests.support.store.releases import new_store

_MONTHS = ("23.10", "23.11", "23.12", "24.01", "24.02", "24.03")
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!--\u202e\x1b[31m한국어"


def sqsh(
    folder: Path, packages: Mapping[str, str], *, weight: int, python: Mapping[str, str] | None = None
) -> Path:
    """A .sqsh with those Debian and Python packages and /app/weights of `weight` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    status = "\n".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n"
        for name, version in packages.items()
    )
    stitcher = Stitcher(folder).file(b"var/lib/dpkg/status", status.encode())
    for name, version in (python or {}).items():
        place = f"usr/local/lib/python3.10/dist-packages/{name}-{version}.dist-info/METADATA"
        stitcher.file(place.encode(), b"")
    stitcher.file(b"app/weights", hashlib.shake_256(str(weight).encode()).digest(weight))
    made: Path = stitcher.stitch()
    return made


def publish(store: Store, file: Path, image: str, version: str, created: str, **facts: Any) -> None:
    content = file.read_bytes()
    record = Record(
        image=image,
        version=version,
        platform="linux/amd64",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        created=created,
        **facts,
    )
    store.publish(record, file)


def showcase(root: Path, work: Path) -> Store:
    """Two images with six and three releases, waivers, channels, a yanked version and leases."""
    store = new_store(root)
    for number, month in enumerate(_MONTHS):
        file = sqsh(
            work / month,
            {
                "libc6": "2.35-0ubuntu3.6",
                "openssl": f"3.0.2-0ubuntu1.{12 + number}",
                "curl": f"7.81.0-1.{number}",
            },
            python={
                "torch": f"2.{number}.0",
                "transformers": "4.36.0",
                **({"wandb": "0.16.2"} if number > 2 else {}),
            },
            weight=600_000 + 130_000 * number,
        )
        publish(
            store,
            file,
            "megatron-training",
            f"v1.{number}",
            f"2026-{number + 5:02}-03T09:30:00Z",
            **_facts(month),
        )
    for number in range(3):
        file = sqsh(work / f"base{number}", {"libc6": f"2.35-{number}"}, weight=900_000 - 150_000 * number)
        publish(
            store, file, "pytorch", f"24.0{number + 1}", f"2026-{number + 7:02}-20T10:00:00Z", scan=_UNSCANNED
        )
    store.promote("megatron-training:v1.4", "stable", reason="two weeks of training without a fault")
    store.mark("megatron-training:v1.2", "yank", reason="NCCL hangs on 16 nodes")
    lease(store, "megatron-training", "v1.4", job="84213", host="gpu-017")
    lease(store, "megatron-training", "v1.4", job="84213", host="gpu-018")
    return store


_DOCKERFILE = """\
ARG BASE
FROM $BASE
RUN pip install transformers==4.36.0
COPY train.py /app/
"""
_UNSCANNED = {"status": "unscanned", "scanner": "none"}


def _facts(month: str) -> dict[str, Any]:
    base = hashlib.sha256(month.encode()).hexdigest()
    dockerfile = _DOCKERFILE + ("RUN pip install wandb==0.16.2\n" if month >= "24.01" else "")
    return {
        "source": {
            "repository": "123456789012.dkr.ecr.us-east-1.amazonaws.com/megatron-training",
            "digest": "sha256:" + hashlib.sha256(base.encode()).hexdigest(),
        },
        "base": {"reference": f"nvcr.io/nvidia/pytorch:{month}-py3", "digest": f"sha256:{base}"},
        "converter": {
            "name": "native",
            "options": {"zstd_level": 3},
            "versions": {"native": "1"},
            "format": 1,
        },
        "scan": {
            "status": "passed",
            "scanner": "ecr enhanced",
            "completed_at": "2026-10-03T09:41:00Z",
            "findings": {"high": 2, "medium": 41},
            "waived": [
                {
                    "id": "CVE-2024-0001",
                    "package": "imagemagick",
                    "reason": "not reachable: no image is decoded in training",
                    "until": "2026-12-31",
                }
            ],
            "warnings": ["the waiver of CVE-2024-0001 in imagemagick ends on 2026-12-31, in 39 days"],
        },
        "provenance": {
            "sqshpipe": "0.1.0",
            "revision": base[:12],
            "by": "mina@build-01",
            "inputs": {
                "args": {"TRANSFORMERS": "4.36.0"},
                "dockerfile": hashlib.sha256(dockerfile.encode()).hexdigest(),
                "dockerfile_text": dockerfile,
            },
            "layers": _layers(month),
        },
        "checks": ("superblock", "length", "tree", "content"),
    }


def _layers(month: str) -> list[dict[str, Any]]:
    """A base whose first two layers never change, and two of our own that always do."""
    names = ("ubuntu", "cuda", f"pytorch {month}", f"pip {month}", f"train.py {month}")
    sizes = (30_000_000, 4_100_000_000, 2_900_000_000, 310_000_000, 4096)
    return [
        {"digest": "sha256:" + hashlib.sha256(name.encode()).hexdigest(), "size": size + len(month) * 791}
        for name, size in zip(names, sizes, strict=True)
    ]


def attach_sbom(
    store: Store, image: str, version: str, packages: Mapping[str, str], *, tool: str = "syft"
) -> Path:
    """An SBOM beside a release: Go modules, which no package manager of the image knows."""
    folder = store.layout.attachments(image, version, "linux/amd64")
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "bomFormat": "CycloneDX",
        "metadata": {"tools": {"components": [{"name": tool, "version": "1"}]}},
        "components": [
            {"name": name, "version": number, "purl": f"pkg:golang/{name}@{number}"}
            for name, number in packages.items()
        ],
    }
    path = folder / SBOM
    path.write_text(json.dumps(data))
    return path


def lease(store: Store, image: str, version: str, *, job: str, host: str) -> None:
    release = store.release(image, version)
    assert release is not None
    prepare(store.layout)
    data = {
        "schema": 1,
        "sha256": release.sha256,
        "image": image,
        "version": version,
        "host": host,
        "job": job,
        "uid": os.getuid(),
        "cluster": "train",
        "expires": "2099-01-01T00:00:00Z",
    }
    folder = store.layout.leases
    (folder / f"job-{len(list(folder.iterdir()))}.json").write_text(json.dumps(data))


def hostile(root: Path, work: Path) -> Store:
    """Two releases whose every free text, names of packages included, tries to become markup."""
    store = new_store(root)
    for number in range(2):
        file = sqsh(work / str(number), {f"pkg{HOSTILE}": f"{number}"}, weight=10_000 + number)
        publish(
            store,
            file,
            "demo",
            f"v1.{number}",
            f"2026-01-0{number + 1}T00:00:00Z",
            source={"repository": HOSTILE, "digest": HOSTILE},
            base={"reference": f"{HOSTILE}{number}", "digest": HOSTILE},
            converter={"name": HOSTILE, "options": {HOSTILE: HOSTILE}},
            scan={
                "status": HOSTILE,
                "scanner": HOSTILE,
                "findings": {HOSTILE: HOSTILE},
                "waived": [{"id": HOSTILE, "package": [HOSTILE], "reason": HOSTILE, "until": {}}, HOSTILE],
                "warnings": [HOSTILE],
                "completed_at": HOSTILE,
            },
            provenance={
                "revision": HOSTILE,
                "sqshpipe": [HOSTILE],
                "by": HOSTILE,
                "inputs": {
                    "args": {HOSTILE: number},
                    "dockerfile_text": f"FROM {HOSTILE}\nRUN {number}{HOSTILE}",
                },
                "layers": [{"digest": f"{HOSTILE}{number}", "size": HOSTILE}, HOSTILE, {"size": -1}],
            },
            checks=(HOSTILE,),
        )
    store.mark("demo:v1.0", "yank", reason=HOSTILE)
    lease(store, "demo", "v1.1", job=HOSTILE, host=HOSTILE)
    return store


def crowd(root: Path, *, images: int, releases: int) -> Store:
    """A store of a large team: records with all their facts, written as they lie there, without any bytes."""
    store = new_store(root)
    for number in range(images):
        name = f"team-{number % 17:02}-training-{number:03}"
        store.layout.image(name).mkdir()
        for step in range(releases):
            month = _MONTHS[(number + step) % len(_MONTHS)]
            record = Record(
                image=name,
                version=f"v1.{step}",
                platform="linux/amd64",
                sha256=hashlib.sha256(f"{number} {step}".encode()).hexdigest(),
                size=9_000_000_000 + 37_000_000 * (number * step % 90),
                created=f"2026-{step % 10 + 1:02}-{number % 27 + 1:02}T09:{number % 60:02}:00Z",
                **_facts(month),
            )
            store.layout.record(name, record.version, record.platform).write_bytes(record.as_bytes())
    return store
