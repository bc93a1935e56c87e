"""Built and pushed on a machine with an engine, published from one without: docs/how-to/two-machines.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from demo.registry import PrivateRegistry
from pipeline.oci.reference import Reference
from tests.support.store.releases import new_store

ROOT = Path(__file__).parents[2]
OTHERS = ("SQSHPIPE_", "DOCKER_")


def machine(folder: Path, registry: PrivateRegistry, prefix: str, **own: str) -> dict[str, str]:
    """The environment of one of the two: caches of its own, no variable of the machine that tests."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(OTHERS)},
        **registry.variables,
        "SQSHPIPE_REGISTRY": prefix,
        "SQSHPIPE_CACHE": str(folder / "cache"),
        "SQSHPIPE_SCRATCH": str(folder / "scratch"),
        "PYTHONPATH": str(ROOT),
        **own,
    }


def run(
    checkout: Path, environment: dict[str, str], *words: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(argv, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done


def checkout(folder: Path, base: Reference) -> Path:
    """The same commit, once on each machine."""
    context = folder / "dockerfiles" / "hello"
    context.mkdir(parents=True)
    dockerfile = f"ARG BASE_IMAGE={base}\nFROM ${{BASE_IMAGE}}\nCOPY train.py /train.py\n"
    (context / "Dockerfile").write_text(dockerfile)
    (context / "train.py").write_text("print('step 1')\n")
    (folder / "images.yaml").write_text(
        "version: 1\ndefaults: {scan: {scanner: none}}\nimages:\n"
        f"  hello: {{base: '{base}', dockerfile: dockerfiles/hello/Dockerfile}}\n"
    )
    return folder


@pytest.mark.needs("dockerd", "docker-registry", "mksquashfs", "root")
@pytest.mark.timeout(400)
def test_what_one_machine_pushed_the_other_publishes(
    engine: PrivateEngine, registry: PrivateRegistry, base: Reference, tmp_path: Path
) -> None:
    prefix = f"{registry.address}/{tmp_path.name.replace('_', '-').lower()}"
    store = new_store(tmp_path / "store")
    here = checkout(tmp_path / "workstation", base)
    there = checkout(tmp_path / "head", base)
    workstation = machine(here, registry, prefix, DOCKER_HOST=engine.host)  # it mounts no store
    none = f"unix://{tmp_path}/none.sock"
    head = machine(there, registry, prefix, DOCKER_HOST=none, SQSHPIPE_STORE=str(store.root))
    run(here, workstation, "lock")
    (there / "images.lock").write_bytes((here / "images.lock").read_bytes())

    refused = run(there, head, "release", "hello", "--tag", "v1.0", code=3)
    assert "push from a machine that has one: sqshpipe release hello --until push" in refused.stderr
    assert f"{prefix}/hello has no image of these sources" in refused.stderr
    assert "none.sock" in refused.stderr
    assert not list(store.root.glob("hello/*.json"))

    pushed = run(here, workstation, "release", "hello", "--until", "push").stdout.strip()
    assert pushed.startswith(f"{prefix}/hello@sha256:")
    published = Path(run(there, head, "release", "hello", "--tag", "v1.0").stdout.strip())
    assert published == store.root / "hello" / "v1.0.sqsh"
    assert published.read_bytes()[:4] == b"hsqs"
    record = json.loads((store.root / "hello" / "v1.0.json").read_text())
    assert record["source"]["digest"] == pushed.partition("@")[2]
    assert run(there, head, "release", "hello", "--tag", "v1.0").stdout.strip() == str(published)

    (there / "dockerfiles" / "hello" / "train.py").write_text("print('step 2')\n")  # not what was pushed
    run(there, head, "release", "hello", "--tag", "v1.1", code=3)
