"""Requests to one registry: with its credentials, with retries, and redirects that get no credentials."""

from __future__ import annotations

import email.utils
import http
import random
import re
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import tenacity

from pipeline.aws.ecr_actions import needed
from pipeline.errors import ConfigError, RegistryError
from pipeline.registry.auth import Authenticator, Scope
from pipeline.registry.credentials import CredentialsProvider
from pipeline.registry.errors import refused, unreachable
from pipeline.registry.headers import resolve
from pipeline.registry.pace import steadily
from pipeline.system import http as our_http
from pipeline.system.log import log

# 4 MiB is what the distribution specification asks registries to take for a manifest; an error page is no
# longer.
MAX_BODY = 4 << 20
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
WORTH_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a request is tried: seconds, doubling from ``first``, spread by chance.

    A server that asks us to wait longer than ``longest`` is not waited for. ``clock`` measures how long a
    body's parts are waited for.
    """

    attempts: int = 6
    first: float = 0.5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response read to its end; ``body`` is at most `MAX_BODY` long."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


class TryAgain(Exception):
    """A failure that another attempt may fix; ``final`` is raised after the last attempt."""

    def __init__(self, final: RegistryError, *, retry_after: float | None = None, most: int = 1_000) -> None:
        super().__init__(final.message)
        self.final = final
        self.retry_after = retry_after
        self.most = most


class Session:
    """HTTP with one registry host. Safe to call from several threads; `close()` it at the end.

    Raises ConfigError for a host that can have no address.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: CredentialsProvider,
        plain_http: bool | None = None,
        connections: int = 16,
        patience: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.host = host
        self.patience = patience or RetryPolicy()
        self._base = our_http.base_url(_HUB.get(host, host), plain_http)
        try:
            our_http.address(self._base)
        except ValueError as error:
            raise ConfigError(f"{host} is not the name of a host: {error}") from error
        self._client = our_http.client(host, connections=connections, transport=transport)
        # a client that nobody closed lets its connections go with itself
        self.close = weakref.finalize(self, self._client.close)
        self._auth = Authenticator(host, credentials, self._fetch_token)

    def __repr__(self) -> str:
        return f"Session({self._base!r})"

    def patiently(self, action: Callable[[], _T]) -> _T:
        """Call ``action`` until it does not raise TryAgain, as long as that can help."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            wait=self._wait,
            stop=self._stop,
            sleep=self.patience.sleep,
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return retrying(action)
        except TryAgain as error:
            raise error.final from error

    def ask(
        self,
        method: str,
        target: str,
        *,
        scopes: tuple[Scope, ...],
        what: str,
        expected: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """Send a request that may be repeated, and read its answer to the end.

        ``target`` is a path (``/v2/…``) or an address that the registry gave. Raises RegistryError
        (`Refused`) for a status that is not ``expected``.
        """

        def attempt() -> Answer:
            response = self.once(
                method, target, scopes=scopes, what=what, expected=expected, headers=headers, content=content
            )
            try:
                body = self._body(response, self.host, what)
            except httpx.TransportError as error:
                raise self.cut(what, error) from error
            finally:
                response.close()
            url = str(response.request.url)
            return Answer(status=response.status_code, headers=response.headers, body=body, url=url)

        return self.patiently(attempt)

    def once(
        self,
        method: str,
        target: str,
        *,
        scopes: tuple[Scope, ...],
        what: str,
        expected: Collection[int],
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """One attempt, more when a credential had to be shown or renewed. The caller closes the response.

        Raises TryAgain for what another attempt may fix, RegistryError for the rest.
        """
        url = self.absolute(target)
        for last in (False, False, True):  # nothing shown, something that has expired, something fresh
            sent = self._header_for(url, scopes)
            response = self._follow(method, url, sent, headers or {}, content, what)
            if response.status_code in expected:
                return response
            body = self._error_body(response)
            # a challenge of a host that we were redirected to must not choose where our password is sent
            ours = _origin(str(response.request.url)) == _origin(self._base)
            if ours and _wants_credentials(method, response.status_code, body) and not last:
                lines = response.headers.get_list("www-authenticate")
                again = self._auth.challenged(lines, scopes, sent=sent)
                if again and isinstance(content, Iterator):
                    # what was read from the stream cannot be sent again: the caller opens it again
                    raise TryAgain(self._refused(what, response, body), most=3)
                if again:
                    continue
            raise self._classified(what, response, body)
        raise AssertionError("the loop above returns or raises")

    def absolute(self, target: str, *, seen_from: str = "") -> str:
        """``target`` as an address, seen from the request ``seen_from`` or from the registry's own address.

        Raises RegistryError for what is not an address, or would leave TLS.
        """
        return self._allowed(seen_from or self._base + "/", target, "a request")

    @property
    def was_challenged(self) -> bool:
        """Whether the registry has said how to sign in."""
        return self._auth.was_challenged

    def cut(self, what: str, error: httpx.TransportError) -> TryAgain:
        """The error for a request whose connection broke off; it says that another attempt may succeed."""
        final = unreachable(self.host, what, error)
        return TryAgain(final, most=final.attempts)

    def _header_for(self, url: str, scopes: tuple[Scope, ...]) -> str | None:
        """Credentials go to the registry's own origin and to nobody else, whatever address it hands out."""
        return self._auth.header(scopes) if _origin(url) == _origin(self._base) else None

    def _follow(
        self,
        method: str,
        url: str,
        authorization: str | None,
        headers: Mapping[str, str],
        content: bytes | Iterator[bytes] | None,
        what: str,
    ) -> httpx.Response:
        for _ in range(_MAX_REDIRECTS + 1):
            own = {"Accept-Encoding": "identity", **headers}
            if authorization is not None and _origin(url) == _origin(self._base):
                own["Authorization"] = authorization
            try:
                request = self._client.build_request(method, url, headers=own, content=content)
                response = self._client.send(request, stream=True)
            except httpx.TransportError as error:
                raise self.cut(what, error) from error
            except httpx.InvalidURL as error:
                raise RegistryError(
                    f"{self.host} sends us to an address that is not valid, for {what}"
                ) from error
            if response.status_code not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            location = response.headers.get("location", "")
            response.close()
            url = self._allowed(url, location, what)
        raise RegistryError(f"{self.host} redirects {what} in circles", hint="is a proxy in between?")

    def _allowed(self, base: str, location: str, what: str) -> str:
        """``location`` seen from ``base``, unless it is not an address, or without TLS."""
        nowhere = RegistryError(
            f"{self.host} sends us to {location[:100]!r} for {what}, which is not a valid address"
        )
        try:
            target = resolve(base, location)
            parts = urlsplit(target)
            _origin(target)
            our_http.address(target)
        except ValueError:  # half an IPv6 address, a port or a host name that is not valid
            raise nowhere from None
        if parts.scheme not in ("http", "https") or not location:
            raise nowhere
        insecure = parts.scheme == "http" and _origin(target) != _origin(self._base)
        if insecure and (base.startswith("https:") or not our_http.plain_http_allowed(parts.netloc)):
            raise RegistryError(
                f"{self.host} sends us to {parts.netloc} without TLS for {what}",
                hint="SQSHPIPE_PLAIN_HTTP can name hosts to trust without TLS",
            )
        return target

    def _fetch_token(self, request: httpx.Request) -> tuple[int, bytes]:
        what = f"a token from {request.url.host}"
        request.headers["Accept-Encoding"] = "identity"

        def attempt() -> tuple[int, bytes]:
            try:
                response = self._client.send(request, stream=True)
                try:
                    body = self._body(response, request.url.host, what)
                finally:
                    response.close()
            except httpx.TransportError as error:
                raise self.cut(what, error) from error
            if response.status_code in WORTH_AGAIN:
                raise self._classified(what, response, body)
            return response.status_code, body

        return self.patiently(attempt)

    def _body(self, response: httpx.Response, host: str, what: str) -> bytes:
        body = bytearray()
        for part in steadily(response.iter_raw(), self.patience.clock):
            body += part
            if len(body) > MAX_BODY:
                raise RegistryError(f"{host} answers {what} with more than {MAX_BODY >> 20} MiB")
        return bytes(body)

    def _error_body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        try:
            for part in steadily(response.iter_raw(), self.patience.clock):
                body += part
                if len(body) > MAX_BODY:
                    break
        except httpx.TransportError:
            pass  # the status says enough
        finally:
            response.close()
        return bytes(body[:MAX_BODY])

    def _classified(self, what: str, response: httpx.Response, body: bytes) -> Exception:
        error = self._refused(what, response, body)
        if response.status_code in WORTH_AGAIN:
            return TryAgain(error, retry_after=_retry_after(response))
        return error

    def _refused(self, what: str, response: httpx.Response, body: bytes) -> RegistryError:
        return refused(
            self.host,
            what,
            response.status_code,
            body,
            had_credentials=self._auth.has_credentials,
            retry_after=_retry_after(response),
            action=needed(response.request.method, response.request.url.path),
        )

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = _failure(state)
        if error.retry_after is not None:
            return error.retry_after + random.uniform(0, 0.5)  # noqa: S311 - spreads load, guards nothing
        doubled = self.patience.first * 2.0 ** (state.attempt_number - 1)
        return min(doubled, self.patience.longest) * random.uniform(0.75, 1.25)  # noqa: S311

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        error = _failure(state)
        if error.retry_after is not None and error.retry_after > self.patience.longest:
            return True
        return state.attempt_number >= min(self.patience.attempts, error.most)

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        reason, seconds = _failure(state).final.message, round(state.upcoming_sleep, 1)
        log.warning("trying again", reason=reason, seconds=seconds, attempt=state.attempt_number + 1)


def _failure(state: tenacity.RetryCallState) -> TryAgain:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, TryAgain)  # noqa: S101 - tenacity only asks after one
    return error


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default


def _wants_credentials(method: str, status: int, body: bytes) -> bool:
    # ECR answers 403 with these words when its 12 hours are over; to a HEAD it cannot say them
    return status == http.HTTPStatus.UNAUTHORIZED or (
        status == http.HTTPStatus.FORBIDDEN and (method == "HEAD" or b"token has expired" in body.lower())
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait (RFC 9110, 10.2.3: a number or a date)."""
    value = response.headers.get("retry-after", "")
    if not value:
        return None
    try:
        if re.fullmatch(r"\s*[0-9]+\s*", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
