"""System calls on mounts: a .sqsh through a loop device, attributes, and a clone that shows other owners.

See loop(4), mount(2), mount_setattr(2), open_tree(2), move_mount(2), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ToolError

READ_ONLY, NO_SUID, NO_DEVICES = 1, 2, 4
RECURSIVE = 0x8000
_IDMAP = 0x00100000
_EMPTY_PATH = 0x1000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture of ours
_CLONE, _CLONE_NEWUSER = 1, 0x10000000
_FROM_FILE, _TO_FILE = 0x04, 0x40  # move_mount: both ends are open files
# linux/loop.h: struct loop_config is descriptor, block size, loop_info64 (232 bytes) and 64 bytes of nothing
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LOOP_CONFIG, _BEFORE_FLAGS = 304, 52
_LOOP_READ_ONLY, _LOOP_AUTOCLEAR = 1, 4
_SET_READ_AHEAD = 0x1262  # linux/fs.h: BLKRASET, in sectors of 512 bytes
_READ_AHEAD = 256  # 128 KiB, one block of squashfs
_READ_ONLY_MOUNT = 1 | 2 | 4  # MS_RDONLY | MS_NOSUID | MS_NODEV
_DETACH, _NO_FOLLOW = 2, 8  # MNT_DETACH, UMOUNT_NOFOLLOW
_LIBC = ctypes.CDLL(None, use_errno=True)
_OLD_KERNEL = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)


def set_attributes(mounted: int, attributes: int, *, flags: int = 0, owners: int = 0) -> int:
    """mount_setattr(2), Linux 5.12, on an open mount; gives errno, 0 for success.

    `owners` is an open user namespace, whose map says who owns the files that are shown.
    """
    wanted = attributes | (_IDMAP if owners else 0)
    block = ctypes.create_string_buffer(struct.pack("=4Q", wanted, 0, 0, owners), 32)
    size = ctypes.c_size_t(32)
    return _call(_MOUNT_SETATTR, mounted, b"", flags | _EMPTY_PATH, block, size)[1]


def mount_squashfs(file: Path, place: Path, *, opened: int | None = None) -> None:
    """Mount a .sqsh on a folder, read-only, nosuid and nodev, through a loop device that ends with the mount.

    mount(8) first looks at the file of every other loop device, and waits for one whose file system does not
    answer; this does not. `opened` is the file, opened by the caller: then its name is only shown. Raises
    OSError: Linux 5.8 and root are needed.
    """
    image = os.open(file, os.O_RDONLY | os.O_CLOEXEC) if opened is None else os.dup(opened)
    try:
        number, device = _loop_device(image, file)
        try:
            words = (b"/dev/loop%d" % number, os.fsencode(place), b"squashfs", _READ_ONLY_MOUNT, None)
            if _LIBC.mount(*words) != 0:
                raise _error(file)
            # Newer kernels take up to 4 MiB, and for each page of a library that is needed read that much:
            # half as many bytes more for an import of torch, all of it beside what a start-up profile brings.
            with contextlib.suppress(OSError):
                fcntl.ioctl(device, _SET_READ_AHEAD, _READ_AHEAD)
        finally:
            os.close(device)
    finally:
        os.close(image)


def unmount(place: Path) -> None:
    """Undo a mount; one that is in use is detached and goes with its last user. Raises OSError."""
    for flags in (_NO_FOLLOW, _NO_FOLLOW | _DETACH):
        if _LIBC.umount2(os.fsencode(place), flags) == 0:
            return
    raise _error(place)


def _loop_device(image: int, file: Path) -> tuple[int, int]:
    """Number and descriptor of a loop device of an open file, which is freed when nobody has it open."""
    name = os.fsencode(file)[:63]
    block = struct.pack(f"=II{_BEFORE_FLAGS}xI64s", image, 0, _LOOP_READ_ONLY | _LOOP_AUTOCLEAR, name)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, block.ljust(_LOOP_CONFIG, b"\0"))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else another process was quicker to take it
                    raise
            else:
                return number, device
    finally:
        os.close(control)


def _error(file: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(file))


def clone_for(root: Path, place: Path, *, uid: int, gid: int) -> None:
    """Show the mount `root` a second time on `place`: what root owns there, this user and group own here.

    It is the same file system with the same page cache, read-only, nosuid and nodev. Raises ToolError where
    the kernel cannot do it: squashfs allows it from Linux 6.2.
    """
    what = f"cannot show {root} as the files of user {uid}"
    with _opened(_OPEN_TREE, -100, os.fsencode(root), _CLONE | os.O_CLOEXEC, what=what) as clone:
        with _owners(uid, gid) as owners:
            number = set_attributes(clone, READ_ONLY | NO_SUID | NO_DEVICES, owners=owners)
        if number in _OLD_KERNEL:
            raise ToolError(
                f"{what}: this kernel ({os.uname().release}) shows no squashfs with other owners"
                f" ({os.strerror(number)})",
                hint="Linux 6.2 and later can; until then steps read through squashfuse",
            )
        if number:
            raise ToolError(f"{what}: {os.strerror(number)}")
        target = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            number = _call(_MOVE_MOUNT, clone, b"", target, b"", _FROM_FILE | _TO_FILE)[1]
        finally:
            os.close(target)
        if number:
            raise ToolError(f"{what}: cannot mount on {place}: {os.strerror(number)}")


@contextlib.contextmanager
def _owners(uid: int, gid: int) -> Iterator[int]:
    """An open user namespace in which 0 is this user and group. Raises ToolError."""
    made, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:  # it keeps the namespace alive until it has been opened
            os.close(go[1])
            os.write(made[1], bytes([min(255, _call_unshare())]))
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(made[1])
        os.close(go[0])
        said = os.read(made[0], 1)
        if said != b"\0":
            why = os.strerror(said[0]) if said else "the helper ended"
            raise ToolError(f"cannot make a user namespace: {why}", hint="sysctl user.max_user_namespaces")
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            Path(f"/proc/{child}/{name}").write_text(f"0 {number} 1")
        descriptor = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ToolError(f"cannot make a user namespace for user {uid}: {error}") from error
    finally:
        os.close(go[1])
        os.close(made[0])
        os.waitpid(child, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call_unshare() -> int:
    return 0 if _LIBC.unshare(_CLONE_NEWUSER) == 0 else ctypes.get_errno()


@contextlib.contextmanager
def _opened(number: int, *words: int | bytes, what: str) -> Iterator[int]:
    descriptor, why = _call(number, *words)
    if why:
        raise ToolError(f"{what}: {os.strerror(why)}")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _call(number: int, *words: object) -> tuple[int, int]:
    """The result of a system call, and errno (0 for success)."""
    done = _LIBC.syscall(ctypes.c_long(number), *words)
    return (done, 0) if done >= 0 else (done, ctypes.get_errno())
