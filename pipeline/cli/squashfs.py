"""Inside a .sqsh without mounting it (``ls``, ``cat``), and the layer packs (``cache``)."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import options, output
from pipeline.text import escaped

if TYPE_CHECKING:
    from pipeline.squashfs.inode import Inode
    from pipeline.squashfs.reader import SquashfsImage

File = Annotated[Path, typer.Argument(help="A .sqsh.", show_default=False)]
Inside = Annotated[str, typer.Argument(help="A path in it.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Also what is in folders below.")]
MaxSize = Annotated[
    str | None, typer.Option("--max-size", help="Trim to so much, the longest unused first: 50G, 0.")
]
MaxAge = Annotated[
    str | None, typer.Option("--max-age", help="Trim what was not used for so long: 30d, 12h.")
]

_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFLNK,
    5: stat.S_IFCHR,
    6: stat.S_IFBLK,
    7: stat.S_IFIFO,
}


def list_inside(
    file: File, path: Inside = "/", recursive: Recursive = False, as_json: options.Json = False
) -> None:
    """Show what is in a .sqsh, without mounting it.

    Example: sqshpipe ls pytorch.sqsh /opt
    """
    with _opened(file) as image:
        found = list(_entries(image, path, recursive=recursive))
    if as_json:
        output.data_json([_as_json(name, inode) for name, inode in found])
        return
    width = max((len(str(inode.size)) for _, inode in found), default=0)
    for name, inode in found:
        output.data(_line(name, inode, width))


def cat(file: File, path: Annotated[str, typer.Argument(help="A file in it.", show_default=False)]) -> None:
    """Print a file out of a .sqsh, without mounting it.

    Example: sqshpipe cat pytorch.sqsh /etc/environment
    """
    from pipeline.errors import ConfigError
    from pipeline.squashfs.inode import Kind

    with _opened(file) as image:
        inode = _at(image, path)
        if inode.kind is not Kind.FILE:
            raise ConfigError(f"{path} in {file} is not a file", hint=f"sqshpipe ls {file} {path}")
        output.data_bytes(image.open_file(inode))


def cache(max_size: MaxSize = None, max_age: MaxAge = None, as_json: options.Json = False) -> None:
    """Show the layer packs that save unpacking and compressing, and trim them.

    What a conversion is using stays. Example: sqshpipe cache --max-size 50G --max-age 30d
    """
    from pipeline.cli.progress import human_bytes
    from pipeline.config.quantities import parse_duration, parse_size
    from pipeline.convert.packing import pack_cache
    from pipeline.squashfs.cache import CachedPack
    from pipeline.system.scratch import default_cache

    packs = pack_cache(default_cache())
    removed: list[CachedPack] = []
    if max_size is not None or max_age is not None:
        removed = packs.trim(
            now=datetime.now(timezone.utc),
            max_size=None if max_size is None else 0 if max_size == "0" else parse_size(max_size),
            max_age=None if max_age is None else parse_duration(max_age),
        )
    left = packs.packs()
    if as_json:
        output.data_json({"folder": str(packs.folder), "packs": _packs(left), "removed": _packs(removed)})
        return
    for pack in left:
        state = "in use" if pack.in_use else "" if pack.complete else "left over"
        used = pack.used.strftime("%Y-%m-%d %H:%M")
        output.data(f"{human_bytes(pack.size):>9}  {used}  {pack.path.name}  {state}".rstrip())
    total = human_bytes(sum(pack.size for pack in left))
    gone = human_bytes(sum(pack.size for pack in removed))
    output.data(f"{total:>9}  {len(left)} packs in {packs.folder}")
    if removed:
        output.data(f"{gone:>9}  removed, {len(removed)} packs")


def _opened(file: Path) -> SquashfsImage:
    from pipeline.squashfs.reader import SquashfsImage

    return SquashfsImage.open(file)


def _at(image: SquashfsImage, path: str) -> Inode:
    from pipeline.errors import ConfigError

    try:
        return image.resolve(os.fsencode(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{image.path} has no {path}", hint=f"sqshpipe ls {image.path}") from error


def _entries(image: SquashfsImage, path: str, *, recursive: bool) -> Any:
    from pipeline.squashfs.inode import Kind

    inode = _at(image, path)
    if inode.kind is not Kind.DIRECTORY:
        yield os.fsencode(path).strip(b"/"), inode
    elif recursive:
        yield from ((name, found) for name, found in image.walk(inode) if name)
    else:
        yield from image.listdir(inode)


def _line(name: bytes, inode: Inode, width: int) -> str:
    mode = stat.filemode(_TYPES.get(inode.kind, stat.S_IFSOCK) | inode.mode)
    when = datetime.fromtimestamp(inode.mtime, timezone.utc).strftime("%Y-%m-%d %H:%M")
    target = f" -> {_text(inode.target)}" if inode.target else ""
    return f"{mode} {inode.uid}:{inode.gid} {inode.size:>{width}} {when} {_text(name)}{target}"


def _text(name: bytes) -> str:
    return escaped(name.decode("utf-8", "backslashreplace"))


def _as_json(name: bytes, inode: Inode) -> dict[str, Any]:
    return {
        "path": name.decode("utf-8", "backslashreplace"),
        "kind": inode.kind.name.lower(),
        "mode": f"{inode.mode:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime": inode.mtime,
        "target": inode.target.decode("utf-8", "backslashreplace") or None,
    }


def _packs(packs: Any) -> list[dict[str, Any]]:
    return [
        {
            "path": str(pack.path),
            "size": pack.size,
            "used": pack.used.isoformat(),
            "in_use": pack.in_use,
            "complete": pack.complete,
        }
        for pack in packs
    ]
