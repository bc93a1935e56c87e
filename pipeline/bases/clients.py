"""The digests that the tags of all bases name now. All registries are asked in parallel.

A base of many images is asked for once. When one registry is down, only its own bases are unknown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType

from pipeline.config.lock import Lock, LockedBase
from pipeline.config.types import Config, ImageSpec
from pipeline.errors import SqshpipeError
from pipeline.image.pin import find
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import CredentialsProvider, credentials_provider
from pipeline.system.parallel_reads import each

_WORKERS = 32


class Clients:
    """One client a registry host, made when first asked for. Safe to call from several threads.

    A context manager that closes them all. The configured registry's credentials and plain HTTP apply to
    its own host only.
    """

    def __init__(self, config: Config) -> None:
        settings = config.registry
        self._configured = settings.host if settings.given else None
        self._plain_http = settings.plain_http
        self._made: dict[str, RegistryClient] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Clients:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in self._made.values():
            client.close()

    @property
    def credentials(self) -> CredentialsProvider:
        """Who we are at each host: the environment's password is for the configured registry alone."""
        return credentials_provider(self._configured)

    def __call__(self, host: str) -> RegistryClient:
        with self._lock:
            client = self._made.get(host)
            if client is None:
                plain = True if self._plain_http and host == self._configured else None
                client = RegistryClient(host, credentials=self.credentials, plain_http=plain)
                self._made[host] = client
            return client


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseAnswer:
    """One base on one platform: who uses it, what is locked, what it is now, or why that is unknown."""

    reference: Reference
    platform: Platform
    images: tuple[str, ...]
    locked: LockedBase | None
    now: LockedBase | None
    problem: SqshpipeError | None = None

    @property
    def moved(self) -> bool:
        """Whether the tag names another digest than the locked one, or nothing is locked."""
        return self.now is not None and (self.locked is None or self.now.digest != self.locked.digest)


def ask(
    specs: Iterable[ImageSpec],
    lock: Lock,
    client_for: Callable[[str], RegistryClient],
    *,
    now: datetime | None = None,
) -> tuple[BaseAnswer, ...]:
    """Ask for each base of ``specs`` once, sorted by name; a failure becomes that answer's ``problem``.

    Bases that name a digest are what they are and not asked for.
    """
    moment = (now or datetime.now(timezone.utc)).replace(microsecond=0)
    users: dict[tuple[str, str], list[ImageSpec]] = {}
    for spec in specs:
        if spec.base.digest is None:
            users.setdefault((str(spec.base), str(spec.platform)), []).append(spec)
    if not users:
        return ()

    def one(key: tuple[str, str]) -> BaseAnswer:
        first = users[key][0]
        held = lock.get(first.base, first.platform)
        found, problem = None, None
        try:
            found = _now(first, held, client_for(first.base.registry), moment)
        except SqshpipeError as error:
            problem = error
        return BaseAnswer(
            reference=first.base,
            platform=first.platform,
            images=tuple(spec.name for spec in users[key]),
            locked=held,
            now=found,
            problem=problem,
        )

    return tuple(each(one, sorted(users), workers=_WORKERS))


def relocked(lock: Lock, answers: Iterable[BaseAnswer]) -> Lock:
    """`lock` with what the registries answered; a base that could not be asked keeps its entry."""
    for answer in answers:
        if answer.now is not None:
            lock = lock.updated(answer.reference, answer.platform, answer.now)
    return lock


def _now(spec: ImageSpec, held: LockedBase | None, client: RegistryClient, moment: datetime) -> LockedBase:
    """The lock of a base now: a HEAD request shows whether it moved; manifests are read only then."""
    if held is not None:
        top = client.head(spec.base.repository, spec.base.identifier)
        if top is not None and top.digest == (held.index_digest or held.digest):
            return held
    digest, index_digest = find(spec.base, spec.platform, client)
    return LockedBase(digest=digest, index_digest=index_digest, locked_at=moment)
