"""From a published file to ranks of a real Slurm that share it: 2 nodes of 8 tasks, without pyxis."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.support.servers.slurm import Slurm, digests_in_use

NODES, TASKS = 2, 8


def sqshpipe(*words: str | Path) -> str:
    done = subprocess.run(["sqshpipe", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("launcher", ["pytorch", "torchrun", "mpi"])
@pytest.mark.parametrize("runtime", ["pyxis", "path", "run", "unpack"])
@pytest.mark.usefixtures("slurm")
def test_sbatch_takes_every_script(published: Store, tmp_path: Path, launcher: str, runtime: str) -> None:
    values = tmp_path / "cluster.yaml"
    values.write_text(
        "jobs: {time: 00:05:00, cpus_per_task: 1, mounts: [/tmp, /var/tmp:ro],"
        " env: {NCCL_SOCKET_IFNAME: '^lo,docker0'}}\n"
    )
    words = ["job", "script", "demo", "--launcher", launcher, "--runtime", runtime, "-N", str(NODES)]
    words += ["--values", str(values)]
    assert sqshpipe(*words, "--test-only", "--", "python", "train.py") == ""
    assert f"sqshpipe:{published.resolve('demo').sha256}" in sqshpipe(*words, "--", "python", "train.py")


def test_ranks_of_two_nodes_read_one_published_file(published: Store, slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "job.out"
    ask = (
        "import json, os, time; time.sleep(2); "
        "print(json.dumps([os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'SLURMD_NODENAME')]"
        " + [os.stat('/word').st_dev, open('/word').read()]))"
    )
    words = ["job", "script", "demo:latest", "--runtime", "run", "-N", str(NODES), f"--sbatch=--output={out}"]
    job = sqshpipe(*words, "--submit", "--", "python3", "-c", ask).strip()
    digest = published.resolve("demo").sha256
    assert digest in digests_in_use()
    assert slurm.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
    ranks = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("[")]
    assert sorted(int(rank) for rank, *_ in ranks) == list(range(NODES * TASKS))
    assert {(world, word) for _, _, world, _, _, word in ranks} == {("16", "one mount\n")}
    for node in ("n1", "n2"):
        of_node = [rank for rank in ranks if rank[3] == node]
        assert sorted(int(rank[1]) for rank in of_node) == list(range(TASKS))
        assert len({rank[4] for rank in of_node}) == 1, "every task of a node reads one device"
    deadline = time.monotonic() + 10
    while digest in digests_in_use() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert digest not in digests_in_use()
    assert str(tmp_path / "node") not in Path("/proc/self/mounts").read_text()
