"""What belongs to an image in its registry: SBOMs, provenance, signatures.

See "Referrers" in distribution-spec 1.1.

A registry without the referrers API gets an index under the tag ``sha256-<hex>``, as the specification has
it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FormatError
from pipeline.oci import strict_json
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import MAX_SIZE, OCI_INDEX, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """An artifact that names an image as its subject."""

    digest: Digest
    size: int
    artifact_type: str
    annotations: Mapping[str, str]


def referrers(client: RegistryClient, repository: str, digest: Digest) -> tuple[Referrer, ...]:
    """All artifacts of the image ``digest``. RegistryError when the registry cannot be asked."""
    found = _listed(client, repository, f"/v2/{repository}/referrers/{digest}")
    if found is None:
        found = _listed(client, repository, f"/v2/{repository}/manifests/{_tag(digest)}")
    return tuple(_referrer(entry) for entry in found or ())


def attach(
    client: RegistryClient,
    repository: str,
    subject: Descriptor,
    *,
    artifact_type: str,
    data: bytes,
    annotations: Mapping[str, str],
) -> Digest:
    """Store ``data`` as an artifact of ``subject`` unless it is there; gives the artifact's digest.

    Raises RegistryError when the registry refuses.
    """
    digest = Digest.of(data)
    for media_type, content in ((_EMPTY_TYPE, _EMPTY), (artifact_type, data)):
        blob = Descriptor(media_type=media_type, digest=Digest.of(content), size=len(content))
        client.push_blob(repository, blob, io.BytesIO(content))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": _EMPTY_TYPE, "digest": str(Digest.of(_EMPTY)), "size": len(_EMPTY)},
        "layers": [{"mediaType": artifact_type, "digest": str(digest), "size": len(data)}],
        "subject": {"mediaType": subject.media_type, "digest": str(subject.digest), "size": subject.size},
        "annotations": dict(sorted(annotations.items())),
    }
    raw = json.dumps(manifest, sort_keys=True).encode()
    artifact = client.put_manifest(repository, str(Digest.of(raw)), raw, OCI_MANIFEST)
    if artifact not in {one.digest for one in referrers(client, repository, subject.digest)}:
        _add_to_tag(client, repository, subject.digest, raw, artifact_type, annotations)
    return artifact


def _tag(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.hex}"[:128]


def _listed(client: RegistryClient, repository: str, target: str) -> list[dict[str, Any]] | None:
    """The entries of the index at ``target``, over all its pages; None when it does not exist."""
    found: list[dict[str, Any]] = []
    for answer in client.pages(
        target,
        repository,
        what=f"what belongs to an image of {client.host}/{repository}",
        expected=(200, 404),
        headers={"Accept": OCI_INDEX},
    ):
        if answer.status == 404:
            return None
        what = f"list of referrers at {target}"
        entries = strict_json.parse_object(answer.body, max_size=MAX_SIZE, what=what).get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FormatError(f"{client.host}/{repository} gives something else than a list of referrers")
        found += entries
    return found


def _referrer(entry: Mapping[str, Any]) -> Referrer:
    annotations = entry.get("annotations")
    return Referrer(
        digest=Digest.parse(str(entry.get("digest", ""))),
        size=strict_json.integer(entry, "size", "an entry of a list of referrers"),
        artifact_type=str(entry.get("artifactType", "")),
        annotations=annotations if isinstance(annotations, dict) else {},
    )


def _add_to_tag(
    client: RegistryClient,
    repository: str,
    subject: Digest,
    raw: bytes,
    artifact_type: str,
    annotations: Mapping[str, str],
) -> None:
    entries = _listed(client, repository, f"/v2/{repository}/manifests/{_tag(subject)}") or []
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.of(raw)),
        "size": len(raw),
        "artifactType": artifact_type,
        "annotations": dict(sorted(annotations.items())),
    }
    kept = [one for one in entries if one.get("digest") != entry["digest"]]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*kept, entry]}
    client.put_manifest(repository, _tag(subject), json.dumps(index, sort_keys=True).encode(), OCI_INDEX)
