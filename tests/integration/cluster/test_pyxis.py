"""The importer under the real pyxis and enroot: `srun --container-image=demo:v1.0`.

Neither is in a package registry: SQSHPIPE_TEST_PYXIS names spank_pyxis.so where it is in no usual place,
enroot is looked for in PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.bootstrap import hooks
from pipeline.node.install import ImporterSettings, install, plugstack_line
from pipeline.store.store import Store
from tests.integration.cluster.conftest import record_of
from tests.support.servers.slurm import Slurm, missing, private_slurm
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
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
    """A private Slurm whose pyxis starts what our importer finds in the store, with our Prolog and Epilog."""
    with tempfile.TemporaryDirectory(prefix="sqshpipe-pyxis-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings = ImporterSettings(store=published.root, state=folder / "state", cluster="sqshtest")
        program = install(settings, folder / "prefix")
        for each in ("runtime", "enroot"):
            (folder / each).mkdir()
            (folder / each).chmod(0o1777)
        line = plugstack_line(
            program, str(_spank()), [f"runtime_path={folder}/runtime", "execute_entrypoint=0"]
        )
        command = folder / "sqshpipe"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pipeline "$@"\n')
        command.chmod(0o755)
        extra = ["PrologFlags=Alloc"]
        for hook, text in hooks(published.root, str(command)).items():
            (folder / hook).write_text(text)
            (folder / hook).chmod(0o755)
            extra.append(f"{hook.capitalize()}={folder}/{hook}")
        settled = {"nodes": NODES, "gpus": TASKS, "extra": "\n".join(extra), "plugstack": line + "\n"}
        with private_slurm(folder / "slurm", **settled) as cluster:  # type: ignore[arg-type]
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
def test_data_is_mounted_by_the_prolog_and_seen_by_every_rank(
    pyxis: Slurm, published: Store, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", tmp_path / "wikitext2"
    folder.mkdir()
    (folder / "text").write_text("data\n")
    sqshpipe("store", "import", folder, "--as", "wikitext2:v1", cluster=pyxis)
    ask = "import os, time; time.sleep(1); print(open('/data/text').read().strip(), os.stat('/data').st_dev)"
    words = [
        "job",
        "script",
        "demo",
        "--data",
        "wikitext2=/data",
        "-N",
        str(NODES),
        f"--sbatch=--output={out}",
    ]
    job = sqshpipe(*words, "--submit", "--", "python3", "-c", ask, cluster=pyxis).split()[0]
    assert pyxis.wait_job(job, timeout=120) == "COMPLETED", out.read_text()
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
    told = [json.loads(each.read_text()) for each in leases.glob("job-*")]
    assert {(each["job"], each["sha256"]) for each in told} == {(job, held.stem)}
    assert sorted(each["host"] for each in told) == list(pyxis.nodes)
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


def test_what_is_not_published_is_refused_with_the_nearest_names(pyxis: Slurm) -> None:
    argv = ["srun", "-n1", "-t2", "--container-image=demo:v1.1", "true"]
    done = pyxis.run(argv, timeout=120, env=environment(pyxis), check=False)
    assert done.returncode != 0
    assert "demo:v1.1 is not published" in done.stderr
    assert "demo:v1.0" in done.stderr
