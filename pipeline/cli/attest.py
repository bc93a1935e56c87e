"""Provenance, SBOM and signature of a release, by hand or after a run without the tools."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.errors import ConfigError


def register(_app: typer.Typer) -> None:
    """Add ``attest image`` to the group that signs releases."""
    from pipeline.cli.upkeep import attest_verbs

    attest_verbs.command("image")(image)


def image(
    name: Annotated[str, typer.Argument(metavar="IMAGE:VERSION")],
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    no_sign: Annotated[bool, typer.Option("--no-sign", help="Only provenance and SBOM.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a release's provenance and SBOM, attach them to its image in the registry, and sign that.

    What is there already stays. Example: sqshpipe attest image megatron-training:v1.0 --store /fsx/containers
    """
    from pipeline.bases import Clients
    from pipeline.cli.store import host_platform, open_store
    from pipeline.config import load
    from pipeline.stages import attest as stage
    from pipeline.tools.registry import RegistryClient

    opened = open_store(store, config)
    release = opened.resolve(name, host_platform())
    if config.is_file():
        with Clients(load(config, store=store)) as clients:
            made = stage.attest(
                release, opened, client_for=clients, credentials=clients.credentials, sign=not no_sign
            )
    elif release.source is None:
        raise ConfigError(
            f"{release.name} was made elsewhere", hint="there is no image to attest anything of"
        )
    else:
        made = stage.attest(release, opened, client_for=RegistryClient, sign=not no_sign)
    if as_json:
        output.data_json(
            {
                "files": made.files,
                "attached": made.attached,
                "signature": made.signature.as_json(),
                "missing": made.missing,
            }
        )
    else:
        output.data(f"{release.name}: {made.sentence}")
