"""The path, whole (``image``) or up to a stage (``build``, ``push``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion, many, options, output
from pipeline.errors import ConfigError, SqshpipeError

if TYPE_CHECKING:
    from pipeline.bases import Clients
    from pipeline.cli.progress import Teller
    from pipeline.config import Config, ImageSpec
    from pipeline.lock import Lock

Name = Annotated[
    str,
    typer.Argument(help="An image of images.yaml.", show_default=False, autocompletion=completion.configured),
]
MaybeName = Annotated[
    str | None,
    typer.Argument(help="An image of images.yaml.", show_default=False, autocompletion=completion.configured),
]
Version = Annotated[str, typer.Option("--tag", "-t", help="The version to publish, such as v1.0.")]


def image(
    tag: Version,
    name: MaybeName = None,
    everything: Annotated[bool, typer.Option("--all", help="All images of images.yaml.")] = False,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    jobs: many.Jobs = 1,
    executor: many.ExecutorOption = many.ExecutorName.local,
    shared: many.Shared = None,
    notify: Annotated[bool, typer.Option(help="Tell those whom images.yaml names.")] = True,
    as_json: options.Json = False,
) -> None:
    """Take an image through all stages and print the path of its .sqsh.

    A second run with nothing changed does nothing. Example: sqshpipe image megatron-training --tag v1.0
    """
    if everything or executor is not many.ExecutorName.local:
        names = [name] if name and not everything else []
        many.release_all(
            names,
            tag,
            config=config,
            store=store,
            registry=registry,
            executor=executor,
            jobs=jobs,
            shared=shared,
            as_json=as_json,
        )
        return
    from pipeline.wanted import ensure

    if name is None:
        raise ConfigError("which image?", hint="give a name, or --all for each of images.yaml")
    with (
        opened(name, config, store=store, registry=registry) as run,
        told_to_people(run, tag, notify=notify) as told,
    ):
        made = ensure(
            run.spec,
            tag,
            config=run.config,
            lock=run.lock,
            clients=run.clients,
            story=run.teller,
            revision=revision_of(config),
        )
        told.path = str(made.public_path)
    run.teller.summary()
    if as_json:
        output.data_json({"path": str(made.public_path), **made.as_json(), "stages": run.teller.as_json()})
    else:
        output.data_path(made.public_path)


def build(
    name: Name,
    tag: Version = "dev",
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    as_json: options.Json = False,
) -> None:
    """Build an image in the Docker Engine, without pushing it, and print its id."""
    from pipeline.release import build_with
    from pipeline.tools.docker import Engine
    from pipeline.wanted import pin_base

    with opened(name, config) as run:
        pinned = pin_base(run.spec, lock=run.lock, clients=run.clients, story=run.teller)
        with Engine.connect() as engine:
            built = build_with(
                engine,
                run.spec,
                tag,
                pinned,
                config=run.config,
                clients=run.clients,
                story=run.teller,
                revision=revision_of(config),
            )
    if as_json:
        output.data_json({"image": built.image, "id": built.local_id, "key": built.key})
    else:
        output.data(built.local_id)


def push(
    name: Name,
    tag: Version = "dev",
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    registry: options.Registry = None,
    as_json: options.Json = False,
) -> None:
    """Bring an image into the registry, unless it is there, and print repository@digest."""
    from pipeline.release import in_registry
    from pipeline.wanted import pin_base

    with opened(name, config, registry=registry) as run:
        pinned = pin_base(run.spec, lock=run.lock, clients=run.clients, story=run.teller)
        pushed = in_registry(
            run.spec,
            tag,
            pinned,
            config=run.config,
            clients=run.clients,
            story=run.teller,
            revision=revision_of(config),
        )
    if as_json:
        output.data_json(
            {
                "image": name,
                "reference": str(pushed.reference),
                "digest": str(pushed.digest),
                "bytes": pushed.size,
                "adopted": pushed.adopted,
            }
        )
    else:
        output.data(str(pushed.reference))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What one call of a verb works with."""

    config: Config
    spec: ImageSpec
    lock: Lock
    clients: Clients
    teller: Teller


@contextmanager
def opened(
    name: str, config: Path, *, store: Path | None = None, registry: str | None = None
) -> Iterator[Opened]:
    import secrets

    import structlog

    from pipeline.bases import Clients
    from pipeline.cli.progress import Teller
    from pipeline.config import load
    from pipeline.lock import read_lock

    settings = load(config, store=store, registry=registry)
    spec = settings.image(name)
    run_id = secrets.token_hex(4)
    with structlog.contextvars.bound_contextvars(run=run_id, image=name), Clients(settings) as clients:
        yield Opened(
            config=settings,
            spec=spec,
            lock=read_lock(settings.lock_path),
            clients=clients,
            teller=Teller(),
        )


@dataclass(slots=True)
class Told:
    """What the message about a release says beside its name: the path, once it is known."""

    path: str = ""


@contextmanager
def told_to_people(run: Opened, version: str, *, notify: bool = True) -> Iterator[Told]:
    """Around a release: who is named in images.yaml hears how it ended, and metrics are written."""
    from pipeline import metrics
    from pipeline.notify import Notifier, ended

    told, code, error = Told(), 0, ""
    try:
        yield told
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
        stages = [(one.name, one.outcome, one.seconds, one.bytes_done) for one in run.teller.stages]
        metrics.report(metrics.facts_of(run.spec.name, version, code, stages))
        if notify and (code == 0 or error):
            with Notifier(run.config.notify, run.config.cache / "told") as notifier:
                notifier.tell(ended(run.spec.name, version, code, error, path=told.path))


def revision_of(config: Path) -> str | None:
    """The commit that images.yaml is checked out at, for the record; None outside of git."""
    from pipeline.tools.git import revision

    return revision(config.absolute().parent)
