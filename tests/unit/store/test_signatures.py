"""Signatures: what a key vouches for, and what no longer carries its signature."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from sigstore_models.bundle.v1 import Bundle

from pipeline.attest import signing
from pipeline.errors import ConfigError, VerificationError
from pipeline.store import signatures
from pipeline.store.store import Store
from pipeline.store.sync import sync
from tests.support.store.releases import new_store, publish, record_for


def write_keys(
    folder: Path, name: str, *, curve: bool = False, passphrase: bytes | None = None
) -> tuple[str, str]:
    """(private, public) PEM files."""
    private = ec.generate_private_key(ec.SECP256R1()) if curve else ed25519.Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    paths[1].write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return str(paths[0]), str(paths[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    publish(store, "v1.0")
    publish(store, "v1.1")
    return store


@pytest.mark.parametrize("curve", [False, True], ids=["ed25519", "ecdsa"])
def test_signed_and_verified(store: Store, tmp_path: Path, curve: bool) -> None:
    private, public = write_keys(tmp_path, "ours", curve=curve)
    _, strange = write_keys(tmp_path, "theirs", curve=curve)
    release = store.resolve("demo:v1.0")
    path = signatures.sign(store.layout, release, signing.open_signer(private))
    assert path.parent == store.root / "demo/.meta/v1.0"
    assert signatures.sign(store.layout, release, signing.open_signer(private)) == path
    assert signatures.verify(store.layout, release, [signing.open_key(public)]) == path
    with pytest.raises(VerificationError, match="no signature by this key"):
        signatures.verify(store.layout, release, [signing.open_key(strange)])
    with pytest.raises(VerificationError, match=r"v1\.1 has no signature"):
        signatures.verify(store.layout, store.resolve("demo:v1.1"), [signing.open_key(public)])


def test_the_statement_names_the_file_as_in_toto_does(store: Store, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "ours")
    release = store.resolve("demo:v1.0")
    bundle = json.loads(signatures.sign(store.layout, release, signing.open_signer(private)).read_bytes())
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert statement["subject"] == [{"name": "demo/v1.0.sqsh", "digest": {"sha256": release.sha256}}]
    assert statement["predicate"] == release.as_json()


def test_a_changed_record_is_not_what_was_signed(store: Store, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    signatures.sign(store.layout, store.resolve("demo:v1.0"), signing.open_signer(private))
    path = store.layout.record("demo", "v1.0", "linux/amd64")
    changed = record_for(b"v1.0", "v1.0").as_json() | {"scan": {"status": "passed", "scanner": "trivy"}}
    path.chmod(0o644)
    path.write_text(json.dumps(changed))
    with pytest.raises(VerificationError):
        signatures.verify(store.layout, store.resolve("demo:v1.0"), [signing.open_key(public)])


def test_a_signature_of_another_release_does_not_count(store: Store, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    path = signatures.sign(store.layout, store.resolve("demo:v1.0"), signing.open_signer(private))
    moved = store.root / "demo/.meta/v1.1"
    moved.mkdir()
    (moved / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VerificationError):
        signatures.verify(store.layout, store.resolve("demo:v1.1"), [signing.open_key(public)])


def test_changed_bytes_are_found(store: Store) -> None:
    release = store.resolve("demo:v1.0")
    signatures.read_back(release)
    release.path.chmod(0o644)
    release.path.write_bytes(b"v9.9")
    with pytest.raises(VerificationError, match="its record says"):
        signatures.read_back(release)


def test_signatures_travel_with_a_copy(store: Store, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "ours")
    signatures.sign(store.layout, store.resolve("demo:v1.0"), signing.open_signer(private))
    copy = new_store(tmp_path / "copy")
    sync(store, copy)
    signatures.verify(copy.layout, copy.resolve("demo:v1.0"), [signing.open_key(public)])


def test_invalid_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = write_keys(tmp_path, "secret", passphrase=b"word")
    with pytest.raises(ConfigError, match="no private key that can sign"):
        signing.open_signer(private)
    monkeypatch.setenv("SQSHPIPE_KEY_PASSPHRASE", "word")
    assert signing.open_key(private).keyid == signing.open_key(public).keyid
    with pytest.raises(ConfigError, match="cannot read the key"):
        signing.open_key(str(tmp_path / "nothing"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="no public key"):
        signing.open_key(str(tmp_path / "text"))


@pytest.mark.parametrize("curve", [False, True], ids=["ed25519", "ecdsa"])
def test_the_bundle_is_what_sigstore_defines(store: Store, tmp_path: Path, curve: bool) -> None:
    """Read by models of Sigstore's protobuf files, which refuse other keys; verified without our code."""
    private, public = write_keys(tmp_path, "ours", curve=curve)
    release = store.resolve("demo:v1.0")
    path = signatures.sign(store.layout, release, signing.open_signer(private))
    assert path.name.endswith(".sigstore.json")
    text = path.read_text()
    bundle = Bundle.from_json(text)
    assert json.loads(text) == bundle.to_dict()
    assert bundle.media_type == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert not bundle.verification_material.tlog_entries
    key = serialization.load_pem_public_key(Path(public).read_bytes())
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    hint = base64.b64encode(hashlib.sha256(der).digest()).decode()
    assert bundle.verification_material.public_key is not None
    assert bundle.verification_material.public_key.hint == hint

    envelope = bundle.dsse_envelope
    assert envelope is not None
    kind, payload = envelope.payload_type.encode(), envelope.payload
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (signature,) = envelope.signatures
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature.sig, signed, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey)
        key.verify(signature.sig, signed)
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"][0]["digest"] == {"sha256": hashlib.sha256(b"v1.0").hexdigest()}
    assert statement["predicateType"] == "urn:sqshpipe:release:v1"


def test_an_envelope_without_a_bundle_still_counts(store: Store, tmp_path: Path) -> None:
    """Older versions wrote it so; signing again adds the bundle."""
    private, public = write_keys(tmp_path, "ours")
    keys = [signing.open_key(public)]
    release = store.resolve("demo:v1.0")
    path = signatures.sign(store.layout, release, signing.open_signer(private))
    bare = path.with_name("ours.dsse.json")
    bare.write_text(json.dumps(json.loads(path.read_text())["dsseEnvelope"]))
    path.unlink()
    assert signatures.verify(store.layout, release, keys) == bare
    assert signatures.sign(store.layout, release, signing.open_signer(private)) == path


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle.update(mediaType="application/vnd.dev.sigstore.bundle.v0.9+json"),
        lambda bundle: bundle.update(mediaType=None),
        lambda bundle: bundle.pop("dsseEnvelope"),
        lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"),
        lambda bundle: bundle["dsseEnvelope"].update(payload=base64.b64encode(b"{}").decode()),
        lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
        lambda bundle: bundle.update(dsseEnvelope=[]),
        lambda bundle: bundle.update(messageSignature=bundle.pop("dsseEnvelope")),
    ],
)
def test_an_invalid_bundle(store: Store, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    private, public = write_keys(tmp_path, "ours")
    release = store.resolve("demo:v1.0")
    path = signatures.sign(store.layout, release, signing.open_signer(private))
    changed = json.loads(path.read_text())
    change(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(VerificationError):
        signatures.verify(store.layout, release, [signing.open_key(public)])
