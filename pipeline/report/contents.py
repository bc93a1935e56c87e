"""What is installed in a .sqsh, read from the package managers' own files without mounting it.

Debian: /var/lib/dpkg/status (dpkg-query(1)); Alpine: /lib/apk/db/installed; Python: the names of *.dist-info
folders (https://packaging.python.org/en/latest/specifications/recording-installed-packages/); conda: the
names in conda-meta. Nothing in the image is run or believed beyond its name and version.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import FormatError
from pipeline.squashfs.inode import Inode, Kind
from pipeline.squashfs.reader import SquashfsImage

_DATABASE_LIMIT = 64 << 20
_MOST_PACKAGES = 50_000
_DIST_INFO = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[^-/]+)\.dist-info")
_CONDA = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-[^-]+\.json")
_PREFIXES = (b"usr", b"usr/local", b"opt/conda", b"venv", b".venv", b"app/venv", b"app/.venv")
_FOLDER_DEPTH = 2

Package = tuple[str, str]
"""Where it comes from (debian, alpine, python, conda) and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Versions by package; with the walk also bytes by folder and every file's size and time (seconds)."""

    packages: Mapping[Package, str]
    folders: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


def read_contents(path: Path, *, walk: bool = False) -> Contents:
    """What is in that .sqsh; with `walk` also every file. Raises FormatError when it is not a sound one."""
    with SquashfsImage.open(path) as image:
        packages: dict[Package, set[str]] = defaultdict(set)
        for source, name, version in _packages(image):
            packages[source, name].add(version)
            if len(packages) > _MOST_PACKAGES:
                raise FormatError(f"{path} lists more than {_MOST_PACKAGES} packages")
        folders, files = _walked(image) if walk else ({}, {})
    versions = {key: ", ".join(sorted(found)) for key, found in packages.items()}
    return Contents(packages=versions, folders=folders, files=files)


def _packages(image: SquashfsImage) -> Iterator[tuple[str, str, str]]:
    yield from _debian(image)
    yield from _alpine(image)
    for prefix in _prefixes(image):
        yield from _python(image, prefix)
        for name, _ in _children(image, prefix + b"/conda-meta"):
            if match := _CONDA.fullmatch(_text(name)):
                yield "conda", match["name"], match["version"]


def _debian(image: SquashfsImage) -> Iterator[tuple[str, str, str]]:
    texts = [_file(image, b"var/lib/dpkg/status")]
    texts += [
        _file(image, b"var/lib/dpkg/status.d/" + name)
        for name, _ in _children(image, b"var/lib/dpkg/status.d")
    ]
    for paragraph in "\n\n".join(texts).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): *(.*)$", paragraph, re.MULTILINE))
        if (
            "Package" in fields
            and "Version" in fields
            and fields.get("Status", "ok installed").endswith(" installed")
        ):
            yield "debian", fields["Package"], fields["Version"]


def _alpine(image: SquashfsImage) -> Iterator[tuple[str, str, str]]:
    for paragraph in _file(image, b"lib/apk/db/installed").split("\n\n"):
        fields = dict(re.findall(r"^([PV]):(.*)$", paragraph, re.MULTILINE))
        if len(fields) == 2:
            yield "alpine", fields["P"], fields["V"]


def _prefixes(image: SquashfsImage) -> list[bytes]:
    in_opt = [b"opt/" + name for name, inode in _children(image, b"opt") if inode.kind is Kind.DIRECTORY]
    return list(dict.fromkeys([*_PREFIXES, *in_opt]))


def _python(image: SquashfsImage, prefix: bytes) -> Iterator[tuple[str, str, str]]:
    for library, _ in _children(image, prefix + b"/lib"):
        if not library.startswith(b"python"):
            continue
        for place in (b"/dist-packages", b"/site-packages"):
            for name, _ in _children(image, prefix + b"/lib/" + library + place):
                if match := _DIST_INFO.fullmatch(_text(name)):
                    yield "python", match["name"].replace("_", "-").lower(), match["version"]


def _children(image: SquashfsImage, path: bytes) -> Iterator[tuple[bytes, Inode]]:
    try:
        folder = image.resolve(path)
    except FileNotFoundError:
        return
    if folder.kind is Kind.DIRECTORY:
        yield from image.listdir(folder)


def _file(image: SquashfsImage, path: bytes) -> str:
    try:
        inode = image.resolve(path)
    except FileNotFoundError:
        return ""
    return _text(image.read(inode, limit=_DATABASE_LIMIT)) if inode.kind is Kind.FILE else ""


def _walked(image: SquashfsImage) -> tuple[dict[str, int], dict[bytes, tuple[int, int]]]:
    folders: dict[str, int] = defaultdict(int)
    files: dict[bytes, tuple[int, int]] = {}
    counted: set[int] = set()
    for path, inode in image.walk():
        if inode.kind is Kind.DIRECTORY:
            continue
        files[path] = (inode.size, inode.mtime)
        if inode.kind is Kind.FILE and inode.number not in counted:
            counted.add(inode.number)
            parts = path.split(b"/")[:-1][:_FOLDER_DEPTH]
            folders["/" + _text(b"/".join(parts))] += inode.size
    return folders, files


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
