"""Releases of the store, and which of them a channel names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options, output
from pipeline.cli.stores import host_platform, look_up_store, open_store
from pipeline.errors import ConfigError, PublishError
from pipeline.system.log import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.record import Release
    from pipeline.store.state import ImageState
    from pipeline.store.store import ReleaseRow, Store

Reason = Annotated[str, typer.Option("--reason", help="Reason, for the history.")]
Image = Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=completion.images)]
Version = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE:VERSION", help="A release, or IMAGE:CHANNEL.", autocompletion=completion.releases
    ),
]


def list_releases(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE[:VERSION]]…",
            help="Only these; *, ? and [a-z] match as in a shell.",
            autocompletion=completion.images,
        ),
    ] = None,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel", help="Only releases that this channel names.", autocompletion=completion.channels
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Largest number of releases for each image; 0: all.")
    ] = 0,
    any_state: Annotated[
        bool, typer.Option("--any-state", help="Also list releases that no longer resolve.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the releases of the store, newest first.

    Example: sqshpipe list 'megatron-*' --channel stable
    """
    opened = look_up_store(store, config)
    images = opened.images()
    wanted = [_pattern(text, images, opened) for text in patterns or ()] or [("*", "*")]
    chosen = [image for image in images if any(fnmatchcase(image, one) for one, _ in wanted)]
    lines, unreadable = _lines(opened, chosen)
    matching = [line for line in lines if _matches(line, wanted, channel)]
    resolving = [line for line in matching if any_state or line.state == "published"]
    rows = _newest(resolving, limit) if limit else resolving
    if as_json:
        output.data_json([line._asdict() for line in rows])
    elif rows or not unreadable:
        from pipeline.cli.tables import listed

        for row in listed(rows):
            output.data(row)
        _print_hidden(len(matching) - len(resolving), len(resolving) - len(rows))
    for error in unreadable[1:]:
        output.failure(error)
    if unreadable:
        raise unreadable[0]


def _pattern(text: str, images: Sequence[str], store: Store) -> tuple[str, str]:
    """(image, version) as patterns. Raises ConfigError where no image of the store matches."""
    image, _, version = text.partition(":")
    if not any(fnmatchcase(one, image) for one in images):
        from pipeline.config.names import check_image, suggest

        named = image if set(image) & set("*?[") else check_image(image)
        raise ConfigError(f"no release of {named!r} in {store.root}", hint=suggest(image, images))
    return image, version or "*"


def _matches(line: ReleaseRow, wanted: Sequence[tuple[str, str]], channel: str | None) -> bool:
    if channel is not None and channel not in line.channels:
        return False
    return any(
        fnmatchcase(line.image, image)
        and any(fnmatchcase(name, version) for name in (line.version, *line.channels))
        for image, version in wanted
    )


def _newest(lines: Sequence[ReleaseRow], limit: int) -> list[ReleaseRow]:
    count: dict[str, int] = {}
    kept = []
    for line in lines:
        count[line.image] = count.get(line.image, 0) + 1
        if count[line.image] <= limit:
            kept.append(line)
    return kept


def _print_hidden(not_resolving: int, older: int) -> None:
    if output.is_quiet():
        return
    if not_resolving:
        output.note(f"{not_resolving} not shown, because they no longer resolve: --any-state shows them")
    if older:
        output.note(f"{older} older not shown: --limit 0 shows them")


def _lines(store: Store, images: list[str]) -> tuple[list[ReleaseRow], list[PublishError]]:
    """The releases of those images, and an error for each image that cannot be read."""
    lines: list[ReleaseRow] = []
    unreadable = []

    def read(image: str) -> None:
        try:
            lines.extend(store.listed(image))
        except PublishError as error:
            unreadable.append(error)

    for image in images:
        read(image)
    return lines, unreadable


def show(
    name: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    as_json: options.Json = False,
) -> None:
    """Show all that is known about a release, whatever its state."""
    from pipeline.config.names import split_name

    opened = look_up_store(store, config)
    image, wanted = split_name(name)
    state = opened.state(image)
    version = state.current(wanted) or wanted
    release = opened.release(image, version, platform or host_platform())
    if release is None:
        release = opened.resolve(name, platform or host_platform())  # raises, naming what there is
    if as_json:
        path, channels = str(release.public_path), state.channels_of(version)
        now = {"state": release.state, "path": path, "channels": channels}
        output.data_json({**release.as_json(), **now})
        return
    from pipeline.cli.tables import facts

    for line in facts(release, state.releases.get(version), state.channels_of(version)):
        output.data(line)


def resolve(
    name: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    as_json: options.Json = False,
) -> None:
    """Print the path of a release.

    Example: srun --container-image=$(sqshpipe resolve demo) hostname
    """
    release = look_up_store(store, config).resolve(name, platform or host_platform())
    print_release(release, as_json=as_json)


def print_release(release: Release, *, as_json: bool) -> None:
    if as_json:
        output.data_json({**release.as_json(), "state": release.state, "path": str(release.public_path)})
    else:
        output.data_path(release.public_path)


def promote(
    name: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE:VERSION",
            help="A release, or what a channel names.",
            autocompletion=completion.releases,
        ),
    ],
    channel: Annotated[
        str, typer.Argument(help="The channel to move or to create.", autocompletion=completion.channels)
    ],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    allow_external: options.AllowExternal = False,
    reason: Reason = "",
) -> None:
    """Point a channel at a release."""
    from pipeline.config.names import split_name

    opened = open_store(store, config)
    changed = opened.promote(name, channel, allow_external=allow_external, reason=reason)
    image, _ = split_name(name)
    _print_channel(opened, image, channel, changed=changed)


def rollback(
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=completion.images)],
    channel: Annotated[
        str, typer.Argument(help="The channel to roll back.", autocompletion=completion.channels)
    ],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
) -> None:
    """Point a channel back at the release that it named before."""
    opened = open_store(store, config)
    opened.rollback(image, channel, reason=reason)
    _print_channel(opened, image, channel, changed=True)


def _print_channel(store: Store, image: str, channel: str, *, changed: bool) -> None:
    version = store.state(image).current(channel)
    log.info(f"{image}:{channel} {'now names' if changed else 'names'} {version}")
    output.data(f"{image}:{version}")


def yank(
    name: Version,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
    undo: Annotated[bool, typer.Option("--undo", help="Undo it: the release resolves again.")] = False,
) -> None:
    """Withdraw a release without deleting it; its channels move back."""
    opened = open_store(store, config)
    image = name.partition(":")[0]
    before = _channels(opened.state(image)) if ":" in name else {}
    _mark(opened, name, "unyank" if undo else "yank", reason)
    for channel, version in _channels(opened.state(image)).items():
        if version != before.get(channel):
            now = f"now names {version}" if version else "names no release now"
            was = f", before {before[channel]}" if before.get(channel) else ""
            log.info(f"{image}:{channel} {now}{was}")


def _channels(state: ImageState) -> dict[str, str | None]:
    return {channel: state.current(channel) for channel in sorted(state.channels)}


def keep(
    name: Version,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Undo it: prune may delete the release again.")
    ] = False,
) -> None:
    """Mark a release so that prune never deletes it."""
    _mark(open_store(store, config), name, "unkeep" if undo else "keep", reason)


def _mark(store: Store, name: str, kind: str, reason: str) -> None:
    from pipeline.config.names import split_name

    if ":" not in name:
        raise ConfigError(f"{name!r} names no version", hint=f"write IMAGE:VERSION, such as {name}:v1.0")
    image, wanted = split_name(name)
    version = store.state(image).current(wanted) or wanted
    name = f"{image}:{version}"
    changed = store.mark(name, kind, reason=reason)
    texts = {
        "yank": "no longer resolves",
        "unyank": "resolves again",
        "keep": "is kept",
        "unkeep": "is not kept",
    }
    log.info(f"{name} {texts[kind]}" + ("" if changed else ", as before"))
    output.data(name)


def history(
    name: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Show what happened to the releases of an image, and who did it.

    Example: sqshpipe history megatron-training:stable
    """
    from pipeline.config.names import split_name
    from pipeline.store.events import read_events

    opened = open_store(store, config)
    image, wanted = split_name(name)
    state = opened.state(image)
    if not state.releases:
        opened.resolve(image, host_platform())  # raises, naming what there is
    rows: list[dict[str, str]] = [
        {"at": one.created, "what": "publish", "version": version, "channel": "", "by": "", "reason": ""}
        for version, one in state.newest_first()
    ]
    for event in read_events(opened.layout, image, 0):
        change = event.change
        rows.append(
            {
                "at": event.at,
                "what": change.kind,
                "version": change.version,
                "channel": change.channel,
                "by": event.by,
                "reason": change.reason,
            }
        )
    if ":" in name:
        rows = [row for row in rows if wanted in (row["version"], row["channel"])]
    rows.sort(key=lambda row: row["at"])
    if as_json:
        output.data_json([{"image": image, **row} for row in rows])
        return
    from pipeline.cli.tables import past

    for line in past(rows):
        output.data(line)
