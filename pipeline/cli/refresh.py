"""``sqshpipe refresh``: follow the bases, and rebuild what is affected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import batch, options, output
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, ConfigError
from pipeline.system.log import log

if TYPE_CHECKING:
    from pipeline.bases.refresh import RefreshResult
    from pipeline.batch.local import ImageOutcome
    from pipeline.config.lock import Lock
    from pipeline.config.types import Config


def refresh(
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    store: options.Store = None,
    registry: options.Registry = None,
    dry_run: options.DryRun = False,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Open a pull request from this branch instead of writing.")
    ] = None,
    onto: Annotated[str, typer.Option("--onto", help="The branch that the pull request is for.")] = "main",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Then release the images whose base has changed.")
    ] = False,
    jobs: batch.Jobs = 1,
    executor: batch.ExecutorOption = batch.ExecutorName.local,
    shared: batch.Shared = None,
    as_json: options.Json = False,
) -> None:
    """Write images.lock for bases whose tag moved; --rebuild releases."""
    if branch is not None and rebuild:
        raise ConfigError(
            "--branch and --rebuild exclude each other", hint="the merge of the branch rebuilds"
        )
    from pipeline.bases import clients as bases
    from pipeline.bases import refresh as refreshing
    from pipeline.config.lock import read_lock
    from pipeline.config.reading import load

    settings = load(config, store=store, registry=registry)
    lock = read_lock(settings.lock_path)
    with bases.Clients(settings) as clients:
        found = refreshing.look(settings, lock, clients)
    _log(found)
    contents = refreshing.sources(settings, found)
    address = ""
    if not dry_run:
        _notify(settings, found)
    if contents and not dry_run:
        if branch is not None:
            address = _pull_request(settings, found, branch, onto)
        else:
            refreshing.write(contents)
    outcomes: tuple[ImageOutcome, ...] = ()
    if rebuild and not dry_run:
        fresh = refreshing.reload(settings)
        outcomes = _rebuild(fresh, found, executor, jobs, shared)
    _print(found, address, outcomes, as_json=as_json)
    failed = next((outcome.code for outcome in outcomes if outcome.code), 0)
    if failed:
        raise typer.Exit(failed)
    if dry_run and contents:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _log(found: RefreshResult) -> None:
    for change in found.changes:
        log.info(change.reason, images=", ".join(change.images))
    for problem in found.problems:
        log.warning("the base cannot be checked", base=str(problem.base), why=problem.error.headline)
    if not found.changes and not found.problems:
        log.info("nothing changed")


def _notify(settings: Config, found: RefreshResult) -> None:
    from pipeline.notify.messages import Notification, Notifier

    with Notifier(settings.notify, settings.cache / "sent") as notifier:
        for change in found.changes:
            if change.kind != "locked":
                about = f"{change.base} {change.platform} {change.new}"
                images = ", ".join(change.images)
                notifier.send(Notification(kind="base-moved", image=images, text=change.reason, about=about))


def _pull_request(settings: Config, found: RefreshResult, branch: str, onto: str) -> str:
    from pipeline.bases.refresh import pull_request, sources
    from pipeline.config.lock import parse_lock
    from pipeline.github.api import GitHub
    from pipeline.github.git import Checkout

    github = GitHub.from_environment()
    checkout = Checkout.around(settings.path.resolve().parent)
    there = github.fetch(checkout, branch)
    proposed = checkout.content(there, settings.lock_path) if there else None
    if proposed:
        # What the branch proposes already is proposed again as it is, not with another time.
        found = replace(found, lock=found.lock.with_times_of(parse_lock(proposed, settings.lock_path)))
    title, text = pull_request(found)
    commit = checkout.commit(sources(settings, found), f"{title}\n\n{text}")
    github.push(checkout, commit, branch)
    return github.pull_request(branch, onto, title, text)


def _rebuild(
    settings: Config, found: RefreshResult, executor: batch.ExecutorName, jobs: int, shared: Path | None
) -> tuple[ImageOutcome, ...]:
    """Release every image that differs from its newest release, if it had one or its base changed now."""
    from pipeline.bases import clients as bases
    from pipeline.bases.refresh import next_version
    from pipeline.batch import local
    from pipeline.config.lock import read_lock
    from pipeline.plan import changes, known, observe
    from pipeline.store.store import Store

    lock: Lock = read_lock(settings.lock_path)
    specs = tuple(settings.images.values())
    store = Store(settings.store.root)
    store.require()  # what is rebuilt is published
    with known.known_releases(settings) as releases, bases.Clients(settings) as clients:
        seen = observe.observe(settings, specs, lock, clients, releases)
    plans = {made.image: made for made in changes.plan(seen).images}
    wanted = [
        one.spec
        for one in seen
        if plans[one.spec.name].has_changes and (one.newest is not None or one.spec.name in found.images)
    ]
    if not wanted:
        log.info("nothing to rebuild")
        return ()
    tasks = local.tasks_for(
        settings,
        wanted,
        lambda spec: next_version(
            spec, lambda version: store.release(spec.name, version, str(spec.platform)) is not None
        ),
    )
    return batch.follow(settings, tasks, batch.executor_for(settings, executor, jobs, shared))


def _print(found: RefreshResult, address: str, outcomes: tuple[ImageOutcome, ...], *, as_json: bool) -> None:
    if as_json:
        output.data_json(
            {
                "changes": [
                    {
                        "kind": change.kind,
                        "base": str(change.base),
                        "platform": change.platform,
                        "images": list(change.images),
                        "old": change.old,
                        "new": change.new,
                        "reason": change.reason,
                    }
                    for change in found.changes
                ],
                "problems": [
                    {"base": str(problem.base), "images": list(problem.images), "why": problem.error.headline}
                    for problem in found.problems
                ],
                "pull_request": address or None,
                "rebuilt": [batch.outcome_json(outcome) for outcome in outcomes],
            }
        )
        return
    for line in [address] if address else []:
        output.data(line)
    for outcome in outcomes:
        output.data(batch.outcome_line(outcome))
