from __future__ import annotations

import dataclasses

import pytest

from pipeline.convert.enroot_differences import KNOWN_ENROOT_DIFFERENCES, Aspect, Difference, is_known
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.platform import Platform
from pipeline.oci.tree import MADE, Node

CONFIG = ImageConfig(
    raw=b"{}", digest=Digest.of(b"{}"), platform=Platform.parse("linux/amd64"), working_dir="/work/space"
)


def difference(
    path: bytes,
    aspect: Aspect,
    kind: EntryKind = EntryKind.FILE,
    *,
    layer: int = 0,
    found: str = "",
    expected: str = "",
) -> Difference:
    node = Node(entry=Entry(path, kind), layer=layer)
    return Difference(path=path, aspect=aspect, node=node, found=found, expected=expected)


FOLDER = EntryKind.DIRECTORY
TAKEN = [
    difference(b"etc/rc", Aspect.TIME),
    difference(b"etc/rc", Aspect.CONTENT),
    difference(b"etc/fstab", Aspect.SIZE),
    difference(b"etc/environment", Aspect.MODE, found="644", expected="755"),
    difference(b"", Aspect.MODE, FOLDER, found="755", expected="700"),
    difference(b"etc", Aspect.MODE, FOLDER, found="755", expected="750"),
    difference(b"work/space", Aspect.MODE, FOLDER, found="755", expected="1777"),
    difference(b"work", Aspect.MODE, FOLDER, found="755", expected="700"),
    difference(b"usr/lib", Aspect.TIME, FOLDER),
    difference(b"data", Aspect.MISSING, FOLDER, layer=MADE),
    difference(b"lib/udev/null", Aspect.MISSING, EntryKind.CHAR),
    difference(b"/".join([b"d"] * 20), Aspect.MODE, FOLDER, found="555", expected="755"),
]
REFUSED = [
    difference(b"usr/bin/python", Aspect.CONTENT),
    difference(b"usr/bin/python", Aspect.TIME),
    difference(b"usr/bin/python", Aspect.MISSING),
    difference(b"etc/passwd", Aspect.CONTENT),
    difference(b"etc/rc", Aspect.MISSING),
    difference(b"etc/rc", Aspect.KIND),
    difference(b"tmp", Aspect.MODE, FOLDER, found="755", expected="1777"),
    difference(b"work/space", Aspect.MODE, FOLDER, found="700", expected="755"),
    difference(b"works", Aspect.MODE, FOLDER, found="755", expected="700"),
    difference(b"usr/lib", Aspect.MISSING, FOLDER, layer=3),
    difference(b"usr/lib", Aspect.OWNER, FOLDER),
    difference(b"d/e", Aspect.MODE, FOLDER, found="555", expected="755"),
    difference(b"/".join([b"d"] * 20), Aspect.MODE, FOLDER, found="500", expected="755"),
    Difference(path=b"usr/bin/extra", aspect=Aspect.EXTRA, node=None),
    difference(b"a", Aspect.LINKS),
    difference(b"a", Aspect.TARGET, EntryKind.SYMLINK),
]


@pytest.mark.parametrize("each", TAKEN, ids=lambda d: f"{d.path!r} {d.aspect.name}")
def test_known_differences_are_taken(each: Difference) -> None:
    assert is_known(each, CONFIG)


@pytest.mark.parametrize("each", REFUSED, ids=lambda d: f"{d.path!r} {d.aspect.name}")
def test_all_others_are_not(each: Difference) -> None:
    assert not is_known(each, CONFIG)


def test_a_working_directory_at_the_root_makes_nothing_else_known() -> None:
    at_root = dataclasses.replace(CONFIG, working_dir="/")
    assert not is_known(difference(b"tmp", Aspect.MODE, FOLDER, found="755", expected="1777"), at_root)


def test_each_has_a_reason_and_is_shown_by_a_case() -> None:
    for known in KNOWN_ENROOT_DIFFERENCES:
        assert known.why
        assert any(known.applies(each, CONFIG) for each in TAKEN)
