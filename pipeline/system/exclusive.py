"""Give a finished file its name without ever replacing another: link(2), or another way where link is
refused.

- link(2) is atomic everywhere. Over NFS it may answer EEXIST after having succeeded (a lost reply, sent
  again): comparing inodes shows which.
- Where links are refused, publishers take turns by a claim, which is broken when its maker is dead, and
  inside it use renameat2(2) with RENAME_NOREPLACE. The claim alone would do between publishers; the flag
  alone would not, since some FUSE file systems ignore it.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from pipeline.errors import PublishError
from pipeline.system.temporary import is_orphan, temporary_name

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL})
_NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_CLAIM_SECONDS = 30.0


def link_noreplace(source: Path, target: Path) -> bool:
    """Let `target` name the file that `source` names; False when `target` was taken. `source` may remain.

    Both lie in the same folder. Raises OSError as the file system does.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return _same_file(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _place_by_claim(source, target)
    return True


def _same_file(source: Path, target: Path) -> bool:
    try:
        ours, theirs = source.lstat(), target.lstat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _rename_no_replace(source: Path, target: Path) -> None:
    """Rename under a claim. Raises FileExistsError where the file system knows the flag."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    answer = library.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    code = ctypes.get_errno()
    if answer != 0 and code in _NO_FLAGS:
        source.rename(target)
    elif answer != 0:
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def _place_by_claim(source: Path, target: Path) -> bool:
    claim = target.with_name(f".claim.{target.name}")
    deadline = time.monotonic() + _CLAIM_SECONDS
    while not _claim(claim):
        if target.exists():
            return False
        if not _break_dead_claim(claim):
            if time.monotonic() > deadline:
                raise PublishError(
                    f"another publisher holds {claim}", hint="try again; remove it if its maker is dead"
                )
            time.sleep(0.05)
    try:
        if target.exists():
            return False
        _rename_no_replace(source, target)
    except FileExistsError:
        return False
    finally:
        claim.unlink()
    return True


def _claim(claim: Path) -> bool:
    try:
        claim.symlink_to(temporary_name())  # made whole or not at all, unlike a file that is written after
    except FileExistsError:
        return False
    return True


def _break_dead_claim(claim: Path) -> bool:
    """Move a claim of a dead process away; of several that try, one succeeds."""
    try:
        holder = claim.readlink().name
    except OSError:
        return True
    if not is_orphan(claim.with_name(holder)):
        return False
    aside = claim.with_name(temporary_name())
    try:
        claim.rename(aside)
        aside.unlink()
    except OSError:
        return True
    return True
