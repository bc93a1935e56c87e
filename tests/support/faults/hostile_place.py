"""Where a hostile image is converted: a victim beside the working folders, bounds, and the judgement."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import FormatError
from tests.support.faults.bounded import Bounded, Ended
from tests.support.images.hostile_images import HostileImage

PEAK = 900 << 20
"""Bytes of resident memory that no image of the table may make a conversion take."""
_KEPT = b"nobody may touch this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder with a victim in it, places to work in, and what runs command lines."""

    folder: Path
    bounded: Bounded

    @property
    def victim(self) -> Path:
        return self.folder / "victim"

    def run(self, *words: object) -> Ended:
        return self.bounded.run(*words)

    def seen(self) -> dict[str, tuple[int, int, str]]:
        """Everything outside scratch, cache and the image: mode, time, content."""
        found = {}
        for top, folders, files in os.walk(self.folder):
            if Path(top) == self.folder:
                folders[:] = [name for name in folders if name not in ("cache", "image", "out", "reported")]
            for name in (*folders, *files):
                path = Path(top) / name
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                else:
                    content = str(path.readlink()) if path.is_symlink() else ""
                time = 0 if path in (self.folder / "scratch", self.folder / "tmp") else status.st_mtime_ns
                found[str(path.relative_to(self.folder))] = (status.st_mode, time, content)
        return found


@contextlib.contextmanager
def prepared(folder: Path, **environment: str) -> Iterator[Place]:
    """A place in the empty ``folder``; more of the environment that the command lines get by name."""
    for name in ("victim", "scratch", "cache", "out", "reported", "tmp", "home"):
        (folder / name).mkdir()
    (folder / "victim" / "kept").write_bytes(_KEPT)
    (folder / "victim" / "sub").mkdir()
    ours = {
        "SQSHPIPE_SCRATCH": str(folder / "scratch"),
        "SQSHPIPE_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
    }
    with Bounded(folder / "reported", {**ours, **environment}) as bounded:
        yield Place(folder=folder, bounded=bounded)


@contextlib.contextmanager
def untouched(place: Place) -> Iterator[None]:
    """Nothing outside the working folders changes, scratch is empty afterwards, no half of a file is left."""
    before = place.seen()
    yield
    after = place.seen()
    assert after == before, sorted(after.items() ^ before.items())
    assert list((place.folder / "scratch").iterdir()) == []
    assert list((place.folder / "tmp").iterdir()) == []
    left = [file.name for file in (place.folder / "out").iterdir()]
    assert left in ([], ["x.sqsh"]), left
    assert not Path("pwned").exists()


def written(case: HostileImage, place: Place) -> str:
    image = place.folder / "image"
    image.mkdir()
    case.write(image, str(place.victim))
    return f"oci:{image}"


def judge(case: HostileImage, ended: Ended) -> None:
    reported = f"{ended.stderr[-1500:]} ({ended.seconds:.1f} s, {ended.peak >> 20} MB)"
    assert not ended.hung, f"it hangs: {reported}"
    assert ended.peak < PEAK, reported
    assert "Traceback" not in ended.stderr, reported
    assert "unexpected" not in ended.stderr, reported
    if case.refused:
        assert ended.returncode == FormatError.exit_code, reported
        assert re.search(case.refused, ended.stderr), reported
        assert len(ended.stderr) < 20_000
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", ended.stderr), "what is reported is safe to print"
    else:
        assert ended.returncode == 0, reported


@contextlib.contextmanager
def cleared(place: Place) -> Iterator[None]:
    """Without the last image and its layer packs: a layer that is known is not read again."""
    shutil.rmtree(place.folder / "cache" / "packs", ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(place.folder / "image", ignore_errors=True)
