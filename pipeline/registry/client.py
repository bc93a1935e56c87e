"""A registry's API (OCI distribution-spec 1.1) with the types of `pipeline.oci`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import httpx

from pipeline.errors import FormatError, RegistryError
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import ACCEPT, Descriptor, Index, Manifest, parse_manifest
from pipeline.progress import NO_TASK, Task
from pipeline.registry import download, upload
from pipeline.registry.auth import Scope
from pipeline.registry.credentials import Credentials, credentials_for
from pipeline.registry.errors import Refused
from pipeline.registry.headers import next_address
from pipeline.registry.session import WORTH_AGAIN, Answer, RetryPolicy, Session
from pipeline.system import http

_ACCEPT = {"Accept": ", ".join(ACCEPT)}
_BUSY = WORTH_AGAIN - {500}  # 500 was waited for too, but some registries answer every HEAD with it
_GUESSED = frozenset({"", "application/json", "application/octet-stream", "text/plain", "text/html"})
_PAGE = 1000
_MAX_PAGES = 1000


class RegistryClient:
    """Speaks with one registry host. Safe to call from several threads.

    ``workers`` blobs travel at once. Every method raises RegistryError (its kinds `Refused` and `Unreachable`
    are in `pipeline.registry`), FormatError for a manifest that is not valid.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Callable[[str], Credentials | None] = credentials_for,
        plain_http: bool | None = None,
        workers: int = 4,
        patience: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.host = host
        self.workers = workers
        self.credentials = credentials  # for tools that speak with the registry themselves
        self.plain_http = http.base_url(host, plain_http).startswith("http:")
        self._session = Session(
            host,
            credentials=credentials,
            plain_http=plain_http,
            connections=max(32, 4 * workers),  # many small questions at once, as a refresh asks them
            patience=patience,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"RegistryClient({self.host!r})"

    def __enter__(self) -> RegistryClient:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @property
    def session(self) -> Session:
        """The HTTP underneath, for what streams blobs in its own way (mirror)."""
        return self._session

    def ping(self) -> None:
        """Ask whether this is a registry and takes our credentials."""
        self._session.ask("GET", "/v2/", scopes=(), what=f"a sign of life of {self.host}")

    # manifests

    def head(self, repository: str, reference: str) -> Descriptor | None:
        """Digest, size and media type of a manifest by tag or digest. None: not there.

        HEAD is asked first, and believed only when it gives all three. Registries and proxies exist that
        answer HEAD with 404, 405 or 403 for what GET gives, or without a digest; then the bytes are fetched,
        at most 4 MiB, and the digest is computed from them.
        """
        described = self._head(repository, reference)
        if described is not None:
            if ":" in reference and str(described.digest) != reference:
                raise self._lie(repository, reference, described.digest)
            return described
        try:
            manifest = self.get_manifest(repository, reference)
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return Descriptor(media_type=manifest.media_type, digest=manifest.digest, size=len(manifest.raw))

    def _head(self, repository: str, reference: str) -> Descriptor | None:
        """What HEAD says of a manifest; None where it does not say all of it."""
        try:
            return _described(self._manifest("HEAD", repository, reference))
        except Refused as error:
            refused = error.status == 401 and self._session.was_challenged  # else GET may say how to sign in
            if refused or error.status in _BUSY:
                raise
            return None

    def get_manifest(self, repository: str, reference: str) -> Manifest | Index:
        """A manifest by tag or digest; its bytes are compared with every digest that was named for them."""
        answer = self._manifest("GET", repository, reference)
        said = _said_digest(answer)
        if said is not None:
            self._same(repository, reference, said, answer.body)
        if ":" in reference:
            self._same(repository, reference, Digest.parse(reference), answer.body)
        return parse_manifest(answer.body, answer.headers.get("content-type"))

    def _manifest(self, method: str, repository: str, reference: str) -> Answer:
        joint = "@" if ":" in reference else ":"
        return self._session.ask(
            method,
            f"/v2/{repository}/manifests/{reference}",
            scopes=(Scope(repository, "pull"),),
            what=f"{self.host}/{repository}{joint}{reference}",
            headers=_ACCEPT,
        )

    def _same(self, repository: str, reference: str, wanted: Digest, body: bytes) -> None:
        hasher = wanted.hasher()
        hasher.update(body)
        if hasher.hexdigest() != wanted.hex:
            raise self._lie(repository, reference, Digest(algorithm=wanted.algorithm, hex=hasher.hexdigest()))

    def _lie(self, repository: str, reference: str, found: Digest) -> RegistryError:
        return RegistryError(
            f"{self.host}/{repository} gives {found} for {reference}, which is something else",
            hint="the registry's storage or a proxy in between damages data; nothing was used",
        )

    def put_manifest(self, repository: str, reference: str, raw: bytes, media_type: str) -> Digest:
        """Store a manifest under a tag or its digest; gives its digest.

        The same digest under a tag that may not change is done already; another one is refused (TAG_INVALID).
        """
        digest = Digest.of(raw)
        joint = "@" if ":" in reference else ":"
        what = f"{self.host}/{repository}{joint}{reference}"
        try:
            answer = self._session.ask(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                scopes=(Scope(repository, "pull,push"),),
                what=what,
                expected=(200, 201, 202, 204),
                headers={"Content-Type": media_type},
                content=raw,
            )
        except Refused as error:
            if error.code != "TAG_INVALID":
                raise
            there = self.head(repository, reference)
            if there is None or there.digest != digest:
                has = there.digest if there is not None else "nothing"
                hint = f"it is {has}, and stays so: choose another tag"
                raise Refused(error.message, hint=hint, status=error.status, code=error.code) from error
            return digest
        said = _said_digest(answer)
        if said is not None and said != digest:
            raise self._lie(repository, str(digest), said)
        return digest

    def get_config(self, repository: str, manifest: Manifest) -> ImageConfig:
        """The image configuration that a manifest names."""
        return parse_config(self.read_blob(repository, manifest.config))

    def tags(self, repository: str) -> list[str]:
        """All tags, sorted. An empty list for a repository without any."""
        name = f"{self.host}/{repository}"
        found: set[str] = set()
        for answer in self.pages(
            f"/v2/{repository}/tags/list?n={_PAGE}", repository, what=f"the tags of {name}"
        ):
            found.update(tags_in(answer, name))
        return sorted(found)

    def pages(
        self,
        target: str,
        repository: str,
        *,
        what: str,
        expected: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Answer]:
        """Every page of the list at ``target``, as `next_page` says. RegistryError for one without an end."""
        asked: set[str] = set()
        while target not in asked and len(asked) < _MAX_PAGES:
            asked.add(target)
            answer = self._session.ask(
                "GET",
                target,
                scopes=(Scope(repository, "pull"),),
                what=what,
                expected=expected,
                headers=headers,
            )
            yield answer
            following = next_page(answer)
            if following is None:
                return
            target = following
        raise RegistryError(f"{self.host} lists {what} without an end", hint="is a proxy in between?")

    # blobs

    def read_blob(self, repository: str, blob: Descriptor, *, most: int = 8 << 20) -> bytes:
        """A small blob (a config, an SBOM) in memory, checked; ``most`` bounds its size in bytes."""
        if blob.size > most:
            what = f"blob {blob.digest} of {self.host}/{repository}"
            raise FormatError(f"{what} has {blob.size} bytes, too many here")
        return b"".join(download.checked(self._session, repository, blob))

    def open_blob(self, repository: str, blob: Descriptor) -> AbstractContextManager[BinaryIO]:
        """Stream a blob; the end of the stream checks its digest.

        After a lost connection the download is resumed with a Range request.
        """
        return download.open_blob(self._session, repository, blob)

    def fetch_blob(self, repository: str, blob: Descriptor, destination: Path, task: Task = NO_TASK) -> Path:
        """Download and verify a blob; resume a ``.partial`` file."""
        task.total(blob.size)
        return download.fetch_blob(self._session, repository, blob, destination, task)

    def fetch_blobs(
        self, repository: str, blobs: Sequence[Descriptor], folder: Path, task: Task = NO_TASK
    ) -> dict[Digest, Path]:
        """Several blobs at once into ``folder``, each named by its digest's hex."""
        return download.fetch_blobs(self._session, repository, blobs, folder, task, workers=self.workers)

    def has_blob(self, repository: str, digest: Digest) -> bool:
        return upload.has_blob(self._session, repository, digest)

    def mount_blob(self, repository: str, digest: Digest, from_repository: str) -> bool:
        """Let the registry take the blob from its own other repository. False: it would not."""
        return upload.mount_blob(self._session, repository, digest, from_repository)

    def push_blob(
        self, repository: str, blob: Descriptor, source: BinaryIO | upload.Opener, task: Task = NO_TASK
    ) -> bool:
        """Send a blob unless it is there (then False). ``source``: a file, or offset to bytes from there."""
        return upload.push_blob(self._session, repository, blob, source, task)


def next_page(answer: Answer) -> str | None:
    """Where a list continues, as its ``Link`` lines say; None at its end."""
    lines = answer.headers.get_list("link")
    try:
        return next_address(lines, answer.url)
    except ValueError:
        raise RegistryError(
            f"a list of {httpx.URL(answer.url).host} continues at what is not an address:"
            f" {', '.join(lines)[:100]!r}"
        ) from None


def _described(answer: Answer) -> Descriptor | None:
    """The manifest that an answer to HEAD describes; None where it does not say all of it."""
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    length = answer.headers.get("content-length", "")
    try:
        digest = _said_digest(answer)
    except FormatError:
        return None
    if digest is None or media_type in _GUESSED or not re.fullmatch(r"[1-9][0-9]{0,8}", length):
        return None
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


def _said_digest(answer: Answer) -> Digest | None:
    said = answer.headers.get("docker-content-digest", "")
    return Digest.parse(said) if said else None


def tags_in(answer: Answer, name: str) -> list[str]:
    """The tags of one page of the repository ``name``. Raises RegistryError for what is not a list."""
    try:
        tags = json.loads(answer.body)["tags"]
        return [str(tag) for tag in tags or ()]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RegistryError(f"{name} gives something else than a list of tags") from None
