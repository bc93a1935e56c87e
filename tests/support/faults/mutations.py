"""What may happen to a file of a store: each mutation changes the file at a path, or raises Unfit."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


class Unfit(Exception):
    """This mutation makes no sense for that file."""


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bytes(path: Path) -> bytearray:
    if path.is_symlink() or not path.is_file():
        raise Unfit
    return bytearray(path.read_bytes())


def _write(path: Path, content: bytes | bytearray) -> None:
    _gone(path)
    path.write_bytes(content)


def digit(path: Path, dice: random.Random) -> None:
    """Another hex digit."""
    raw = _bytes(path)
    where = [match.start() for match in re.finditer(rb"[0-9a-f]", raw)]
    if not where:
        raise Unfit
    spot = dice.choice(where)
    raw[spot] = dice.choice(sorted(set(b"0123456789abcdef") - {raw[spot]}))
    _write(path, raw)


def flip(path: Path, dice: random.Random) -> None:
    raw = _bytes(path)
    raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    _write(path, raw)


def byte_ff(path: Path, dice: random.Random) -> None:
    raw = _bytes(path)
    raw[dice.randrange(len(raw))] = 0xFF
    _write(path, raw)


def truncate(path: Path, dice: random.Random) -> None:
    raw = _bytes(path)
    _write(path, raw[: dice.randrange(len(raw))])


def empty(path: Path, _: random.Random) -> None:
    _bytes(path)
    _write(path, b"")


def delete(path: Path, _: random.Random) -> None:
    _gone(path)


def folder(path: Path, _: random.Random) -> None:
    _gone(path)
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def fifo(path: Path, _: random.Random) -> None:
    _gone(path)
    os.mkfifo(path)


def loop(path: Path, _: random.Random) -> None:
    _gone(path)
    path.symlink_to(path.name)


def dangling(path: Path, _: random.Random) -> None:
    _gone(path)
    path.symlink_to("nowhere")


def unix_socket(path: Path, _: random.Random) -> None:
    _gone(path)
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def deep(path: Path, _: random.Random) -> None:
    _bytes(path)
    _write(path, b'{"schema": 1, "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def surrogate(path: Path, _: random.Random) -> None:
    raw = _bytes(path)
    if b'": "' not in raw:
        raise Unfit
    _write(path, raw.replace(b'": "', b'": "\\ud800', 1))


def shape(path: Path, dice: random.Random) -> None:
    """JSON of another shape."""
    _bytes(path)
    _write(
        path, dice.choice([b"[]", b"null", b"1e999", b'"x"', b"{}", b'{"schema": 1}', b'{"schema": true}'])
    )


def twice(path: Path, _: random.Random) -> None:
    """A key that is there twice."""
    raw = _bytes(path)
    if not raw.startswith(b"{"):
        raise Unfit
    _write(path, b'{"events": 7, "image": "x",' + raw[1:])


ALL: tuple[Callable[[Path, random.Random], None], ...] = (
    digit,
    flip,
    byte_ff,
    truncate,
    empty,
    delete,
    folder,
    fifo,
    loop,
    dangling,
    unix_socket,
    deep,
    surrogate,
    shape,
    twice,
)
