"""Upload the blobs that a registry lacks: streamed, resumed at the offset that the registry reports.

Uploads are POST, PATCH, PUT of the distribution specification ("Pushing blobs"). A registry that forgot a
broken upload gets the blob from its start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import httpx

from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Descriptor
from pipeline.progress import NO_TASK, Task
from pipeline.registry.auth import Scope
from pipeline.registry.errors import Refused
from pipeline.registry.session import Session, TryAgain
from pipeline.system.log import log

Opener = Callable[[int], Iterator[bytes]]
"""Gives a blob's bytes from an offset on; called again when an upload is resumed."""

_PIECE = 1 << 20
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_FORGOTTEN = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "RANGE_INVALID"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """An open upload: where the next request goes, and how many bytes the registry has."""

    location: str
    offset: int


def has_blob(session: Session, repository: str, digest: Digest) -> bool:
    """Whether the repository has the blob; False also where the registry does not answer HEAD."""
    answer = session.ask(
        "HEAD",
        f"/v2/{repository}/blobs/{digest}",
        scopes=(Scope(repository, "pull"),),
        what=f"blob {digest} of {session.host}/{repository}",
        expected=(200, 404, 405, 501),
    )
    return answer.status == 200


def mount_blob(session: Session, repository: str, digest: Digest, from_repository: str) -> bool:
    """Let the registry take the blob from another of its repositories; False when it refuses."""
    scopes = (Scope(repository, "pull,push"), Scope(from_repository, "pull"))
    what = f"blob {digest} of {from_repository} for {session.host}/{repository}"
    try:
        answer = session.ask(
            "POST",
            f"/v2/{repository}/blobs/uploads/?mount={digest}&from={from_repository}",
            scopes=scopes,
            what=what,
            expected=(201, 202),
            content=b"",
        )
    except Refused as error:
        # without the right to read the other repository we can still push
        if error.status in (401, 403, 404, 405):
            return False
        raise
    location = answer.headers.get("location", "")
    if answer.status == 202 and location:
        with contextlib.suppress(RegistryError):
            _give_up(session, repository, session.absolute(location, seen_from=answer.url))
    return answer.status == 201


def push_blob(
    session: Session,
    repository: str,
    blob: Descriptor,
    source: BinaryIO | Opener,
    task: Task = NO_TASK,
) -> bool:
    """Send the blob unless the repository has it. False: it was there.

    ``source`` is a file, or a function from an offset to the bytes from there. Raises RegistryError;
    DIGEST_INVALID from the registry means that ``source`` is not what the descriptor says.
    """
    if has_blob(session, repository, blob.digest):
        task.advance(blob.size)
        return False
    _Push(session, repository, blob, _opener(source, blob) if not callable(source) else source, task).run()
    return True


def _opener(file: BinaryIO, blob: Descriptor) -> Opener:
    def pieces(offset: int) -> Iterator[bytes]:
        if file.seekable():
            file.seek(offset)
        elif offset != file.tell():
            raise RegistryError(f"the source of blob {blob.digest} cannot be read twice", hint="try again")
        while piece := file.read(_PIECE):
            yield piece

    return pieces


class _Push:
    """One blob on its way, across as many uploads as it takes."""

    def __init__(
        self, session: Session, repository: str, blob: Descriptor, opener: Opener, task: Task
    ) -> None:
        self._session = session
        self._repository = repository
        self._blob = blob
        self._opener = opener
        self._meter = task
        self._counted = 0
        self._scopes = (Scope(repository, "pull,push"),)
        self._what = f"blob {blob.digest} to {session.host}/{repository}"

    def run(self) -> None:
        failures = 0
        upload: _Upload | None = None
        while True:
            before = upload.offset if upload else 0
            try:
                upload = upload or self._start()
                if upload.offset < self._blob.size:
                    upload = self._send(upload)
                self._finish(upload)
            except TryAgain as error:
                failures += 1
                if failures >= min(self._session.patience.attempts, error.most):
                    raise error.final from error
                self._pause(error, failures)
                upload = self._where_now(upload)
                if upload is not None and upload.offset > before:
                    failures = 1
            except Refused as error:
                failures += 1
                if error.code not in _FORGOTTEN or failures >= self._session.patience.attempts:
                    self._abandon(upload)
                    raise
                log.warning("the registry no longer knows an upload, starting it again", what=self._what)
                upload = None
            except BaseException:
                self._abandon(upload)
                raise
            else:
                return
            if upload is None and has_blob(self._session, self._repository, self._blob.digest):
                return  # the answer to the last request was lost, not the blob

    def _start(self) -> _Upload:
        answer = self._session.ask(
            "POST",
            f"/v2/{self._repository}/blobs/uploads/",
            scopes=self._scopes,
            what=self._what,
            expected=(202,),
            content=b"",
        )
        return _Upload(location=self._location(answer.headers, answer.url), offset=0)

    def _send(self, upload: _Upload) -> _Upload:
        rest = self._blob.size - upload.offset
        response = self._session.once(
            "PATCH",
            upload.location,
            scopes=self._scopes,
            what=self._what,
            expected=(202, 204),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(rest),
                "Content-Range": f"{upload.offset}-{self._blob.size - 1}",
            },
            content=self._pieces(upload.offset),
        )
        response.close()
        offset = _offset(response.headers.get("range", ""), default=self._blob.size)
        return _Upload(location=self._location(response.headers, str(response.request.url)), offset=offset)

    def _pieces(self, offset: int) -> Iterator[bytes]:
        position = offset
        for piece in self._opener(offset):
            position += len(piece)
            if position > self._blob.size:
                break
            yield piece
            if position > self._counted:
                self._meter.advance(position - max(self._counted, position - len(piece)))
                self._counted = position
        if position != self._blob.size:
            raise RegistryError(
                f"the source of blob {self._blob.digest} lacks bytes, or has more, than its {self._blob.size}"
            )

    def _finish(self, upload: _Upload) -> None:
        parts = urlsplit(upload.location)
        query = "&".join(filter(None, (parts.query, f"digest={self._blob.digest}")))
        response = self._session.once(
            "PUT",
            urlunsplit(parts._replace(query=query)),
            scopes=self._scopes,
            what=self._what,
            expected=(201, 204),
            content=b"",
        )
        response.close()

    def _where_now(self, upload: _Upload | None) -> _Upload | None:
        """What the registry has of a broken upload; None: nothing, begin again."""
        if upload is None:
            return None
        try:
            answer = self._session.ask(
                "GET", upload.location, scopes=self._scopes, what=self._what, expected=(204, 200)
            )
        except RegistryError:
            return None
        offset = _offset(answer.headers.get("range", ""), default=-1)
        if not 0 <= offset <= self._blob.size:
            return None
        log.warning("upload broke off, resuming", what=self._what, at=offset)
        location = upload.location
        if "location" in answer.headers:
            location = self._location(answer.headers, answer.url)
        return _Upload(location=location, offset=offset)

    def _location(self, headers: httpx.Headers, seen_from: str) -> str:
        location = headers.get("location", "")
        if not location:
            raise RegistryError(f"{self._session.host} names no place to send {self._what}")
        return self._session.absolute(location, seen_from=seen_from)

    def _pause(self, error: TryAgain, failures: int) -> None:
        patience = self._session.patience
        if error.retry_after is not None and error.retry_after > patience.longest:
            raise error.final from error
        seconds = error.retry_after or min(patience.first * 2.0 ** (failures - 1), patience.longest)
        reason = error.final.message
        log.warning("trying again", reason=reason, seconds=round(seconds, 1), attempt=failures + 1)
        patience.sleep(seconds)

    def _abandon(self, upload: _Upload | None) -> None:
        if upload is not None:
            _give_up(self._session, self._repository, upload.location)


def _offset(header: str, *, default: int) -> int:
    """How many bytes a registry has, from its ``Range: 0-N``. N is the last byte; empty is 0-0 too."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return default
    last = int(match.group(1))
    return last + 1 if last else 0


def _give_up(session: Session, repository: str, location: str) -> None:
    """Cancel an upload that will not be finished. One attempt: the registry cleans up by itself later."""
    with contextlib.suppress(RegistryError, TryAgain):
        session.once(
            "DELETE",
            location,
            scopes=(Scope(repository, "pull,push"),),
            what="an upload that is given up",
            expected=(200, 202, 204, 404),
        ).close()
