"""Amazon ECR: repositories, their IAM policies, and the roles of the workflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.verbs import Verbs
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, ConfigError

if TYPE_CHECKING:
    from pipeline.config.types import Config, EcrSettings
    from pipeline.image.repository import Difference

ecr = Verbs("Repositories in Amazon ECR and who may use them.")


@ecr.command()
def apply(
    names: options.Images = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    dry_run: options.DryRun = False,
    registry_scanning: Annotated[
        bool,
        typer.Option("--registry-scanning", help="Also set the account's scanning, which AWS charges for."),
    ] = False,
    registry_signing: Annotated[
        bool,
        typer.Option("--registry-signing", help="Also the account's rule that signs what is pushed."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Create the ECR repositories of images.yaml, and correct those that differ."""
    from pipeline.aws.ecr import Ecr
    from pipeline.config.reading import load
    from pipeline.image import repository

    settings = load(config)
    wanted = _ecr_settings(settings)
    ecr = Ecr(wanted.account, wanted.region)
    changed: list[Difference] = []
    left: list[Difference] = []
    for spec in settings.select(names or ()):
        name = settings.registry.repository(spec.name).repository
        if not dry_run:
            changed += repository.apply(
                ecr, name, wanted, registry_scanning=registry_scanning, registry_signing=registry_signing
            )
        left += repository.compare(repository.look(ecr, name, wanted), name, wanted)
    if as_json:
        output.data_json(
            {"changed": [one.as_json() for one in changed], "differs": [one.as_json() for one in left]}
        )
    else:
        for one in changed:
            output.data(f"{one.repository}  {one.setting}: {one.found} -> {one.wanted}")
        for one in left:
            output.data(one.sentence)
        if not changed and not left:
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
            signing_profile=wanted.signing_profile,
        )
    )


@ecr.command()
def trust(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME at GitHub.", show_default=False)],
    account: Annotated[str, typer.Option("--account", help="The AWS account, 12 digits.")],
    refs: Annotated[
        list[str] | None, typer.Option("--ref", help="Branches and tags that may publish, as refs/….")
    ] = None,
    partition: Annotated[str, typer.Option("--aws-partition", help="aws, aws-cn or aws-us-gov.")] = "aws",
) -> None:
    """Print the trust policies of the roles that the workflows assume."""
    from pipeline.github.trust import Trust

    wanted = {"refs": tuple(refs)} if refs else {}
    made = Trust(repository=repository, account=account, partition=partition, **wanted)
    output.data_json(
        {
            "build": made.policy("build"),
            "publish": made.policy("publish"),
            "once": made.subject_setup(),
        }
    )


def _ecr_settings(settings: Config) -> EcrSettings:
    if settings.registry.ecr is None:
        raise ConfigError(
            f"{settings.path} names no ECR registry",
            hint='registry: {ecr: {account: "123456789012", region: us-east-1}}',
        )
    return settings.registry.ecr
