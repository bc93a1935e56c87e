"""A few kilobytes of symlinks with long targets kept a conversion busy for hours, or gave huge paths."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import FormatError
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.entry import Entry, EntryKind
from pipeline.oci.merge import merge
from pipeline.oci.rootfs import enroot_rootfs
from pipeline.oci.tree import Tree
from tests.support.images.layers import image_config

FILE, FOLDER, SYMLINK, HARDLINK = EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK, EntryKind.HARDLINK


def config(**settings: object) -> ImageConfig:
    return parse_config(image_config([], settings))


def chain() -> list[Entry]:
    """s0 leads to d in 40 steps, of 1,632 names each."""
    way = b"d/" + b"../d/" * 815
    links = [Entry(b"s%d" % n, SYMLINK, target=way + b"../s%d" % (n + 1)) for n in range(39)]
    return [Entry(b"d", FOLDER), Entry(b"d/f", FILE), *links, Entry(b"s39", SYMLINK, target=b"d")]


@pytest.mark.parametrize(
    "more",
    [
        lambda n: Entry(b"h%d" % n, HARDLINK, target=b"s0/f"),
        lambda n: Entry(b"s0/made%d/f" % n, FILE),
        lambda n: Entry(b"s0/.wh.f%d" % n, FILE),
    ],
    ids=["hard links", "files", "whiteouts"],
)
def test_the_way_of_all_members_together_is_bounded(more: Callable[[int], Entry]) -> None:
    with pytest.raises(FormatError, match="a longer way than any sound image's"):
        merge([chain(), [more(number) for number in range(100_000)]])
    assert merge([chain(), [more(number) for number in range(5)]])


def test_the_way_of_all_volumes_together_is_bounded() -> None:
    tree = merge([chain()])
    with pytest.raises(FormatError, match="a longer way than any sound image's"):
        enroot_rootfs(tree, config(Volumes={"/" * (n + 1) + "s0": {} for n in range(2000)}))
    assert b"d/v" in enroot_rootfs(tree, config(Volumes={"/s0/v": {}}))


def test_no_path_grows_by_links_beyond_what_a_file_system_takes() -> None:
    step, entries, last = b"/".join([b"d" * 250] * 15), [], b""
    for number in range(30):
        entries.append(Entry(last + step, FOLDER))
        last = b"l%d" % number
        entries.append(Entry(last, SYMLINK, target=entries[-1].path))
        last += b"/"
    with pytest.raises(FormatError, match="deeper than a file system takes"):
        merge([entries])


def test_names_that_links_make_long_are_bounded_together() -> None:
    """A million files of 3 bytes below a link of 4,000 are four gigabytes of names."""
    deep = b"/".join([b"d" * 250] * 15)
    entries = [Entry(deep, FOLDER), Entry(b"l", SYMLINK, target=deep)]
    entries += [Entry(b"l/%d" % number, FILE) for number in range(150_000)]
    with pytest.raises(FormatError, match="by symlinks"):
        merge([entries])


def test_a_name_out_of_a_link_is_no_longer_than_names_are() -> None:
    link = Entry(b"w", SYMLINK, target=b"n" * 300)
    with pytest.raises(FormatError, match="deeper than a file system takes"):
        merge([[link, Entry(b"w/x", FILE)]])
    with pytest.raises(FormatError, match=r"working directory .* longer than a file system takes"):
        enroot_rootfs(merge([[link]]), config(WorkingDir="/w"))
    with pytest.raises(FormatError, match=r"volume .* longer than a file system takes"):
        enroot_rootfs(merge([[link]]), config(Volumes={"/w": {}}))


def etc_to(target: bytes) -> Tree:
    return enroot_rootfs(merge([[Entry(b"etc", SYMLINK, target=target)]]), config())


@pytest.mark.parametrize("target", [b"dev", b"/dev/made", b"dev/a/b"])
def test_etc_below_dev_is_refused(target: bytes) -> None:
    """It gave files without the folder that they are in."""
    with pytest.raises(FormatError, match="below /dev nothing is kept"):
        etc_to(target)


@pytest.mark.parametrize("target", [b"n" * 256, b"/".join([b"n" * 200] * 20) + b"/" + b"n" * 74])
def test_etc_by_a_long_link_is_refused(target: bytes) -> None:
    with pytest.raises(FormatError, match="longer than a file system takes"):
        etc_to(target)
