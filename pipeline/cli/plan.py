"""What would run and why; which digests the tags of the bases mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, RegistryError
from pipeline.system.log import log
from pipeline.text import human_bytes

if TYPE_CHECKING:
    from pipeline.bases.clients import BaseAnswer
    from pipeline.config.types import Config, ImageSpec
    from pipeline.image.repository import Difference
    from pipeline.plan.changes import Plan
    from pipeline.plan.known import KnownReleases
    from pipeline.scan.watch import Watch
    from pipeline.store.record import Release


def plan(
    names: options.Images = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    tag: Annotated[str | None, typer.Option("--tag", help="The version that would be published.")] = None,
    changed_since: Annotated[
        str | None, typer.Option("--changed-since", help="Only images that differ from this git revision.")
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Only the images' names, as JSON on one line. Exits with 0.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Use no network: only check images.yaml, Dockerfiles and images.lock."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what would run, and why; exit with 10 if anything would.

    With --offline: exit with 2 for what is not valid, with 10 if images.lock does not fit images.yaml.
    """
    from pipeline.config.reading import load

    settings = load(config, store=store, registry=registry)
    specs = settings.select(names or ())
    if offline:
        _offline(settings, specs, as_json=as_json)
        return
    if changed_since is not None:
        specs = _only_affected(settings, specs, changed_since)
    if matrix:
        output.data(json.dumps([spec.name for spec in specs]))
        return
    made, watches = _made(settings, specs, tag)
    drift = _repository_drift(settings, specs)
    if as_json:
        differs = None if drift is None else [one.as_json() for one in drift]
        unwatched = [watch.as_json(release) for release, watch in watches]
        output.data_json({**made.as_json(), "repositories": differs, "unwatched": unwatched})
    else:
        for line in plan_lines(made):
            output.data(line)
        for one in drift or ():
            output.data(one.sentence)
        for release, watch in watches:
            output.data(watch.sentence(release.name))
    if made.unknown:
        raise typer.Exit(RegistryError.exit_code)
    if made.has_changes:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _offline(settings: Config, specs: tuple[ImageSpec, ...], *, as_json: bool) -> None:
    from pipeline.config.lock import read_lock
    from pipeline.plan.offline import check

    checked = check(settings, specs, read_lock(settings.lock_path))
    if as_json:
        output.data_json({"invalid": [each.message for each in checked.invalid], "stale": checked.stale})
    else:
        for sentence in checked.stale:
            output.data(sentence)
    for error in checked.invalid[1:]:
        output.failure(error)
    if checked.invalid:
        raise checked.invalid[0]
    if checked.stale:
        output.note("sqshpipe lock brings images.lock up to date")
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _repository_drift(settings: Config, specs: tuple[ImageSpec, ...]) -> list[Difference] | None:
    """In which settings the ECR repositories differ from images.yaml; a missing one is made by the push.

    None, with a warning, when ECR could not be asked. Other registries have none.
    """
    ecr = settings.registry.ecr
    if ecr is None:
        return []
    from pipeline.aws.ecr import Ecr
    from pipeline.image import repository

    try:
        return repository.drift(
            Ecr(ecr.account, ecr.region), settings.registry, [spec.name for spec in specs]
        )
    except RegistryError as error:
        log.warning(
            "whether the repositories are as images.yaml wants them is not known",
            reason=error.headline,
            hint=error.hint,
        )
        return None


def _watches(
    settings: Config, specs: tuple[ImageSpec, ...], known: KnownReleases
) -> list[tuple[Release, Watch]]:
    """The newest release of each image that nobody watches any more after some day, where it lies in ECR."""
    if settings.registry.ecr is None:
        return []
    from pipeline.scan import watch

    return watch.of_releases(newest for spec in specs for newest in known.published(spec.name)[:1])


def _only_affected(settings: Config, specs: tuple[ImageSpec, ...], revision: str) -> tuple[ImageSpec, ...]:
    from pipeline.plan.affected import affected_since

    reasons = {found.image: found.reasons for found in affected_since(settings, revision)}
    for spec in specs:
        if spec.name in reasons:
            log.info("image is affected", name=spec.name, because="; ".join(reasons[spec.name]))
    return tuple(spec for spec in specs if spec.name in reasons)


def _made(
    settings: Config, specs: tuple[ImageSpec, ...], tag: str | None
) -> tuple[Plan, list[tuple[Release, Watch]]]:
    from pipeline.bases import clients as bases
    from pipeline.config.lock import read_lock
    from pipeline.config.names import check_version
    from pipeline.plan import changes as planning
    from pipeline.plan import observe
    from pipeline.plan.known import known_releases

    channels = [channel for spec in specs for channel in spec.channels]
    version = None if tag is None else check_version(tag, channels=channels)
    if not specs:
        return planning.plan(()), []
    with known_releases(settings) as known, bases.Clients(settings) as clients:
        lock = read_lock(settings.lock_path)
        seen = observe.observe(settings, specs, lock, clients, known, version=version)
        return planning.plan(seen), _watches(settings, specs, known)


def plan_lines(made: Plan) -> Iterator[str]:
    """The plan for people: a line an image, and one a stage where something would run."""
    if not made.images:
        yield "no image is concerned"
    for image in made.images:
        name = f"{image.image}:{image.version}" if image.version else image.image
        if image.has_changes is None:
            yield f"{name}  not known: {image.unknown}"
        elif not image.has_changes:
            same = next((step.reason for step in image.steps if step.stage in ("build", "mirror")), "")
            yield f"{name}  nothing to do: {same}"
        else:
            writes = f", about {human_bytes(image.writes)} to write" if image.writes else ""
            where = f" to {image.target}" if image.target else ""
            yield f"{name}  would be released{where}{writes}"
            for step in image.steps:
                yield f"  {'run ' if step.run else 'skip'}  {step.stage:<8} {step.reason}"
        yield from (f"  note  {note}" for note in image.notes)
        if image.unknown and image.has_changes is not None:
            yield f"  note  {image.unknown}"
        if image.problem:
            yield f"  stop  {image.problem}"


def lock(
    names: options.Images = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Write images.lock: the digest that each base's tag means now."""
    from pipeline.bases import clients as bases
    from pipeline.config.lock import read_lock, write_lock
    from pipeline.config.reading import load

    settings = load(config)
    specs = settings.select(names or ())
    held = read_lock(settings.lock_path)
    with bases.Clients(settings) as clients:
        answers = bases.ask(specs, held, clients)
    wanted = bases.relocked(held, answers).only(
        (spec.base, spec.platform) for spec in settings.images.values()
    )
    changed = wanted != held or not settings.lock_path.exists()
    if changed and not dry_run:
        write_lock(settings.lock_path, wanted)
    waiting = {answer.reference: made_by for answer in answers if (made_by := _made_by(answer, settings))}
    problems = [answer for answer in answers if answer.problem and answer.reference not in waiting]
    if as_json:
        output.data_json([_as_json(answer, waiting.get(answer.reference)) for answer in answers])
    else:
        for answer in answers:
            if answer.problem is None:
                output.data(_line(answer))
    for reference, made_by in waiting.items():
        output.note(
            f"{reference} does not exist yet: {made_by} of this images.yaml makes it. "
            f"Release in this order: sqshpipe release {made_by}, then sqshpipe lock, then what is built on it"
        )
    for answer in problems[1:]:
        log.warning("the base is not known", base=str(answer.reference), why=str(answer.problem))
    if changed and dry_run:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)
    if problems and problems[0].problem is not None:  # what could be found out is written nevertheless
        raise problems[0].problem


def _line(answer: BaseAnswer) -> str:
    name = f"{answer.reference} {answer.platform}"
    now = answer.now.digest if answer.now else None
    if not answer.moved:
        return f"{name}  {now}  unchanged"
    return f"{name}  {now}  " + (f"was {answer.locked.digest}" if answer.locked else "new")


def _made_by(answer: BaseAnswer, settings: Config) -> str | None:
    """The image of images.yaml that will be the base, when nothing of that name is in the registry yet."""
    from pipeline.image.pin import DoesNotExist

    if not isinstance(answer.problem, DoesNotExist) or not settings.registry.given:
        return None
    base = (answer.reference.registry, answer.reference.repository)
    for name in settings.images:
        made = settings.registry.repository(name)
        if (made.registry, made.repository) == base and name not in answer.images:
            return name
    return None


def _as_json(answer: BaseAnswer, made_by: str | None) -> dict[str, object]:
    return {
        "base": str(answer.reference),
        "platform": str(answer.platform),
        "images": list(answer.images),
        "digest": str(answer.now.digest) if answer.now else None,
        "locked": str(answer.locked.digest) if answer.locked else None,
        "moved": answer.moved,
        "problem": answer.problem.message if answer.problem else None,
        "made_by": made_by,
    }
