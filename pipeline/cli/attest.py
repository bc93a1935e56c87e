"""The verbs `sqshpipe attest …`: provenance, SBOM and signature for a release that exists already.

They are for a release that was made while the tools for SBOM or signature were missing.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import options, output
from pipeline.cli.stores import host_platform, open_store
from pipeline.cli.verbs import Verbs
from pipeline.errors import ConfigError

KeyOption = Annotated[
    str, typer.Option("--key", envvar="SQSHPIPE_KEY", help="PEM file, or awskms:KEY-ID of a key in AWS KMS.")
]
attest = Verbs("Provenance, SBOM and signature of a release.")


@attest.command()
def create(
    name: options.ReleaseName,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    no_sign: Annotated[
        bool, typer.Option("--no-sign", help="Create provenance and SBOM without a signature.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write provenance and SBOM, attach them to the image in the registry, and sign it.

    Example: sqshpipe attest create megatron-training:v1.0 --store /fsx/containers
    """
    from pipeline.attest import attest as stage
    from pipeline.bases.clients import Clients
    from pipeline.config.reading import load
    from pipeline.registry.client import RegistryClient

    opened = open_store(store, config)
    release = opened.find(name, host_platform())
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


@attest.command()
def sign(
    name: options.ReleaseName,
    key: KeyOption,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
) -> None:
    """Sign the record of a release; prints the path of the signature."""
    from pipeline.attest import signing
    from pipeline.store import signatures as stored

    opened = open_store(store, config)
    release = opened.find(name, platform or host_platform())
    output.data(str(stored.sign(opened.layout, release, signing.open_signer(key))))


@attest.command()
def verify(
    name: options.ReleaseName,
    key: KeyOption,
    store: options.Store = None,
    config: options.ConfigFile = options.DEFAULT_CONFIG,
    platform: options.Platform = None,
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Check the record only; do not read the file.")
    ] = False,
) -> None:
    """Check that this key signed the record and the bytes; exit with 7 if not."""
    from pipeline.attest import signing
    from pipeline.store import signatures as stored

    opened = open_store(store, config)
    release = opened.find(name, platform or host_platform())
    signature = stored.verify(opened.layout, release, [signing.open_key(key)])
    if not record_only:
        stored.read_back(release)
    output.data(str(signature))
