"""Names that say that their value is a secret."""

from __future__ import annotations

import re

_SECRET_ANYWHERE = ("SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL")
_SECRET_ENDINGS = ("TOKEN", "TOKENS", "APIKEY", "SSHKEY", "PRIVATEKEY", "ACCESSKEY")
_SECRET_PARTS = frozenset({"KEY", "KEYS", "PASS", "PWD", "AUTH", "NETRC"})


def looks_secret(name: str) -> bool:
    """True for a build argument's name that says that its value is a secret."""
    parts = re.split(r"[^A-Z0-9]+", name.upper())
    return any(
        part in _SECRET_PARTS
        or part.endswith(_SECRET_ENDINGS)
        or any(word in part for word in _SECRET_ANYWHERE)
        for part in parts
    )
