"""Look at a store as its publisher will use it, and say what is wrong: for `sqshpipe doctor`."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SqshpipeError
from pipeline.store import creation, leases, space
from pipeline.store.layout import Layout
from pipeline.store.prune import temporaries
from pipeline.store.reading import cache_bytes, index_is_current, lost_events, read_head, read_truth
from pipeline.system import atomic, untrusted
from pipeline.system.mountinfo import mount_of
from pipeline.system.temporary import is_orphan, temporary_name

LOW_BYTES = 50 << 30
LARGE_BYTES = 1 << 30
ASKED = 20
"""At most this many large files are looked up in Lustre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFinding:
    """One thing looked at: "ok", "warn" or "fail", what was found, and what to do about it."""

    level: str
    found: str
    advice: str = ""


def examine(
    root: Path, *, group: str | None = None, stripe: tuple[int, int] | None = None
) -> list[StoreFinding]:
    """Check a store for faults. Creates probe files and removes them; changes nothing else.

    `group` is the group that its folders should have, `stripe` the Lustre striping of its files: (targets,
    bytes). None: not checked.
    """
    layout = Layout(root)
    try:
        creation.require(layout)
    except SqshpipeError as error:
        return [StoreFinding(level="fail", found=error.headline, advice=error.hint)]
    kind = mount_of(root).type
    known = "an unknown file system" if kind == "unknown" else kind
    findings = [StoreFinding(level="ok", found=f"{root} is on {known}")]
    findings += _writing(layout)
    if not any(one.level == "fail" for one in findings):
        findings += _folders(layout)
    for look in (_room, _leases, _caches, _leftovers):
        findings += look(layout)
    findings += _unstriped(layout)
    findings += _group(layout, group)
    if stripe is not None:
        findings += _striping(layout, *stripe)
    return findings


def _writing(layout: Layout) -> Iterator[StoreFinding]:
    folder = layout.blobs if layout.blobs.is_dir() else layout.root
    probe = folder / temporary_name()
    try:
        with atomic.translate_errors("trying to write"):
            probing = untrusted.create_exclusive(probe, mode=0o666)
            try:
                os.write(probing, b"probe")
            finally:
                os.close(probing)
    except SqshpipeError as error:
        yield StoreFinding(level="fail", found=error.headline, advice=error.hint)
        return
    try:
        owner = probe.stat().st_uid
        if owner != os.geteuid():
            yield StoreFinding(
                level="warn",
                found=f"files written as uid {os.geteuid()} belong to uid {owner}",
                advice="the server has root_squash: publish as the store's own user",
            )
        yield from _linking(probe)
    finally:
        probe.unlink(missing_ok=True)


def _linking(probe: Path) -> Iterator[StoreFinding]:
    other = probe.with_name(temporary_name())
    try:
        os.link(probe, other)
    except OSError as error:
        yield StoreFinding(
            level="warn",
            found=f"hard links are refused ({error.strerror})",
            advice="publishing works by renameat2 or claims instead; prefer a file system with links",
        )
    else:
        yield StoreFinding(level="ok", found="files and hard links can be made")
    finally:
        other.unlink(missing_ok=True)


def _folders(layout: Layout) -> Iterator[StoreFinding]:
    """What a publisher of another user or umask made, and this one cannot work in."""
    wanted = [layout.root, layout.blobs]
    for image in layout.images():
        wanted += [layout.image(image), layout.image(image) / ".meta", layout.events(image)]
    for folder in wanted:
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            status = folder.stat()
            yield StoreFinding(
                level="fail",
                found=f"{folder} cannot be written (uid {status.st_uid}, gid {status.st_gid}, "
                f"mode {stat.S_IMODE(status.st_mode):o})",
                advice="publish as its owner, or give store: {group: …} and let its owner chmod g+rwxs",
            )


def _room(layout: Layout) -> Iterator[StoreFinding]:
    free = shutil.disk_usage(layout.root).free
    inodes = os.statvfs(layout.root)
    if free < LOW_BYTES:
        yield StoreFinding(
            level="warn",
            found=f"{free / 1e9:.1f} GB free",
            advice="sqshpipe store prune --dry-run says what could go",
        )
    else:
        yield StoreFinding(level="ok", found=f"{free / 1e9:.1f} GB free")
    left = space.lustre_quota_left(layout.root)
    if left is not None and left < LOW_BYTES:
        yield StoreFinding(
            level="warn",
            found=f"{left / 1e9:.1f} GB left of the quota",
            advice="ask for more, or see sqshpipe store prune --dry-run",
        )
    if inodes.f_files and inodes.f_favail < 10000:
        yield StoreFinding(level="warn", found=f"{inodes.f_favail} inodes left", advice="ask for more inodes")


def _leases(layout: Layout) -> Iterator[StoreFinding]:
    if not layout.leases.is_dir():
        yield StoreFinding(
            level="warn",
            found="there is no folder for leases, so prune cannot know who uses what",
            advice=f"mkdir -m 1777 {layout.leases}",
        )
    elif stat.S_IMODE(layout.leases.stat().st_mode) != leases.FOLDER_MODE:
        yield StoreFinding(
            level="warn", found=f"{layout.leases} is not mode 1777", advice=f"chmod 1777 {layout.leases}"
        )


def _caches(layout: Layout) -> Iterator[StoreFinding]:
    for image in layout.images():
        try:
            loaded = read_truth(layout, image)
        except SqshpipeError as error:
            yield StoreFinding(level="fail", found=error.headline, advice=error.hint)
            continue
        for message in loaded.broken:
            yield StoreFinding(
                level="fail", found=message, advice="sqshpipe store rebuild says what can be done"
            )
        if lost := lost_events(layout, loaded.state):
            yield StoreFinding(
                level="fail", found=lost, advice="sqshpipe store rebuild says what can be done"
            )
        elif loaded.state.releases and not _caches_are_right(layout, image):
            yield StoreFinding(
                level="warn", found=f"the index of {image} is stale", advice="sqshpipe store rebuild"
            )


def _caches_are_right(layout: Layout, image: str) -> bool:
    raw = cache_bytes(layout.index(image))
    return read_head(layout, image) is not None and index_is_current(layout, image, raw)


def _leftovers(layout: Layout) -> Iterator[StoreFinding]:
    dead = [path for path in temporaries(layout) if is_orphan(path)]
    if dead:
        size = sum(path.lstat().st_size for path in dead)
        yield StoreFinding(
            level="warn",
            found=f"{len(dead)} files of killed runs, {size / 1e9:.1f} GB",
            advice="sqshpipe store prune removes them",
        )


def _group(layout: Layout, group: str | None) -> Iterator[StoreFinding]:
    try:
        space.check_group(layout, group)
    except SqshpipeError as error:
        yield StoreFinding(level="fail", found=error.headline, advice=error.hint)
        return
    if group is None:
        return
    for folder in (layout.root, layout.blobs, *map(layout.image, layout.images())):
        mode = stat.S_IMODE(folder.stat().st_mode) if folder.is_dir() else 0o2775
        if not (mode & stat.S_ISGID and mode & stat.S_IWGRP):
            yield StoreFinding(
                level="warn",
                found=f"{folder} has mode {mode:o}, so not all of group {group} can publish",
                advice=f"once, as its owner: chmod -R g+rwXs {layout.root}",
            )


def _unstriped(layout: Layout) -> Iterator[StoreFinding]:
    """Large files that lie on one server of Lustre: one node reads them over one connection."""
    if mount_of(layout.root).type != "lustre" or shutil.which("lfs") is None:
        return
    sizes = {path: path.lstat().st_size for path in layout.blobs.glob("*.sqsh") if not path.is_symlink()}
    largest = sorted((path for path in sizes if sizes[path] >= LARGE_BYTES), key=lambda path: -sizes[path])
    try:
        alone = [path for path in largest[:ASKED] if space.targets(path) == 1]
    except SqshpipeError as error:
        yield StoreFinding(level="warn", found=error.headline, advice=error.hint)
        return
    if alone:
        found = f"{len(alone)} of the {len(largest[:ASKED])} largest files lie on one Lustre target each"
        yield StoreFinding(
            level="warn",
            found=f"{found}, such as {alone[0].name} with {sizes[alone[0]] / 1e9:.1f} GB: "
            "a node reads such a file with at most 0.63 GB/s",
            advice=f"new files: store: {{stripe: …}} in images.yaml; this one: lfs migrate -c 4 {alone[0]}",
        )


def _striping(layout: Layout, count: int, size: int) -> Iterator[StoreFinding]:
    if mount_of(layout.root).type != "lustre":
        found = "store: {stripe: …} is set, and the store is not on Lustre"
        yield StoreFinding(level="warn", found=found, advice="leave it out, or look at the path")
    elif shutil.which("lfs") is None:
        found = "lfs is not installed, so new files are not striped"
        yield StoreFinding(
            level="warn", found=found, advice="install the Lustre client's tools on the publisher"
        )
    elif layout.blobs.is_dir() and (is_so := space.striping(layout)) != (count, size):
        yield StoreFinding(
            level="warn",
            found=f"{layout.blobs} is striped over {is_so[0]} targets in {is_so[1]} bytes",
            advice=f"for files to come: lfs setstripe -c {count} -S {size} {layout.blobs}",
        )
