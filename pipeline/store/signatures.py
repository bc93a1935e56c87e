"""Signatures over releases: each signs a record and the sha256 of its file.

A signature is a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement
(https://github.com/in-toto/attestation, v1): its subject is the .sqsh by sha256, its predicate the record. It
lies beside the release in a Sigstore bundle (sigstore_bundle.proto, v0.3), one file for each key, and needs
no service to be verified: the bundle names the key by a hint and contains no entry of a transparency log.
Bare envelopes, as older versions wrote them, are read too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError as BadSignature
from securesystemslib.signer import Key, Signature

from pipeline.errors import PublishError, VerificationError
from pipeline.store import attachments, folders
from pipeline.store.keys import pem
from pipeline.store.layout import Layout
from pipeline.store.record import Record, Release
from pipeline.system import atomic

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:sqshpipe:release:v1"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SUFFIX = ".sigstore.json"
ENVELOPE_SUFFIX = ".dsse.json"
_LIMIT = 16 << 20


class Signer(Protocol):
    """A private key that signs; `tools.signing` opens them."""

    @property
    def public_key(self) -> Key: ...
    def sign(self, payload: bytes) -> Signature: ...


def statement(record: Record) -> bytes:
    """The bytes that are signed for a record; always the same for the same record."""
    data = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{record.image}/{record.version}.sqsh", "digest": {"sha256": record.sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": record.as_json(),
    }
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(layout: Layout, release: Release, signer: Signer) -> Path:
    """Attach a signature to a release and return its path; one that this key made before is kept.

    Raises PublishError when another signature lies under this key's name.
    """
    path = _folder(layout, release) / f"{_file_name(signer.public_key)}{SUFFIX}"
    envelope = Envelope(payload=statement(release), payload_type=PAYLOAD_TYPE, signatures={})
    envelope.sign(signer)  # type: ignore[arg-type]
    content = json.dumps(bundle(envelope, signer.public_key), sort_keys=True).encode() + b"\n"
    attachments.check(layout, release)
    with atomic.translate_errors(f"signing {release.name}"):
        folders.make(path.parent)
        made = atomic.create(path, content)
    if not made and not _signed_by(layout, path.name, release, signer.public_key):
        raise PublishError(
            f"{path} exists and is not a signature of {release.name} by this key",
            hint="move it away if nobody needs it, then sign again",
        )
    return path


def bundle(envelope: Envelope, key: Key) -> dict[str, Any]:
    """A Sigstore bundle, as protobuf writes JSON, for an envelope that `key` signed.

    The hint is what cosign writes for a bare key: base64 of the sha256 of its DER form.
    """
    der = base64.b64decode("".join(pem(key).splitlines()[1:-1]))
    hint = base64.b64encode(hashlib.sha256(der).digest()).decode()
    return {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope.to_dict(),
    }


def verify(layout: Layout, release: Release, keys: Iterable[Key]) -> Path:
    """The first signature over `release` that one of `keys` made. Raises VerificationError when there is
    none.

    This says that the record is what was signed; `read_back` says that the bytes are what the record names.
    """
    found = signature_of(layout, release, tuple(keys))
    if found is not None:
        return found[0]
    there = _signatures(layout, release)
    what = (
        "no signature"
        if not there
        else f"no signature by this key ({len(there)} by others or for another record)"
    )
    raise VerificationError(
        f"{release.name} has {what}", hint=f"sign it: sqshpipe attest sign {release.name} --key PRIVATE.pem"
    )


def signature_of(layout: Layout, record: Record, keys: Sequence[Key]) -> tuple[Path, Key] | None:
    """The first signature over `record` by one of `keys`, and that key; None when it is missing."""
    for name in _signatures(layout, record):
        for key in keys:
            if _signed_by(layout, name, record, key):
                return _folder(layout, record) / name, key
    return None


def _signatures(layout: Layout, record: Record) -> list[str]:
    return [name for name in attachments.names(layout, record) if name.endswith((SUFFIX, ENVELOPE_SUFFIX))]


def read_back(release: Release) -> None:
    """Hash the bytes of a release. Raises VerificationError when they are not what its record names."""
    from pipeline.store.publish_steps import hash_file

    with atomic.translate_errors(f"reading {release.path}"):
        digest = hash_file(release.path)
    if digest != release.sha256:
        raise VerificationError(
            f"{release.path} has sha256 {digest}, its record says {release.sha256}",
            hint="run sqshpipe store scrub, then publish the same content again",
        )


def _signed_by(layout: Layout, name: str, record: Record, key: Key) -> bool:
    """Whether the bundle or envelope of that name holds a signature by `key` over exactly this record."""
    try:
        found = json.loads(attachments.read(layout, record, name, limit=_LIMIT) or b"")
        if found.get("mediaType", BUNDLE_TYPE) != BUNDLE_TYPE:
            return False
        envelope = Envelope.from_dict(found.get("dsseEnvelope", found))
        envelope.verify([key], 1)
        data: Any = json.loads(envelope.payload)
    except (BadSignature, ValueError, KeyError, TypeError, AttributeError, PublishError, RecursionError):
        return False
    return envelope.payload_type == PAYLOAD_TYPE and data == json.loads(statement(record))


def _folder(layout: Layout, record: Record) -> Path:
    return layout.attachments(record.image, record.version, record.platform)


def _file_name(key: Key) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", key.keyid)[:32]
