"""How a registry authenticates: not at all, by a password (Basic), or by a token got with one (Bearer).

The token flow is https://distribution.github.io/distribution/spec/auth/token/, as nvcr.io, Docker Hub and
GHCR speak it; `headers` reads the challenges.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from pipeline.authn import Credentials, CredentialsProvider, RenewableProvider, login_hint, place_of
from pipeline.errors import RegistryError
from pipeline.registry.headers import Challenge, parse_challenges
from pipeline.system.http import address, plain_http_allowed

_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header takes

# The specification's default; a token is renewed this much before its end, so that it does not end on the
# way.
_TOKEN_SECONDS = 60.0
_RENEW_BEFORE = 10.0
_JUST_BOUGHT = 5.0

_Query = list[tuple[str, str | int | float | bool | None]]


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked for in one repository: ``pull``, or ``pull,push``."""

    repository: str
    actions: str

    def __str__(self) -> str:
        return f"repository:{self.repository}:{self.actions}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    value: str
    bought: float  # time.monotonic()
    until: float


class Authenticator:
    """Makes the ``Authorization`` header for one registry. Safe to call from several threads.

    ``fetch`` sends a request to a token server, with retries, and gives status and body of its answer.
    """

    def __init__(
        self, host: str, provider: CredentialsProvider, fetch: Callable[[httpx.Request], tuple[int, bytes]]
    ) -> None:
        self._host = host
        self._provider = provider
        self._fetch = fetch
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._credentials: dict[str, Credentials | None] = {}  # by the place that they are for
        self._places: dict[str, str] = {}  # by repository
        self._tokens: dict[tuple[Scope, ...], _Token] = {}
        self._buying: dict[tuple[Scope, ...], threading.Lock] = {}

    def __repr__(self) -> str:
        return f"Authenticator({self._host!r})"

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has said how to sign in."""
        return self._challenge is not None

    @property
    def has_credentials(self) -> bool:
        """Whether there were credentials: "wrong password" or "no password"."""
        return any(found is not None for found in self._credentials.values())

    def header(self, scopes: tuple[Scope, ...]) -> str | None:
        """What to send with a request, as far as it is known before the first challenge.

        A token is bought once for all who want the same; those for other repositories do not wait for it.
        """
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return None
            if challenge.scheme == "basic":
                credentials = self._current(self._place(scopes))
                return credentials.basic() if credentials else None
            buying = self._buying.setdefault(scopes, threading.Lock())
        with buying:
            return "Bearer " + self._token(challenge, scopes)

    def challenged(self, lines: Sequence[str], scopes: tuple[Scope, ...], *, sent: str | None) -> bool:
        """Take in a 401 (or an expired 403) with its ``WWW-Authenticate`` lines.

        True: worth asking again with `header`; False: it was refused. Raises RegistryError when only other
        ways of signing in are offered.
        """
        with self._lock:
            chosen = _choose([each for line in lines for each in parse_challenges(line)]) or self._challenge
            if chosen is None and not lines:
                return False  # refused, and no way to sign in is named
            if chosen is None:
                raise RegistryError(
                    f"{self._host} wants an authentication that is neither Basic nor Bearer",
                    hint=f"it said: {', '.join(lines)[:100]!r}",
                )
            self._challenge = chosen
            if chosen.scheme == "bearer":
                refused = self._tokens.pop(scopes, None)
                # a token that was refused as soon as it was bought: another one would be, too
                return sent is None or refused is None or time.monotonic() > refused.bought + _JUST_BOUGHT
            place = self._place(scopes)
            before = self._credentials.get(place)
            if sent is None:
                return self._current(place) is not None
            if isinstance(self._provider, RenewableProvider):
                self._credentials[place] = self._provider.renew(place)
            fresh = self._credentials.get(place)
            return fresh is not None and fresh != before

    def _place(self, scopes: tuple[Scope, ...]) -> str:
        """The host, or the part of it whose credentials count for the first of ``scopes``."""
        if not scopes:
            return self._host
        repository = scopes[0].repository
        if repository not in self._places:
            self._places[repository] = place_of(self._provider, f"{self._host}/{repository}")
        return self._places[repository]

    def _current(self, place: str) -> Credentials | None:
        held = self._credentials.get(place)
        if place not in self._credentials or (held is not None and held.stale()):
            self._credentials[place] = self._provider(place)
        return self._credentials[place]

    def _token(self, challenge: Challenge, scopes: tuple[Scope, ...]) -> str:
        held = self._tokens.get(scopes)
        if held is not None and time.monotonic() < held.until:
            return held.value
        with self._lock:
            credentials = self._current(self._place(scopes))
        request = self._token_request(challenge, scopes, credentials)
        asked_at = time.monotonic()
        status, body = self._fetch(request)
        if status != httpx.codes.OK:
            raise self._refused(request, status, credentials)
        try:
            answer = json.loads(body)
            value = _TOKEN.fullmatch(answer.get("token") or answer["access_token"])[0]  # type: ignore[index]
            seconds = float(answer.get("expires_in") or _TOKEN_SECONDS)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise RegistryError(
                f"the token server {request.url.host} of {self._host} gave an answer without a token",
                hint="is a proxy or a login page in between?",
            ) from None
        self._tokens[scopes] = _Token(
            value=value, bought=asked_at, until=asked_at + max(seconds - _RENEW_BEFORE, seconds / 2)
        )
        return value

    def _token_request(
        self, challenge: Challenge, scopes: tuple[Scope, ...], credentials: Credentials | None
    ) -> httpx.Request:
        realm = challenge.get("realm")
        try:
            parts, url = urlsplit(realm), address(realm)
            _ = parts.port  # one that is not valid raises
        except ValueError:
            raise RegistryError(
                f"{self._host} sends us to the token server {realm[:100]!r}, which is not a valid address"
            ) from None
        secure = parts.scheme == "https" or (parts.scheme == "http" and plain_http_allowed(parts.netloc))
        if not secure:
            raise RegistryError(
                f"{self._host} sends us to the token server {realm[:100]!r}, which is not https",
                hint="a password is not sent there; SQSHPIPE_PLAIN_HTTP can name hosts to trust without TLS",
            )
        service = challenge.get("service")
        query: _Query = [("service", service)] if service else []
        query += _scope_query(scopes)
        if credentials is not None and credentials.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "sqshpipe", "service": service}
            form |= {"scope": " ".join(map(str, scopes)), "refresh_token": credentials.identity_token}
            return httpx.Request("POST", url, data=form)
        headers = {"Authorization": credentials.basic()} if credentials is not None else {}
        try:
            return httpx.Request("GET", url, params=query, headers=headers)
        except httpx.InvalidURL as error:
            raise RegistryError(
                f"{self._host} sends us to the token server {url.host}, for a service that no address can"
                f" carry: {service[:60]!r}, {len(service)} characters",
                hint="the registry's token service is not configured as it should be",
            ) from error

    def _refused(self, request: httpx.Request, status: int, credentials: Credentials | None) -> RegistryError:
        where = f"the token server {request.url.host} of {self._host}"
        if status in (401, 403):
            if credentials is None:
                return RegistryError(
                    f"{self._host} gives no token without a password", hint=login_hint(self._host)
                )
            user = credentials.username or "the identity token"
            return RegistryError(
                f"{self._host} refuses the password of {user} (status {status})", hint=login_hint(self._host)
            )
        return RegistryError(f"{where} answers with status {status}", hint="try again later")


def _choose(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer before Basic; a Bearer challenge that names no token server is the last choice."""
    by_token = [challenge for challenge in challenges if challenge.scheme == "bearer"]
    by_password = [challenge for challenge in challenges if challenge.scheme == "basic"]
    usable = [challenge for challenge in by_token if challenge.get("realm")]
    return next(iter((*usable, *by_password, *by_token)), None)


def _scope_query(scopes: Iterable[Scope]) -> _Query:
    return [("scope", str(scope)) for scope in scopes]
