"""Inside a .sqsh, without mounting it."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import completion, options, output
from pipeline.cli.verbs import Verbs
from pipeline.text import escaped

if TYPE_CHECKING:
    from pipeline.squashfs.inode import Inode
    from pipeline.squashfs.reader import SquashfsImage

squashfs = Verbs("Look into a .sqsh without mounting it.")
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|IMAGE[:VERSION]",
        help="A .sqsh, or a release of the store.",
        show_default=False,
        autocompletion=completion.releases,
    ),
]
Inside = Annotated[str, typer.Argument(help="A path in it.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Also list folders below.")]
_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFLNK,
    5: stat.S_IFCHR,
    6: stat.S_IFBLK,
    7: stat.S_IFIFO,
}


@squashfs.command("ls")
def list_inside(
    file: File,
    path: Inside = "/",
    store: options.Store = None,
    recursive: Recursive = False,
    as_json: options.Json = False,
) -> None:
    """List what is in a .sqsh.

    Example: sqshpipe squashfs ls pytorch.sqsh /opt
    """
    with _opened(file, store) as image:
        found = list(_entries(image, path, recursive=recursive))
    if as_json:
        output.data_json([_as_json(name, inode) for name, inode in found])
        return
    width = max((len(str(inode.size)) for _, inode in found), default=0)
    for name, inode in found:
        output.data(_line(name, inode, width))


@squashfs.command()
def cat(
    file: File,
    path: Annotated[str, typer.Argument(help="A file in it.", show_default=False)],
    store: options.Store = None,
) -> None:
    """Print a file that is in a .sqsh.

    Example: sqshpipe squashfs cat demo:v1.0 /etc/environment
    """
    from pipeline.errors import ConfigError
    from pipeline.squashfs.inode import Kind

    with _opened(file, store) as image:
        inode = _at(image, path)
        if inode.kind is not Kind.FILE:
            raise ConfigError(f"{path} in {file} is not a file", hint=f"sqshpipe squashfs ls {file} {path}")
        output.data_bytes(image.open_file(inode))


def _opened(text: str, store: Path | None) -> SquashfsImage:
    """A file where there is one of that name, else a release of the store."""
    from pipeline.cli.files import is_release, wanted
    from pipeline.errors import ConfigError
    from pipeline.squashfs.reader import SquashfsImage

    file = Path(text).expanduser()
    if file.exists():
        return SquashfsImage.open(file)
    if not is_release(text):
        raise ConfigError(f"{text} does not exist", hint="give the path of a .sqsh, or IMAGE:VERSION")
    return SquashfsImage.open(wanted(text, store).path)


def _at(image: SquashfsImage, path: str) -> Inode:
    from pipeline.errors import ConfigError

    try:
        return image.resolve(os.fsencode(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{image.path} has no {path}", hint=f"sqshpipe squashfs ls {image.path}") from error


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
