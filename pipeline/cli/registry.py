"""The registry that images are pushed to."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs

registry_verbs = Verbs("The registry that images are pushed to.")


@registry_verbs.command()
def mirror(
    names: options.Images = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    registry: options.Registry = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="Copy all platforms, so that the digest stays the same.")
    ] = False,
) -> None:
    """Copy bases into our registry as they are; prints repository@digest of each.

    Without a name: every image of images.yaml that has no Dockerfile.
    """
    from pipeline.bases.clients import Clients
    from pipeline.cli.progress import ConsoleProgress
    from pipeline.config.lock import read_lock
    from pipeline.config.reading import load
    from pipeline.image import mirror as stage
    from pipeline.image import repository as repositories
    from pipeline.image.pin import pin

    settings = load(config, registry=registry)
    specs = [spec for spec in settings.select(names or ()) if names or spec.mirrored]
    lock = read_lock(settings.lock_path)
    with Clients(settings) as clients:
        for spec in specs:
            repository = settings.registry.repository(spec.name)
            repositories.prepare(settings.registry, repository)
            base = pin(spec.base, spec.platform, lock, clients)
            source, target = clients(spec.base.registry), clients(repository.registry)
            console = ConsoleProgress()
            with console.stage("mirror") as task:
                pushed = stage.mirror(base, repository, source, target, task, all_platforms=all_platforms)
                console.result("was there already" if pushed.adopted else str(pushed.digest))
            kept = base.index_digest if all_platforms and base.index_digest else pushed.digest
            output.data(str(repository.with_digest(kept)))
