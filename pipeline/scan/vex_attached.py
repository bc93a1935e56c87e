"""OpenVEX documents that refer to an image in its registry, in the forms in which tools attach them."""

from __future__ import annotations

import structlog

from pipeline.errors import SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest
from pipeline.registry.client import RegistryClient
from pipeline.registry.referrers import Referrer, referrers
from pipeline.scan import vex

log = structlog.get_logger()

_TYPES = (
    "application/vnd.in-toto+json",  # a statement, bare or in a DSSE envelope: Docker Scout
    "application/vnd.dev.sigstore.bundle",  # cosign 3, with a version behind it
    "application/vnd.openvex+json",  # the document itself
)
_PREDICATES = ("in-toto.io/predicate-type", "dev.sigstore.bundle.predicateType")
_MOST = 32  # documents of one image


def read(client: RegistryClient, repository: str, digest: Digest) -> list[vex.Document]:
    """The documents attached to an image; signatures are not verified.

    What is no OpenVEX is left out with a warning. Raises RegistryError when the registry cannot be asked.
    """
    found = []
    for one in [each for each in referrers(client, repository, digest) if _may_be(each)][:_MOST]:
        document = _document(client, repository, one)
        if document is not None:
            found.append(document)
    return found


def _may_be(one: Referrer) -> bool:
    said = next((one.annotations[key] for key in _PREDICATES if key in one.annotations), vex.CONTEXT)
    return one.artifact_type.startswith(_TYPES) and str(said).startswith(vex.CONTEXT)


def _document(client: RegistryClient, repository: str, one: Referrer) -> vex.Document | None:
    try:
        manifest = client.get_manifest(repository, str(one.digest))
        if not isinstance(manifest, Manifest) or len(manifest.layers) != 1:
            return None
        raw = client.read_blob(repository, manifest.layers[0], most=vex.LIMIT)
        return vex.parse(raw, f"{client.host}/{repository}@{one.digest}")
    except SqshpipeError as error:
        if any(key in one.annotations for key in _PREDICATES):  # else it may be an SBOM or a provenance
            log.warning("attached VEX does not count", reason=error.headline)
        return None
