"""Attest: provenance, SBOM and signature of a release, next to its record and as referrers of its image.

A release is complete without them. What cannot be made or attached is reported, recorded, and can
be made later by the same call; what is there already is left as it is.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.attest import image_signing, provenance
from pipeline.attest.image_signing import Signature
from pipeline.attest.sbom import MEDIA_TYPE as SBOM_TYPE
from pipeline.attest.sbom import make_sbom
from pipeline.authn import place_of
from pipeline.errors import SqshpipeError
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import CredentialsProvider, credentials_for
from pipeline.registry.referrers import attach, referrers
from pipeline.scan.rescan import image_of
from pipeline.store import attachments, folders
from pipeline.store.layout import SBOM, SIGNATURE
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.system import atomic
from pipeline.system.log import log

PROVENANCE = "provenance.intoto.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What a release has now: files next to its record, artifacts in the registry, its signature."""

    files: tuple[str, ...]
    attached: tuple[str, ...]
    signature: Signature
    missing: tuple[str, ...]

    @property
    def sentence(self) -> str:
        parts = [*self.files, f"{len(self.attached)} in the registry", self.signature.status]
        return ", ".join(parts)


def attest(
    release: Release,
    store: Store,
    *,
    client_for: Callable[[str], RegistryClient] | None = None,
    credentials: CredentialsProvider = credentials_for,
    sign: bool = True,
) -> Attested:
    """Make what the release lacks; what cannot be made is in the result.

    Raises PublishError when the store cannot be written.
    """
    files, missing = {PROVENANCE: provenance.as_bytes(provenance.statement(release, builder=builder()))}, []
    folder = store.layout.attachments(release.image, release.version, release.platform)
    image = image_of(release)
    sbom = attachments.read(store.layout, release, SBOM)
    if sbom is not None:
        files[SBOM] = sbom
    elif image is not None:
        try:
            made = make_sbom(image, credentials(place_of(credentials, image.name)), platform=release.platform)
            if made is None:
                missing.append("no SBOM: neither syft nor trivy is installed")
            else:
                files[SBOM] = made[1]
        except SqshpipeError as error:
            missing.append(f"no SBOM: {error.headline}")
    with atomic.translate_errors(f"writing what belongs to {release.name}"):
        folders.make(folder)
        for name, content in files.items():
            attachments.add(store.layout, release, name, content)
            files[name] = attachments.read(store.layout, release, name) or content
    attached = _attach(image, files, client_for, missing)
    signature = _signed(image, client_for, credentials, sign=sign)
    with atomic.translate_errors(f"writing what belongs to {release.name}"):
        atomic.replace(folder / SIGNATURE, (json.dumps(signature.as_json()) + "\n").encode())
    for one in missing:
        log.info(one, release=release.name)
    return Attested(files=tuple(files), attached=tuple(attached), signature=signature, missing=tuple(missing))


def builder() -> str:
    """Who runs this: the workflow run in Actions, else the host."""
    server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    run = os.environ.get("GITHUB_RUN_ID")
    if server and repository and run:
        return f"{server}/{repository}/actions/runs/{run}"
    return f"host:{socket.gethostname()}"


def _attach(
    image: Reference | None,
    files: dict[str, bytes],
    client_for: Callable[[str], RegistryClient] | None,
    missing: list[str],
) -> list[str]:
    if image is None or client_for is None:
        return []
    types = {PROVENANCE: provenance.MEDIA_TYPE, SBOM: SBOM_TYPE}
    attached = []
    try:
        client = client_for(image.registry)
        subject = client.head(image.repository, str(image.digest))
        if subject is None:
            missing.append(f"{image} is no longer in the registry, so nothing is attached to it")
            return []
        for name, content in files.items():
            artifact = attach(
                client,
                image.repository,
                subject,
                artifact_type=types[name],
                data=content,
                annotations={"org.opencontainers.image.title": name},
            )
            attached.append(str(artifact))
    except SqshpipeError as error:
        missing.append(f"not attached in the registry: {error.headline}")
    return attached


def _signed(
    image: Reference | None,
    client_for: Callable[[str], RegistryClient] | None,
    credentials: CredentialsProvider,
    *,
    sign: bool,
) -> Signature:
    if image is None or image.digest is None:
        return Signature(status="unsigned", tool="", why="there is no image in a registry to sign")
    if client_for is not None:
        try:
            there = referrers(client_for(image.registry), image.repository, image.digest)
        except SqshpipeError as error:
            return Signature(
                status="unsigned", tool="", why=f"the registry could not be asked: {error.headline}"
            )
        found = image_signing.found_among(there)
        if found is not None:
            return found
    if not sign:
        return Signature(status="unsigned", tool="", why="signing was not asked for")
    try:
        held = credentials(place_of(credentials, image.name))
    except SqshpipeError as error:
        return Signature(status="failed", tool="", why=f"no credentials to sign with: {error.headline}"[:300])
    return image_signing.sign(image, held)
