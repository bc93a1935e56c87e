"""The folder of layer packs: found by key, made under a temporary name, trimmed but never while in use."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path

from pipeline.errors import FormatError, ToolError, VerificationError
from pipeline.squashfs.codecs import Codec, Stored
from pipeline.squashfs.pack import FORMAT_VERSION, Pack, PackDamaged, footer
from pipeline.squashfs.packcheck import check_data
from pipeline.squashfs.packindex import PackIndex
from pipeline.squashfs.superblock import Compressor
from pipeline.squashfs.writing import write_at
from pipeline.system import untrusted
from pipeline.system.disk import is_full
from pipeline.system.parallel import CancelToken

_SUFFIX = ".pack"
_PARTIAL = ".partial-"
_PAIR = ".pair"
_MOST_PAIRS = 8192  # that are kept; a file each
_NOTE = 1024  # bytes of one at most


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPack:
    """One file of the cache, as a listing shows it; `size` in bytes."""

    path: Path
    size: int
    used: datetime
    in_use: bool
    complete: bool


def pack_key(diff_id: str, codec: Codec, block_size: int) -> str:
    """The name of a layer's pack: its content and all that decides about the bytes."""
    what = {
        "diff_id": diff_id,
        "compressor": codec.compressor.name,
        "level": codec.level,
        "versions": codec.versions(),
        "block_size": block_size,
        "format": FORMAT_VERSION,
    }
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A layer as a manifest and a config name it: `blob` is its digest, `size` its bytes as stored.

    The manifest names the one and the config the other: that they are the same layer is known only once the
    blob has been read and both were compared.
    """

    blob: str
    size: int
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What comparing a pair has shown, in bytes.

    `unpacked` is the size of the uncompressed tar, `holes` that of the holes in sparse files, which are not
    in the tar.
    """

    unpacked: int
    holes: int


class PackWriteHandle:
    """An unfinished pack: append data with `write`, end it with `complete`."""

    def __init__(self, cache: PackCache, descriptor: int) -> None:
        self._cache = cache
        self._descriptor = descriptor
        self._size = 0

    def write(self, parts: list[Stored]) -> None:
        """Append all parts, one after the other."""
        try:
            self._size += write_at(self._descriptor, parts, self._size)
        except OSError as error:
            raise self._cache.unwritable(error) from error

    def check(self, index: PackIndex, compressor: Compressor, *, workers: int, cancel: CancelToken) -> None:
        """Compare what is on the disk with the layer, and let `index` say so. Raises VerificationError."""
        name = f"a new layer pack in {self._cache.folder}"
        try:
            check_data(self._descriptor, index, compressor, name=name, workers=workers, cancel=cancel)
        except FormatError as error:
            raise VerificationError(
                error.message, hint="check the disk and the memory of this machine, then convert again"
            ) from error
        index.header["verified"] = True

    def complete(self, index: PackIndex) -> None:
        """Write index and footer; the pack becomes visible when the context ends."""
        encoded = index.encode()
        data_size = self._size
        self.write([encoded, footer(encoded, data_size)])


class PackCache:
    """The packs in `folder`, which is made when missing. Safe for several builders at once.

    `on_damage` is called with every pack that is removed because it is damaged. A whole pack is trusted:
    only its owner may write in the folder, see `refuse_others`.
    """

    def __init__(self, folder: Path, on_damage: Callable[[PackDamaged], None] = lambda _: None) -> None:
        self.folder = folder
        self._on_damage = on_damage

    def refuse_others(self) -> None:
        """Raise ToolError when anybody can put packs here: they would be published as if they were layers."""
        if untrusted.others_may_write(self.folder):
            raise ToolError(
                f"everybody can put layer packs into {self.folder}, which are published as they are",
                hint="set SQSHPIPE_CACHE to a folder of yours, or take it from others: chmod o-w, chown",
            )

    def open(self, key: str) -> Pack | None:
        """Open the pack `key`; None when it is missing or damaged. A damaged one is removed."""
        path = self._path(key)
        try:
            pack = Pack.open(path)
        except FileNotFoundError:
            return None
        except PackDamaged as error:
            self.discard(error)
            return None
        with contextlib.suppress(OSError):
            os.utime(pack.descriptor)  # when it was last used decides what is trimmed first
        return pack

    def has(self, key: str) -> bool:
        """Whether there is a pack of that name; it is neither opened nor counted as used."""
        return self._path(key).is_file()

    def compared(self, pair: Pair) -> Compared | None:
        """The result of the conversion that has read this blob and compared both digests; None: not known."""
        path, noted = self._pair_path(pair)
        try:
            descriptor = untrusted.open_regular(path)
        except OSError:
            return None
        try:
            with contextlib.suppress(OSError):
                os.utime(descriptor)  # used now: removed last
            text = os.read(descriptor, _NOTE).decode("ascii")
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        found = re.fullmatch(re.escape(noted) + r" ([0-9]{1,19}) ([0-9]{1,19}) ([0-9a-f]{64})\n", text)
        if found is None or found[3] != sha256(text.rpartition(" ")[0].encode()).hexdigest():
            return None  # damaged: it is compared again
        return Compared(unpacked=int(found[1]), holes=int(found[2]))

    def note_compared(self, pair: Pair, found: Compared) -> None:
        """Remember that this blob was read and has both digests. One that cannot be noted is read again."""
        path, noted = self._pair_path(pair)
        text = f"{noted} {found.unpacked} {found.holes}"
        text = f"{text} {sha256(text.encode()).hexdigest()}\n"
        with contextlib.suppress(OSError):
            descriptor = untrusted.open_regular(path, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)

    def _pair_path(self, pair: Pair) -> tuple[Path, str]:
        noted = f"{pair.blob} {pair.size} {pair.diff_id}"
        return self.folder / (sha256(noted.encode()).hexdigest() + _PAIR), noted

    def discard(self, error: PackDamaged) -> None:
        """Remove a pack of this folder that was found damaged; nothing else is ever removed."""
        if error.path.parent == self.folder:
            self._on_damage(error)
            error.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[PackWriteHandle]:
        """Make the pack `key`: it appears, whole, when the context ends without an exception.

        ToolError when the cache cannot be written or is full. Two builders of one pack do not disturb each
        other: they write the same bytes, and the last one's file stays.
        """
        path, descriptor = self._create(key)
        try:
            yield PackWriteHandle(self, descriptor)
            path.rename(self._path(key))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _create(self, key: str) -> tuple[Path, int]:
        """A new file under a temporary name, locked: the lock says that its writer lives."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o755)
                self.folder.chmod(0o755)  # whatever the umask: no others
            while True:
                path = self.folder / f"{_PARTIAL}{key[:16]}-{secrets.token_hex(8)}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if path.exists():  # else somebody took it for a leftover before it was locked
                    return path, descriptor
                os.close(descriptor)
        except OSError as error:
            raise self.unwritable(error) from error

    def packs(self) -> list[CachedPack]:
        """All packs and leftovers, the longest unused first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            complete = path.name.endswith(_SUFFIX)
            if not complete and not path.name.startswith(_PARTIAL):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                found.append(
                    CachedPack(
                        path=path,
                        size=status.st_size,
                        used=datetime.fromtimestamp(status.st_mtime, timezone.utc),
                        in_use=_in_use(path),
                        complete=complete,
                    )
                )
        return sorted(found, key=lambda pack: (pack.used, pack.path.name))

    def trim(
        self,
        *,
        now: datetime,
        max_size: int | None = None,
        max_age: timedelta | None = None,
        dry_run: bool = False,
    ) -> list[CachedPack]:
        """Remove dead writers' leftovers, packs unused for longer than `max_age`, then the longest unused
        until at most `max_size` bytes stay. What is in use stays. Returns what was removed, or with `dry_run`
        what would be.
        """
        packs = self.packs()
        left = sum(pack.size for pack in packs)
        removed = []
        for pack in packs:
            too_old = max_age is not None and now - pack.used > max_age
            too_much = max_size is not None and left > max_size
            if pack.in_use or not (too_old or too_much or not pack.complete):
                continue
            if dry_run or _remove_unused(pack.path):
                left -= pack.size
                removed.append(pack)
        return removed

    def remove_leftovers(self) -> None:
        """Remove what killed writers left behind, and beyond a bound the pairs longest unused."""
        for pack in self.packs():
            if not pack.complete and not pack.in_use:
                _remove_unused(pack.path)
        pairs = list(self.folder.glob(f"*{_PAIR}"))
        if len(pairs) > _MOST_PAIRS:
            for path in sorted(pairs, key=_used)[: -_MOST_PAIRS // 2]:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def unwritable(self, error: OSError) -> ToolError:
        """The error to raise when writing into the cache fails."""
        return ToolError(
            f"cannot write a layer pack in {self.folder}: {error.strerror}",
            hint="free space, or trim it with `sqshpipe cache prune --max-size 0`"
            if is_full(error)
            else "set SQSHPIPE_CACHE",
        )


def _used(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _opened_to_lock(path: Path) -> int:
    """NFS takes an exclusive lock only of who may write."""
    try:
        return untrusted.open_regular(path, flags=os.O_RDWR)
    except PermissionError:
        return untrusted.open_regular(path)


def _in_use(path: Path) -> bool:
    with contextlib.suppress(OSError):
        descriptor = _opened_to_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _remove_unused(path: Path) -> bool:
    """Remove a file unless somebody holds its lock; the lock is kept until the file is deleted."""
    try:
        descriptor = _opened_to_lock(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
