"""Compressing and expanding single blocks, as each squashfs compressor does it.

A block is at most 1 MiB, so everything happens in one shot. One object serves one thread: the contexts inside
are not shared.
"""

from __future__ import annotations

import importlib
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import zstandard
from isal import isal_zlib

from pipeline.errors import ConfigError, FormatError
from pipeline.squashfs.superblock import Compressor

Expand = Callable[[bytes, int], bytes]  # (compressed, most bytes allowed) -> plain; FormatError
Plain = bytes | bytearray | memoryview  # before it is compressed; it must not change until then
Stored = Any  # anything with the buffer protocol and a length: zstandard's stubs do not declare it
CompressMany = Callable[[list[Plain]], Iterable[Stored]]  # in the order of the blocks
Compress = Callable[[Plain], bytes]  # maybe longer than what went in

_GZIP_FAILURE = cast("type[Exception]", isal_zlib.error)  # its stub names an instance

DEFAULT_ZSTD_LEVEL = 15  # what mksquashfs takes when nothing is asked for; other levels are written down
DEFAULT_GZIP_LEVEL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A compressor with its level; `level` 0 means the compressor's own default."""

    compressor: Compressor = Compressor.ZSTD
    level: int = 3

    def __post_init__(self) -> None:
        limits = {Compressor.ZSTD: (1, 22), Compressor.GZIP: (1, 9), Compressor.LZ4: (0, 1)}
        if self.compressor not in limits:
            raise ConfigError(
                f"cannot write squashfs with {self.compressor.name.lower()}", hint="take zstd, gzip or lz4"
            )
        low, high = limits[self.compressor]
        if not low <= self.level <= high:
            raise ConfigError(
                f"{self.compressor.name.lower()} level {self.level} does not exist",
                hint=f"take {low} to {high}",
            )

    def make_compress(self) -> Compress:
        """A function for one thread that compresses a block in one shot, with its size in the frame."""
        if self.compressor is Compressor.ZSTD:
            return zstandard.ZstdCompressor(
                level=self.level, write_checksum=False, write_content_size=True
            ).compress
        if self.compressor is Compressor.GZIP:
            return lambda data: zlib.compress(data, self.level)
        block = _lz4_block()
        mode = "high_compression" if self.level else "default"
        return lambda data: bytes(block.compress(data, mode=mode, store_size=False))

    def make_compress_many(self) -> CompressMany:
        """The same for several blocks; it takes the interpreter's lock once and not for each."""
        if self.compressor is Compressor.ZSTD:
            context = zstandard.ZstdCompressor(
                level=self.level, write_checksum=False, write_content_size=True
            )
            many = cast("CompressMany", context.multi_compress_to_buffer)
            return lambda blocks: many(blocks) if blocks else ()  # on this thread alone
        one = self.make_compress()
        return lambda blocks: [one(block) for block in blocks]

    def options(self) -> bytes:
        """The compressor options block's content, empty where the format has it left out."""
        if self.compressor is Compressor.ZSTD:
            return b"" if self.level == DEFAULT_ZSTD_LEVEL else struct.pack("<I", self.level)
        if self.compressor is Compressor.GZIP:
            return b"" if self.level == DEFAULT_GZIP_LEVEL else struct.pack("<IHH", self.level, 15, 0)
        return struct.pack("<II", 1, self.level)  # lz4: version 1, bit 0 is high compression

    def versions(self) -> dict[str, str]:
        """The libraries whose versions decide about the bytes."""
        if self.compressor is Compressor.ZSTD:
            return {"zstd": ".".join(str(part) for part in zstandard.ZSTD_VERSION)}
        if self.compressor is Compressor.GZIP:
            return {"zlib": zlib.ZLIB_RUNTIME_VERSION}
        _lz4_block()
        return {"lz4": str(importlib.import_module("lz4").library_version_string())}


def make_expand(compressor: Compressor) -> Expand:
    """A function for one thread that expands one block; FormatError for a compressor that we cannot read."""
    if compressor is Compressor.ZSTD:
        return _zstd_expand()
    if compressor is Compressor.GZIP:
        return _gzip_expand
    if compressor is Compressor.XZ:
        return _xz_expand
    if compressor is Compressor.LZ4:
        return _lz4_expand()
    raise FormatError(
        f"squashfs files compressed with {compressor.name.lower()} are not read here",
        hint="make the file again with zstd, or unpack it with unsquashfs",
    )


def _zstd_expand() -> Expand:
    decompressor = zstandard.ZstdDecompressor()
    decompress = decompressor.decompress
    parameters = zstandard.get_frame_parameters

    def expand(data: bytes, limit: int) -> bytes:
        try:
            size = parameters(data).content_size
            if size > limit and size < zstandard.CONTENTSIZE_UNKNOWN:
                raise FormatError(f"a zstd block claims {size} bytes where {limit} are allowed")
            return decompress(data, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise FormatError(f"a zstd block is damaged: {error}") from error

    return expand


def _gzip_expand(data: bytes, limit: int) -> bytes:
    try:
        stream = isal_zlib.decompressobj()
        plain: bytes = stream.decompress(data, limit + 1)
    except _GZIP_FAILURE as error:
        raise FormatError(f"a gzip block is damaged: {error}") from error
    if len(plain) > limit or not stream.eof:
        raise FormatError(f"a gzip block is damaged: not {limit} bytes or fewer")
    return plain


def _xz_expand(data: bytes, limit: int) -> bytes:
    try:
        stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)
        plain = stream.decompress(data, limit + 1)
    except lzma.LZMAError as error:
        raise FormatError(f"an xz block is damaged: {error}") from error
    if len(plain) > limit or not stream.eof:
        raise FormatError(f"an xz block is damaged: not {limit} bytes or fewer")
    return plain


def _lz4_block() -> Any:
    try:
        return importlib.import_module("lz4.block")
    except ImportError as error:
        raise ConfigError(
            "the Python package lz4 is not installed", hint="pip install 'sqshpipe[lz4]'"
        ) from error


def _lz4_expand() -> Expand:
    block = _lz4_block()
    failure: type[Exception] = block.LZ4BlockError

    def expand(data: bytes, limit: int) -> bytes:
        try:
            return bytes(block.decompress(data, uncompressed_size=limit))
        except (failure, ValueError) as error:
            raise FormatError(f"an lz4 block is damaged: {error}") from error

    return expand
