"""`sqshpipe plan` with many images of which none changed, beside the same with ten.

    python -m bench.plan [--size small|medium|large] [--rounds 5] [--output FILE.json]

Each image has a Dockerfile, a context of forty files and a release in the store; all share a base that is
locked and that a registry on loopback is asked for. The plan reads every context and record and finds nothing
to do.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from bench import measuring
from bench.measuring import Way
from demo.registry import PrivateRegistry
from pipeline.config.lock import Lock, LockedBase, write_lock
from pipeline.config.reading import load
from pipeline.image import inputs
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.store.record import Record
from pipeline.store.store import Store

IMAGES = {"tiny": (2, 5), "small": (10, 500), "medium": (10, 500), "large": (10, 500)}
ROUNDS = {"tiny": 1, "small": 3, "medium": 5, "large": 7}
FILES = 40


def push_base(registry: PrivateRegistry) -> Digest:
    """A base without layers: plan asks for its digest alone."""
    config = b'{"os":"linux","architecture":"amd64","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    blob = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(config), size=len(config))
    entry = {"mediaType": OCI_CONFIG, "digest": str(blob.digest), "size": blob.size}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry, "layers": []}
    login = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: login) as client:
        client.push_blob("base", blob, io.BytesIO(config))
        return client.put_manifest("base", "24.01-py3", json.dumps(manifest).encode(), OCI_MANIFEST)


def make(folder: Path, images: int, base: str, digest: Digest) -> None:
    """A repository of `images` images that are all released."""
    for number in range(images):
        context = folder / "dockerfiles" / f"image{number}"
        (context / "src").mkdir(parents=True)
        (context / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY src /app\n")
        for file in range(FILES):
            (context / "src" / f"{file}.py").write_text(f"print({number}, {file})\n" * 40)
    lines = [
        f"  image{n}: {{base: '{base}', dockerfile: dockerfiles/image{n}/Dockerfile}}" for n in range(images)
    ]
    head = f"version: 1\nstore: {{root: {folder}/store}}\ndefaults: {{scan: {{scanner: none}}}}\nimages:\n"
    (folder / "images.yaml").write_text(head + "\n".join(lines) + "\n")
    config = load(folder / "images.yaml")
    now = datetime.now(timezone.utc)
    store, lock = Store(config.store.root), Lock()
    store.create()
    for name, spec in config.images.items():
        lock = lock.updated(spec.base, spec.platform, LockedBase(digest=digest, locked_at=now))
        content = name.encode() * 100
        made = inputs.gather(spec, digest, now=now)
        with store.staging() as staged:
            staged.write_bytes(content)
            store.publish(
                Record(
                    image=name,
                    version="v1.0",
                    platform=str(spec.platform),
                    sha256=hashlib.sha256(content).hexdigest(),
                    size=len(content),
                    source={"digest": str(digest)},
                    base={"reference": base, "digest": str(digest)},
                    keys={"build": made.key},
                    converter={"name": "native", "options": {}},
                    scan={"status": "unscanned", "scanner": "none"},
                    provenance={"inputs": made.record()},
                    created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
                ),
                staged,
            )
    write_lock(config.lock_path, lock)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=measuring.SIZES, default="small")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS / "plan.json")
    given = parser.parse_args()
    rounds = given.rounds or ROUNDS[given.size]
    program = f"{shlex.quote(sys.executable)} -m pipeline -q"
    with PrivateRegistry() as registry, tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        digest, ways = push_base(registry), {}
        for images in IMAGES[given.size]:
            folder = Path(name, f"{images}")
            make(folder, images, f"{registry.address}/base:24.01-py3", digest)
            line = f"cd {folder} && {program} plan"  # ends with 10, and so fails, if anything would run
            ways[f"plan, {images} images"] = Way(line=line, environment=registry.variables)
        runs = measuring.in_turn(ways, rounds)
        found = {"rounds": rounds, "files_an_image": FILES, "rows": measuring.rows(ways, runs)}
        measuring.keep(given.output, given.size, Path(name), found)


if __name__ == "__main__":
    main()
