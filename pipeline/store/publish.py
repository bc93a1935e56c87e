"""Publish a release: the steps of `publish_steps`, without those that an earlier run has done."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.names import DEFAULT_PLATFORM
from pipeline.errors import PublishError
from pipeline.progress import NO_TASK, Task
from pipeline.store import caches, channels, events, folders, publish_steps, space
from pipeline.store.events import Change
from pipeline.store.layout import Layout
from pipeline.store.reading import add_versions, exists, fold_events, kind_of, read_record, refuse_newer
from pipeline.store.record import DATA, Record
from pipeline.store.state import ImageState, VersionState
from pipeline.system import atomic
from pipeline.system.temporary import is_temporary, temporary_name


def publish(
    layout: Layout,
    record: Record,
    file: Path,
    *,
    moves: tuple[str, ...],
    allow_external: bool,
    sha256: str | None,
    task: Task,
) -> None:
    """Make the release exist, complete, with its channels and caches; see Store.publish."""
    with atomic.translate_errors(f"publishing {record.image}:{record.version} in {layout.root}"):
        refuse_newer(layout, record.image)
        state = fold_events(layout, ImageState(image=record.image))  # raises before anything is brought
        named = record.version in state.releases
        stems = add_versions(layout, state, [record.version])
        _refuse_channel_name(layout, record)
        refuse_other_kind(record, kind_of(layout, state, stems))
        there = read_record(layout, record.image, record.version, record.platform)
        if there is not None:
            publish_steps.refuse_other_content(record, there)
        else:
            refuse_lost_record(layout, record, state, named=named)
        standing = state.releases.get(record.version) if there else None
        if there is None or not _stands(layout, there, standing):
            if file == layout.blob(record.sha256):
                commit_present(layout, record, task=task)
            else:
                _bring(layout, record, file, standing, sha256, task)
        for channel in moves:
            channels.advance(
                layout,
                record.image,
                record.version,
                channel,
                allow_external=allow_external,
                state=state,
            )
        caches.refresh(layout, record.image)
        caches.refresh_manifest(layout)


def _refuse_channel_name(layout: Layout, record: Record) -> None:
    if exists(layout.record(record.image, record.version, DEFAULT_PLATFORM)) and not channels.is_release(
        layout, record.image, record.version
    ):
        raise PublishError(
            f"{record.version!r} is a channel of {record.image} and cannot be a version",
            hint="choose another version",
        )


def refuse_other_kind(record: Record, kind: str | None) -> None:
    """One name, one kind: what a channel names is then always an image, or always data."""
    if kind not in (None, record.kind):
        raise publish_steps.OtherContentError(
            f"{record.image} is the name of {'data' if kind == DATA else 'an image'}, and "
            f"{record.image}:{record.version} is {'data' if record.kind == DATA else 'an image'}",
            hint="choose another name",
        )


def refuse_lost_record(layout: Layout, record: Record, state: ImageState, *, named: bool) -> None:
    """Refuse a version that was published before and has lost its record: nobody knows with which content."""
    link = layout.link(record.image, record.version, record.platform)
    try:
        other = link.readlink().name != layout.blob(record.sha256).name
    except OSError:
        other = False
    if other or (named and not state.releases[record.version].platforms):
        name = f"{record.image}:{record.version}"
        raise PublishError(
            f"{name} was published before, and its record is missing",
            hint=f"sqshpipe store rebuild --restore {name}, or choose another version",
        )


def _stands(layout: Layout, record: Record, standing: VersionState | None) -> bool:
    """Whether a release that was committed before is whole: bytes there, neither hidden, pruned nor
    damaged.
    """
    if standing is not None and (
        standing.pruned or standing.hidden_at or record.platform in standing.damaged
    ):
        return False
    return publish_steps.bytes_are_there(layout, record)


def _bring(
    layout: Layout,
    record: Record,
    file: Path,
    standing: VersionState | None,
    sha256: str | None,
    task: Task,
) -> None:
    """Steps 1 to 4, and the events that bring back what was hidden, pruned or damaged."""
    folders.make(layout.blobs)
    folders.make_of_image(layout, record.image)
    if _is_staged(layout, file):
        _bring_staged(layout, record, file, standing, sha256 or publish_steps.hash_file(file, task=task))
        return
    space.make_room(layout, record.size)
    with publish_steps.staging(layout) as staged:
        sha256 = publish_steps.copy_in(file, staged, task=task)
        _bring_staged(layout, record, staged, standing, sha256)


def _bring_staged(
    layout: Layout, record: Record, staged: Path, standing: VersionState | None, sha256: str
) -> None:
    publish_steps.seal(staged, record, sha256)
    if standing is not None and record.platform in standing.damaged:
        set_aside(layout, record)
    _commit_sealed(layout, record, staged)


def commit_staged(layout: Layout, record: Record, staged: Path) -> None:
    """Make the release exist from staged bytes whose sha256 is known to be the record's; caches are not
    written.
    """
    folders.make_of_image(layout, record.image)
    publish_steps.seal(staged, record, record.sha256)
    _commit_sealed(layout, record, staged)


def commit_present(layout: Layout, record: Record, *, task: Task = NO_TASK) -> None:
    """Make the release exist from bytes that the store has already, read back first; caches are not
    written.
    """
    folders.make_of_image(layout, record.image)
    publish_steps.check_present(layout, record, task=task)
    if not publish_steps.commit(layout, record):
        _bring_back(layout, record)
    if not publish_steps.bytes_are_there(layout, record):
        raise PublishError(
            f"the bytes of {record.image}:{record.version} were pruned at this very moment",
            hint="run it again",
        )


def _commit_sealed(layout: Layout, record: Record, staged: Path) -> None:
    publish_steps.put_bytes(layout, staged, record)
    if not publish_steps.commit(layout, record):
        _bring_back(layout, record)
    if not publish_steps.bytes_are_there(layout, record):
        publish_steps.put_bytes(layout, staged, record)


def _is_staged(layout: Layout, file: Path) -> bool:
    return file.parent == layout.blobs and is_temporary(file.name)


def set_aside(layout: Layout, record: Record) -> None:
    """Take bytes that a scrub found damaged away from their name; `prune` removes them."""
    blob = layout.blob(record.sha256)
    if not exists(blob):
        return
    regular = blob.is_file() and not blob.is_symlink()
    if not regular or publish_steps.hash_file(blob) != record.sha256:
        blob.rename(blob.with_name(temporary_name(".damaged")))


def refuse_wrong_content(layout: Layout, record: Record) -> None:
    """Raise PublishError for a release whose bytes are damaged as they were published."""
    if reason := events.wrong_content(layout, record.image, record.version, record.platform):
        name = f"{record.image}:{record.version}"
        raise PublishError(
            f"the same bytes do not repair {name}: {reason}",
            hint=f"release it as another version than {name}",
        )


def _bring_back(layout: Layout, record: Record) -> None:
    """A version that was hidden, pruned or damaged has its bytes again."""
    version, platform = record.version, record.platform

    def decision(state: ImageState) -> Change | None:
        standing = state.releases.get(version)
        if standing is None:
            return None
        if platform in standing.damaged:
            refuse_wrong_content(layout, record)
            return Change(kind="repaired", version=version, platform=platform, sha256=record.sha256)
        if standing.pruned:
            return Change(kind="restore", version=version, reason="published again")
        if standing.hidden_at:
            return Change(kind="unhide", version=version, reason="published again")
        return None

    state = ImageState(image=record.image)
    while (
        channels.decide(layout, record.image, decision, wanted=lambda _: [version], state=state) is not None
    ):
        pass
