"""Kernel mounts for jobs: what a user sees through the shim is what squashfuse shows, however it starts."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.attest import signing
from pipeline.errors import FormatError, ToolError, VerificationError
from pipeline.node import check as node_check
from pipeline.node import enter, job_mount, mounted_file, shared_mount, signed
from pipeline.node import run as running
from pipeline.node.image_file import ImageFile
from pipeline.node.pyxis_importer import Settings
from pipeline.node.user_mount import User
from pipeline.slurm import client
from pipeline.store import signatures, trust
from pipeline.store.record import Release
from pipeline.system import mount_api
from pipeline.system.mount import Kind
from tests.support.faults import people
from tests.support.images import job_image, small_root
from tests.support.images.job_image import USER, JobNode
from tests.support.waiting import until
from tests.unit.store.test_signatures import write_keys

pytestmark = pytest.mark.needs("root", "mksquashfs", "squashfuse")
ENROOT = os.environ.get("SQSHPIPE_TEST_ENROOT") or shutil.which("enroot") or ""
FUSE_OVERLAY = os.environ.get("SQSHPIPE_TEST_FUSE_OVERLAYFS") or shutil.which("fuse-overlayfs") or ""
# As runtime.sh of enroot 4.1.2 does it, in the namespaces that enroot-nsenter makes.
MOUNT_STEP = """\
set -eu
image=$1 overlay=$2 writable=$3
shift 3
mount --make-rslave /
mount -t tmpfs none "$HOME"
mkdir -p "$HOME/o/lower" "$HOME/o/upper" "$HOME/o/work"
wait_for() { n=0; while ! mountpoint -q "$1"; do n=$((n + 1)); [ $n -lt 500 ] || exit 9; sleep .01; done; }
squashfuse -f -o "uid=$(id -u),gid=$(id -g)" "$image" "$HOME/o/lower" > "$HOME/said" 2>&1 &
wait_for "$HOME/o/lower"
dirs=lowerdir=$HOME/o/lower,upperdir=$HOME/o/upper,workdir=$HOME/o/work
if [ "$overlay" = native ]; then
    mount -t overlay overlay -o "$dirs,xino=off" "$HOME/o"
else
    fuse-overlayfs -f -o "$dirs" "$HOME/o" > "$HOME/said" 2>&1 &
    wait_for "$HOME/o"
fi
if [ "$writable" = no ]; then mount -o remount,bind,ro "$HOME/o"; fi
mount -t proc proc "$HOME/o/proc" 2> "$HOME/said" || mount --rbind /proc "$HOME/o/proc"
if [ "$(id -u)" = 0 ]; then set -- chroot "$HOME/o" "$@"
else set -- chroot "$HOME/o" setpriv --ambient-caps=-all --inh-caps=-all "$@"; fi
code=0; PATH=/bin:/usr/bin:/usr/sbin "$@" || code=$?
kill $(jobs -p)
exit "$code"
"""
# What a program in the image can see and do; what fails is a cell too.
CELLS = """\
PATH=/bin
cell() {
    name=$1
    shift
    if out=$("$@" 2> /dev/null); then echo "$name: $out"; else echo "$name: refused"; fi
}
for each in / /root /secret /closed /sealed /open /data/old; do
    cell "owner of $each" stat -c %u:%g:%a $each
done
for each in secret closed sealed open root/inside; do cell "read $each" cat /$each; done
cell append sh -c 'echo more >> /data/old && cat /data/old'
cell create sh -c 'echo new > /data/new && stat -c %u:%g:%a /data/new'
cell delete sh -c 'rm /data/gone && ! [ -e /data/gone ]'
cell "create in /root" sh -c 'echo new > /root/new && cat /root/new'
cell "append to secret" sh -c 'echo more >> /secret && cat /secret'
cell "write to sealed" sh -c 'echo more >> /sealed; cat /sealed'
cell chmod sh -c 'chmod 640 /secret && stat -c %a /secret'
cell "new folder" sh -c 'mkdir /data/folder && echo x > /data/folder/x && cat /data/folder/x'
cell dpkg sh -c 'dpkg --force-bad-path -i /small.deb > /dev/null && cat /opt/installed'
"""

# With enroot 4.1.2 and fuse-overlayfs this hangs while the real squashfuse serves. By the kernel's
# stacks, enroot-switchroot's pivot_root gives both servers their own file system as root.
CREATE_AT_TOP = """\
cell "create in /" sh -c 'echo new > /new && cat /new'
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_root.image(tmp_path_factory.mktemp("image"), job_image.write).read_bytes()


@pytest.fixture
def node() -> Iterator[JobNode]:
    with job_image.job_node() as made:
        yield made


@pytest.fixture
def release(node: JobNode, content: bytes) -> Release:
    return node.publish("v1.0", content)


def served(node: JobNode, release: Release, *, enroot: str, overlay: str, writable: str, remap: str) -> str:
    """What CELLS prints in a container that is started so."""
    cells = CELLS if enroot == "real" and overlay == "fuse" else CELLS + CREATE_AT_TOP
    path = [str(Path(FUSE_OVERLAY).parent)] if overlay == "fuse" else []
    if enroot == "stand-in":
        inside = (
            ["--map-root-user"] if remap == "root" else [f"--map-user={USER.uid}", f"--map-group={USER.gid}"]
        )
        step = ["bash", "-c", MOUNT_STEP, "bash", str(release.path), overlay, writable, "sh", "-c", cells]
        done = node.as_user("unshare", "--user", "--mount", "--keep-caps", *inside, *step, path=path)
    else:
        own = node.folder / "mnt" / "own"
        env = {
            f"ENROOT_{each}_PATH": f"{own}/{each.lower()}"
            for each in ("RUNTIME", "CACHE", "DATA", "TEMP", "CONFIG")
        }
        env |= {"ENROOT_RESTRICT_DEV": "no", "NVIDIA_VISIBLE_DEVICES": "void", "ENROOT_MOUNT_HOME": "no"}
        env |= {"ENROOT_NATIVE_OVERLAYFS": "yes" if overlay == "native" else "no"}
        env |= {"ENROOT_ROOTFS_WRITABLE": writable, "ENROOT_REMAP_ROOT": "yes" if remap == "root" else "no"}
        argv = ["enroot", "start", str(release.path), "sh", "-c", cells]
        done = node.as_user(*argv, path=[*path, str(Path(ENROOT).parent)], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("remap", ["user", "root"])
@pytest.mark.parametrize("writable", ["no", "yes"])
@pytest.mark.parametrize("overlay", ["native", "fuse"])
@pytest.mark.parametrize("enroot", ["stand-in", "real"])
def test_a_kernel_mount_shows_what_squashfuse_shows(
    enroot: str, overlay: str, writable: str, remap: str, node: JobNode, release: Release
) -> None:
    if enroot == "real" and not ENROOT:
        pytest.skip("enroot is in no package registry; SQSHPIPE_TEST_ENROOT names one")
    if overlay == "fuse" and not FUSE_OVERLAY:
        pytest.skip("fuse-overlayfs is not installed; SQSHPIPE_TEST_FUSE_OVERLAYFS names one")
    ways = {"enroot": enroot, "overlay": overlay, "writable": writable, "remap": remap}
    through_fuse = served(node, release, **ways)
    works = "refused" not in through_fuse.partition("append: ")[2].partition("dpkg")[0]
    assert works == (writable == "yes"), through_fuse
    if enroot == "real":
        assert ("by dpkg" in through_fuse) == (writable == "yes" and remap == "root"), through_fuse
    job_mount.acquire(node.settings, release.sha256, "7", USER)
    node.take_squashfuse_away()
    assert served(node, release, **ways) == through_fuse


def others_reach(folder: Path) -> str:
    """What stands in the way of a user who has no job here."""
    return people.as_user(USER.uid + 1, lambda: list(folder.iterdir()), group=USER.gid)


def test_only_the_jobs_user_reaches_the_mount_and_it_ends_with_the_job(
    node: JobNode, release: Release
) -> None:
    folder = job_mount.acquire(node.settings, release.sha256, "7", USER)
    again = job_mount.acquire(node.settings, release.sha256, "8", User(uid=USER.uid + 2, gid=USER.gid))
    base = node.node / release.sha256 / "own" / "root"
    assert len({folder.stat().st_dev, again.stat().st_dev, base.stat().st_dev}) == 1, (
        "one mount, one page cache"
    )
    for each in (folder, again, base):
        assert "Permission denied" in others_reach(each)
    assert "Permission denied" not in people.as_user(USER.uid, lambda: list(folder.iterdir()), group=USER.gid)
    for word in ("ro", "nosuid", "nodev"):
        assert all(word in line.split()[3].split(",") for line in mount_lines(node)), word
    shared_mount.release_job("7")
    assert sorted(node.mounts()) == sorted(map(str, (base, again)))
    shared_mount.release_job("8")
    assert node.mounts() == []
    assert not list(node.node.glob("*/*"))


def mount_lines(node: JobNode) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(node.node) in line]


Refusal = Callable[[JobNode, bytes], tuple[Release, dict[str, object]]]


def _external(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    return node.publish("v1.0", content, external=True), {}


def _unchecked(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    return node.publish("v1.0", content, checks=("superblock", "length")), {}


def _closed_file(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    release.path.chmod(0o440)
    return release, {}


def _closed_folder(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    node.store.root.chmod(0o750)
    return release, {}


def _written_by_all(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    release.path.chmod(0o646)
    return release, {}


def _somebody_elses(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    os.chown(release.path, USER.uid, USER.gid)
    return release, {}


def _shorter(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    with release.path.open("r+b") as file:
        file.truncate(len(content) - 4096)
    return release, {}


def _other_bytes(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    with release.path.open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(b"another byte")
    return release, {"verify": True}


def _several_owners(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    tree = small_root.write(node.folder / "tree")
    return node.publish("v1.0", small_root.squash(tree, "-force-uid", "1000").read_bytes()), {}


def _full(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    return node.publish("v1.0", content), {"kernel_mounts": 0}


def _behind_a_link(node: JobNode, content: bytes) -> tuple[Release, dict[str, object]]:
    release = node.publish("v1.0", content)
    release.path.rename(node.folder / "elsewhere")
    release.path.symlink_to(node.folder / "elsewhere")
    return release, {}


REFUSALS = {
    "made elsewhere (external)": _external,
    "never compared with its image": _unchecked,
    f"user {USER.uid} may not read it": _closed_file,
    f"{USER.uid} may not read it": _closed_folder,
    "others than the owner of the store can write it": _written_by_all,
    "others than the owner of the store can": _somebody_elses,
    "is damaged": _shorter,
    "has changed its bytes": _other_bytes,
    "belong to several users": _several_owners,
    "as many as may be": _full,
    "symbolic links": _behind_a_link,
}


@pytest.mark.parametrize(("why", "make"), REFUSALS.items(), ids=[each.__name__ for each in REFUSALS.values()])
def test_what_is_not_mounted_by_the_kernel(why: str, make: Refusal, node: JobNode, content: bytes) -> None:
    release, more = make(node, content)
    settings = Settings({"store": str(node.store.root), "state": str(node.folder / "state"), **more})
    with pytest.raises((ToolError, FormatError), match=re.escape(why)):
        job_mount.acquire(settings, release.sha256, "7", USER)
    assert node.mounts() == []
    assert not list(node.node.glob("*/*"))


def test_a_digest_of_no_release_is_refused_and_fuse_mounts_nothing(node: JobNode, release: Release) -> None:
    for digest in ("0" * 64, "../../etc", ""):
        with pytest.raises(ToolError, match=r"no release|not a digest"):
            job_mount.acquire(node.settings, digest, "7", USER)
    settings = Settings({"store": str(node.store.root), "mounts": "fuse"})
    assert job_mount.acquire_all(settings, [release.sha256], "7", USER) == ([], [])
    assert node.mounts() == []


def test_an_old_kernel_is_named_and_nothing_stays_mounted(
    node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_api, "set_attributes", lambda *_words, **_more: errno.EINVAL)
    folders, failed = job_mount.acquire_all(node.settings, [release.sha256], "7", USER)
    assert folders == []
    assert "Linux 6.2 and later can; until then steps read through squashfuse" in failed[0]
    assert node.mounts() == []


def test_no_more_files_than_may_be_and_a_second_job_of_one_is_no_second_mount(
    node: JobNode, content: bytes
) -> None:
    releases = [node.publish(f"v1.{n}", content + b"\0" * 4096 * n) for n in range(4)]
    settings = Settings({"store": str(node.store.root), "kernel_mounts": 3})
    digests = [each.sha256 for each in releases]
    folders, failed = job_mount.acquire_all(settings, digests, "7", USER)
    assert (len(folders), len(failed)) == (3, 1)
    assert "3 files are mounted on this node" in failed[0]
    assert len(job_mount.acquire_all(settings, digests[:3], "8", USER)[0]) == 3
    shared_mount.release_job("7")
    shared_mount.release_job("8")
    assert len(job_mount.acquire_all(settings, digests[3:], "9", USER)[0]) == 1


def test_a_comment_with_thousands_of_digests_costs_no_more_than_64(node: JobNode, release: Release) -> None:
    digests = [release.sha256, *(f"{n:064x}" for n in range(3000))]
    folders, failed = job_mount.acquire_all(node.settings, digests, "7", USER)
    assert (len(folders), len(failed)) == (1, job_mount.MOST_NAMED)
    assert "names 3001 files" in failed[-1]


def test_64_prologs_at_once_make_one_mount(node: JobNode, release: Release) -> None:
    children = []
    for job in range(64):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                job_mount.acquire(node.settings, release.sha256, str(job), USER)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert {os.waitpid(pid, 0)[1] for pid in children} == {0}
    assert len(node.mounts()) == 2
    for job in range(64):
        shared_mount.release_job(str(job))
    assert node.mounts() == []


def test_a_file_that_was_changed_below_its_mount_is_named_and_mounted_anew(
    node: JobNode, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    release = node.publish("v1.0", content)
    folder = job_mount.acquire(node.settings, release.sha256, "7", USER)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    damaged = release.path.with_name("new")
    damaged.write_bytes(content)
    damaged.chmod(0o444)
    damaged.rename(release.path)
    again = job_mount.acquire(node.settings, release.sha256, "8", USER)
    assert again.stat().st_dev == (node.node / release.sha256 / "own" / "root").stat().st_dev
    assert len(node.mounts()) == 2
    assert os.listdir(held), "who reads the old one reads on"  # noqa: PTH208 - an open folder
    os.close(held)
    os.utime(release.path, (1, 1))
    shared_mount.release_job("7")
    shown = capfd.readouterr()
    assert str(release.path) in shown.out + shown.err
    shared_mount.release_job("8")
    assert node.mounts() == []


@contextlib.contextmanager
def store_on_a_disk(node: JobNode, release: Release) -> Iterator[tuple[Path, Callable[[bytes], None]]]:
    """The node's store on a disk of its own, and what writes to the blocks of the release's file there.

    The file system does not learn of it: all times stay as they are.
    """
    disk, place = node.folder / "disk.img", node.folder / "disk"
    argv = ["mkfs.ext4", "-q", "-b", "4096", "-d", str(node.store.root), str(disk), "64M"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", disk, place], check=True, timeout=60)
    file = place / "blobs" / "sha256" / release.path.name

    def write(content: bytes) -> None:
        head = release.path.read_bytes()[:4096]  # the superblock is in it, and stays
        start = disk.read_bytes().index(head)
        with disk.open("r+b") as blocks:
            blocks.seek(start + 4096)
            blocks.write(content)
            os.fsync(blocks.fileno())
        with file.open("rb") as cached:
            os.posix_fadvise(cached.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    try:
        yield place, write
    finally:
        shared_mount.release_job("7")
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


def read_all_below(folder: Path) -> str:
    """What stops a program that reads every file of an image; empty when nothing does."""
    try:
        for each in folder.rglob("*"):
            if each.is_file() and not each.is_symlink():
                each.read_bytes()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@pytest.mark.parametrize("when", ["epilog", "node check", "next prolog"])
def test_a_file_that_was_damaged_below_its_mount_is_named_and_mounted_no_more(
    when: str, node: JobNode, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("the kernel's log cannot be read here")
    release = node.publish("v1.0", content)
    with store_on_a_disk(node, release) as (place, write):
        file = place / "blobs" / "sha256" / release.path.name
        settings = Settings({"store": str(place), "state": str(node.folder / "state")})
        folder = job_mount.acquire(settings, release.sha256, "7", USER)
        write(b"\x55" * (len(content) // 2))
        assert read_all_below(folder) == "EIO"
        if when == "next prolog":
            with pytest.raises(ToolError, match="is not mounted: it is damaged"):
                job_mount.acquire(settings, release.sha256, "8", USER)
            assert node.mounts() == []
        elif when == "node check":
            assert [each.text for each in node_check.kernel_mounts(node.folder) if each.verdict == "bad"] == [
                f"{file} is damaged: its bytes are not those of its digest"
            ]
        shared_mount.release_job("7")
        shown = capfd.readouterr()
        assert f"{file}" in shown.out + shown.err
        assert node.mounts() == []
        assert job_mount.damaged() == [str(file)]
        with pytest.raises(ToolError, match="is not mounted: it is damaged"):
            job_mount.acquire(settings, release.sha256, "7", USER)
        write(content[4096:])
        shutil.copy(file, file.with_name("new"))
        file.with_name("new").rename(file)
        assert read_all_below(job_mount.acquire(settings, release.sha256, "7", USER)) == ""
        assert job_mount.damaged() == []


def test_errors_of_another_squashfs_take_no_mount_away(node: JobNode, release: Release) -> None:
    job_mount.acquire(node.settings, release.sha256, "7", USER)
    job_mount.acquire(node.settings, release.sha256, "8", USER)
    with Path("/dev/kmsg").open("wb", buffering=0) as log:
        log.write(b"SQUASHFS error: Failed to read block 0x12acbf: -5")
    assert mounted_file.had_errors(node.node / release.sha256)
    shared_mount.release_job("7")
    assert len(node.mounts()) == 2
    assert job_mount.damaged() == []


def test_after_the_server_of_the_store_was_killed_the_next_step_has_a_mount(
    node: JobNode, release: Release
) -> None:
    with store_over_fuse(node) as (place, server):
        settings = Settings({"store": str(place), "state": str(node.folder / "state")})
        folder = job_mount.acquire(settings, release.sha256, "7", USER)
        server.kill()
        server.wait(timeout=30)
        assert until(lambda: read_all_below(folder) == "EIO")
        with pytest.raises(ToolError, match="is not mounted"):
            job_mount.acquire(settings, release.sha256, "8", USER)
        subprocess.run(["umount", "-l", place], check=True, timeout=30)
        again = subprocess.Popen(["squashfuse", "-f", "-o", "allow_other", node.folder / "store.sqsh", place])
        try:
            assert until(place.is_mount)
            assert read_all_below(job_mount.acquire(settings, release.sha256, "9", USER)) == ""
            for job in ("7", "8", "9"):
                shared_mount.release_job(job)
            assert node.mounts() == []
        finally:
            again.kill()
            again.wait(timeout=30)


def test_what_a_job_holds_that_had_no_epilog_is_released(
    node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in ("7", "8", "9"):
        job_mount.acquire(node.settings, release.sha256, job, USER)
    lives = {"7": True, "8": False}

    def exists(job: str) -> bool:
        if job not in lives:
            raise ToolError("Slurm does not answer")
        return lives[job]

    monkeypatch.setattr(client, "job_exists", exists)
    job_mount.expire()
    assert set(shared_mount.job_holders(node.node)) == {"7", "8", "9"}, "younger than ten minutes"
    for each in (node.node / release.sha256 / "holders").iterdir():
        os.utime(each, (time.time() - 601,) * 2)
    job_mount.expire()
    assert set(shared_mount.job_holders(node.node)) == {"7", "9"}


@pytest.mark.parametrize(
    "why", ["no mount", "another path", "another user", "not seen here", "other options"]
)
def test_the_shim_becomes_squashfuse(why: str, node: JobNode, release: Release) -> None:
    user = User(uid=USER.uid + 1, gid=USER.gid) if why == "another user" else USER
    if why != "no mount":
        job_mount.acquire(node.settings, release.sha256, "7", user)
    image, options = release.path, f"uid={USER.uid},gid={USER.gid}"
    if why == "another path":
        image = node.folder / release.path.name
        image.write_bytes(b"not the release")
    if why == "other options":
        options = "uid=0,gid=0"
    if why == "not seen here":
        for each in reversed(node.mounts()):
            subprocess.run(["umount", each], check=True, timeout=30)
    node.take_squashfuse_away()
    assert "the real squashfuse was started" in shim_run(node, image, options).stderr


def shim_run(node: JobNode, image: Path, options: str) -> subprocess.CompletedProcess[str]:
    """Call squashfuse as enroot does; prints "bound" once it shows a mount, which nothing is read of."""
    script = """\
place=$HOME/lower; mkdir "$place"; squashfuse -f -o "$2" "$1" "$place" &
until mountpoint -q "$place"; do kill -0 $! || exit 1; sleep .01; done
kill $! && echo bound"""
    inside = ["--user", "--mount", "--keep-caps", f"--map-user={USER.uid}", f"--map-group={USER.gid}"]
    return node.as_user("unshare", *inside, "sh", "-c", script, "sh", image, options)


def test_the_shim_decides_without_the_store_and_within_50_ms(node: JobNode, release: Release) -> None:
    job_mount.acquire(node.settings, release.sha256, "7", USER)
    release.path.unlink()
    node.take_squashfuse_away()
    inside = ["--user", "--mount", "--keep-caps", f"--map-user={USER.uid}", f"--map-group={USER.gid}"]
    script = """\
for n in 1 2 3 4 5 6 7 8 9; do
    place=$HOME/lower$n; mkdir "$place"; began=$(date +%s%N)
    squashfuse -f -o "$2" "$1" "$place" &
    until mountpoint -q "$place"; do kill -0 $! || exit 1; done
    echo $((($(date +%s%N) - began) / 1000000)); kill $!; [ -r "$place/secret" ] || exit 2
done"""
    words = ["sh", "-c", script, "sh", str(release.path), f"uid={USER.uid},gid={USER.gid}"]
    done = node.as_user("unshare", *inside, *words)
    assert done.returncode == 0, done.stderr
    assert statistics.median(map(int, done.stdout.split())) < 50


def test_a_users_run_shows_the_prologs_mount_as_the_users_own_files(
    node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_mount.acquire(node.settings, release.sha256, "7", USER)
    monkeypatch.setattr(shared_mount, "ROOT_NODE_FOLDER", node.node)
    out, own = node.folder / "out", node.folder / "users"
    for each in (out, own):
        each.mkdir()
        each.chmod(0o1777)
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(own / "node"))
    script = "exec > /out/said; PATH=/bin; cat /secret /root/inside; stat -c %u:%g /secret"
    file = ImageFile(path=release.path, sha256=release.sha256)
    binds = [enter.Bind(source=str(out), target="/out", writable=True)]

    def start() -> None:
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is the user's, as after an exec
        running.run(file, ["sh", "-c", script], binds=binds)

    assert people.as_user(USER.uid, start, group=USER.gid) == ""
    assert (out / "said").read_text().splitlines() == ["secret", "inside", f"{USER.uid}:{USER.gid}"]
    assert not list((own / "node").glob("*-*")), "no squashfuse of the user's own"


def test_a_local_copy_is_mounted_and_stands_for_both_paths(node: JobNode, release: Release) -> None:
    """The importer gives the copy's path; a job script may name the file in the store."""
    local = node.folder / "local" / f"{release.sha256}.sqsh"
    local.parent.mkdir()
    shutil.copy(release.path, local)
    local.chmod(0o444)
    settings = Settings({"store": str(node.store.root), "local": str(local.parent)})
    job_mount.acquire(settings, release.sha256, "7", USER)
    assert mounted_file.path_of(node.node / release.sha256) == str(local)
    node.take_squashfuse_away()
    for image in (local, release.path):
        done = shim_run(node, image, f"uid={USER.uid},gid={USER.gid}")
        assert (done.stdout, done.stderr) == ("bound\n", "")
    shared_mount.release_job("7")
    local.chmod(0o666)
    job_mount.acquire(settings, release.sha256, "8", USER)
    assert mounted_file.path_of(node.node / release.sha256) == str(release.path)


@pytest.mark.parametrize("when", ["once", "while it is mounted"])
def test_the_file_that_was_checked_is_mounted_whatever_has_its_name_now(
    when: str, node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = small_root.image(node.folder / "other", lambda tree: (tree / "evil").touch())
    if when == "while it is mounted":
        job_mount.acquire(node.settings, release.sha256, "6", USER)
    may_read = job_mount._may_read

    def swap(file: Path, user: User) -> bool:
        try:
            return may_read(file, user)
        finally:
            shutil.copy(other, file.with_name("new"))
            file.with_name("new").rename(file)

    monkeypatch.setattr(job_mount, "_may_read", swap)
    folder = job_mount.acquire(node.settings, release.sha256, "7", USER)
    assert (folder / "secret").exists()
    assert not (folder / "evil").exists()


def test_where_signatures_are_required_only_signed_releases_are_mounted(
    node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(node.folder, "ours")
    policy, marks = node.folder / "signatures.json", node.folder / "marks"
    required = trust.Required(keys=signing.open_keys(public), source=policy, marks=marks)
    monkeypatch.setattr(trust, "NODE_POLICY", policy)
    signed.install(required)
    with pytest.raises(ToolError, match="is not signed by the key"):
        job_mount.acquire(node.settings, release.sha256, "7", USER)
    assert node.mounts() == []
    signatures.sign(node.store.layout, release, signing.open_signer(private))
    job_mount.acquire(node.settings, release.sha256, "7", USER)
    assert len(list(marks.iterdir())) == 1


@pytest.mark.parametrize("kind", ["kernel", "fuse"])
def test_where_signatures_are_required_the_file_that_was_compared_is_mounted(
    kind: Kind, node: JobNode, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release that resolved a moment ago, and whose file or mount is another one now."""
    _, public = write_keys(node.folder, "ours")
    policy = node.folder / "signatures.json"
    file = ImageFile(path=release.path, sha256=release.sha256)
    with running.held(file, kind=kind):
        monkeypatch.setattr(trust, "NODE_POLICY", policy)
        keys = signing.open_keys(public)
        signed.install(trust.Required(keys=keys, source=policy, marks=node.folder / "marks"))
        with running.held(file, kind=kind) as mounted:
            assert (mounted.root / "secret").exists()
    small_root.image(node.folder / "other", lambda tree: (tree / "evil").touch()).rename(release.path)
    with pytest.raises(VerificationError, match="does not have the sha256"), running.held(file, kind=kind):
        pass
    assert node.mounts() == []


@pytest.mark.parametrize("name", [b"slurmd", b"\xff\xfe"])
def test_a_users_process_does_not_answer_for_slurmd(name: bytes, node: JobNode) -> None:
    """What a user calls their process and puts into its PATH is not looked at as root."""
    program = shutil.copy(b"/bin/sleep", os.fsencode(node.folder) + b"/" + name)
    words = ["setpriv", f"--reuid={USER.uid}", f"--regid={USER.gid}", "--clear-groups", "env", "PATH=/evil"]
    started = subprocess.Popen([*words, program, "60"])
    try:
        assert until(lambda: Path(f"/proc/{started.pid}/comm").read_bytes() == name + b"\n", 20)
        assert "/evil" not in job_mount._path_of_slurmd()
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def store_over_fuse(node: JobNode) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The node's store behind a FUSE server: while that is stopped, nothing there is answered."""
    file, place = node.folder / "store.sqsh", node.folder / "network"
    argv = ["mksquashfs", str(node.store.root), str(file), "-quiet", "-no-progress", "-noappend", "-all-root"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)
    place.mkdir()
    server = subprocess.Popen(["squashfuse", "-f", "-o", "allow_other", str(file), str(place)])
    try:
        assert until(place.is_mount)
        yield place, server
    finally:
        server.kill()
        server.wait(timeout=30)
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


def test_a_store_that_hangs_keeps_neither_steps_nor_epilogs_nor_other_images(
    node: JobNode, content: bytes, tmp_path: Path
) -> None:
    release = node.publish("v1.0", content)
    other = node.publish("v1.1", content + b"\0" * 4096)
    children = []

    def start(action: Callable[[], object]) -> None:
        if (pid := os.fork()) == 0:
            try:
                action()
            finally:
                os._exit(0)
        children.append(pid)

    with store_over_fuse(node) as (place, server):
        settings = Settings({"store": str(place), "state": str(node.folder / "state")})
        job_mount.acquire(settings, release.sha256, "7", USER)
        server.send_signal(signal.SIGSTOP)
        start(lambda: job_mount.acquire(settings, other.sha256, "8", USER))
        image = place / "blobs" / "sha256" / release.path.name
        node.take_squashfuse_away()
        done = shim_run(node, image, f"uid={USER.uid},gid={USER.gid}")
        assert (done.stdout, done.stderr) == ("bound\n", ""), "the step has its mount"
        job_mount.acquire(node.settings, other.sha256, "9", USER)
        start(lambda: shared_mount.release_job("7"))
        assert until(lambda: release.sha256 not in " ".join(node.mounts()), 20)
        shared_mount.release_job("9")
        assert node.mounts() == []
        server.send_signal(signal.SIGCONT)
        for pid in children:
            os.waitpid(pid, 0)
        shared_mount.release_job("8")
        assert node.mounts() == []
