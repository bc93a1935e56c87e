"""Keys for signatures: PEM files, and keys that never leave AWS KMS."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    load_der_public_key,
    load_pem_private_key,
)
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import CryptoSigner, Key, Signature, Signer, SSlibKey

from pipeline.aws import errors
from pipeline.errors import ConfigError, ToolError
from pipeline.store.keys import public_keys

PASSPHRASE = "SQSHPIPE_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
_KMS = "awskms:"
KMS_MESSAGE_BYTES = 4096
"""What KMS hashes itself; of more it takes the digest."""
_FORMS = "use a PEM file with an ed25519, ECDSA (P-256, P-384) or RSA key, or awskms:KEY-ID"


def open_signer(where: str) -> Signer:
    """The private key in a PEM file, or ``awskms:KEY-ID`` (id, alias or ARN). Raises ConfigError,
    ToolError.
    """
    if where.startswith(_KMS):
        return _KmsSigner(where.removeprefix(_KMS))
    path = Path(where)
    passphrase = os.environ.get(PASSPHRASE)
    try:
        private = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
        return CryptoSigner(private)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}", hint=_FORMS) from error
    except (ValueError, TypeError, UnsupportedAlgorithm, SecureSystemsError) as error:
        raise ConfigError(
            f"{path} holds no private key that can sign",
            hint=f"{_FORMS}; {PASSPHRASE} opens an encrypted one",
        ) from error


def open_key(where: str) -> Key:
    """The public key in a PEM file, or of a KMS key. A file with a private key is accepted too.

    Raises ConfigError, ToolError.
    """
    return open_keys(where)[0]


def open_keys(where: str) -> tuple[Key, ...]:
    """All public keys in a PEM file, or the one of a KMS key. Raises as `open_key` does.

    A file has several keys while a key is replaced: the present one and the next one.
    """
    if where.startswith(_KMS):
        return (_KmsSigner(where.removeprefix(_KMS)).public_key,)
    path = Path(where)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}", hint=_FORMS) from error
    if b"PRIVATE KEY" in raw:
        return (open_signer(where).public_key,)
    return public_keys(raw, str(path))


class _KmsSigner(Signer):
    """An ECDSA key on P-256 in AWS KMS: the message or its digest goes there, the key never comes here."""

    ALGORITHM = "ECDSA_SHA_256"

    def __init__(self, name: str) -> None:
        self._name = name
        self._client = errors.client("kms")
        with _translate_kms_errors(name):
            answer = self._client.get_public_key(KeyId=name)
        if self.ALGORITHM not in answer.get("SigningAlgorithms", []):
            raise ConfigError(
                f"the KMS key {name} cannot sign with {self.ALGORITHM}",
                hint="make one with KeySpec ECC_NIST_P256 and KeyUsage SIGN_VERIFY",
            )
        self._public = SSlibKey.from_crypto(load_der_public_key(answer["PublicKey"]))

    @property
    def public_key(self) -> Key:
        return self._public

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: object = None) -> Signer:
        del public_key, secrets_handler
        return cls(priv_key_uri.removeprefix(_KMS))

    def sign(self, payload: bytes) -> Signature:
        small = len(payload) <= KMS_MESSAGE_BYTES
        with _translate_kms_errors(self._name):
            answer = self._client.sign(
                KeyId=self._name,
                Message=payload if small else hashlib.sha256(payload).digest(),
                MessageType="RAW" if small else "DIGEST",
                SigningAlgorithm=self.ALGORITHM,
            )
        return Signature(self._public.keyid, answer["Signature"].hex())


@contextmanager
def _translate_kms_errors(name: str) -> Iterator[None]:
    import botocore.exceptions

    try:
        yield
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise ToolError(
            f"KMS refused the key {name}: {error}",
            hint="check region and rights (kms:GetPublicKey, kms:Sign)",
        ) from error
