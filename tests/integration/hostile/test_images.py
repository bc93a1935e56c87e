"""Every image of the table by every converter and by verify: a correct file, or exit code 6 with a sentence.

Each runs as its own process with bounded memory and time, between folders that nobody but it may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from pipeline.squashfs.reader import SquashfsImage
from tests.support.faults.hostile_place import PEAK, Place, cleared, judge, prepared, untouched, written
from tests.support.images.hostile_images import HOSTILE_IMAGES, HostileImage, base
from tests.support.images.layers import raw_header, write_layout

pytestmark = pytest.mark.needs("mksquashfs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(tmp_path_factory.mktemp("hostile")) as made:
        yield made


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


def test_verify_refuses_the_same_images(place: Place) -> None:
    """A sound file against each hostile image: exit code 6, or 7 where the image is sound and another one."""
    output = place.folder / "out" / "x.sqsh"
    output.unlink(missing_ok=True)
    good = place.folder / "reported" / "good"
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
