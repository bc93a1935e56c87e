"""One image to one .sqsh (``convert``), and one .sqsh against its image (``verify``)."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.text import short

if TYPE_CHECKING:
    from pipeline.config.types import ConvertOptions
    from pipeline.convert.from_store import StoredLayers
    from pipeline.oci.entry import Limits


class ConverterChoice(str, Enum):
    auto = "auto"
    enroot = "enroot"
    mksquashfs = "mksquashfs"
    native = "native"


class CompressorChoice(str, Enum):
    """What ``--compressor`` takes."""

    zstd = "zstd"
    gzip = "gzip"
    lz4 = "lz4"


Source = Annotated[
    str,
    typer.Argument(
        help="docker://HOST/NAME:TAG, oci:FOLDER[:TAG], docker-archive:FILE or docker-daemon:NAME.",
        show_default=False,
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The .sqsh to make.", show_default=False, dir_okay=False)
]
Converter = Annotated[ConverterChoice, typer.Option("--converter", help="Program that makes the .sqsh.")]
CompressorOption = Annotated[CompressorChoice, typer.Option("--compressor", help="Compressor of the .sqsh.")]
ZstdLevel = Annotated[
    int, typer.Option("--zstd-level", min=1, max=22, help="Compression level of zstd, 1 to 22.")
]
BlockSizeText = Annotated[str, typer.Option("--block-size", help="Block size of the .sqsh, from 4K to 1M.")]
KeepOwners = Annotated[
    bool, typer.Option("--keep-owners", help="Keep uid and gid, instead of root for all files.")
]
KeepXattrs = Annotated[
    bool, typer.Option("--keep-xattrs", help="Keep extended attributes, such as file capabilities.")
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")]
MaxUnpacked = Annotated[str, typer.Option("--max-unpacked", help="Largest unpacked size of the image.")]
MaxRatio = Annotated[
    int, typer.Option("--max-ratio", min=1, help="Largest ratio of unpacked to stored bytes, above 4G.")
]
SourceStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="SQSHPIPE_STORE",
        help="Take layers from these releases: a folder or s3://…",
    ),
]
File = Annotated[Path, typer.Argument(help="A .sqsh.", show_default=False)]


def convert(
    source: Source,
    file: Output,
    converter: Converter = ConverterChoice.auto,
    platform: options.Platform = None,
    compressor: CompressorOption = CompressorChoice.zstd,
    zstd_level: ZstdLevel = 3,
    block_size: BlockSizeText = "128K",
    keep_owners: KeepOwners = False,
    keep_xattrs: KeepXattrs = False,
    max_unpacked: MaxUnpacked = "1T",
    max_ratio: MaxRatio = 250,
    force: Force = False,
    store: SourceStore = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Make a .sqsh of an image, read it back, and print its path.

    Example: sqshpipe convert docker://nvcr.io/nvidia/pytorch:24.01-py3 -o pytorch.sqsh
    """
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.cli.stores import host_platform
    from pipeline.config.folders import cache_folder, scratch_folder
    from pipeline.convert import convert as stage
    from pipeline.convert.sources import opened_source
    from pipeline.convert.verify import verify as verify_file
    from pipeline.errors import ConfigError
    from pipeline.oci.platform import Platform

    if file.exists() and not force:
        raise ConfigError(f"{file} exists", hint="choose another --output, or give --force to replace it")
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is not a regular file", hint="choose another --output")
    chosen = _options(
        converter, compressor, zstd_level, block_size, keep_owners=keep_owners, keep_xattrs=keep_xattrs
    )
    limits = _limits(max_unpacked, max_ratio)
    scratch, console = scratch_folder(config), ConsoleProgress()
    with _unverified(file) as unverified:
        with console.stage("convert") as task:
            wanted = Platform.parse(platform or host_platform())
            with (
                opened_source(source, wanted, scratch=scratch, task=task) as image,
                _stored(store, config, scratch) as stored,
            ):
                made = stage.convert(
                    image,
                    chosen,
                    output=unverified,
                    scratch=scratch,
                    cache=cache_folder(config),
                    limits=limits,
                    task=task,
                    stored=stored,
                )
            console.result(f"{made.converter.name}, sha256:{short(made.sha256)}")
        with console.stage("verify") as task:
            verified = verify_file(made, task)
            console.result(f"{len(made.tree)} entries read back, as in the image")
    console.summary()
    if as_json:
        output.data_json(
            {
                "path": str(file.absolute()),
                "sha256": made.sha256,
                "size": made.size,
                "source": str(made.source),
                "converter": dataclasses.asdict(made.converter),
                "convert_key": made.convert_key,
                "checks": list(verified.checks),
                "stages": console.as_json(),
            }
        )
    else:
        output.data(str(file.absolute()))


@contextlib.contextmanager
def _unverified(file: Path) -> Iterator[Path]:
    """A name beside `file` for the new .sqsh, which takes its place only when it has passed verification."""
    from pipeline.errors import VerificationError

    unverified = file.absolute().with_name(f"{file.name}.{uuid.uuid4().hex[:12]}.unverified")
    try:
        yield unverified
        unverified.replace(file)
    except VerificationError as error:
        message = error.message.replace(str(unverified), str(file))
        raise VerificationError(message, hint=error.hint) from error
    finally:
        unverified.unlink(missing_ok=True)


def verify(
    file: File,
    source: Source,
    platform: options.Platform = None,
    keep_owners: KeepOwners = False,
    keep_xattrs: KeepXattrs = False,
    enroot: Annotated[
        bool, typer.Option("--made-by-enroot", help="Allow the known differences of enroot's files.")
    ] = False,
    max_unpacked: MaxUnpacked = "1T",
    max_ratio: MaxRatio = 250,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Read a .sqsh back entirely and compare it with an image.

    Example: sqshpipe verify pytorch.sqsh docker://nvcr.io/nvidia/pytorch:24.01-py3
    """
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.cli.stores import host_platform
    from pipeline.config.folders import cache_folder, scratch_folder
    from pipeline.convert.sources import opened_source
    from pipeline.convert.unpack import Preserve
    from pipeline.convert.verify import described
    from pipeline.convert.verify import verify as verify_file
    from pipeline.errors import ConfigError
    from pipeline.oci.platform import Platform

    if not file.exists():
        raise ConfigError(f"{file} does not exist", hint="give the path of a .sqsh")
    limits, console = _limits(max_unpacked, max_ratio), ConsoleProgress()
    with console.stage("verify") as task:
        with opened_source(
            source, Platform.parse(platform or host_platform()), scratch=scratch_folder(config), task=task
        ) as image:
            keep = Preserve(owners=keep_owners, xattrs=keep_xattrs)
            expected = described(
                file,
                image,
                keep=keep,
                by_enroot=enroot,
                cache=cache_folder(config),
                limits=limits,
                task=task,
            )
        verified = verify_file(expected, task)
        console.result(f"{len(expected.tree)} entries read back, as in the image")
    if as_json:
        output.data_json(
            {
                "path": str(file),
                "sha256": expected.sha256,
                "source": str(expected.source),
                "checks": list(verified.checks),
            }
        )
    else:
        output.data(str(file))


@contextlib.contextmanager
def _stored(store: str | None, config: Path, scratch: Path) -> Iterator[StoredLayers | None]:
    """The releases of a folder or a bucket from which layers are taken. ConfigError if it may not be one."""
    from pipeline.cli.stores import load_settings
    from pipeline.config.types import StoreSettings
    from pipeline.convert.from_store import StoredLayers
    from pipeline.errors import ConfigError
    from pipeline.store.store import Store

    if store is None:
        yield None
        return
    if not store.startswith("s3://"):
        with StoredLayers(Store(Path(store))) as stored:
            yield stored
        return
    settings = load_settings(config) if config.is_file() else StoreSettings(configured=None)
    if not settings.trust_synced:
        raise ConfigError(
            f"{store} may not be used: layers from there are those of whoever writes to the bucket",
            hint=f"if you trust them, write store: {{trust_synced: true}} into {config}",
        )
    from pipeline.attest.required import required_of
    from pipeline.convert.from_bucket import BucketReleases

    required = required_of(settings, config)
    with (
        BucketReleases(store, scratch=scratch, required=required) as copy,
        StoredLayers(None, synced=True, copy=copy) as stored,
    ):
        yield stored


def _limits(max_unpacked: str, max_ratio: int) -> Limits:
    from pipeline.config.quantities import parse_size
    from pipeline.oci.entry import Limits

    return Limits(max_unpacked=parse_size(max_unpacked), max_ratio=max_ratio)


def _options(
    converter: ConverterChoice,
    compressor: CompressorChoice,
    zstd_level: int,
    block_size: str,
    *,
    keep_owners: bool,
    keep_xattrs: bool,
) -> ConvertOptions:
    from pydantic import TypeAdapter, ValidationError

    from pipeline.config.fields import BlockSize
    from pipeline.config.types import ConvertOptions
    from pipeline.errors import ConfigError

    try:
        size = TypeAdapter[int](BlockSize).validate_python(block_size)
    except ValidationError as error:
        raise ConfigError(
            f"--block-size {block_size!r} is not a block size",
            hint="write a power of two from 4K to 1M, such as 128K",
        ) from error
    return ConvertOptions(
        converter=converter.value,
        compressor=compressor.value,
        zstd_level=zstd_level,
        block_size=size,
        keep_owners=keep_owners,
        keep_xattrs=keep_xattrs,
    )
