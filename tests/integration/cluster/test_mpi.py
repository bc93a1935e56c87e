"""MPI programs in a published image on 2 nodes of 8 ranks: started by srun with PMIx, and by plain mpirun.

Slurm, PMIx and Open MPI are the real ones of Debian. Both nodes are this machine: each has a folder of its
own for PMIx, ranks talk by TCP, since shared memory would join the nodes, and for mpirun a small program
stands in for ssh.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.integration.cluster.conftest import record_of
from tests.integration.cluster.test_jobs import NODES, TASKS, sqshpipe
from tests.support.images import squashed
from tests.support.servers.slurm import Slurm, private_slurm

LIBRARIES = Path(f"/usr/lib/{os.uname().machine}-linux-gnu")
pytestmark = pytest.mark.needs("slurmd", "mpirun", "mksquashfs", "unshare", "root")

PROGRAM = """
import ctypes, os
mpi = ctypes.CDLL("libmpi.so.40", ctypes.RTLD_GLOBAL)
def of_mpi(name): return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(mpi, name)))
world = of_mpi("ompi_mpi_comm_world")
rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
assert mpi.MPI_Init(None, None) == 0
mpi.MPI_Comm_rank(world, ctypes.byref(rank))
mpi.MPI_Comm_size(world, ctypes.byref(size))
one = ctypes.byref(rank), ctypes.byref(total), 1
assert mpi.MPI_Allreduce(*one, of_mpi("ompi_mpi_int"), of_mpi("ompi_mpi_op_sum"), world) == 0
node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
line = f"rank {rank.value} of {size.value} sum {total.value} on {node} {os.stat('/word').st_dev}"
os.write(1, f"\\n{line}\\n".encode())  # in one piece: mpirun passes on what ranks write as it comes
mpi.MPI_Finalize()
"""
# What stands in for ssh: another name of the host in a namespace of its own, and the command
AGENT = """\
#!/bin/sh
host=$1
shift
exec unshare --uts sh -c 'hostname "$0" && exec sh -c "$*"' "$host" "$@"
"""
BY_TCP = {"OMPI_MCA_btl": "tcp,self"}


def mpi_files() -> list[Path]:
    """Open MPI and PMIx of this machine with their modules, settings and all that they load."""
    modules = [*LIBRARIES.glob("openmpi/lib/openmpi3/*.so"), *LIBRARIES.glob("pmix2/lib/pmix/*.so")]
    programs = [LIBRARIES / "libmpi.so.40", LIBRARIES / "libpmix.so.2", *modules]
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True, timeout=60).stdout
    loaded = {Path(each) for each in re.findall(r"=> (/\S+)", said)}
    settings = [each for each in Path("/etc/openmpi").rglob("*") if each.is_file()]
    return [*programs, *loaded, *settings]


@pytest.fixture(scope="module")
def with_mpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squashed.squash(tmp_path_factory.mktemp("mpi"), files=mpi_files())


@pytest.fixture(scope="module")
def pmix_slurm() -> Iterator[Slurm]:
    """Below /tmp, which containers share with the host: PMIx's sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-pmix-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for node in ("n1", "n2"):
            (folder / f"tmp-{node}").mkdir()
        with private_slurm(folder, nodes=NODES, gpus=TASKS, extra=f"TmpFS={folder}/tmp-%n") as cluster:
            if "Cannot create context for mpi/pmix" in cluster.tail(lines=1000):
                pytest.skip("this Slurm does not load PMIx (Debian: apt-get install libpmix-dev)")
            yield cluster


def check(said: str, nodes: set[str]) -> None:
    """Each rank once, all of them in one world, and one mount a node."""
    ranks = re.findall(r"^rank (\d+) of (\d+) sum (\d+) on (\S+) (\d+)$", said, re.MULTILINE)
    everybody = NODES * TASKS
    assert sorted(int(rank) for rank, *_ in ranks) == list(range(everybody)), said
    assert {(size, total) for _, size, total, _, _ in ranks} == {(str(everybody), str(sum(range(everybody))))}
    for node in nodes:
        of_node = [device for *_, where, device in ranks if where == node]
        assert len(of_node) == TASKS
        assert len(set(of_node)) == 1, "every task of a node reads one device"


def test_srun_with_pmix(
    pmix_slurm: Slurm, published: Store, with_mpi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**pmix_slurm.env, **BY_TCP}.items():
        monkeypatch.setenv(name, value)
    published.publish(record_of(with_mpi, "v2.0"), with_mpi)
    out = tmp_path / "job.out"
    words = ["job", "script", "demo:v2.0", "--launcher", "mpi", "--runtime", "run", "-N", str(NODES)]
    job = sqshpipe(*words, f"--sbatch=--output={out}", "--submit", "--", "python3", "-c", PROGRAM).strip()
    assert pmix_slurm.wait_job(job, timeout=120) == "COMPLETED", out.read_text() + pmix_slurm.tail()
    check(out.read_text(), {"n1", "n2"})


def test_plain_mpirun(
    published: Store, with_mpi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.publish(record_of(with_mpi, "v2.0"), with_mpi)
    agent, script = tmp_path / "agent", tmp_path / "job.sh"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    words = ["job", "script", "demo:v2.0", "--launcher", "mpirun", "-N", str(NODES), "-o", str(script)]
    sqshpipe(*words, "--host", "n1", "--host", "n2", "--", "python3", "-c", PROGRAM)
    environment = {
        "OMPI_MCA_plm_rsh_agent": str(agent),
        "OMPI_MCA_plm": "rsh",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **BY_TCP,
    }
    done = subprocess.run(
        ["bash", str(script)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, {"n1", "n2"})
