"""pyxis before 0.22, as stock machine images carry it: ranks of a published file, unpacked once at most.

No package registry has pyxis or enroot. A stand-in for both always runs; the real ones run where
SQSHPIPE_TEST_OLD_PYXIS names a spank_pyxis.so before 0.22, SQSHPIPE_TEST_OLD_ENROOT the folder of an enroot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.node import software
from pipeline.store.store import Store
from tests.support.servers import standin_pyxis
from tests.support.servers.slurm import Slurm, missing, private_slurm
from tests.support.waiting import until

NODES, TASKS = 2, 8
PLUGIN = os.environ.get("SQSHPIPE_TEST_OLD_PYXIS", "")
ENROOT = os.environ.get("SQSHPIPE_TEST_OLD_ENROOT", "")
ASK = (
    "import json, os; e = os.environ; print(json.dumps([e['RANK'], e['LOCAL_RANK'], e['WORLD_SIZE'],"
    " e['SLURMD_NODENAME'], os.stat('/word').st_dev, open('/word').read()]))"
)
SLOW = """\
#!/bin/sh
# Stops half-way, as a full disk or a slow store does
case " $* " in
    *" -d "*) while [ "$1" != -d ]; do shift; done; mkdir -p "$2/half"; sleep 15 ;;
    *) exec /usr/bin/unsquashfs "$@" ;;
esac
"""
COUNTING = """\
#!/bin/sh
# Counts calls. Says where things lie, as enroot.conf does: pyxis keeps a job's variables for that from enroot
echo "$*" >> {log}
for each in runtime cache data temp; do
    export "ENROOT_$(echo $each | tr a-z A-Z)_PATH={folder}/$each"
done
exec {real} "$@"
"""

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    """A cluster whose nodes have an old pyxis, and what its enroot was called with."""

    slurm: Slurm
    log: Path
    data: Path
    env: dict[str, str]

    def created(self) -> list[str]:
        said = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in said if line.startswith("create")]

    def sqshpipe(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.slurm.run([sys.executable, "-m", "pipeline", *words], env=self.env, timeout=120)

    def job(self, store: Store, *more: str, nodes: int = NODES) -> tuple[list[list[str]], str]:
        """Submit a rendered job and wait; what each rank printed, and all output."""
        out = self.log.with_name(f"out{len(list(self.log.parent.glob('out*')))}")
        words = ["job", "script", "demo", "-N", str(nodes), f"--sbatch=--output={out}", *more]
        job = self.sqshpipe(*words, "--store", store.root, "--submit", "--", "python3", "-c", ASK).stdout
        assert self.slurm.wait_job(job.split()[0], timeout=150) == "COMPLETED", out.read_text()
        text = out.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith('["')], text


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param(
            "real",
            marks=pytest.mark.skipif(
                not (PLUGIN and ENROOT),
                reason="no registry has pyxis and enroot: SQSHPIPE_TEST_OLD_PYXIS, …_OLD_ENROOT name them",
            ),
        ),
    ]
)
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, published: Store) -> Iterator[Old]:
    del published  # it puts a `sqshpipe` into PATH, which the nodes take over
    with tempfile.TemporaryDirectory(prefix="sqshpipe-old-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if request.param == "real":
            plugin, enroot = Path(PLUGIN), Path(ENROOT) / "enroot"
            line = f"required {plugin} runtime_path={folder}/runtime execute_entrypoint=0\n"
        else:
            plugin, enroot = standin_pyxis.build(folder / "spank_pyxis.so", "0.20.0"), folder / "enroot.sh"
            enroot.write_text(standin_pyxis.ENROOT)
            enroot.chmod(0o755)
            line = f"required {plugin}\n"
        tools = folder / "tools"
        tools.mkdir()
        (tools / "enroot").write_text(COUNTING.format(folder=folder, log=folder / "log", real=enroot))
        (tools / "enroot").chmod(0o755)
        path = f"{tools}:{ENROOT}:{os.environ['PATH']}" if ENROOT else f"{tools}:{os.environ['PATH']}"
        monkeypatch.setenv("PATH", path)
        env = {"NVIDIA_VISIBLE_DEVICES": "void", "PATH": path, "STANDIN_DATA": str(folder / "data")}
        env["ENROOT_DATA_PATH"] = "/nonexistent"  # pyxis does not pass it on
        for each in ("runtime", "cache", "data", "temp"):
            (folder / each).mkdir()
        with private_slurm(folder / "slurm", nodes=NODES, gpus=TASKS, plugstack=line) as cluster:
            monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
            yield Old(slurm=cluster, log=folder / "log", data=folder / "data", env=env)


def all_ranks(ranks: list[list[str]]) -> bool:
    return sorted(int(rank[0]) for rank in ranks) == list(range(NODES * TASKS)) and {
        (rank[2], rank[5]) for rank in ranks
    } == {(str(NODES * TASKS), "one mount\n")}


def test_a_job_script_avoids_unpacking_by_itself(old: Old, published: Store) -> None:
    version = software.pyxis_version()
    assert version is not None
    assert version < (0, 22)
    ranks, text = old.job(published)
    assert all_ranks(ranks), text
    for node in old.slurm.nodes:
        assert len({rank[4] for rank in ranks if rank[3] == node}) == 1, (
            "every task of a node reads one device"
        )
    assert old.created() == []


def test_ranks_of_two_jobs_use_what_one_of_them_unpacked(old: Old, published: Store) -> None:
    of_a_job = software.names_are_of_a_job()
    for number in (1, 2):
        # both nodes of this test have one folder of containers
        ranks, text = old.job(published, "--runtime", "unpack", nodes=1 if of_a_job else NODES)
        assert len(ranks) == TASKS if of_a_job else all_ranks(ranks), text
        assert len(old.created()) == (number if of_a_job else 1)
    if of_a_job:  # pyxis removes such a container with its job
        return
    assert [each.name for each in old.data.iterdir() if each.is_dir()] == [f"pyxis_{name_of(published)}"]
    more = [f"--container-name={name_of(published)}", "--container-readonly", "cat", "/word"]
    assert old.slurm.run(["srun", "-N1", "-n1", *more], env=old.env).stdout == "one mount\n"
    assert len(old.created()) == 1


def test_a_path_unpacks_once_a_node_and_step(old: Old, published: Store) -> None:
    ranks, text = old.job(published, "--runtime", "path", nodes=1)
    assert len(ranks) == TASKS, text
    assert len(old.created()) == 1


def test_a_name_of_one_job_is_made_for_that_job(
    old: Old, published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = old.slurm.folder / "plugstack.conf"
    stack.write_text(stack.read_text().rstrip() + " container_scope=job\n")
    monkeypatch.setitem(old.env, "SLURM_JOB_ID", "77")
    reported = old.sqshpipe("node", "unpack", published.resolve("demo").path)
    assert reported.stdout.startswith("sqshpipe-")
    assert (old.data / f"pyxis_77_{reported.stdout.strip()}").is_dir()


def test_of_eight_that_unpack_at_once_one_does(old: Old, published: Store) -> None:
    file = published.resolve("demo").path
    with ThreadPoolExecutor(TASKS) as pool:
        reported = list(pool.map(lambda _: old.sqshpipe("node", "unpack", file), range(TASKS)))
    assert len({done.stdout for done in reported}) == 1
    assert sum("unpacked in" in done.stderr for done in reported) == 1
    assert len(old.created()) == 1


def test_what_a_killed_unpacking_left_is_never_started(old: Old, published: Store) -> None:
    slow = old.log.with_name("tools") / "unsquashfs"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    file = published.resolve("demo").path
    argv = [sys.executable, "-m", "pipeline", "node", "unpack", str(file)]
    first = subprocess.Popen(argv, env={**os.environ, **old.env}, start_new_session=True)
    assert until(lambda: bool(list(old.data.glob(".tmp.*/half"))), 30)
    first.kill()  # what it has started runs on, as after a killed step on some clusters
    first.wait(timeout=10)
    slow.unlink()
    assert "unpacked in" in old.sqshpipe("node", "unpack", file).stderr
    (made,) = (each for each in old.data.iterdir() if each.is_dir())
    assert made.name.endswith(name_of(published))
    assert (made / "word").read_text() == "one mount\n"


def name_of(store: Store) -> str:
    return f"sqshpipe-{store.resolve('demo').sha256[:16]}"
