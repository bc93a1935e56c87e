"""``sqshpipe release``: the path, whole or up to a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import batch, completion, options, output
from pipeline.errors import ConfigError, SqshpipeError
from pipeline.release.run import Run, Stage

if TYPE_CHECKING:
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.config.types import Config, ImageSpec

MaybeName = Annotated[
    str | None,
    typer.Argument(
        metavar="[IMAGE]",
        help="An image of images.yaml.",
        show_default=False,
        autocompletion=completion.configured,
    ),
]


def release(
    name: MaybeName = None,
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", help="The version to publish, such as v1.0.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every image of images.yaml.")] = False,
    until: Annotated[
        Stage, typer.Option("--until", help="The last stage to run; only publish changes the store.")
    ] = Stage.PUBLISH,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    jobs: batch.Jobs = 1,
    executor: batch.ExecutorOption = batch.ExecutorName.local,
    shared: batch.Shared = None,
    notify: Annotated[bool, typer.Option(help="Send the notifications of images.yaml.")] = True,
    as_json: options.Json = False,
) -> None:
    """Take an image through all stages and print the path of its .sqsh.

    A second run with nothing changed does nothing. With --until the path ends earlier: build prints the
    engine's image id, the stages after it repository@digest. Example: sqshpipe release megatron-training
    --tag v1.0
    """
    if name is not None and ":" in name:
        _refuse_tag(name, tag)
    if until is Stage.PUBLISH and tag is None:
        raise ConfigError("no version is given", hint="name it, for example --tag v1.0")
    if everything or executor is not batch.ExecutorName.local:
        if until is not Stage.PUBLISH:
            raise ConfigError("--until is for one image on this machine", hint="leave out --all, --executor")
        names = [name] if name and not everything else []
        batch.release_all(
            names,
            tag or "",
            config=config,
            store=store,
            registry=registry,
            executor=executor,
            jobs=jobs,
            shared=shared,
            as_json=as_json,
        )
        return
    if name is None:
        raise ConfigError("which image?", hint="give a name, or --all for each of images.yaml")
    if until is Stage.PUBLISH:
        _published(name, tag or "", config, store, registry, notify=notify, as_json=as_json)
    else:
        _until(name, tag or "dev", until, config, registry, as_json=as_json)


def _refuse_tag(name: str, tag: str | None) -> None:
    image, _, version = name.partition(":")
    raise ConfigError(
        f"{name!r} is not the name of an image",
        hint=f"write: sqshpipe release {image} --tag {tag or version or 'v1.0'}",
    )


def _published(
    name: str,
    tag: str,
    config: Path,
    store: Path | None,
    registry: str | None,
    *,
    notify: bool,
    as_json: bool,
) -> None:
    from pipeline.config.names import check_version
    from pipeline.release.path import release as run_path

    with (
        opened(name, config, store=store, registry=registry) as opening,
        notifying(opening, tag, notify=notify) as message,
    ):
        version = check_version(tag, channels=opening.spec.channels)
        made = run_path(opening.run, opening.spec, version).release
        if made is None:
            raise AssertionError("the whole path ends with a release")
        message.path = str(made.public_path)
    opening.console.summary()
    if as_json:
        output.data_json(
            {"path": str(made.public_path), **made.as_json(), "stages": opening.console.as_json()}
        )
    else:
        output.data_path(made.public_path)


def _until(name: str, tag: str, until: Stage, config: Path, registry: str | None, *, as_json: bool) -> None:
    from pipeline.config.names import check_version
    from pipeline.release.path import release as run_path

    with opened(name, config, registry=registry) as opening:
        version = check_version(tag, channels=opening.spec.channels)
        reached = run_path(opening.run, opening.spec, version, until=until)
    opening.console.summary()
    if reached.built is not None:
        built = reached.built
        facts: dict[str, object] = {"image": built.image, "id": built.local_id, "key": built.key}
        line = built.local_id
    elif reached.pushed is not None:
        pushed = reached.pushed
        line = str(pushed.reference)
        facts = {
            "image": name,
            "reference": line,
            "digest": str(pushed.digest),
            "bytes": pushed.size,
            "adopted": pushed.adopted,
        }
    else:
        line = str(reached.pinned.base.pinned)
        facts = {"image": name, "base": line}
    if as_json:
        output.data_json({**facts, "stages": opening.console.as_json()})
    else:
        output.data(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRelease:
    """What one call of a verb works with."""

    run: Run
    spec: ImageSpec
    console: ConsoleProgress

    @property
    def config(self) -> Config:
        return self.run.config


@contextmanager
def opened(
    name: str, config: Path, *, store: Path | None = None, registry: str | None = None
) -> Iterator[OpenRelease]:
    import secrets

    from structlog.contextvars import bound_contextvars

    from pipeline.bases.clients import Clients
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.config.lock import read_lock
    from pipeline.config.reading import load

    settings = load(config, store=store, registry=registry)
    spec = settings.image(name)
    run_id = secrets.token_hex(4)
    with bound_contextvars(run=run_id, image=name), Clients(settings) as clients:
        console = ConsoleProgress()
        run = Run(
            config=settings,
            lock=read_lock(settings.lock_path),
            clients=clients,
            progress=console,
            revision=revision_of(config),
        )
        yield OpenRelease(run=run, spec=spec, console=console)


@dataclass(slots=True)
class Message:
    """What the caller adds to the notification at the end: the path, set once the release is published."""

    path: str = ""


@contextmanager
def notifying(opening: OpenRelease, version: str, *, notify: bool = True) -> Iterator[Message]:
    """Around a release: those whom images.yaml names are notified how it ended; metrics are written."""
    from pipeline.notify import metrics
    from pipeline.notify.messages import Notifier, ended

    message, code, error = Message(), 0, ""
    try:
        yield message
    except SqshpipeError as failure:
        code, error = failure.exit_code, str(failure)
        raise
    except Exception as failure:
        code, error = 1, f"unexpected: {type(failure).__name__}"
        raise
    except BaseException:
        code = 1
        raise
    finally:
        stages = [(one.name, one.outcome, one.seconds, one.bytes_done) for one in opening.console.stages]
        metrics.report(metrics.facts_of(opening.spec.name, version, code, stages))
        if notify and (code == 0 or error):
            with Notifier(opening.config.notify, opening.config.cache / "sent") as notifier:
                notifier.send(ended(opening.spec.name, version, code, error, path=message.path))


def revision_of(config: Path) -> str | None:
    """The commit that images.yaml is checked out at, for the record; None outside of git."""
    from pipeline.github.git import revision

    return revision(config.absolute().parent)
