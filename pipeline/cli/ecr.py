"""The registry side of images.yaml: ECR repositories, their IAM policies, and mirroring by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, ConfigError

if TYPE_CHECKING:
    from pipeline.config.types import Config, EcrSettings
    from pipeline.image.repository import Difference

Names = Annotated[list[str] | None, typer.Argument(help="Images; all of images.yaml if none is named.")]
ecr = typer.Typer(no_args_is_help=True, help="Repositories in Amazon ECR and who may use them.")


@ecr.command()
def apply(
    names: Names = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell; exit with 10 if something would change.")
    ] = False,
    registry_scanning: Annotated[
        bool,
        typer.Option("--registry-scanning", help="Also the account's scanning: it has its price."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make the ECR repositories of images.yaml, and mend those that differ from it."""
    from pipeline.aws.ecr import Ecr
    from pipeline.config.reading import load
    from pipeline.image import repository

    settings = load(config)
    wanted = _ecr_settings(settings)
    ecr = Ecr(wanted.account, wanted.region)
    told: list[Difference] = []
    left: list[Difference] = []
    for spec in settings.select(names or ()):
        name = settings.registry.repository(spec.name).repository
        if not dry_run:
            told += repository.apply(ecr, name, wanted, registry_scanning=registry_scanning)
        left += repository.compare(repository.look(ecr, name), name, wanted)
    if as_json:
        output.data_json(
            {"changed": [one.as_json() for one in told], "differs": [one.as_json() for one in left]}
        )
    else:
        for one in told:
            output.data(f"{one.repository}  {one.setting}: {one.found} -> {one.wanted}")
        for one in left:
            output.data(one.sentence)
        if not told and not left:
            output.data("every repository is as images.yaml wants it")
    if dry_run and left:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


@ecr.command()
def policy(
    role: Annotated[str, typer.Argument(help="builder, node, scanner or owner.")],
    config: options.ConfigFile = options.DEFAULT_CONFIG,
) -> None:
    """Print the least IAM policy of a role, as JSON for aws iam create-policy."""
    from pipeline.aws.ecr_policies import ROLES
    from pipeline.aws.ecr_policies import policy as document
    from pipeline.config.reading import load

    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise ConfigError(f"{role!r} is not a role", hint=f"one of {', '.join(ROLES)}")
    wanted = _ecr_settings(load(config))
    output.data_json(
        document(
            known,
            account=wanted.account,
            region=wanted.region,
            prefix=wanted.prefix,
            enhanced=wanted.scanning == "enhanced",
            kms_key=wanted.kms_key,
        )
    )


def mirror(
    names: Names = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    registry: options.Registry = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="The whole index, so that its digest stays the same.")
    ] = False,
) -> None:
    """Copy bases into our registry as they are; prints repository@digest of each.

    Without a name: every image of images.yaml that has no Dockerfile.
    """
    from pipeline.bases.clients import Clients
    from pipeline.cli.progress import Teller
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
            teller = Teller()
            with teller.stage("mirror") as meter:
                pushed = stage.mirror(base, repository, source, target, meter, all_platforms=all_platforms)
                teller.result("was there already" if pushed.adopted else str(pushed.digest))
            kept = base.index_digest if all_platforms and base.index_digest else pushed.digest
            output.data(str(repository.with_digest(kept)))


def _ecr_settings(settings: Config) -> EcrSettings:
    if settings.registry.ecr is None:
        raise ConfigError(
            f"{settings.path} names no ECR registry",
            hint='registry: {ecr: {account: "123456789012", region: us-east-1}}',
        )
    return settings.registry.ecr
