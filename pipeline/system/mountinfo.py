"""Which file system a path is on (proc(5), mountinfo)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SHARED = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "afs", "9p", "fuse.sshfs"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """Where a file system is mounted, and of which type it is (``ext4``, ``nfs4``)."""

    point: Path
    type: str

    @property
    def is_shared(self) -> bool:
        """Whether several hosts see the same files there, over a network."""
        return self.type in _SHARED


def mount_of(path: Path, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> MountPoint:
    """The mount that ``path`` is on (proc(5), mountinfo); type ``unknown`` where that cannot be read."""
    real = existing(path).resolve()
    best = MountPoint(point=Path("/"), type="unknown")
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return best
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(unescaped(before.split(" ")[4]))
        # a later line hides an earlier one of the same place
        if real.is_relative_to(point) and len(point.parts) >= len(best.point.parts):
            best = MountPoint(point=point, type=after.split(" ")[0])
    return best


def unescaped(word: str) -> str:
    """A path as proc(5) writes it in mountinfo and mounts."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, character)
    return word


def existing(path: Path) -> Path:
    """The nearest folder upwards that is there already."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
