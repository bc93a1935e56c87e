"""What a registry wants to be shown: nothing, a password (Basic), or a token bought with one (Bearer).

The token flow is https://distribution.github.io/distribution/spec/auth/token/, as nvcr.io, Docker Hub and
GHCR speak it;
the challenge syntax is RFC 9110 section 11.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from pipeline.errors import RegistryError
from pipeline.tools.credentials import Credentials, CredentialsProvider, RenewableProvider
from pipeline.tools.http import plain_http_allowed

_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9._~+-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')

_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header takes

# The specification's default; a token is renewed this much before its end, so that it does not end on the
# way.
_TOKEN_SECONDS = 60.0
_RENEW_BEFORE = 10.0
_JUST_BOUGHT = 5.0

_Query = list[tuple[str, str | int | float | bool | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One ``WWW-Authenticate``: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        return next((value for key, value in self.parameters if key == name), "")


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Every challenge in a ``WWW-Authenticate`` header; what cannot be read ends the list."""
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(header, position):
        position = match.end()
        parameters: list[tuple[str, str]] = []
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            parameters.append((name.lower(), value))
            position = parameter.end()
        found.append(Challenge(scheme=match.group(1).lower(), parameters=tuple(parameters)))
    return tuple(found)


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
        self._credentials: Credentials | None = None
        self._asked = False
        self._tokens: dict[tuple[Scope, ...], _Token] = {}
        self._buying: dict[tuple[Scope, ...], threading.Lock] = {}

    def __repr__(self) -> str:
        return f"Authenticator({self._host!r})"

    @property
    def has_credentials(self) -> bool:
        """Whether there was anything to show; tells "wrong password" from "no password"."""
        return self._credentials is not None

    def header(self, scopes: tuple[Scope, ...]) -> str | None:
        """What to send with a request, as far as it is known before the first challenge.

        A token is bought once for all who want the same; those for other repositories do not wait for it.
        """
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return None
            if challenge.scheme == "basic":
                credentials = self._current()
                return credentials.basic() if credentials else None
            buying = self._buying.setdefault(scopes, threading.Lock())
        with buying:
            return "Bearer " + self._token(challenge, scopes)

    def challenged(self, header: str, scopes: tuple[Scope, ...], *, sent: str | None) -> bool:
        """Take in a 401 (or an expired 403). True: worth asking again with `header`; False: it was
        refused."""
        with self._lock:
            challenges = {challenge.scheme: challenge for challenge in parse_challenges(header)}
            chosen = challenges.get("bearer") or challenges.get("basic") or self._challenge
            if chosen is None:
                raise RegistryError(
                    f"{self._host} wants an authentication that is neither Basic nor Bearer",
                    hint=f"it said: {header[:100]!r}",
                )
            self._challenge = chosen
            if chosen.scheme == "bearer":
                refused = self._tokens.pop(scopes, None)
                # a token that was refused as soon as it was bought: another one would be, too
                return sent is None or refused is None or time.monotonic() > refused.bought + _JUST_BOUGHT
            before = self._credentials
            if sent is None:
                return self._current() is not None
            if isinstance(self._provider, RenewableProvider):
                self._credentials = self._provider.renew(self._host)
            return self._credentials is not None and self._credentials != before

    def _current(self) -> Credentials | None:
        if not self._asked or (self._credentials is not None and self._credentials.stale()):
            self._credentials = self._provider(self._host)
            self._asked = True
        return self._credentials

    def _token(self, challenge: Challenge, scopes: tuple[Scope, ...]) -> str:
        held = self._tokens.get(scopes)
        if held is not None and time.monotonic() < held.until:
            return held.value
        request = self._token_request(challenge, scopes)
        asked_at = time.monotonic()
        status, body = self._fetch(request)
        if status != httpx.codes.OK:
            raise self._refused(request, status)
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

    def _token_request(self, challenge: Challenge, scopes: tuple[Scope, ...]) -> httpx.Request:
        realm = challenge.get("realm")
        try:
            parts, url = urlsplit(realm), httpx.URL(realm)
            _ = parts.port  # one that is none raises
        except (ValueError, httpx.InvalidURL):
            raise RegistryError(
                f"{self._host} sends us to the token server {realm[:100]!r}, which is no address"
            ) from None
        secure = parts.scheme == "https" or (parts.scheme == "http" and plain_http_allowed(parts.netloc))
        if not secure:
            raise RegistryError(
                f"{self._host} sends us to the token server {realm!r}, which is not https",
                hint="a password is not sent there; SQSHPIPE_PLAIN_HTTP can name hosts to trust without TLS",
            )
        service = challenge.get("service")
        query: _Query = [("service", service)] if service else []
        query += _scope_query(scopes)
        with self._lock:
            credentials = self._current()
        if credentials is not None and credentials.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "sqshpipe", "service": service}
            form |= {"scope": " ".join(map(str, scopes)), "refresh_token": credentials.identity_token}
            return httpx.Request("POST", url, data=form)
        headers = {"Authorization": credentials.basic()} if credentials is not None else {}
        return httpx.Request("GET", url, params=query, headers=headers)

    def _refused(self, request: httpx.Request, status: int) -> RegistryError:
        where = f"the token server {request.url.host} of {self._host}"
        if status in (401, 403):
            if self._credentials is None:
                return RegistryError(
                    f"{self._host} gives no token without a password", hint=login_hint(self._host)
                )
            user = self._credentials.username or "the identity token"
            return RegistryError(
                f"{self._host} refuses the password of {user} (status {status})", hint=login_hint(self._host)
            )
        return RegistryError(f"{where} answers with status {status}", hint="try again later")


def _scope_query(scopes: Iterable[Scope]) -> _Query:
    return [("scope", str(scope)) for scope in scopes]


def login_hint(host: str) -> str:
    """What to do for credentials at ``host``."""
    if host == "nvcr.io" or host.endswith(".nvcr.io"):
        return "set NGC_API_KEY to a key from ngc.nvidia.com (Setup, Generate API Key)"
    if ".dkr.ecr." in host:
        return "check the AWS credentials: aws sts get-caller-identity"
    return f"docker login {host}, or set SQSHPIPE_REGISTRY_USER and SQSHPIPE_REGISTRY_PASSWORD"
