"""What is in the store, and which version a channel names: list, show, resolve, publish, promote,
rollback.
"""

from __future__ import annotations

import platform as machine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, options, output
from pipeline.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from pipeline.config.types import StoreSettings
    from pipeline.store.record import Release
    from pipeline.store.store import Listed, Store

Name = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:VERSION|:CHANNEL]", help="What is wanted.", autocompletion=completion.releases
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]
AllowExternal = Annotated[
    bool, typer.Option("--allow-external", help="Let channels name a .sqsh that was made elsewhere.")
]
Platform = Annotated[str | None, typer.Option("--platform", help="os/architecture; default: this machine's.")]


def open_store(root: Path | None, config: Path = options.DEFAULT_CONFIG) -> Store:
    """The store of --store or SQSHPIPE_STORE, else of images.yaml.

    Raises ConfigError when neither is given, PublishError when there is no store at that place.
    """
    opened = configured_store(root, config)
    opened.require()
    return opened


def configured_store(root: Path | None, config: Path = options.DEFAULT_CONFIG) -> Store:
    """As `open_store`, whether the store is there or not: for the verb that creates it."""
    from pipeline.store.store import Store

    if not config.is_file():
        if root is not None:
            return Store(root)
        raise ConfigError(
            "no store is given", hint="use --store DIR or SQSHPIPE_STORE, or run it beside an images.yaml"
        )
    return store_of(load_settings(config, root))


def look_up_store(root: Path | None, config: Path) -> Store:
    """The store for reading only: images.yaml is not read when the root is known without it."""
    from pipeline.store.store import Store

    if root is None:
        return open_store(None, config)
    opened = Store(root)
    opened.require()
    return opened


def load_settings(config: Path, root: Path | None = None) -> StoreSettings:
    """What images.yaml says of the store. Raises ConfigError."""
    from pipeline.config.reading import load

    return load(config, store=root).store


def store_of(settings: StoreSettings) -> Store:
    """The store with the group and striping that images.yaml gives it."""
    from pipeline.store.store import Store

    return Store(settings.root, group=settings.group, stripe=settings.stripe)


def host_platform() -> str:
    """This machine as a platform."""
    architecture = machine.machine()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(architecture, architecture)


def list_releases(
    image: Annotated[
        str | None, typer.Argument(help="Only this image.", autocompletion=completion.images)
    ] = None,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    every: Annotated[bool, typer.Option("--all", help="Also what no longer resolves.")] = False,
    json: options.Json = False,
) -> None:
    """The releases of the store, newest first."""
    opened = look_up_store(store, config)
    if image is not None and image not in opened.images():
        from pipeline.config.names import check_image, nearest

        raise ConfigError(
            f"no release of {check_image(image)!r} in {opened.root}", hint=nearest(image, opened.images())
        )
    lines, unreadable = _lines(opened, [image] if image else opened.images())
    lines = [line for line in lines if every or line.state == "published"]
    if json:
        output.data_json([line._asdict() for line in lines])
    elif lines or not unreadable:
        from pipeline.cli.showing import listed

        for row in listed(lines):
            output.data(row)
    for error in unreadable[1:]:
        output.failure(error)
    if unreadable:
        raise unreadable[0]


def _lines(store: Store, images: list[str]) -> tuple[list[Listed], list[PublishError]]:
    """The releases of those images, and an error for each image that cannot be read."""
    lines: list[Listed] = []
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
    name: Name,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: Platform = None,
    json: options.Json = False,
) -> None:
    """Everything that the record of a release says, whatever its state."""
    from pipeline.config.names import split_name

    opened = look_up_store(store, config)
    image, wanted = split_name(name)
    state = opened.state(image)
    version = state.current(wanted) or wanted
    release = opened.release(image, version, platform or host_platform())
    if release is None:
        release = opened.resolve(name, platform or host_platform())  # raises, naming what there is
    if json:
        path, channels = str(release.public_path), state.channels_of(version)
        now = {"state": release.state, "path": path, "channels": channels}
        output.data_json({**release.as_json(), **now})
        return
    from pipeline.cli.showing import facts

    for line in facts(release, state.releases.get(version), state.channels_of(version)):
        output.data(line)


def resolve(
    name: Name,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: Platform = None,
    json: options.Json = False,
) -> None:
    """Print the path of a release, for ``srun --container-image=$(sqshpipe resolve demo)``."""
    release = look_up_store(store, config).resolve(name, platform or host_platform())
    _print_release(release, json=json)


def _print_release(release: Release, *, json: bool) -> None:
    if json:
        output.data_json({**release.as_json(), "state": release.state, "path": str(release.public_path)})
    else:
        output.data_path(release.public_path)


def publish(
    file: Annotated[Path, typer.Argument(help="A .sqsh that was made elsewhere.")],
    image: Annotated[str, typer.Option("--image", help="Name of the image.")],
    tag: Annotated[str, typer.Option("--tag", help="Version.")],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: Annotated[str, typer.Option("--platform", help="os/architecture.")] = "linux/amd64",
    allow_external: AllowExternal = False,
    json: options.Json = False,
) -> None:
    """Publish a .sqsh that was made elsewhere. Its record says external, unscanned; channels do not take
    it.
    """
    from pipeline.cli.progress import Teller
    from pipeline.release.publish import publish_external

    opened = open_store(store, config)
    with Teller().stage("publish") as meter:
        release = publish_external(
            file,
            store=opened,
            image=image,
            version=tag,
            platform=platform,
            allow_external=allow_external,
            meter=meter,
        )
    _print_release(release, json=json)


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
        str, typer.Argument(help="The channel that will name it.", autocompletion=completion.channels)
    ],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    allow_external: AllowExternal = False,
    reason: Reason = "",
) -> None:
    """Let a channel name a release."""
    from pipeline.config.names import split_name

    opened = open_store(store, config)
    changed = opened.promote(name, channel, allow_external=allow_external, reason=reason)
    image, _ = split_name(name)
    _tell_channel(opened, image, channel, changed=changed)


def rollback(
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=completion.images)],
    channel: Annotated[
        str, typer.Argument(help="The channel to roll back.", autocompletion=completion.channels)
    ],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
) -> None:
    """Let a channel name what it named before."""
    opened = open_store(store, config)
    opened.rollback(image, channel, reason=reason)
    _tell_channel(opened, image, channel, changed=True)


def _tell_channel(store: Store, image: str, channel: str, *, changed: bool) -> None:
    import structlog

    version = store.state(image).current(channel)
    structlog.get_logger().info(f"{image}:{channel} {'now names' if changed else 'names'} {version}")
    output.data(f"{image}:{version}")


def yank(
    name: Annotated[str, typer.Argument(metavar="IMAGE:VERSION", autocompletion=completion.releases)],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let it resolve again.")] = False,
) -> None:
    """Hide a release from resolving without deleting it; channels go back to what they named before."""
    _mark(open_store(store, config), name, "unyank" if undo else "yank", reason)


def keep(
    name: Annotated[str, typer.Argument(metavar="IMAGE:VERSION", autocompletion=completion.releases)],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    reason: Reason = "",
    undo: Annotated[bool, typer.Option("--undo", help="Let prune have it again.")] = False,
) -> None:
    """Mark a release so that prune never takes it."""
    _mark(open_store(store, config), name, "unkeep" if undo else "keep", reason)


def _mark(store: Store, name: str, kind: str, reason: str) -> None:
    import structlog

    if ":" not in name:
        raise ConfigError(f"{name!r} names no version", hint=f"write IMAGE:VERSION, such as {name}:v1.0")
    changed = store.mark(name, kind, reason=reason)
    words = {
        "yank": "no longer resolves",
        "unyank": "resolves again",
        "keep": "is kept",
        "unkeep": "is not kept",
    }
    structlog.get_logger().info(f"{name} {words[kind]}" + ("" if changed else ", as before"))
    output.data(name)
