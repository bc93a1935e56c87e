"""Errors for the answers of a registry: what was requested, from which host, and what to do."""

from __future__ import annotations

import json
import re
import socket
import ssl

import httpx

from pipeline.authn import login_hint
from pipeline.aws import ecr_actions
from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import RegistryError
from pipeline.registry.pace import FLOOR, TooSlow

_NOT_TAKEN = ("TAG_INVALID", "MANIFEST_INVALID", "DIGEST_INVALID", "BLOB_UPLOAD_INVALID", "SIZE_INVALID")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


class Refused(RegistryError):
    """A registry answered with an error. ``status`` is HTTP's, ``code`` the registry's word or empty."""

    def __init__(self, message: str, *, hint: str = "", status: int, code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class Unreachable(RegistryError):
    """A registry could not be asked: name, connection, TLS, or it broke off more often than we try.

    ``attempts`` bounds how often it is worth trying: a bad certificate stays bad, a refused connection may
    be a restart.
    """

    def __init__(self, message: str, *, hint: str = "", attempts: int = 1_000) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts


def parse_body(body: bytes) -> tuple[str, str]:
    """The first error's ``code`` and ``message`` in an answer ("Error Codes" of distribution-spec)."""
    try:
        first = json.loads(body)["errors"][0]
        return str(first.get("code", "")), _printable(str(first.get("message", "")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", ""


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text)[:300].strip()


def refused(
    host: str,
    what: str,
    status: int,
    body: bytes,
    *,
    had_credentials: bool,
    retry_after: float | None = None,
    action: str = "",
) -> Refused:
    """The error for an answer of ``status`` to ``what`` (such as ``HEAD manifest host/repo:tag``).

    ``action`` is the IAM action that such a request needs in ECR.
    """
    code, said = parse_body(body)
    message, hint = _sentence(
        host, what, status, code, had_credentials=had_credentials, retry_after=retry_after
    )
    if had_credentials and parse_host(host) and (status == 403 or code == "DENIED"):
        hint = ecr_actions.hint(action, said)
    return Refused(f"{message}{f': {said}' if said else ''}", hint=hint, status=status, code=code)


def _sentence(
    host: str, what: str, status: int, code: str, *, had_credentials: bool, retry_after: float | None
) -> tuple[str, str]:
    if status == 401 or code == "UNAUTHORIZED":
        verb = "refuses the password" if had_credentials else "asks for a password"
        return f"{host} {verb}, asked for {what}", login_hint(host)
    if status == 403 or code == "DENIED":
        return f"{host} denies {what}", _denied_hint(host, had_credentials)
    if code == "NAME_UNKNOWN":
        hint = "make it with: sqshpipe ecr apply" if parse_host(host) else "check the repository's name"
        return f"{host} has no such repository, asked for {what}", hint
    if status == 404:
        return f"{what} does not exist", "check name and tag"
    if status == 429:
        wait = f"in {retry_after:.0f} s" if retry_after else "later"
        return (
            f"{host} asks us to slow down, asked for {what}",
            f"try again {wait}; signing in often raises the limit",
        )
    if code in _NOT_TAKEN:
        return f"{host} refuses {what} as {code}", ""
    hint = "the registry is in trouble: try again later" if status >= 500 else ""
    return f"{host} answers {what} with status {status}", hint


def _denied_hint(host: str, had_credentials: bool) -> str:
    if not had_credentials:
        return login_hint(host)
    return "the account may not do this here: ask for the right, or use another account"


def unreachable(host: str, what: str, error: Exception) -> Unreachable:
    """The error for a request that got no answer."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreachable(
                f"{host} shows a TLS certificate that cannot be trusted: {cause.verify_message}",
                hint="put its authority into SSL_CERT_FILE or /etc/docker/certs.d/HOST/ca.crt",
                attempts=1,
            )
        if isinstance(cause, ssl.SSLError):
            return Unreachable(
                f"{host} does not speak TLS as it should: {cause.reason or cause}",
                hint="a registry without TLS is only used when SQSHPIPE_PLAIN_HTTP names its host",
                attempts=1,
            )
        if isinstance(cause, socket.gaierror):
            return Unreachable(
                f"{host} is not a name that can be looked up, asked for {what}",
                hint=f"check {'account, region' if parse_host(host) else 'the name'} and the network",
                attempts=3,
            )
        if isinstance(cause, ConnectionRefusedError):
            return Unreachable(
                f"nothing listens at {host}, asked for {what}",
                hint="is the registry running, and the port right?",
                attempts=3,
            )
    if isinstance(error, TooSlow):
        return Unreachable(
            f"{host} sends less than {FLOOR >> 10} KiB a second of {what}",
            hint="the registry or the network is in trouble: check both, try again",
        )
    if isinstance(error, httpx.TimeoutException):
        attempts = 3 if isinstance(error, httpx.ConnectTimeout) else 1_000
        hint = "check the network, try again"
        return Unreachable(f"{host} did not answer in time, asked for {what}", hint=hint, attempts=attempts)
    reason = _printable(str(error)) or type(error).__name__
    return Unreachable(f"{host} broke off during {what}: {reason}", hint="check the network, try again")


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(found) < 10:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found
