"""Decisions about releases: which version a channel names, what is yanked, what is kept.

Each is one event; the functions here look at the present state, refuse what makes no sense, and make the
event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.config.names import CHANNELS, DEFAULT_PLATFORM, check_channel, suggest
from pipeline.errors import ConfigError, PublishError
from pipeline.store import folders, trust
from pipeline.store.events import Change, Event, append
from pipeline.store.layout import Layout
from pipeline.store.reading import add_versions, exists, fold_events, load, read_record, refuse_newer
from pipeline.store.record import claim
from pipeline.store.state import ImageState, VersionState
from pipeline.system import atomic
from pipeline.system.log import log

Decision = Callable[[ImageState], Change | None]
Wanted = Callable[[ImageState], Iterable[str]]
"""The versions whose records a decision looks at, given what the events say."""


def decide(
    layout: Layout, image: str, decision: Decision, *, wanted: Wanted, state: ImageState | None = None
) -> Event | None:
    """Record the change that `decision` returns for the present state, as an event; None for no change.

    The state is read from events and records alone. `state` is what was read from these a moment ago, if it
    was: later events are folded into it, and the new one. Raises UnreadableError when an event or a wanted
    record cannot be read.
    """
    present = ImageState(image=image) if state is None else state

    def look() -> tuple[int, Change | None]:
        fold_events(layout, present)
        add_versions(layout, present, wanted(present))
        change = decision(present)
        if change is not None:
            folders.make_of_image(layout, image)
        return present.events, change

    with atomic.translate_errors(f"recording a change of {image}"):
        refuse_newer(layout, image)
        event = append(layout, image, look)
    if event is not None:
        present.apply(event)
    return event


def promote(
    layout: Layout, image: str, name: str, channel: str, *, allow_external: bool = False, reason: str = ""
) -> Event | None:
    """Let `channel` name a version, or what the channel `name` names. None when it does already.

    Raises ConfigError for an unknown version or bad channel, PublishError for one that does not resolve or
    that was made elsewhere and is not allowed here.
    """
    check_channel(channel)
    _claim_channel(layout, image, channel)

    def wanted(state: ImageState) -> list[str]:
        return [state.current(name) or name]

    def decision(state: ImageState) -> Change | None:
        version = state.current(name) or name
        standing = published(layout, state, version)
        if not allow_external and any(held.external for held in standing.platforms.values()):
            raise PublishError(
                f"{image}:{version} was made elsewhere and never scanned; channel {channel} does not take it",
                hint="build it from images.yaml, or promote it with --allow-external",
            )
        previous = state.current(channel) or ""
        if previous == version:
            return None
        return Change(kind="promote", version=version, channel=channel, previous=previous, reason=reason)

    return decide(layout, image, decision, wanted=wanted)


def advance(
    layout: Layout,
    image: str,
    version: str,
    channel: str,
    *,
    allow_external: bool = False,
    state: ImageState | None = None,
) -> Event | None:
    """Let `channel` name a release that was just published, unless it names a newer one or once named this
    one.

    So a second run of a publish finishes what a killed one began, and never undoes a rollback.
    """
    check_channel(channel)
    _claim_channel(layout, image, channel)

    def wanted(state: ImageState) -> list[str]:
        return [version, *filter(None, [state.current(channel)])]

    def decision(state: ImageState) -> Change | None:
        standing = state.releases.get(version)
        if standing is None or not standing.resolvable():
            return None
        if not allow_external and any(held.external for held in standing.platforms.values()):
            return None
        previous = state.current(channel) or ""
        if version in state.channels.get(channel, ()) or standing.named_until:
            return None
        if previous and state.releases[previous].created > standing.created:
            return None
        return Change(kind="promote", version=version, channel=channel, previous=previous, reason="published")

    return decide(layout, image, decision, wanted=wanted, state=state)


def rollback(
    layout: Layout, image: str, channel: str, *, required: trust.Required | None = None, reason: str = ""
) -> Event:
    """Let `channel` name what it named before, but no version that lacks a required signature.

    Raises PublishError when nothing before still resolves.
    """

    def resolves(state: ImageState, version: str) -> bool:
        standing = state.releases[version].resolvable()
        return standing and trust.is_signed_version(layout, image, version, required)

    check_channel(channel)

    def decision(state: ImageState) -> Change:
        names = state.channels.get(channel, [])
        if not names:
            raise ConfigError(f"{image} has no channel {channel!r}", hint=suggest(channel, state.channels))
        for earlier in reversed(names[:-1]):
            if earlier != names[-1] and resolves(state, earlier):
                return Change(
                    kind="rollback", version=earlier, channel=channel, previous=names[-1], reason=reason
                )
        raise PublishError(
            f"{image}:{channel} named nothing before {names[-1]} that still resolves",
            hint=f"name one: sqshpipe promote {image}:VERSION {channel}",
        )

    event = decide(layout, image, decision, wanted=lambda state: state.channels.get(channel, ()))
    assert event is not None  # noqa: S101 - the decision gives a change or raises
    return event


def mark(
    layout: Layout,
    image: str,
    version: str,
    kind: str,
    *,
    required: trust.Required | None = None,
    reason: str = "",
) -> Event | None:
    """yank, unyank, keep or unkeep a version. None when it is in that state already.

    Its channels leave a version that is yanked; where signatures are required they do so by `rollback`.
    """
    if kind == "yank" and trust.all_of(required):
        _roll_back_from(layout, image, version, required=required, reason=reason)

    def decision(state: ImageState) -> Change | None:
        standing = known(layout, state, version)
        already = {
            "yank": standing.yanked,
            "unyank": not standing.yanked,
            "keep": standing.kept,
            "unkeep": not standing.kept,
        }
        return None if already[kind] else Change(kind=kind, version=version, reason=reason)

    return decide(layout, image, decision, wanted=lambda _: [version])


def _roll_back_from(
    layout: Layout, image: str, version: str, *, required: trust.Required | None, reason: str
) -> None:
    state = ImageState(image=image)
    fold_events(layout, state)
    for channel in state.channels_of(version):
        try:
            rollback(layout, image, channel, required=required, reason=reason)
        except PublishError as error:  # noqa: PERF203 - of this channel
            log.warning(f"{image}:{channel} names no signed release now", why=error.headline)


def known(layout: Layout, state: ImageState, version: str) -> VersionState:
    """The state of a version that has a record. Raises ConfigError with the known versions otherwise."""
    standing = state.releases.get(version)
    if standing is None or not standing.platforms:
        there = load(layout, state.image).state
        names = [name for name, one in there.newest_first()[::-1] if one.platforms]
        raise ConfigError(f"there is no release {state.image}:{version}", hint=suggest(version, names))
    return standing


def published(layout: Layout, state: ImageState, version: str) -> VersionState:
    """Like `known`, but it must resolve. Raises PublishError when it does not."""
    standing = known(layout, state, version)
    if not standing.resolvable():
        why = f": {standing.reason}" if standing.reason else ""
        raise PublishError(
            f"{state.image}:{version} is {standing.state()}{why}", hint="choose another version"
        )
    return standing


def _claim_channel(layout: Layout, image: str, channel: str) -> None:
    """Take the record name of a channel, so that a version can never be called so; `latest` and such are
    reserved.
    """
    if channel in CHANNELS:
        return
    path = layout.record(image, channel, DEFAULT_PLATFORM)
    with atomic.translate_errors(f"naming the channel {channel} of {image}"):
        if exists(layout.image(image)) and not exists(path):
            atomic.create(path, claim(image, channel))
        release = is_release(layout, image, channel)
    if release:
        raise ConfigError(
            f"{image}:{channel} is a version and cannot be a channel", hint="choose another name"
        )


def is_release(layout: Layout, image: str, name: str) -> bool:
    """Whether the record file of this name is a version's; channels reserve their names by such files too."""
    return read_record(layout, image, name, DEFAULT_PLATFORM) is not None
