"""Publish: a verified .sqsh becomes an immutable release of the store.

The store takes plain facts; this module gathers them from the values that the stages before it returned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.names import DEFAULT_CHANNEL, DEFAULT_PLATFORM, Version
from pipeline.config.types import ConvertOptions
from pipeline.convert.convert import SquashfsFile
from pipeline.convert.data import convert_data, is_data
from pipeline.convert.tree import content_size
from pipeline.convert.verify import COMPARED, VerifiedSquashfs, compare
from pipeline.errors import ConfigError
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage
from pipeline.progress import NO_TASK, Task
from pipeline.squashfs.reader import SquashfsImage
from pipeline.store.events import whoami
from pipeline.store.layout import LAYERS, RANGES
from pipeline.store.publish_steps import copy_in, hash_file, link_in
from pipeline.store.record import DATA, EXTERNAL, IMAGE, Record, Release, rows
from pipeline.store.sharing import is_vouched, layers_of, ranges_of, with_attached
from pipeline.store.store import Store
from pipeline.system import atomic
from pipeline.text import utc

_MOST_LAYERS = 512  # in a record; engines stop at 127


def publish(
    verified: VerifiedSquashfs,
    *,
    store: Store,
    image: str,
    version: Version,
    source: PushedImage | None = None,
    scan: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    platform: str = DEFAULT_PLATFORM,
    channels: Iterable[str] = (DEFAULT_CHANNEL,),
    task: Task = NO_TASK,
) -> Release:
    """Make `verified` the release image:version for `platform`, and let `channels` name it.

    `scan` is what the record says of the scan: {"status": "unscanned" | "passed", "scanner", "findings"}. The
    same content under the same version is done already. Raises PublishError when the version has other
    content.
    """
    file = verified.file
    keys = {"convert": file.convert_key}
    attached = _attached(None if file.ranges is None else file.ranges.encode(), file.layer_indexes)
    if source is not None and source.build_key is not None:
        keys["build"] = source.build_key
    record = Record(
        image=image,
        version=version,
        platform=platform,
        sha256=file.sha256,
        size=file.size,
        source=_source(file, source),
        base=None if source is None else _base(source.base),
        keys=keys,
        converter=dataclasses.asdict(file.converter),
        scan=dict(scan),
        provenance={**(provenance or {}), **_layers(file), "by": _publisher()},
        checks=tuple(verified.checks),
        packs=() if file.ranges is None else file.ranges.keys,
        attachments=_named(attached),
        created=utc(),
    )
    made = store.publish(record, file.path, channels=channels, sha256=file.sha256, task=task)
    _attach(store, made, attached)
    return made


def publish_again(
    same: Release,
    *,
    store: Store,
    image: str,
    version: Version,
    source: PushedImage,
    scan: Mapping[str, Any],
    provenance: Mapping[str, Any],
    channels: Iterable[str] = (DEFAULT_CHANNEL,),
    task: Task = NO_TASK,
) -> Release:
    """Publish the file of `same`, which was made from the same image with the same options, as image:version.

    Its bytes are read back and compared with their digest. Raises VerificationError when they are damaged.
    """
    named = with_attached(store.layout, same, store.required)
    shared = ranges_of(store.layout, named)
    attached = _attached(None if shared is None else shared.encode(), layers_of(store.layout, named))
    record = Record(
        image=image,
        version=version,
        platform=same.platform,
        sha256=same.sha256,
        size=same.size,
        source={
            "repository": str(source.repository),
            "digest": str(source.digest),
            "config_digest": str(source.config_digest),
        },
        base=_base(source.base),
        keys={"convert": same.keys["convert"]} | ({"build": source.build_key} if source.build_key else {}),
        converter=same.converter,
        scan=dict(scan),
        provenance={
            **provenance,
            **_known_layers(store, same),
            "same_file_as": same.name,
            "by": _publisher(),
        },
        checks=same.checks,
        packs=same.packs,
        attachments=_named(attached),
        created=utc(),
    )
    made = store.publish(record, same.path, channels=channels, sha256=same.sha256, task=task)
    _attach(store, made, attached)
    return made


def publish_file(
    file: Path,
    *,
    store: Store,
    image: str,
    version: Version,
    platform: str = DEFAULT_PLATFORM,
    data: bool = False,
    allow_external: bool = False,
    move: bool = False,
    task: Task = NO_TASK,
) -> Release:
    """Make a release of what lies at `file`: a .sqsh, or data in a folder or a tar.

    `data`: a .sqsh, or what looks like a container image, is data too. Raises ConfigError for data that is to
    be moved, and what the two functions below raise.
    """
    if not is_data(file):
        return publish_external(
            file,
            store=store,
            image=image,
            version=version,
            platform=DEFAULT_PLATFORM if data else platform,
            kind=DATA if data else IMAGE,
            allow_external=allow_external,
            move=move,
            task=task,
        )
    if move:
        raise ConfigError(f"{file} is not a .sqsh, so it cannot be moved there", hint="leave out --move")
    return publish_data(file, store=store, image=image, version=version, images=data, task=task)


def publish_external(
    file: Path,
    *,
    store: Store,
    image: str,
    version: Version,
    platform: str = DEFAULT_PLATFORM,
    kind: str = IMAGE,
    allow_external: bool = False,
    move: bool = False,
    task: Task = NO_TASK,
) -> Release:
    """Make a release of a .sqsh that was made elsewhere; its record says external, unscanned.

    `kind` is what is in it: an image or data, which needs no permission to be named by a channel.

    With `move` the file itself becomes the release, and its old name goes when the record is written. Raises
    FormatError when it is not a sound squashfs file, PublishError when the version has other content,
    ConfigError when a file cannot be moved.
    """
    with SquashfsImage.open(file) as opened:
        compressor = str(opened.superblock.compressor)
    store.make_room(0 if move else file.stat().st_size)
    with store.staging() as staged:
        with atomic.translate_errors(f"taking {file} into {store.root}"):
            if move:
                link_in(file, staged)
                sha256 = hash_file(staged, task=task)
            else:
                sha256 = copy_in(file, staged, task=task)
        record = Record(
            image=image,
            version=version,
            platform=platform,
            sha256=sha256,
            size=staged.stat().st_size,
            kind=kind,
            scan=dict(EXTERNAL),
            provenance={"file": file.name, "compressor": compressor, "by": _publisher()},
            checks=("superblock and tables",),
            created=utc(),
        )
        release = store.publish(record, staged, allow_external=allow_external, sha256=sha256)
    if move:
        file.unlink()
    return release


def _publisher() -> str:
    """Who publishes, for people: user@host, or in GitHub Actions the person who started the workflow."""
    actor = os.environ.get("GITHUB_ACTOR") if "GITHUB_ACTIONS" in os.environ else None
    return f"{actor} (GitHub Actions)" if actor else whoami()


def publish_data(
    source: Path,
    *,
    store: Store,
    image: str,
    version: Version,
    images: bool = False,
    task: Task = NO_TASK,
) -> Release:
    """Make a release of the data in a folder or a tar: read back and compared, never scanned.

    `images`: also of one that is itself a container image. Raises PublishError when the version has other
    content, ConfigError when the folder has the store in it, and what `convert_data` raises.
    """
    _refuse_overlap(source, store.root)
    with store.staging() as staged:
        file = convert_data(source, ConvertOptions(), output=staged, images=images, task=task)
        compare(file, task)
        record = Record(
            image=image,
            version=version,
            platform=DEFAULT_PLATFORM,
            sha256=file.sha256,
            size=file.size,
            kind=DATA,
            converter=dataclasses.asdict(file.converter),
            scan={"status": "unscanned", "scanner": "none"},
            provenance={
                "file": source.absolute().name,
                "names": len(file.tree),
                "bytes": content_size(file.tree),
                "by": _publisher(),
            },
            checks=COMPARED,
            created=utc(),
        )
        return store.publish(record, staged, sha256=file.sha256)


def _refuse_overlap(source: Path, root: Path) -> None:
    """Raise ConfigError for a folder that has the store in it or lies in it: its own files would be data."""
    if not source.is_dir():
        return
    here, store = source.resolve(), root.resolve()
    for outer, inner in ((here, store), (store, here)):
        if any(each.samefile(outer) for each in (inner, *inner.parents)):
            raise ConfigError(
                f"{source} and the store {root} lie in each other, so the store would be in the data",
                hint="import the folder below it that holds the data, or move the data",
            )


def _attached(ranges: bytes | None, layers: bytes | None) -> dict[str, bytes]:
    """What is attached to a release about the packs of which it is, by name."""
    return {name: content for name, content in ((RANGES, ranges), (LAYERS, layers)) if content is not None}


def _named(attached: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in attached.items()}


def _attach(store: Store, made: Release, attached: Mapping[str, bytes]) -> None:
    """Put these beside the release: after its record, so that those that lie there are its own."""
    for name, content in attached.items():
        store.attach(made, name, content)


def _layers(file: SquashfsFile) -> dict[str, Any]:
    """The image's layers, base first: digests and stored bytes, and what comparing a blob with its diff_id
    gave.

    Nothing for a monstrous list.
    """
    if len(file.layers) > _MOST_LAYERS:
        return {}
    compared = {(pair.blob, pair.size): (pair, found) for pair, found in file.compared}
    layers = []
    for layer in file.layers:
        row: dict[str, Any] = {"digest": str(layer.digest), "size": layer.size}
        if (str(layer.digest), layer.size) in compared:
            pair, found = compared[str(layer.digest), layer.size]
            row |= {"diff_id": pair.diff_id, "unpacked": found.unpacked, "holes": found.holes}
        layers.append(row)
    return {"layers": layers}


def _known_layers(store: Store, same: Release) -> dict[str, Any]:
    """The layers in a record; without what was compared where only another store's writers vouch for that."""
    known = rows(same.provenance.get("layers"))
    if not is_vouched(store.layout, same):
        known = [{name: row[name] for name in ("digest", "size") if name in row} for row in known]
    return {"layers": [dict(row) for row in known]} if known else {}


def _source(file: SquashfsFile, source: PushedImage | None) -> dict[str, str]:
    if source is None:
        return {"digest": str(file.source)}
    return {
        "repository": str(source.repository),
        "digest": str(source.digest),
        "config_digest": str(source.config_digest),
    }


def _base(base: BaseImage) -> dict[str, str]:
    return {"reference": str(base.reference), "digest": str(base.digest)}
