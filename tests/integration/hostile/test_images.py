"""Every image of the table by every converter and by verify: a correct file, or exit code 6 with a sentence.

Each runs as its own process with bounded memory and time, between folders that nobody but it may change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.squashfs.reader import SquashfsImage
from tests.support.bounded import Bounded, Ended
from tests.support.hostile_images import HOSTILE_IMAGES, HostileImage, base
from tests.support.layers import raw_header, write_layout

pytestmark = pytest.mark.needs("mksquashfs")

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
                folders[:] = [name for name in folders if name not in ("cache", "image", "out", "told")]
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("victim", "scratch", "cache", "out", "told", "tmp", "home"):
        (folder / name).mkdir()
    (folder / "victim" / "kept").write_bytes(_KEPT)
    (folder / "victim" / "sub").mkdir()
    environment = {
        "SQSHPIPE_SCRATCH": str(folder / "scratch"),
        "SQSHPIPE_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
    }
    with Bounded(folder / "told", environment) as bounded:
        yield Place(folder=folder, bounded=bounded)


@contextlib.contextmanager
def untouched(place: Place) -> Iterator[None]:
    """Nothing outside the working folders changes, scratch is empty afterwards, no half of a file is left."""
    before = place.seen()
    yield
    assert place.seen() == before
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
    told = f"{ended.stderr[-1500:]} ({ended.seconds:.1f} s, {ended.peak >> 20} MB)"
    assert not ended.hung, f"it hangs: {told}"
    assert ended.peak < PEAK, told
    assert "Traceback" not in ended.stderr, told
    assert "unexpected" not in ended.stderr, told
    if case.refused:
        assert ended.returncode == FormatError.exit_code, told
        assert re.search(case.refused, ended.stderr), told
        assert len(ended.stderr) < 20_000
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", ended.stderr), "what is told is safe to print"
    else:
        assert ended.returncode == 0, told


# mksquashfs reads an image as verify does, which gets the manifests below.
CASES = [(case, "native") for case in HOSTILE_IMAGES]
CASES += [
    # It names files from scratch on, which makes the longest paths too long for the kernel.
    (dataclasses.replace(case, refused="mksquashfs takes") if "4,095" in case.name else case, "mksquashfs")
    for case in HOSTILE_IMAGES
    if not case.name.startswith(("tar:", "manifest:"))
]


@pytest.mark.parametrize(("case", "converter"), CASES, ids=[f"{case.name}-{name}" for case, name in CASES])
def test_a_correct_file_or_a_sentence(case: HostileImage, converter: str, place: Place) -> None:
    output = place.folder / "out" / "x.sqsh"
    output.unlink(missing_ok=True)
    with cleared(place), untouched(place):
        source = written(case, place)
        ended = place.run("convert", source, "-o", output, "--converter", converter, *case.flags)
        judge(case, ended)
        assert output.exists() is not bool(case.refused)
        if case.refused:
            return
        with SquashfsImage.open(output) as image:
            for path, content in case.holds.items():
                inode = image.lookup(path)
                if content is not None and content.startswith(b"-> "):
                    assert inode.target == content[3:]
                elif content is not None and content:
                    assert image.read(inode) == content


@contextlib.contextmanager
def cleared(place: Place) -> Iterator[None]:
    """Without the last image and its layer packs: a layer that is known is not read again."""
    shutil.rmtree(place.folder / "cache" / "packs", ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(place.folder / "image", ignore_errors=True)


def test_verify_refuses_the_same_images(place: Place) -> None:
    """A sound file against each hostile image: exit code 6, or 7 where the image is sound and another one."""
    output = place.folder / "out" / "x.sqsh"
    output.unlink(missing_ok=True)
    good = place.folder / "told" / "good"
    write_layout(good, [base()])
    assert place.run("convert", f"oci:{good}", "-o", output, "--converter", "native").returncode == 0
    wrong = []
    for case in HOSTILE_IMAGES:
        if case.name.startswith("tar:"):
            continue  # the same reader, which the native converter was given above
        with cleared(place), untouched(place):
            ended = place.run("verify", output, written(case, place), *case.flags)
        expected = (6,) if case.refused else (0, 7)
        if ended.returncode not in expected or "Traceback" in ended.stderr or ended.peak >= PEAK:
            wrong.append(f"{case.name}: exit {ended.returncode}: {ended.stderr[-300:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
def test_very_many_entries(
    converter: str, place: Place, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """A million with --slow: a file, in bounded time and memory."""
    slow = bool(pytestconfig.getoption("--slow"))
    count = 1_000_000 if slow else {"native": 60_000, "mksquashfs": 10_000}[converter]
    layer = base().tar()[:-1024] + b"".join(
        raw_header(b"d%d/f%d" % (number % 1000, number), b"0") for number in range(count)
    )
    output = place.folder / "out" / "x.sqsh"
    output.unlink(missing_ok=True)
    with cleared(place), untouched(place):
        write_layout(place.folder / "image", [layer + bytes(1024)], compression="zstd")
        source = f"oci:{place.folder / 'image'}"
        ended = place.bounded.run(
            *("convert", source, "-o", output, "--converter", converter), memory=8 << 30, seconds=1500
        )
    assert ended.returncode == 0, ended.stderr
    with capsys.disabled():
        print(f"\n{converter}: {count} entries in {ended.seconds:.0f} s and {ended.peak >> 20} MB")  # noqa: T201
    assert ended.peak < (3 << 30 if slow else 400 << 20)
