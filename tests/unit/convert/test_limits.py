"""What images.yaml's limits forbid, for every converter."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import convert
from pipeline.errors import FormatError
from pipeline.oci.entry import Limits
from pipeline.squashfs.reader import SquashfsImage
from tests.support.images.images import image
from tests.support.images.layers import LayerBuilder

ORDINARY = LayerBuilder().dir("bin").file("bin/sh", b"#!\n" * 1000, mode=0o755).dir("tmp", mode=0o3777)
CASES = [
    (LayerBuilder().device("disk", 8, 0, block=True), Limits(devices=False), "device node /disk"),
    (LayerBuilder().device("n/tty", 5, 0), Limits(devices=False), "device node /n/tty"),
    (LayerBuilder().file("su", mode=0o4755), Limits(setuid=False), "setuid file /su"),
    (LayerBuilder().file("sg", mode=0o2755), Limits(setuid=False), "setuid file /sg"),
    (LayerBuilder().file("big", b"x" * 7000), Limits(max_unpacked=10_000), "beyond|more than 10000|take"),
    (LayerBuilder().file("a").file("b"), Limits(max_entries=4), "more than 4 members"),
    (LayerBuilder().file("n" * 90), Limits(max_metadata=80), "names and attributes"),
]


def converted(tmp_path: Path, converter: str, layers: list[LayerBuilder], limits: Limits) -> None:
    convert(
        image(tmp_path / "image", layers),
        ConvertOptions(converter=converter),  # type: ignore[arg-type]
        output=tmp_path / "x.sqsh",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
        limits=limits,
    )


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
@pytest.mark.parametrize(("layer", "limits", "words"), CASES, ids=[case[2] for case in CASES])
def test_what_is_beyond_is_refused(
    layer: LayerBuilder, limits: Limits, words: str, converter: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=words):
        converted(tmp_path, converter, [ORDINARY, layer], limits)
    assert not (tmp_path / "x.sqsh").exists()


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("converter", ["native", "mksquashfs"])
def test_what_a_container_never_sees_is_allowed(converter: str, tmp_path: Path) -> None:
    """Devices below /dev are left out, what upper layers hide is not in the file, folders may be setgid."""
    lower = LayerBuilder().device("dev/sda", 8, 0, block=True).file("su", mode=0o4755)
    upper = LayerBuilder().whiteout("su")
    converted(tmp_path, converter, [ORDINARY, lower, upper], Limits(devices=False, setuid=False))
    with SquashfsImage.open(tmp_path / "x.sqsh") as made:
        names = {name for name, _ in made.walk()}
        assert {b"bin/sh", b"tmp"} <= names
        assert not names & {b"su", b"dev/sda"}
        assert made.lookup(b"tmp").mode & 0o7777 == 0o3777
