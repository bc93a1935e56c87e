"""Public keys as text: what a PEM file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from securesystemslib.signer import Key


def public_keys(raw: bytes, where: str) -> tuple[Key, ...]:
    """Every public key in the text of a PEM file. Raises ConfigError when it has no key, or a wrong one."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.exceptions import Error as SecureSystemsError
    from securesystemslib.signer import SSlibKey

    end = b"-----END PUBLIC KEY-----"
    blocks = [block + end for block in raw.split(end)[:-1]]
    try:
        if not blocks:
            raise ValueError("no END PUBLIC KEY")
        return tuple(SSlibKey.from_crypto(load_pem_public_key(block.lstrip())) for block in blocks)
    except (ValueError, TypeError, UnsupportedAlgorithm, SecureSystemsError) as error:
        raise ConfigError(
            f"{where} holds no public key",
            hint="write a PEM file with an ed25519, ECDSA (P-256, P-384) or RSA key",
        ) from error


def pem(key: Key) -> str:
    """A public key as the text of a PEM file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text = str(key.keyval["public"])
    if key.keytype != "ed25519":
        return text
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
