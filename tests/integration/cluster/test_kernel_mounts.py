"""Kernel mounts for jobs: what a user sees through the shim is what squashfuse shows, however it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.node import job_mount
from pipeline.store.record import Release
from tests.support.images import job_image, small_root
from tests.support.images.job_image import USER, JobNode

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

# With enroot 4.1.2, fuse-overlayfs and squashfuse this hangs, with and without the shim: enroot-switchroot's
# pivot_root gives both servers their own file system as root, and fuse-overlayfs then looks up a path there.
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
