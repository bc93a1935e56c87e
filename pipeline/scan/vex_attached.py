"""OpenVEX documents that refer to an image in its registry, in the forms in which tools attach them."""

from __future__ import annotations

from pipeline.errors import ConfigError, FormatError, RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Manifest
from pipeline.registry.client import RegistryClient
from pipeline.registry.referrers import Referrer, referrers
from pipeline.scan import vex
from pipeline.system.log import log

_TYPES = (
    "application/vnd.in-toto+json",  # a statement, bare or in a DSSE envelope: Docker Scout
    "application/vnd.dev.sigstore.bundle",  # cosign 3, with a version behind it
    "application/vnd.openvex+json",  # the document itself
)
_PREDICATES = ("in-toto.io/predicate-type", "dev.sigstore.bundle.predicateType")
_MOST = 32  # documents of one image


def read(client: RegistryClient, repository: str, digest: Digest) -> list[vex.Document]:
    """The documents attached to an image; signatures are not verified.

    What is not OpenVEX is left out with a warning. None counts when there are too many of them or one cannot
    be fetched, since that one may take back what another says. Raises RegistryError when the registry cannot
    be asked.
    """
    attached = [each for each in referrers(client, repository, digest) if _may_be(each)]
    try:
        if len(attached) > _MOST:
            raise FormatError(f"{len(attached)} documents may be attached; at most {_MOST} are read")
        fetched = [(one, _fetched(client, repository, one)) for one in attached]
    except (RegistryError, FormatError) as error:
        log.warning("no attached VEX counts", reason=error.headline)
        return []
    parsed = (_parsed(raw, f"{client.host}/{repository}@{one.digest}", one) for one, raw in fetched)
    return [document for document in parsed if document is not None]


def _may_be(one: Referrer) -> bool:
    said = next((one.annotations[key] for key in _PREDICATES if key in one.annotations), vex.CONTEXT)
    return one.artifact_type.startswith(_TYPES) and str(said).startswith(vex.CONTEXT)


def _fetched(client: RegistryClient, repository: str, one: Referrer) -> bytes:
    """The document; empty for one that cannot be VEX, by its size or the shape of its manifest."""
    manifest = client.get_manifest(repository, str(one.digest))
    if not isinstance(manifest, Manifest) or len(manifest.layers) != 1 or manifest.layers[0].size > vex.LIMIT:
        return b""
    return client.read_blob(repository, manifest.layers[0], most=vex.LIMIT)


def _parsed(raw: bytes, where: str, one: Referrer) -> vex.Document | None:
    try:
        return vex.parse(raw, where)
    except ConfigError as error:
        if any(key in one.annotations for key in _PREDICATES):  # else it may be an SBOM or a provenance
            log.warning("attached VEX does not count", reason=error.headline)
        return None
