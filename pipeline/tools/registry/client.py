"""A registry's API (OCI distribution-spec 1.1) in the words of `pipeline.oci`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import httpx

from pipeline.errors import FormatError, RegistryError
from pipeline.oci.config import ImageConfig, parse_config
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import ACCEPT, Descriptor, Index, Manifest, parse_manifest
from pipeline.progress import SILENT, Meter
from pipeline.tools import http
from pipeline.tools.credentials import Credentials, credentials_for
from pipeline.tools.registry import download, upload
from pipeline.tools.registry.auth import Scope
from pipeline.tools.registry.errors import Refused
from pipeline.tools.registry.session import Answer, Patience, Session

_ACCEPT = {"Accept": ", ".join(ACCEPT)}
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_PAGE = 1000
_MAX_PAGES = 1000


class RegistryClient:
    """Speaks with one registry host. Safe to call from several threads.

    ``workers`` blobs travel at once. Every method raises RegistryError (its kinds `Refused` and
    `Unreachable` are in
    `pipeline.tools.registry`), FormatError for a manifest that is none.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Callable[[str], Credentials | None] = credentials_for,
        plain_http: bool | None = None,
        workers: int = 4,
        patience: Patience | None = None,
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
        """Digest, size and media type of a manifest by tag or digest, without fetching it. None: not
        there."""
        answer = self._manifest("HEAD", repository, reference)
        if answer is None:
            return None
        digest = _said_digest(answer)
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        length = answer.headers.get("content-length", "")
        if digest is None or not media_type or not length.isdigit():
            # the specification lets a registry be this brief: the bytes tell
            manifest = self.get_manifest(repository, reference)
            return Descriptor(media_type=manifest.media_type, digest=manifest.digest, size=len(manifest.raw))
        if ":" in reference and str(digest) != reference:
            raise self._lie(repository, reference, digest)
        return Descriptor(media_type=media_type, digest=digest, size=int(length))

    def get_manifest(self, repository: str, reference: str) -> Manifest | Index:
        """A manifest by tag or digest; its bytes are compared with every digest that was named for them."""
        answer = self._manifest("GET", repository, reference)
        if answer is None:
            raise _not_found(self.host, repository, reference)
        said = _said_digest(answer)
        if said is not None:
            self._same(repository, reference, said, answer.body)
        if ":" in reference:
            self._same(repository, reference, Digest.parse(reference), answer.body)
        return parse_manifest(answer.body, answer.headers.get("content-type"))

    def _manifest(self, method: str, repository: str, reference: str) -> Answer | None:
        joint = "@" if ":" in reference else ":"
        answer = self._session.ask(
            method,
            f"/v2/{repository}/manifests/{reference}",
            scopes=(Scope(repository, "pull"),),
            what=f"{self.host}/{repository}{joint}{reference}",
            expected=(200, 404) if method == "HEAD" else (200,),
            headers=_ACCEPT,
        )
        return None if answer.status == 404 else answer

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
        target = f"/v2/{repository}/tags/list?n={_PAGE}"
        found: set[str] = set()
        for _ in range(_MAX_PAGES):
            answer = self._session.ask(
                "GET",
                target,
                scopes=(Scope(repository, "pull"),),
                what=f"the tags of {self.host}/{repository}",
            )
            found.update(_tags_in(answer, self.host, repository))
            following = next_page(answer)
            if following is None:
                return sorted(found)
            target = following
        raise RegistryError(f"{self.host}/{repository} lists its tags without end")

    # blobs

    def read_blob(self, repository: str, blob: Descriptor, *, most: int = 8 << 20) -> bytes:
        """A small blob (a config, an SBOM) in memory, checked; ``most`` bounds its size in bytes."""
        if blob.size > most:
            what = f"blob {blob.digest} of {self.host}/{repository}"
            raise FormatError(f"{what} has {blob.size} bytes, too many here")
        return b"".join(download.checked(self._session, repository, blob))

    def open_blob(self, repository: str, blob: Descriptor) -> AbstractContextManager[BinaryIO]:
        """Stream a blob; goes on with Range after a cut; reading to the end checks the digest."""
        return download.open_blob(self._session, repository, blob)

    def fetch_blob(self, repository: str, blob: Descriptor, destination: Path, meter: Meter = SILENT) -> Path:
        """A blob into a file, complete and checked, or not there; ``.partial`` is gone on with."""
        meter.total(blob.size)
        return download.fetch_blob(self._session, repository, blob, destination, meter)

    def fetch_blobs(
        self, repository: str, blobs: Sequence[Descriptor], folder: Path, meter: Meter = SILENT
    ) -> dict[Digest, Path]:
        """Several blobs at once into ``folder``, each named by its digest's hex."""
        return download.fetch_blobs(self._session, repository, blobs, folder, meter, workers=self.workers)

    def has_blob(self, repository: str, digest: Digest) -> bool:
        return upload.has_blob(self._session, repository, digest)

    def mount_blob(self, repository: str, digest: Digest, from_repository: str) -> bool:
        """Let the registry take the blob from its own other repository. False: it would not."""
        return upload.mount_blob(self._session, repository, digest, from_repository)

    def push_blob(
        self, repository: str, blob: Descriptor, source: BinaryIO | upload.Opener, meter: Meter = SILENT
    ) -> bool:
        """Send a blob unless it is there (then False). ``source``: a file, or offset to bytes from there."""
        return upload.push_blob(self._session, repository, blob, source, meter)


def next_page(answer: Answer) -> str | None:
    """Where a list goes on, as its ``Link`` says (RFC 5988); None at its end."""
    match = _NEXT.search(answer.headers.get("link", ""))
    if match is None:
        return None
    try:
        return str(httpx.URL(answer.url).join(match.group(1)))
    except (ValueError, httpx.InvalidURL):
        raise RegistryError(
            f"a list of {httpx.URL(answer.url).host} goes on at {match.group(1)[:100]!r}, which is no address"
        ) from None


def _said_digest(answer: Answer) -> Digest | None:
    said = answer.headers.get("docker-content-digest", "")
    return Digest.parse(said) if said else None


def _not_found(host: str, repository: str, reference: str) -> RegistryError:
    return RegistryError(f"{host}/{repository} has no {reference}", hint="check name and tag")


def _tags_in(answer: Answer, host: str, repository: str) -> list[str]:
    try:
        tags = json.loads(answer.body)["tags"]
        return [str(tag) for tag in tags or ()]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RegistryError(f"{host}/{repository} gives a list of tags that is none") from None
