"""From a published file to ranks of a real Slurm that share it: 2 nodes of 8 tasks, without pyxis."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store.record import Record
from pipeline.store.store import Store
from pipeline.tools import slurm as edge
from tests.support.slurm import Slurm

NODES, TASKS = 2, 8


@pytest.fixture
def published(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with demo:v1.0, and a command `sqshpipe` for job scripts."""
    store = Store(tmp_path / "store")
    data = image.read_bytes()
    record = Record(
        image="demo",
        version="v1.0",
        platform="linux/" + {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        source={"repository": "registry.example.com/demo", "digest": "sha256:" + "a" * 64},
        scan={"status": "unscanned", "scanner": "none"},
        created="2026-01-01T00:00:00Z",
    )
    store.publish(record, image)
    command = tmp_path / "bin" / "sqshpipe"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("SQSHPIPE_STORE", str(store.root))
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    return store


def sqshpipe(*words: str | Path) -> str:
    done = subprocess.run(["sqshpipe", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("launcher", ["pytorch", "torchrun", "mpi"])
@pytest.mark.parametrize("runtime", ["path", "run"])
@pytest.mark.usefixtures("slurm")
def test_sbatch_takes_every_script(published: Store, launcher: str, runtime: str) -> None:
    words = ["job", "render", "demo", "--launcher", launcher, "--runtime", runtime, "-N", str(NODES)]
    assert sqshpipe(*words, "--test-only", "--", "python", "train.py") == ""
    assert f"sqshpipe:{published.resolve('demo').sha256}" in sqshpipe(*words, "--", "python", "train.py")


def test_ranks_of_two_nodes_read_one_published_file(published: Store, slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "job.out"
    ask = (
        "import json, os, time; time.sleep(2); "
        "print(json.dumps([os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'SLURMD_NODENAME')]"
        " + [os.stat('/word').st_dev, open('/word').read()]))"
    )
    words = ["job", "render", "demo:latest", "--runtime", "run", "-N", str(NODES), f"--sbatch=--output={out}"]
    job = sqshpipe(*words, "--submit", "--", "python3", "-c", ask).strip()
    digest = published.resolve("demo").sha256
    assert digest in edge.jobs_using()
    assert slurm.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
    ranks = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("[")]
    assert sorted(int(rank) for rank, *_ in ranks) == list(range(NODES * TASKS))
    assert {(world, word) for _, _, world, _, _, word in ranks} == {("16", "one mount\n")}
    for node in ("n1", "n2"):
        of_node = [rank for rank in ranks if rank[3] == node]
        assert sorted(int(rank[1]) for rank in of_node) == list(range(TASKS))
        assert len({rank[4] for rank in of_node}) == 1, "every task of a node reads one device"
    deadline = time.monotonic() + 10
    while digest in edge.jobs_using() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert digest not in edge.jobs_using()
    assert str(tmp_path / "node") not in Path("/proc/self/mounts").read_text()
