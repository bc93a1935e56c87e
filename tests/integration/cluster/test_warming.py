"""Prewarming nodes of a real Slurm, what the page cache holds, and what one mount saves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ToolError, VerificationError
from pipeline.node import page_cache, prewarm_on_node
from pipeline.node import prewarm as prewarming
from pipeline.node.install import ImporterSettings, install
from pipeline.squashfs.startup import Profile
from pipeline.store import profiles
from pipeline.store.store import Store
from tests.integration.cluster.conftest import record_of
from tests.support.faults.people import as_user
from tests.support.images import squashed
from tests.support.store.releases import new_store
from tests.support.store.versions import layer, release

MEGABYTES = 16
RANKS = 8


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a /data of 16 MiB that does not compress."""
    if squashed.missing():
        pytest.skip(squashed.missing())
    return squashed.squash(tmp_path_factory.mktemp("heavy"), megabytes=MEGABYTES)


def sqshpipe(*words: str | Path, code: int = 0) -> str:
    argv = [sys.executable, "-m", "pipeline", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("at_once", [1, 8])
def test_nodes_get_copies_that_the_importer_prefers(published: Store, tmp_path: Path, at_once: int) -> None:
    local, state = tmp_path / "nvme", tmp_path / "state"
    settings = ImporterSettings(store=published.root, state=state, local=local, trusted_uids=(os.geteuid(),))
    program = install(settings, tmp_path / "prefix")
    words = ["node", "prewarm", "demo", "--nodes", "n[1-2]", "--local", local, "--state", state, "--json"]
    rows = json.loads(sqshpipe(*words, "--at-once", str(at_once)))
    release = published.resolve("demo")
    assert [row["node"] for row in rows] == ["n1", "n2"]
    assert {row["path"] for row in rows} == {str(local / f"{release.sha256}.sqsh")}
    assert {row["size"] for row in rows} == {release.size}
    assert [each.name for each in local.iterdir()] == [f"{release.sha256}.sqsh"]
    assert len(list((state / "verified").iterdir())) >= 1
    got = subprocess.run([program, "get", "docker://demo"], capture_output=True, text=True, env={})
    assert got.stdout == f"{local}/{release.sha256}.sqsh\n", got.stderr
    again = json.loads(sqshpipe(*words))
    assert [row["there"] for row in again] == [True, True]


@pytest.mark.usefixtures("slurm")
def test_a_node_reports_what_it_took_from_the_version_before(tmp_path: Path) -> None:
    store, local = new_store(tmp_path / "store"), tmp_path / "nvme"
    base = layer("a", 4)
    release(store, "v1.0", base, layer("b", 1), folder=tmp_path)
    release(store, "v1.1", base, layer("c", 1), folder=tmp_path)
    words = ["--store", store.root, "--nodes", "n1", "--local", local, "--state", tmp_path]
    (first,) = json.loads(sqshpipe("node", "prewarm", "demo:v1.0", *words, "--json"))
    assert (first["read"], first["reused"]) == (first["size"], 0)
    (second,) = json.loads(sqshpipe("node", "prewarm", "demo:v1.1", *words, "--json"))
    assert second["read"] + second["reused"] == second["size"]
    assert second["read"] < 2 << 20
    assert Path(second["path"]).read_bytes() == store.resolve("demo:v1.1").path.read_bytes()
    Path(second["path"]).unlink()
    assert "MB of it from copies on the node" in sqshpipe("node", "prewarm", "demo:v1.1", *words)


@pytest.mark.usefixtures("slurm")
def test_sbcast_brings_the_copy_where_it_pays(published: Store, tmp_path: Path) -> None:
    local = tmp_path / "nvme"
    words = ["node", "prewarm", "demo", "--nodes", "n1", "--local", local, "--state", tmp_path, "--sbcast"]
    sqshpipe(*words, "--partition", "main", code=2)
    (row,) = json.loads(sqshpipe(*words, "--json"))
    release = published.resolve("demo")
    assert (row["node"], row["size"]) == ("n1", release.size)
    assert [each.name for each in local.iterdir()] == [f"{release.sha256}.sqsh"]


@pytest.mark.usefixtures("slurm")
def test_the_page_cache_is_filled_and_checked(published: Store) -> None:
    release = published.resolve("demo")
    page_cache.forget(release.path)
    rows = sqshpipe("node", "prewarm", "demo", "--partition", "main").splitlines()
    assert [row.partition(":")[0] for row in rows] == ["n1", "n2"]
    assert "MB/s" in rows[0]
    if os.geteuid() == 0:
        assert page_cache.resident(release.path) == release.size


@pytest.mark.usefixtures("slurm")
def test_a_node_that_cannot_be_warmed_is_reported(published: Store, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    words = ["node", "prewarm", "demo", "--nodes", "n1", "--local", blocked / "folder", "--state", tmp_path]
    assert "n1: " in sqshpipe(*words, code=3)
    with pytest.raises(ToolError, match="did not run"):
        prewarming.prewarm(
            prewarming.PrewarmRequest(
                file=published.resolve("demo").path, sha256="0" * 64, nodes=("nosuch",), timeout=60
            )
        )


def test_wrong_bytes_get_no_name(tmp_path: Path) -> None:
    file = tmp_path / "file.sqsh"
    file.write_bytes(b"x" * 5000)
    with pytest.raises(VerificationError):
        prewarm_on_node.onto_disk(file, "0" * 64, tmp_path / "nvme", state=None)
    assert list((tmp_path / "nvme").iterdir()) == []
    with pytest.raises(ToolError, match="B free"):
        prewarm_on_node.onto_disk(file, "0" * 64, tmp_path / "nvme", state=None, reserve=1 << 60)
    with pytest.raises(VerificationError):
        prewarm_on_node.into_page_cache(file, "0" * 64)


@pytest.mark.skipif(os.geteuid() != 0, reason="mincore answers root only for files of others")
def test_the_page_cache_is_reported_truly(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 << 20))
    page_cache.forget(file)
    assert page_cache.resident(file) == 0
    with file.open("rb", buffering=0) as source:
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        source.read(1 << 20)
    assert 1 << 20 <= page_cache.resident(file) < 3 << 20
    prewarm_on_node.into_page_cache(file, None)
    assert page_cache.resident(file) == 3 << 20


RANK = """
import mmap, os, re, sys, time
number, meet = int(sys.argv[1]), sys.argv[2]
with open(sys.argv[3], 'rb') as file:
    view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
touched = sum(view[at] for at in range(0, len(view), 4096))
open(meet + '/%d' % number, 'w').close()
deadline = time.monotonic() + 60
while len(os.listdir(meet)) < 8 and time.monotonic() < deadline:
    time.sleep(0.05)
text = open('/proc/self/smaps').read()
block = text[text.index('/data'):]
print(*(int(re.search('%s: *([0-9]+) kB' % name, block).group(1)) for name in ('Rss', 'Pss')), flush=True)
time.sleep(1.5)
"""


def memory(argv_of: list[list[str]]) -> tuple[int, int]:
    """(sum of Rss, sum of Pss) in KiB over ranks that all map the data at the same time."""
    ranks = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for argv in argv_of]
    rows = [tuple(map(int, each.communicate(timeout=120)[0].split())) for each in ranks]
    return sum(row[0] for row in rows), sum(row[1] for row in rows)


@pytest.fixture
def meet(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "meet"
    folder.mkdir()
    yield folder
    for each in folder.iterdir():
        each.unlink()


def test_eight_ranks_on_one_mount_count_the_page_cache_once(
    heavy: Path, tmp_path: Path, meet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    base = [sys.executable, "-m", "pipeline", "run", "--mount", f"{meet}:/meet:rw", str(heavy), "--"]
    shared = memory(
        [[*base, "python3", "-c", RANK, str(number), "/meet", "/data"] for number in range(RANKS)]
    )
    for each in meet.iterdir():
        each.unlink()
    copies = []
    for number in range(RANKS):
        folder = tmp_path / f"unpacked-{number}"
        subprocess.run(
            ["unsquashfs", "-no-progress", "-quiet", "-d", folder, heavy, "data"],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
        copies.append([sys.executable, "-c", RANK, str(number), str(meet), f"{folder}/data"])
    unpacked = memory(copies)
    whole = MEGABYTES * 1024
    assert shared[0] == unpacked[0] == RANKS * whole, "every rank has the whole file mapped"
    assert shared[1] <= whole * 1.1, "and the node holds it once"
    assert unpacked[1] >= RANKS * whole * 0.9, "against eight times with unpacked copies"


def test_a_node_is_compared_with_an_image(image: Path) -> None:
    reported = sqshpipe("node", "check", image)
    assert f"architecture: image {os.uname().machine}, node {os.uname().machine}" in reported
    assert "bad      libfabric" in sqshpipe("node", "check", image, "--efa", code=7)


@pytest.mark.parametrize("command", [[], ["--", "python3", "-c", "import json"]], ids=["reads", "command"])
def test_the_bench_reports_each_way(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    counts = (1,) if command else (1, 2)
    words = [
        "node",
        "bench",
        image,
        "--scratch",
        tmp_path,
        *(f"--ranks={count}" for count in counts),
        "--json",
    ]
    rows = json.loads(sqshpipe(*words, *command))
    cold_and_warm = ("unpacked", "squashfuse", "kernel mount")
    ahead = [f"{way}, {what}" for way in cold_and_warm[1:] for what in ("profile", "whole file")]
    expected = [(way, ranks, warm) for ranks in counts for way in cold_and_warm for warm in (False, True)]
    expected += [(way, ranks, False) for ranks in counts for way in ahead]
    assert sorted((row["way"], row["ranks"], row["warm"]) for row in rows) == sorted(expected)
    measured = [row for row in rows if row["first_rank"] is not None]
    ways = {row["way"] for row in measured}
    assert {"unpacked"} <= ways
    if os.geteuid() == 0:
        assert {"kernel mount", "kernel mount, whole file"} <= ways
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        assert "squashfuse" in ways
        assert shutil.which("strace") is None or "squashfuse, profile" in ways
    assert all(row["first_rank"] > 0 and row["work"] > 0 for row in measured)
    assert all(0 <= row["first_bytes"] <= row["bytes"] <= image.stat().st_size for row in measured)
    assert all(row["bytes"] == 0 for row in measured if row["warm"]), "all of it was there"
    whole = [row for row in measured if row["way"].endswith("whole file") or row["way"] == "unpacked"]
    assert all(row["first_bytes"] > image.stat().st_size * 0.9 for row in whole if not row["warm"])
    assert all(row["note"] for row in rows if row not in measured)
    assert not list(tmp_path.glob("sqshpipe-bench-*"))


@pytest.mark.needs("root")
def test_an_ordinary_user_reads_that_roots_copy_is_there(image: Path, tmp_path: Path) -> None:
    """It cannot write into root's folder, and need not."""
    sha256 = record_of(image, "v1.0").sha256
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        file = place / "image.sqsh"
        file.write_bytes(image.read_bytes())
        file.chmod(0o444)
        local = place / "nvme"
        prewarm_on_node.onto_disk(file, sha256, local, state=None)
        before = (local / f"{sha256}.sqsh").stat()

        def warm() -> None:
            done = prewarm_on_node.onto_disk(file, sha256, local, state=None)
            assert (done.there, done.path) == (True, local / f"{sha256}.sqsh")

        assert as_user(60021, warm, group=60021) == ""
        assert (local / f"{sha256}.sqsh").stat() == before

        (local / f"{sha256}.sqsh").chmod(0o666)  # now anybody could have changed it
        assert "Permission denied" in as_user(60021, warm, group=60021)
        (local / f"{sha256}.sqsh").chmod(0o644)
        os.truncate(local / f"{sha256}.sqsh", 100)  # a copy that is not whole
        assert "Permission denied" in as_user(60021, warm, group=60021)


@pytest.mark.usefixtures("slurm")
def test_several_prewarms_at_once_do_not_meet(published: Store, tmp_path: Path) -> None:
    words = [
        "node",
        "prewarm",
        "demo",
        "--nodes",
        "n1",
        "--local",
        tmp_path / "nvme",
        "--state",
        tmp_path,
        "--sbcast",
    ]
    argv = [sys.executable, "-m", "pipeline", *map(str, words)]
    running = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for each in running:
        _, said = each.communicate(timeout=180)
        assert each.returncode == 0, said
    release = published.resolve("demo")
    assert [each.name for each in (tmp_path / "nvme").iterdir()] == [f"{release.sha256}.sqsh"]


@pytest.mark.usefixtures("slurm")
def test_nodes_use_the_sqshpipe_that_was_installed_there(published: Store, tmp_path: Path) -> None:
    """As documented: srun -N1 sqshpipe node check; prewarm calls no path of this machine."""
    done = sqshpipe(
        *["node", "install", "--store", published.root, "--prefix", tmp_path / "importer"],
        *["--state", tmp_path / "state", "--tool", tmp_path / "shared folder"],
    )
    assert "importer=" in done
    command = tmp_path / "shared folder" / "bin" / "sqshpipe"
    bare = {name: value for name, value in os.environ.items() if name.startswith("SLURM")}
    checked = subprocess.run(
        [
            "srun",
            "-N1",
            "--chdir=/",
            command,
            "node",
            "check",
            "demo:v1.0",
            "--store",
            published.root,
            "--json",
        ],
        env={**bare, "PATH": os.defpath + ":" + os.environ["PATH"].partition(":")[2]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stderr
    assert {
        "what": "leases",
        "verdict": "ok",
        "text": f"jobs can leave them in {published.root / 'leases'}",
    } in (json.loads(checked.stdout))
    log = tmp_path / "called"
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec "{command}" "$@"\n')
    wrapper.chmod(0o755)
    rows = json.loads(
        sqshpipe("node", "prewarm", "demo", "--nodes", "n[1-2]", "--command", wrapper, "--json")
    )
    assert [row["node"] for row in rows] == ["n1", "n2"]
    assert log.read_text().count("warm-here") == 2


@pytest.mark.usefixtures("slurm")
def test_what_a_start_needs_is_read_on_each_node(published: Store) -> None:
    sqshpipe("node", "prewarm", "demo", "--nodes", "n[1-2]", "--startup", code=2)  # there is no profile
    release = published.resolve("demo")
    ranges = ((release.size - 8192, 8192), (0, 4096))
    profile = Profile(sha256=release.sha256, size=release.size, ranges=ranges)
    profiles.attach(published.layout, release, profile)
    rows = json.loads(sqshpipe("node", "prewarm", "demo", "--nodes", "n[1-2]", "--startup", "--json"))
    assert [(row["node"], row["size"]) for row in rows] == [("n1", 12288), ("n2", 12288)]
