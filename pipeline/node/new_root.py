"""The root that a command sees: a small tmpfs with each top-level name of an image and some of the host.

An image names its files as it likes, and symlinks are among them. So nothing here is found by a path: each
name is opened in an open folder, symlinks are resolved as in a chroot, and mounts are made from one open file
onto another, through /proc/self/fd. Folders and files are created on the tmpfs alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, FormatError, ToolError
from pipeline.node.read_only import make_read_only
from pipeline.system import untrusted
from pipeline.text import shown

_NOSUID, _NODEV, _BIND, _MOVE, _REC, _SLAVE = 2, 4, 4096, 8192, 16384, 1 << 19
HOST_FOLDERS = ("dev", "proc", "sys", "tmp")
"""Top-level folders of the host that stand for what the image has under these names."""
DRIVER_FOLDER = "sqshpipe-driver"
"""Where the GPU driver is shown; what the image has under this name is hidden."""
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or folder of the host that is seen inside."""

    source: str
    target: str
    writable: bool = False

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Take SRC[:DST[:rw|ro]] apart. Raises ConfigError."""
        source, _, rest = text.partition(":")
        target, _, flags = rest.partition(":")
        if (
            not source.startswith("/")
            or (target and not target.startswith("/"))
            or flags not in ("", "ro", "rw")
        ):
            raise ConfigError(f"{text!r} is not a mount", hint="write /host/folder[:/inside[:rw]]")
        return cls(source=source, target=target or source, writable=flags == "rw")


class NewRoot:
    """A root that is being built in a mount namespace of our own: `image` and `folder` are open folders."""

    def __init__(self, image: Path, scratch: Path) -> None:
        """Mount the tmpfs on the empty folder `scratch`. Raises ToolError."""
        try:
            self.image = untrusted.open_folder(image)
            mount("sqshpipe", str(scratch), "tmpfs", _NOSUID | _NODEV, "mode=755,size=16m")
            self.folder = untrusted.open_folder(scratch)
        except OSError as error:
            raise ToolError(f"cannot open {error.filename}: {error.strerror}") from error

    def show_image(self) -> None:
        """Show the host's folders and the image's top-level names. Raises FormatError, ToolError."""
        name = ""
        try:
            for name in HOST_FOLDERS:
                os.mkdir(name, 0o755, dir_fd=self.folder)
                with _opened(f"/{name}") as source, self._found(name) as target:
                    _mount_fd(source, target, _BIND | _REC)
        except OSError as error:
            raise ToolError(f"cannot show /{name} of the host: {error.strerror}") from error
        try:
            for name in sorted(os.listdir(self.image)):  # noqa: PTH208 - an open folder
                if name not in (*HOST_FOLDERS, DRIVER_FOLDER):
                    self._show(name)
        except OSError as error:
            raise FormatError(f"cannot show /{shown(name)} of the image: {error.strerror}") from error

    def read(self, path: str, *, limit: int) -> bytes | None:
        """A regular file of the image itself, whatever of the host lies there in the new root.

        None when it is missing; raises FormatError for anything else under that name.
        """
        try:
            return untrusted.read_in_root(self.image, path, limit=limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except untrusted.NotRegularError as error:
            raise FormatError(f"/{path} of the image: {error.strerror}") from error
        except OSError as error:
            raise FormatError(f"/{path} of the image cannot be read: {error.strerror}") from error

    def has_file(self, path: str) -> bool:
        """Whether `path` is a regular file of the image, not one of the host."""
        with contextlib.suppress(OSError), self._file(path):
            return True
        return False

    def cover(self, path: str, source: str | bytes) -> None:
        """Show a file of the host, or these bytes, in place of a regular file of the image. Raises ToolError,
        OSError when the image has no such file.
        """
        with self._file(path) as target:
            if isinstance(source, str):
                with _opened(source) as file:
                    _mount_fd(file, target, _BIND)
                return
            # A file of the tmpfs under a name that nobody foresees, and that is gone before anything runs.
            name = f".sqshpipe-{os.urandom(16).hex()}"
            descriptor = untrusted.create_exclusive(name, mode=0o644, dir_fd=self.folder)
            try:
                os.write(descriptor, source)
                _mount_fd(descriptor, target, _BIND)
            finally:
                os.close(descriptor)
                os.unlink(name, dir_fd=self.folder)

    def bind(self, bind: Bind) -> None:
        """Show a file or folder of the host at a place inside. Raises ConfigError, ToolError."""
        where = f"cannot mount {shown(bind.source)} on {shown(bind.target)}"
        try:
            source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ConfigError(f"cannot mount {shown(bind.source)}: it does not exist on this host") from None
        except OSError as error:
            raise ConfigError(f"cannot mount {shown(bind.source)}: {error.strerror}") from error
        try:
            is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
            with self._place(bind.target, is_folder=is_folder, where=where) as target:
                if bind.writable:
                    _mount_fd(source, target, _BIND | _REC)
                else:
                    self._mount_read_only(source, target, is_folder=is_folder)
        finally:
            os.close(source)

    def enter(self) -> None:
        """Make it the root of this process, as switch_root(8) does it. Raises ToolError."""
        try:
            os.fchdir(self.folder)
            mount(f"/proc/self/fd/{self.folder}", "/", "", _MOVE, "")
            os.chroot(".")
            os.chdir("/")
        except OSError as error:
            raise ToolError(f"cannot enter the image: {error.strerror}") from error
        finally:
            os.close(self.image)
            os.close(self.folder)

    def _show(self, name: str) -> None:
        """One top-level name of the image; what is neither file, folder nor symlink is left out."""
        with self._found(name, self.image) as entry:
            mode = os.fstat(entry).st_mode
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink("", dir_fd=entry), name, dir_fd=self.folder)
                return
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                return
            self._create(self.folder, name, is_folder=stat.S_ISDIR(mode))
            with self._found(name) as target:
                _mount_fd(entry, target, _BIND | _REC)

    @contextlib.contextmanager
    def _file(self, path: str) -> Iterator[int]:
        """A regular file of the image, where it lies in the new root. Raises OSError."""
        with _closing(untrusted.open_in_root(self.folder, path)) as found:
            with _closing(untrusted.open_in_root(self.image, path)) as own:
                status = os.fstat(found)
                if not stat.S_ISREG(status.st_mode) or not os.path.samestat(status, os.fstat(own)):
                    raise FileNotFoundError(path)
            yield found

    @contextlib.contextmanager
    def _place(self, path: str, *, is_folder: bool, where: str) -> Iterator[int]:
        """Where a mount goes: what is there, or what is created for it on the tmpfs. Raises ConfigError."""
        try:
            found, missing = untrusted.walk_in_root(self.folder, path)
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror} in the image") from error
        try:
            if not missing and os.path.samestat(os.fstat(found), os.fstat(self.folder)):
                raise ConfigError(f"{where}: that is the root of the image")
            found = self._completed(found, missing, is_folder=is_folder, where=where)
            if stat.S_ISDIR(os.fstat(found).st_mode) != is_folder:
                kind = "file" if is_folder else "folder"
                raise ConfigError(f"{where}: that is a {kind} in the image")
            yield found
        finally:
            os.close(found)

    def _completed(self, found: int, missing: list[str], *, is_folder: bool, where: str) -> int:
        """Create what is missing; closes `found` when it gives another descriptor."""
        if missing and os.fstat(found).st_dev != os.fstat(self.folder).st_dev:
            raise ConfigError(
                f"{where}: there is no such place, and it cannot be created: "
                "the image is read-only, and nothing is created in folders of the host",
                hint="mount it on a name of its own directly below /, or add the folder to the image",
            )
        for depth, name in enumerate(missing, 1):
            try:
                self._create(found, name, is_folder=is_folder or depth < len(missing))
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found)
            except OSError as error:
                raise ConfigError(f"{where}: {error.strerror}") from error
            os.close(found)
            found = below
        return found

    def _mount_read_only(self, source: int, target: int, *, is_folder: bool) -> None:
        """Prepared under a name that nobody foresees and then moved, so that it is never seen writable."""
        name = f".sqshpipe-{os.urandom(16).hex()}"
        self._create(self.folder, name, is_folder=is_folder)
        with self._found(name) as place:
            _mount_fd(source, place, _BIND | _REC)
        with self._found(name) as mounted:
            make_read_only(mounted, _remount_fd)
            _mount_fd(mounted, target, _MOVE)
        (os.rmdir if is_folder else os.unlink)(name, dir_fd=self.folder)

    @contextlib.contextmanager
    def _found(self, name: str, folder: int | None = None) -> Iterator[int]:
        """What a name directly below the new root, or another folder, is now; a symlink is not followed."""
        where = self.folder if folder is None else folder
        with _closing(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where)) as descriptor:
            yield descriptor

    @staticmethod
    def _create(folder: int, name: str, *, is_folder: bool) -> None:
        if is_folder:
            os.mkdir(name, 0o755, dir_fd=folder)
        else:
            os.close(untrusted.create_exclusive(name, mode=0o644, dir_fd=folder))


def cut_off_mounts() -> None:
    """What is mounted from now on is not seen outside of this mount namespace. Raises ToolError."""
    mount("none", "/", "", _REC | _SLAVE, "")


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2). Raises ToolError."""
    words = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    if _LIBC.mount(*words) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ToolError(f"cannot mount {_name_of(source)} on {_name_of(target)}: {why}")


def _mount_fd(source: int, target: int, flags: int) -> None:
    mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", "", flags, "")


def _remount_fd(mounted: int, flags: int) -> None:
    mount("none", f"/proc/self/fd/{mounted}", "", flags, "")


def _name_of(path: str) -> str:
    """For people: what a descriptor is open on."""
    if path.startswith("/proc/self/fd/"):
        with contextlib.suppress(OSError):
            return shown(os.readlink(path))  # noqa: PTH115 - no path of a file
    return shown(path)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """A name of the host, which is trusted: symlinks are followed. Raises OSError."""
    with _closing(os.open(path, os.O_PATH | os.O_CLOEXEC)) as descriptor:
        yield descriptor


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
