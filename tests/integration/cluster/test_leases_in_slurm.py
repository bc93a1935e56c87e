"""Steps of a real Slurm through the importer's contract: leases appear, prune spares the file, leases go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap
from pipeline.node.install import ImporterSettings, install
from pipeline.node.user_mount import User
from pipeline.store.store import Store
from tests import conftest
from tests.integration.cluster.conftest import record_of
from tests.support.servers.slurm import Slurm, missing, private_slurm
from tests.support.waiting import until

NODES, TASKS = 2, 8
# As pyxis on each node of a step: a get, the tasks in one mount, and release, twice and without node name.
STEP = """\
set -eu
file=$({program} get docker://demo:v1.0)
sqshpipe run --mount {meet}:/meet "$file" -- python3 -c '
import os, time
node = os.environ["SLURMD_NODENAME"]
print("rank", os.environ["SLURM_PROCID"], node, os.stat("/word").st_dev, flush=True)
deadline = time.monotonic() + 120
while not os.path.exists("/meet/" + node) and time.monotonic() < deadline:
    time.sleep(0.1)'
if [ "$SLURM_LOCALID" = 0 ]; then
    SLURMD_NODENAME= {program} release
    SLURMD_NODENAME= {program} release
fi
"""


def test_a_running_step_keeps_its_file_and_an_ended_one_does_not(
    published: Store, slurm: Slurm, image: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "newer.sqsh"
    newer.write_bytes(image.read_bytes() + b"\0" * 4096)
    published.publish(record_of(newer, "v2.0", "2026-02-01T00:00:00Z"), newer)
    held = published.resolve("demo:v1.0").path
    program = install(ImporterSettings(store=published.root, state=tmp_path / "state"), tmp_path / "prefix")
    step, out, meet = tmp_path / "step.sh", tmp_path / "out", tmp_path / "meet"
    meet.mkdir()
    step.write_text(STEP.format(program=program, meet=meet))
    # no comment on the job: only the leases say so
    argv = ["sbatch", "--parsable", f"-N{NODES}", f"--ntasks-per-node={TASKS}", f"--output={out}"]
    job = slurm.run([*argv, "--wrap", f"srun --wait=0 sh {step}"]).stdout.strip()
    leases = published.root / "leases"
    assert until(lambda: out.exists() and out.read_text().count("rank ") == NODES * TASKS), slurm.tail()
    reported = [json.loads(each.read_text()) for each in leases.glob("job-*")]
    assert {(each["job"], each["step"], each["version"]) for each in reported} == {(job, "0", "v1.0")}
    assert sorted(each["host"] for each in reported) == ["n1", "n2"], "a lease a node, on one host too"

    def prune() -> str:
        words = ["store", "prune", "--keep", "1", "--grace", "0m", "--delete-after", "0m"]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert f"job {job}" in prune()
    (meet / "n1").touch()
    assert until(lambda: len(list(leases.glob("job-*"))) == 1)
    assert [json.loads(each.read_text())["host"] for each in leases.glob("job-*")] == ["n2"]
    prune()
    assert held.exists(), "the other node still reads it"
    (meet / "n2").touch()
    assert slurm.wait_job(job, timeout=90) == "COMPLETED", out.read_text()
    ranks = [line.split() for line in out.read_text().splitlines() if line.startswith("rank ")]
    assert sorted(int(rank[1]) for rank in ranks) == list(range(NODES * TASKS))
    for node in ("n1", "n2"):
        assert len({rank[3] for rank in ranks if rank[2] == node}) == 1
    assert not list(leases.glob("job-*"))
    for _ in range(3):
        prune()
    assert not held.exists()


@contextlib.contextmanager
def slurm_with_hooks(store: Store, place: Path, *more: str, **files: str) -> Iterator[Slurm]:
    """A private Slurm with our prolog and epilog, more lines of slurm.conf, and files beside that.

    Mounts lie in `place`/node, which all users can reach.
    """
    if missing():
        conftest.missing(missing())
    if os.geteuid() != 0:
        pytest.skip("a prolog mounts as root")
    command = place / "hook"
    environment = f"PYTHONPATH={os.environ['PYTHONPATH']} SQSHPIPE_NODE_DIR={place}/node"
    command.write_text(f'#!/bin/sh\nexec env {environment} {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    lines = [*more] or ["PrologFlags=Alloc"]
    program = install(ImporterSettings(store=store.root, state=place / "state"), place / "prefix")
    settings = program.with_name("pyxis-importer.json")
    for name, text in bootstrap.hooks(settings, str(command)).items():
        hook = place / f"{name}.sh"
        hook.write_text(text)
        hook.chmod(0o755)
        lines.append(f"{name.capitalize()}={hook}")
    with tempfile.TemporaryDirectory(prefix="sqshpipe-hooks-", dir="/var/tmp") as folder:
        for name, text in files.items():
            (Path(folder) / f"{name}.conf").write_text(text.format(folder=folder))
        with private_slurm(Path(folder), nodes=1, extra="\n".join(lines)) as cluster:
            yield cluster


@pytest.fixture
def hooked(published: Store, tmp_path: Path) -> Iterator[Slurm]:
    with slurm_with_hooks(published, tmp_path) as cluster:
        yield cluster


def test_prolog_mounts_what_the_comment_names_and_epilog_unmounts_it(
    hooked: Slurm, published: Store, tmp_path: Path
) -> None:
    release = published.resolve("demo")
    users = tmp_path / "node" / release.sha256 / "users"
    root = users / User(uid=os.geteuid(), gid=os.getegid()).name / "root"
    argv = ["sbatch", "--parsable", f"--comment=sqshpipe:{release.sha256}", "--output=/dev/null"]
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
    jobs = [
        hooked.run([*argv, "--wrap", f"cat {root}/word > {tmp_path}/{n}; {wait}"]).stdout.strip()
        for n in "ab"
    ]
    assert until(lambda: all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in "ab")), (
        hooked.tail()
    )
    assert (tmp_path / "a").read_text() == "one mount\n"
    assert Path("/proc/self/mounts").read_text().count(str(root)) == 1, "two jobs, one mount"
    assert Path("/proc/self/mounts").read_text().count(f"{release.sha256}/own/root") == 1
    (tmp_path / "go").touch()
    assert [hooked.wait_job(job) for job in jobs] == ["COMPLETED", "COMPLETED"]
    assert until(lambda: release.sha256 not in Path("/proc/self/mounts").read_text(), 30), hooked.tail()


def knows_shared() -> bool:
    """Whether this Slurm's plugin knows `Shared`; 22.05 of Debian 12 does not."""
    plugins = Path("/usr/lib").glob("*/slurm*/job_container_tmpfs.so")
    return any(b"Shared" in each.read_bytes() for each in plugins)


@pytest.mark.parametrize("shared", [False, True])
def test_a_job_with_a_tmp_of_its_own_sees_what_was_mounted_before_it(published: Store, shared: bool) -> None:
    """Slurm makes the mount namespace of a job after the prolog; only with Shared later mounts reach it."""
    if shared and not knows_shared():
        pytest.skip("this Slurm's job_container/tmpfs does not know Shared")
    conf = "AutoBasePath=true\nBasePath={folder}/jobs\n" + "Shared=true\n" * shared
    lines = ("JobContainerType=job_container/tmpfs", "PrologFlags=Contain")
    with tempfile.TemporaryDirectory(
        prefix="sqshpipe-tmpfs-", dir="/var/tmp"
    ) as name:  # /tmp is the job's own
        place = Path(name)
        late = place / "late"
        late.mkdir()
        release = published.resolve("demo")
        user = User(uid=os.geteuid(), gid=os.getegid()).name
        root = place / "node" / release.sha256 / "users" / user / "root"
        script = (
            f"ls /tmp | wc -l; cat {root}/word; touch {place}/runs; "
            f"while [ ! -e {place}/go ]; do sleep .1; done; ls {late}"
        )
        with slurm_with_hooks(published, place, *lines, job_container=conf) as cluster:
            argv = ["sbatch", "--parsable", f"--comment=sqshpipe:{release.sha256}", f"--output={place}/out"]
            job = cluster.run([*argv, "--wrap", script]).stdout.strip()
            assert until((place / "runs").exists, 30), cluster.tail()
            with tmpfs(late):
                (late / "seen").touch()
                (place / "go").touch()
                assert cluster.wait_job(job) == "COMPLETED"
            seen = ["seen"] if shared else []
            assert (place / "out").read_text().splitlines() == ["0", "one mount", *seen]
            assert until(lambda: release.sha256 not in Path("/proc/self/mounts").read_text(), 30)
            assert until(lambda: release.sha256 not in "".join(loop_files()), 30)


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


def loop_files() -> list[str]:
    """The files of all loop devices of this host."""
    found = []
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(each.read_text())
    return found
