"""The importer under the real pyxis and enroot: `srun --container-image=demo:v1.0`.

Neither is in a package registry: SQSHPIPE_TEST_PYXIS names spank_pyxis.so where it is in no usual place,
enroot is looked for in PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from pipeline.cluster import bootstrap
from pipeline.node import shim
from pipeline.node.install import ImporterSettings, install, plugstack_line
from pipeline.store.store import Store
from tests.integration.cluster.conftest import record_of
from tests.support.servers.slurm import Slurm, missing, private_slurm
from tests.support.waiting import until

USUAL = ("/usr/local/lib/slurm", "/usr/lib/slurm", "/usr/lib/x86_64-linux-gnu/slurm", "/opt/sqshpipe/lib")
NODES, TASKS = 2, 8


def _spank() -> Path | None:
    named = os.environ.get("SQSHPIPE_TEST_PYXIS")
    places = [Path(named)] if named else [Path(folder) / "spank_pyxis.so" for folder in USUAL]
    return next((each for each in places if each.is_file()), None)


pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(_spank() is None, reason="pyxis is not installed, and no package registry has it"),
    pytest.mark.skipif(shutil.which("enroot") is None, reason="enroot is not installed"),
]


@pytest.fixture
def pyxis(published: Store) -> Iterator[Slurm]:
    """A private Slurm whose pyxis starts what our importer finds in the store."""
    with cluster_of(published, None) as cluster:
        yield cluster


@contextlib.contextmanager
def cluster_of(
    published: Store, hooks: Path | None, *, word: Literal["optional", "required"] = "required"
) -> Iterator[Slurm]:
    """`pyxis`; with the command for `hooks`, root mounts for jobs, and its squashfuse is installed."""
    extra = []
    with tempfile.TemporaryDirectory(prefix="sqshpipe-pyxis-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings = ImporterSettings(store=published.root, state=folder / "state", cluster="sqshtest")
        program = install(settings, folder / "prefix")
        for each in ("runtime", "enroot"):
            (folder / each).mkdir()
            (folder / each).chmod(0o1777)
        line = plugstack_line(
            program, str(_spank()), [f"runtime_path={folder}/runtime", "execute_entrypoint=0"], word=word
        )
        if hooks is not None:
            shim.install(folder / "prefix")
            extra = ["PrologFlags=Alloc"]
            texts = bootstrap.hooks(program.with_name("pyxis-importer.json"), str(hooks))
            for each, text in texts.items():
                (folder / each).write_text(text)
                (folder / each).chmod(0o755)
                extra.append(f"{each.capitalize()}={folder / each}")
        with private_slurm(
            folder / "slurm", nodes=NODES, gpus=TASKS, plugstack=line + "\n", extra="\n".join(extra)
        ) as cluster:
            yield cluster


def environment(cluster: Slurm) -> dict[str, str]:
    base = cluster.folder.parent / "enroot"
    names = ("RUNTIME", "CACHE", "DATA", "TEMP")
    places = {f"ENROOT_{name}_PATH": str(base / name.lower()) for name in names}
    for each in places.values():
        Path(each).mkdir(exist_ok=True)
    return {**places, "NVIDIA_VISIBLE_DEVICES": "void"}


def sqshpipe(*words: str | Path, cluster: Slurm) -> str:
    done = cluster.run([sys.executable, "-m", "pipeline", *words], env=environment(cluster), timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("runtime", ["pyxis", "path"])
def test_a_rendered_job_has_one_mount_a_node(
    pyxis: Slurm, published: Store, tmp_path: Path, runtime: str
) -> None:
    out = tmp_path / "out"
    ask = (
        "import json, os, time; time.sleep(1); e = os.environ; print(json.dumps([e['RANK'], e['LOCAL_RANK'], "
    )
    ask += "e['WORLD_SIZE'], e['SLURMD_NODENAME'], os.stat('/word').st_dev, open('/word').read()]))"
    words = ["job", "script", "demo", "--runtime", runtime, "-N", str(NODES), f"--sbatch=--output={out}"]
    job = sqshpipe(*words, "--submit", "--", "python3", "-c", ask, cluster=pyxis).split()[0]
    assert pyxis.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
    ranks = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("[")]
    assert sorted(int(rank[0]) for rank in ranks) == list(range(NODES * TASKS))
    assert {(rank[2], rank[5]) for rank in ranks} == {(str(NODES * TASKS), "one mount\n")}
    for node in pyxis.nodes:
        assert sorted(int(rank[1]) for rank in ranks if rank[3] == node) == list(range(TASKS))
        assert len({rank[4] for rank in ranks if rank[3] == node}) == 1, (
            "every task of a node reads one device"
        )
    assert not list((published.root / "leases").glob("job-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a Prolog is root's")
def test_data_is_mounted_by_the_prolog_and_seen_by_every_rank(published: Store, tmp_path: Path) -> None:
    out, folder, hook = tmp_path / "out", tmp_path / "wikitext2", tmp_path / "hook"
    folder.mkdir()
    (folder / "text").write_text("data\n")
    variables = f"PYTHONPATH={os.environ['PYTHONPATH']}"
    hook.write_text(f'#!/bin/sh\nexec env {variables} {sys.executable} -m pipeline "$@"\n')
    hook.chmod(0o755)
    ask = "import os, time; time.sleep(1); print(open('/data/text').read().strip(), os.stat('/data').st_dev)"
    with cluster_of(published, hook) as cluster:
        sqshpipe("store", "import", folder, "--as", "wikitext2:v1", cluster=cluster)
        words = ["job", "script", "demo", "--data", "wikitext2=/data", "-N", str(NODES)]
        words += [f"--sbatch=--output={out}", "--submit", "--", "python3", "-c", ask]
        job = sqshpipe(*words, cluster=cluster).split()[0]
        assert cluster.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
        seen = [line for line in out.read_text().splitlines() if line.startswith("data ")]
        assert len(seen) == NODES * TASKS
        assert len(set(seen)) == 1, "both nodes are this host, which has the file mounted once"
        digest = published.resolve("wikitext2").sha256
        assert until(lambda: digest not in Path("/proc/self/mounts").read_text())


def test_prune_spares_the_file_while_a_step_runs_and_takes_it_afterwards(
    pyxis: Slurm, published: Store, image: Path, tmp_path: Path
) -> None:
    newer, meet, out = tmp_path / "newer.sqsh", tmp_path / "meet", tmp_path / "out"
    newer.write_bytes(image.read_bytes() + b"\0" * 4096)
    published.publish(record_of(newer, "v2.0", "2026-02-01T00:00:00Z"), newer)
    held, leases = published.resolve("demo:v1.0").path, published.root / "leases"
    meet.mkdir()
    wait = "echo up; while [ ! -e /meet/go ]; do sleep 0.2; done"
    step = f"srun --container-image=demo:v1.0 --container-mounts={meet}:/meet sh -c '{wait}; cat /word'"
    argv = ["sbatch", "--parsable", f"-N{NODES}", f"--ntasks-per-node={TASKS}", f"--output={out}"]
    job = pyxis.run([*argv, "--wrap", step], env=environment(pyxis)).stdout.strip()
    assert until(lambda: out.exists() and out.read_text().count("up\n") == NODES * TASKS, 90), pyxis.tail()
    reported = [json.loads(each.read_text()) for each in leases.glob("job-*")]
    assert {(each["job"], each["sha256"]) for each in reported} == {(job, held.stem)}
    assert sorted(each["host"] for each in reported) == list(pyxis.nodes)
    prune = ["store", "prune", "--keep", "1", "--grace", "0m", "--delete-after", "0m"]
    assert f"job {job}" in sqshpipe(*prune, cluster=pyxis)
    assert held.exists()
    (meet / "go").touch()
    assert pyxis.wait_job(job, timeout=90) == "COMPLETED", out.read_text()
    assert out.read_text().count("one mount\n") == NODES * TASKS
    assert until(lambda: not list(leases.glob("job-*")), 10)
    for _ in range(3):
        sqshpipe(*prune, cluster=pyxis)
    assert not held.exists()


@pytest.mark.parametrize("word", ["required", "optional"])
def test_what_is_not_published_is_refused_with_the_nearest_names(
    word: Literal["optional", "required"], published: Store
) -> None:
    """Slurm's own meaning of `optional`: the step runs, without a container. The documents warn of it."""
    argv = ["srun", "-n1", "-t2", "--container-image=demo:v1.1", "echo", "it ran"]
    with cluster_of(published, None, word=word) as cluster:
        done = cluster.run(argv, timeout=120, env=environment(cluster), check=False)
    assert "demo:v1.1 is not published" in done.stderr
    assert "demo:v1.0" in done.stderr
    assert (done.returncode == 0, "it ran" in done.stdout) == (word == "optional", word == "optional")


@pytest.mark.parametrize("path", ["", "/opt/conda/bin:/home/user/.local/bin:/usr/bin:/bin"])
def test_ranks_of_all_steps_and_jobs_read_one_kernel_mount(
    path: str, published: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's PATH takes no part; the squashfuse that comes after that of sqshpipe serves nobody here."""
    if os.geteuid() != 0:
        pytest.skip("a prolog mounts as root")
    node, release, out = tmp_path / "node", published.resolve("demo:v1.0"), tmp_path / "out"
    hook = tmp_path / "hook"
    variables = f"PYTHONPATH={os.environ['PYTHONPATH']} SQSHPIPE_NODE_DIR={node}"
    none = tmp_path / "late" / "squashfuse"
    none.parent.mkdir()
    none.write_text("#!/bin/sh\nexit 7\n")
    hook.write_text(f'#!/bin/sh\nexec env {variables} {sys.executable} -m pipeline "$@"\n')
    for each in (hook, none):
        each.chmod(0o755)
    first = tmp_path / "first"
    monkeypatch.setenv("PATH", f"{first}:{none.parent}:{os.environ['PATH']}")
    with cluster_of(published, hook) as cluster:
        first.symlink_to(cluster.folder.parent / "prefix" / "sbin")
        ask = "import os, time; print('rank', os.stat('/word').st_uid, open('/word').read().strip())"
        step = f'srun --container-image=demo:v1.0 python3 -c "{ask}"'
        argv = [
            "sbatch",
            "--parsable",
            f"-N{NODES}",
            "--ntasks-per-node=4",
            f"--comment=sqshpipe:{release.sha256}",
        ]
        env = {**environment(cluster), **({"PATH": path} if path else {})}
        jobs = [
            cluster.run(
                [*argv, f"--output={out}.{n}", "--wrap", f"{step}; {step}; {step}"], env=env
            ).stdout.strip()
            for n in range(2)
        ]
        assert until(lambda: len(squashfs_devices(node)) == 1, 30), cluster.tail()
        for n, job in enumerate(jobs):
            said = Path(f"{out}.{n}")
            assert cluster.wait_job(job, timeout=120) == "COMPLETED", said.read_text()
            assert said.read_text().count("rank 0 one mount") == 3 * 4 * NODES
        assert until(lambda: not squashfs_devices(node), 30), cluster.tail()


def squashfs_devices(node: Path) -> set[str]:
    """The devices that are mounted below the node's folder: as many as there are page caches."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {words[0] for words in lines if words[1].startswith(str(node))}
