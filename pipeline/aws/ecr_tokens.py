"""ECR's passwords: valid for 12 hours, kept in memory only, renewed before they expire."""

from __future__ import annotations

import base64
import binascii
import threading
import time

from pipeline.authn import Credentials
from pipeline.aws.ecr import Ecr
from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import RegistryError

# A push that begins with a password asks for it again with each request; an hour is ample for one of them.
_RENEW_BEFORE = 3600.0


class EcrTokens:
    """Gives the password of each ECR host, with one call to AWS per 11 hours. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Credentials] = {}

    def __repr__(self) -> str:
        return "EcrTokens()"

    def __call__(self, host: str) -> Credentials | None:
        """The password for ``host``; None when it is not an ECR host.

        Raises RegistryError when AWS refuses, NoAwsCredentials when there is nothing to sign with.
        """
        with self._lock:
            held = self._held.get(host)
            if held is None or held.stale(margin=_RENEW_BEFORE):
                held = self._ask(host)
            return held

    def renew(self, host: str) -> Credentials | None:
        """Get a new password for ``host``, since the registry says that the present one has expired."""
        with self._lock:
            return self._ask(host)

    def _ask(self, host: str) -> Credentials | None:
        where = parse_host(host)
        if where is None:
            return None
        self._held.pop(host, None)
        answer = Ecr(where.account, where.region).call("get_authorization_token")
        given = _decode(answer, host)
        self._held[host] = given
        return given


def _decode(answer: dict[str, object], host: str) -> Credentials:
    try:
        data = answer["authorizationData"][0]  # type: ignore[index]
        user, _, password = (
            base64.b64decode(data["authorizationToken"], validate=True).decode().partition(":")
        )
        ends = data["expiresAt"].timestamp()
    except (KeyError, IndexError, TypeError, AttributeError, binascii.Error, UnicodeDecodeError):
        raise RegistryError(f"AWS gave a token for {host} that cannot be read", hint="try again") from None
    # one that is over as it comes means that the clock here is wrong: it holds until the registry says no
    return Credentials(username=user, password=password, expires_at=ends if ends > time.time() else None)


TOKENS = EcrTokens()
"""The one of this process."""
