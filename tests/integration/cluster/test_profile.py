"""Start-up profiles: what is recorded, what another version makes of it, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.errors import FormatError, PublishError
from pipeline.node import page_cache
from pipeline.node import profile as profiling
from pipeline.node import run as running
from pipeline.node.run import ImageFile
from pipeline.squashfs import startup
from pipeline.squashfs.reader import SquashfsImage
from pipeline.squashfs.startup import Profile, Range, merged
from pipeline.store import profiles, sealed
from pipeline.store.store import Store
from pipeline.system import process
from tests.support.images import squashed
from tests.support.store.releases import new_store

from .conftest import record_of

pytestmark = pytest.mark.needs("mksquashfs", "squashfuse", "strace", "/dev/fuse")
READ = "import sys; open(sys.argv[1], 'rb', 0).read(300000)"
PROGRAM = f'cat /data/a/*.so /data/small/7 > /dev/null; python3 -c "{READ}" /data/c/large'
ROOT = Path(__file__).parents[3]
NOBODY = 65534
AS_NOBODY = f"""
import os, sys, structlog  # this Python may lie where others cannot read it
from pathlib import Path
from pipeline.node import profile
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
with profile._folder() as folder:
    with profile._traced_mount(Path(sys.argv[1]), folder / "root", folder / "trace"):
        (folder / "root/data/a/1.so").read_bytes()
    print(sum(length for _, length in profile.parse((folder / "trace").read_text().splitlines())))
"""


def tree_of(folder: Path, seed: int = 1) -> Path:
    """The demo's base with a library of 24 MB, of which a start reads about a third."""
    base, tree = squashed.squash(folder, "base.sqsh"), folder / "tree"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, base], check=True, timeout=60)
    bytes_of = random.Random(seed).randbytes
    for name, size, count in (("a", 700_000, 10), ("b", 700_000, 20)):
        (tree / "data" / name).mkdir(parents=True)
        for number in range(count):
            (tree / "data" / name / f"{number}.so").write_bytes(bytes_of(size))
    (tree / "data" / "c").mkdir()
    (tree / "data" / "c" / "large").write_bytes(bytes_of(3_000_000))
    (tree / "data" / "small").mkdir()
    for number in range(60):
        (tree / "data" / "small" / str(number)).write_bytes(bytes_of(9_000))
    return tree


def squash(tree: Path, made: Path, *options: str) -> Path:
    argv: list[str | Path] = [
        "mksquashfs",
        tree,
        made,
        "-noappend",
        "-all-root",
        "-comp",
        "zstd",
        "-Xcompression-level",
        "1",
    ]
    subprocess.run([*argv, *options], check=True, stdout=subprocess.DEVNULL, timeout=120)
    made.chmod(0o444)
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree_of(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def file(tree: Path) -> Path:
    return squash(tree, tree.with_name("v1.sqsh"))


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path / "node"))
    return tmp_path / "node"


def image_file(path: Path) -> ImageFile:
    return ImageFile(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def recorded(file: Path, command: str = PROGRAM) -> Profile:
    done = profiling.record(image_file(file), ["/bin/sh", "-c", command], timeout=60)
    assert done.done.returncode == 0, done.done
    return done.profile


@pytest.fixture(scope="module")
def profile(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQSHPIPE_NODE_DIR", str(tmp_path_factory.mktemp("node")))
        return recorded(file)


@contextlib.contextmanager
def passed_through(file: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """The file below a file system that logs each read: (path there, log)."""
    seen, log = folder / "seen", folder / "log"
    seen.mkdir()
    argv: list[str | Path] = [sys.executable, "-m", "tests.support.servers.readlog", file.parent, seen, log]
    server = subprocess.Popen(argv, cwd=Path(__file__).parents[3])
    try:
        while not seen.is_mount():
            assert server.poll() is None
            time.sleep(0.02)
        yield seen / file.name, log
    finally:
        subprocess.run(["fusermount3", "-u", seen], check=True, timeout=30)
        server.wait(30)


def test_a_profile_has_what_the_server_asks_for(file: Path, profile: Profile, tmp_path: Path) -> None:
    with passed_through(file, tmp_path) as (path, log):
        there = ImageFile(path=path, sha256="0" * 64)
        with running.held(there, kind="fuse") as mount:
            done = running.capture_in(mount.root, ["/bin/sh", "-c", PROGRAM], timeout=120)
        assert done.returncode == 0, done
    seen = merged([(int(a), int(b)) for a, b in map(str.split, log.read_text().splitlines())])
    asked = sum(length for _, length in seen)
    assert asked > 7_000_000
    assert abs(profile.bytes_read - asked) < 0.1 * asked
    missed = asked - len(covered(profile.ranges) & covered(seen))
    assert missed < 0.01 * asked


def covered(ranges: Sequence[Range]) -> set[int]:
    return {at for start, length in ranges for at in range(start, start + length)}


def test_tables_come_first_and_whole(file: Path, profile: Profile) -> None:
    with SquashfsImage.open(file) as image:
        tables = image.superblock.inode_table, image.superblock.bytes_used
    start, length = profile.ranges[0]
    assert start <= tables[0]
    assert start + length == tables[1]
    names = [each.path for each in profile.files]
    assert names.index(b"data/a/0.so") < names.index(b"data/c/large")
    assert not any(name.startswith(b"data/b") for name in names)
    large = next(each for each in profile.files if each.path == b"data/c/large")
    assert large.runs[0][0] == 0
    assert sum(count for _, count in large.runs) < 3_000_000 // 131072


def test_it_survives_its_file(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    path.write_bytes(profiles.to_bytes(profile))
    assert profiles.read(path) == profile


@pytest.mark.parametrize("options", [(), ("-no-duplicates", "-sort", "SORT")], ids=["same", "other order"])
def test_another_version_reads_the_same_files(
    tree: Path, profile: Profile, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tree / "data" / "0 new").write_bytes(random.Random(7).randbytes(1_000_000))
    kept = (tree / "data" / "a" / "3.so").read_bytes()
    (tree / "data" / "a" / "3.so").write_bytes(random.Random(8).randbytes(400_000))
    (tmp_path / "sort").write_text("data/b 5\ndata/c 9\n")
    try:
        words = [str(tmp_path / "sort") if each == "SORT" else each for each in options]
        other = squash(tree, tmp_path / "v2.sqsh", *words)
    finally:
        (tree / "data" / "a" / "3.so").write_bytes(kept)
        (tree / "data" / "0 new").unlink()
    sha256 = image_file(other).sha256
    with SquashfsImage.open(other) as image:
        found = startup.resolve(profile, image, sha256)
    assert (found.sha256, found.size) == (sha256, other.stat().st_size)
    names = {each.path for each in found.files}
    assert {b"data/a/2.so", b"data/c/large"} <= names
    assert b"data/a/3.so" not in names
    real = recorded(other)
    missed = covered(real.ranges) - covered(found.ranges)
    assert not {0, 95, other.stat().st_size - 4096} & missed
    assert len(missed) < 500_000  # the new 3.so and its fragment
    assert found.bytes_read < 1.25 * real.bytes_read


def test_a_store_numbers_profiles_and_the_newest_counts(file: Path, profile: Profile, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    store.publish(record_of(file, "v1.0"), file)
    release = store.resolve("demo:v1.0")
    assert profiles.newest(store.layout, release) is None
    assert profiles.attach(store.layout, release, profile) == "startup-1.json"
    assert profiles.attach(store.layout, release, profile) == "startup-1.json"
    smaller = Profile(sha256=profile.sha256, size=profile.size, ranges=profile.ranges[:1])
    assert profiles.attach(store.layout, release, smaller) == "startup-2.json"
    assert profiles.newest(store.layout, release) == smaller


def test_verbs(file: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    store.publish(record_of(file, "v1.0"), file)
    where = ["--store", str(store.root)]
    out = tmp_path / "p.json"
    words = ["node", "profile", "demo", *where, "-o", str(out), "--"]
    assert sqshpipe(*words, "cat", "/data/a/1.so") == f"{out}\n"
    made = sqshpipe("store", "attach-profile", "demo:v1.0", str(out), *where)
    assert made.endswith(".meta/v1.0/startup-1.json\n")
    assert Path(made.strip()).read_bytes() == out.read_bytes()
    sqshpipe("node", "profile", "demo", *where, "--", "cat", "/data/a/1.so", "/data/a/2.so")
    assert sorted(each.name for each in Path(made).parent.iterdir()) == ["startup-1.json", "startup-2.json"]
    sqshpipe(*words, "sh", "-c", "exit 9", code=9)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_records(file: Path, tmp_path: Path) -> None:
    folder = Path(f"/var/tmp/sqshpipe-profile-{os.getpid()}")
    folder.mkdir()
    try:
        os.chown(folder, NOBODY, NOBODY)
        copy = folder / "image.sqsh"
        copy.write_bytes(file.read_bytes())
        # a mount namespace in which everybody may open /dev/fuse, as on hosts with squashfuse
        script = 'mknod -m 666 $0/fuse c 10 229 && mount --bind $0/fuse /dev/fuse && exec "$@"'
        argv: list[str | Path] = [
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
            folder,
            sys.executable,
            "-c",
            AS_NOBODY,
            copy,
        ]
        env = {**os.environ, "SQSHPIPE_NODE_DIR": str(folder / "node"), "PYTHONPATH": os.fsdecode(ROOT)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.splitlines()[-1]) > 700_000
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def sqshpipe(*words: str, code: int = 0) -> str:
    argv = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return str(done.stdout)


def test_without_strace_one_sentence(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MORE_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="strace is not installed"):
        profiling.record(image_file(file), ["true"])


BAD = {
    "beyond the file": {"ranges": [[0, 10], [90, 11]]},
    "starts beyond": {"ranges": [[1 << 62, 1]]},
    "overlap": {"ranges": [[50, 10], [0, 51]]},
    "a million": {"ranges": [[2 * each, 1] for each in range(1_000_000)], "size": 4_000_000},
    "negative": {"ranges": [[-1, 2]]},
    "empty range": {"ranges": [[1, 0]]},
    "fraction": {"ranges": [[1.5, 2]]},
    "truth": {"ranges": [[True, 2]]},
    "three": {"ranges": [[1, 2, 3]]},
    "text": {"ranges": "none"},
    "missing": {"ranges": None},
    "sha256": {"sha256": "x" * 64},
    "size": {"size": "100"},
    "file": {"files": [["a", "b"]]},
    "path": {"files": [["", "b", [[0, 1]]]]},
    "runs": {"files": [["a", "b", [[0]]]]},
    "tails": {"tails": [["a"] * 100]},
    "schema": {"schema": 99},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_false_profiles_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    table = {"schema": 1, "sha256": "a" * 64, "size": 100, "ranges": [[0, 10]], "files": [], "tails": []}
    path = tmp_path / "p.json"
    path.write_bytes(sealed.seal(json.dumps(table)))
    assert profiles.read(path).bytes_read == 10
    path.write_bytes(sealed.seal(json.dumps(table | change)))
    with pytest.raises(PublishError):
        profiles.read(path)


@pytest.mark.parametrize("how", ["another file", "damaged", "symlink"])
def test_a_profile_that_is_not_right_is_ignored(
    file: Path, profile: Profile, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = new_store(tmp_path / "store")
    store.publish(record_of(file, "v1.0"), file)
    release = store.resolve("demo:v1.0")
    profiles.attach(store.layout, release, profile)
    path = store.layout.attachments("demo", "v1.0", release.platform) / "startup-2.json"
    good = profiles.to_bytes(profile)
    if how == "another file":
        other = Profile(sha256="b" * 64, size=profile.size, ranges=profile.ranges)
        path.write_bytes(profiles.to_bytes(other))
    elif how == "damaged":
        path.write_bytes(good.replace(b'"ranges": [[', b'"ranges": [[1'))
    else:
        path.symlink_to("startup-1.json")
    assert profiles.newest(store.layout, release) is None
    assert "ignored" in capsys.readouterr().out


def test_any_change_of_a_profile_is_the_same_or_refused(profile: Profile, tmp_path: Path) -> None:
    """Fuzz: what is read is within its file, without overlaps, whatever the bytes are."""
    rng = random.Random(17)
    table = json.loads(profiles.to_bytes(profile))
    del table["crc32"]
    text = json.dumps(table | {"files": table["files"][:3]})
    for _ in range(400):
        raw = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randint(0, 3)] = rng.choice([b"", b"0", b"9", b"-", b"[", b"]", b",", b"e5"])
        try:
            found = Profile.from_table(sealed.parse(bytes(raw), tmp_path), "it")
        except (FormatError, PublishError):
            continue
        assert all(start >= 0 and start + length <= found.size for start, length in found.ranges)
        assert sum(found.ranges[each][1] for each in range(len(found.ranges))) <= found.size


@pytest.fixture
def profiled(file: Path, profile: Profile, tmp_path: Path) -> Store:
    """A store with demo:v1.0 and its profile; nothing of the file is in the page cache."""
    store = new_store(tmp_path / "store")
    store.publish(record_of(file, "v1.0"), file)
    release = store.resolve("demo:v1.0")
    profiles.attach(store.layout, release, profile)
    page_cache.forget(release.path)
    return store


@pytest.mark.needs("root")
def test_prewarm_reads_what_a_start_needs(profiled: Store, profile: Profile, tmp_path: Path) -> None:
    release = profiled.resolve("demo:v1.0")
    if page_cache.resident(release.path):
        pytest.skip("this file system does not forget")
    folder = profiled.layout.attachments("demo", "v1.0", release.platform)
    words = ["node", "warm-here", str(release.path), "--digest", release.sha256, "--startup", str(folder)]
    assert json.loads(sqshpipe(*words))["size"] == profile.bytes_read
    there = page_cache.resident(release.path)
    assert profile.bytes_read <= there < 0.9 * release.size
    local = tmp_path / "local"
    found = json.loads(sqshpipe(*words, "--local", str(local), "--state", str(tmp_path)))
    assert found["path"] == str(local / f"{release.sha256}.sqsh")
    assert found["size"] == profile.bytes_read


@pytest.mark.parametrize("verb", ["run", "mount"])
def test_verbs_read_ahead_and_leave_nothing(profiled: Store, profile: Profile, node: Path, verb: str) -> None:
    release = profiled.resolve("demo:v1.0")
    where = ["--store", str(profiled.root)]
    if verb == "mount":
        sqshpipe("node", "mount", "demo", *where, "--holder-pid", str(os.getpid()))
        (mark,) = (node / "prefetch").iterdir()
        pid = int(mark.read_text().split()[0])
        end = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        if os.geteuid() == 0:
            assert page_cache.resident(release.path) >= profile.bytes_read
        sqshpipe("node", "unmount", "demo", *where, "--holder-pid", str(os.getpid()))
    else:
        assert sqshpipe("run", "demo", *where, "--", "cat", "/word") == "hello\n"
    assert list((node / "prefetch").iterdir()) == []


def test_prewarm_without_a_profile_is_a_sentence(file: Path, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    store.publish(record_of(file, "v1.0"), file)
    folder = store.layout.attachments("demo", "v1.0", "linux/amd64")
    words = ["node", "warm-here", str(file), "--digest", "0" * 64, "--startup", str(folder)]
    sqshpipe(*words, code=3)
