"""Download blobs from a registry: streamed, resumed after a lost connection, always checked by digest."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import httpx

from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import Descriptor
from pipeline.oci.stream import ReadOnly
from pipeline.progress import NO_TASK, Task
from pipeline.registry.auth import Scope
from pipeline.registry.errors import Refused
from pipeline.registry.pace import steadily
from pipeline.registry.session import WORTH_AGAIN, Session
from pipeline.system import untrusted
from pipeline.system.disk import cannot_write
from pipeline.system.hashing import hashed
from pipeline.system.log import log
from pipeline.system.parallel import Crew

_T = TypeVar("_T")
_READ = 1 << 20
_PROGRESS = 1 << 20  # a connection that brought this much is not counted as a failure when it breaks
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class Stopped(Exception):
    """The download was stopped: another blob failed, or the user interrupted."""


def chunks(
    session: Session,
    repository: str,
    blob: Descriptor,
    *,
    offset: int = 0,
    stop: threading.Event | None = None,
) -> Generator[bytes, None, None]:
    """The blob's bytes from ``offset``, in pieces as they come, over as many requests as it takes.

    Length is checked, the digest is not: see `checked`. Raises RegistryError.
    """
    what = f"blob {blob.digest} of {session.host}/{repository}"
    position, failures = offset, 0
    while position < blob.size:
        started_at = position
        response, skip = _open_at(session, repository, blob, position, what)
        try:
            for part in steadily(response.iter_raw(), session.patience.clock):
                if stop is not None and stop.is_set():
                    raise Stopped
                piece = part[skip:] if skip else part
                skip = max(0, skip - len(part))
                position += len(piece)
                if position > blob.size:
                    raise RegistryError(
                        f"{what}: more than the {blob.size} bytes that its manifest names",
                        hint="the registry or a proxy changes bytes",
                    )
                if piece:
                    yield piece
            reason: Exception | None = None
        except httpx.TransportError as error:
            reason = error
        finally:
            response.close()
        if position < blob.size:
            failures = 0 if position - started_at >= _PROGRESS else failures + 1
            _before_next(session, what, position, failures, reason)


def _open_at(
    session: Session, repository: str, blob: Descriptor, position: int, what: str
) -> tuple[httpx.Response, int]:
    """An answer that brings the blob from ``position``, after as many bytes to skip as are returned with it.

    A registry, or a proxy in between, that does not continue where it was asked to is asked for the whole
    blob from byte 0. What came before is skipped, so the blob's digest decides about all of it.
    """
    if position:
        response = _resumed(session, repository, blob, position, what)
        if response is not None:
            return response, 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else position
        log.warning("the download cannot be resumed, starting again", what=what, at=position)
    response = _asked(session, repository, blob, 0, what)
    if response.status_code == httpx.codes.PARTIAL_CONTENT and not _begins_at(response, blob, 0):
        response.close()
        raise RegistryError(
            f"{what}: asked from byte {position}, and for all of it, the answer is a part:"
            f" {response.headers.get('content-range', '')[:60]!r}",
            hint="a proxy in between does not understand Range",
        )
    return response, position


def _resumed(
    session: Session, repository: str, blob: Descriptor, position: int, what: str
) -> httpx.Response | None:
    """An answer that begins at ``position``, or the whole blob; None for any other answer to a Range."""
    try:
        response = _asked(session, repository, blob, position, what)
    except Refused as error:
        if error.status in WORTH_AGAIN:  # it was waited for; the whole blob would be refused too
            raise
        return None
    if response.status_code == httpx.codes.PARTIAL_CONTENT and not _begins_at(response, blob, position):
        response.close()
        return None
    return response


def _begins_at(response: httpx.Response, blob: Descriptor, position: int) -> bool:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return match is not None and int(match[1]) == position and match[3] in ("*", str(blob.size))


def _asked(session: Session, repository: str, blob: Descriptor, position: int, what: str) -> httpx.Response:
    headers = {"Range": f"bytes={position}-"} if position else {}
    return session.patiently(
        lambda: session.once(
            "GET",
            f"/v2/{repository}/blobs/{blob.digest}",
            scopes=(Scope(repository, "pull"),),
            what=what,
            expected=(200, 206),
            headers=headers,
        )
    )


def _before_next(session: Session, what: str, position: int, failures: int, reason: Exception | None) -> None:
    patience = session.patience
    if failures >= patience.attempts:
        if isinstance(reason, httpx.TransportError):
            raise session.cut(what, reason).final from reason
        raise RegistryError(f"{what}: the registry ends it after {position} bytes", hint="try again later")
    log.warning("download broke off, resuming", what=what, at=position)
    patience.sleep(min(patience.first * 2.0**failures, patience.longest))


def checked(
    session: Session, repository: str, blob: Descriptor, *, stop: threading.Event | None = None
) -> Generator[bytes, None, None]:
    """Like `chunks` from the start; the last piece is only handed out when all of it has the right digest."""
    seen = blob.digest.hasher()
    held: bytes | None = None
    for piece in chunks(session, repository, blob, stop=stop):
        if held is not None:
            yield held
        seen.update(piece)
        held = piece
    _compare(session, repository, blob, seen.hexdigest())
    if held is not None:
        yield held


def _compare(session: Session, repository: str, blob: Descriptor, found: str) -> None:
    if found != blob.digest.hex:
        raise RegistryError(
            f"{session.host}/{repository} gives other bytes for {blob.digest}:"
            f" {blob.digest.algorithm}:{found}",
            hint="the registry's storage or a proxy in between damages data; nothing was used",
        )


class BlobStream(ReadOnly):
    """A blob as a file that can be read once, in pieces as they come."""

    def __init__(self, session: Session, repository: str, blob: Descriptor) -> None:
        self._pieces = checked(session, repository, blob)  # asks for nothing before its first piece
        self._rest = b""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(_READ), b""))
        piece = self._rest or next(self._pieces, b"")
        self._rest = piece[size:]
        return piece[:size]

    def close(self) -> None:
        self._pieces.close()
        super().close()


def open_blob(session: Session, repository: str, blob: Descriptor) -> BinaryIO:
    """The blob as a file to read once, and to close. RegistryError at its end if the digest is wrong."""
    return cast("BinaryIO", BlobStream(session, repository, blob))


def fetch_blob(
    session: Session,
    repository: str,
    blob: Descriptor,
    destination: Path,
    task: Task = NO_TASK,
    *,
    stop: threading.Event | None = None,
) -> Path:
    """The blob in a file, complete and checked, or not there at all.

    Bytes are gathered in ``DESTINATION.partial``, which a later call resumes. Two processes may fetch the
    same blob: the second waits for the first. Raises RegistryError, and ToolError for a full disk.
    """
    partial = destination.with_name(destination.name + ".partial")
    try:
        if _has(destination, blob):
            task.advance(blob.size)
            return destination
        opened = untrusted.open_regular(partial, flags=os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(opened, "a+b") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks; they only save work
                fcntl.flock(file, fcntl.LOCK_EX)
            if _has(destination, blob):
                task.advance(blob.size)
                return destination
            try:
                _fill(session, repository, blob, file, task, stop)
            except _BadPartial:
                log.warning("a partial download was damaged, starting again", blob=str(blob.digest))
                file.truncate(0)
                _fill(session, repository, blob, file, task, stop)
            partial.replace(destination)
    except OSError as error:
        raise cannot_write(error, destination) from error
    return destination


class _BadPartial(Exception):
    """What was left over from an earlier run was damaged."""


def _has(path: Path, blob: Descriptor) -> bool:
    """Whether the complete blob is already there: its bytes are read, since a name proves nothing."""
    try:
        descriptor = untrusted.open_regular(path)
    except OSError:  # nothing, a symlink or a pipe: what is fetched takes its place
        return False
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size != blob.size:
            return False
        return hashed(file, into=blob.digest.hasher()).hexdigest() == blob.digest.hex


def _fill(
    session: Session,
    repository: str,
    blob: Descriptor,
    file: BinaryIO,
    task: Task,
    stop: threading.Event | None,
) -> None:
    file.seek(0)
    seen = hashed(file, into=blob.digest.hasher())
    offset = file.tell()
    if offset > blob.size:
        raise _BadPartial
    task.advance(offset)
    resumed = offset > 0
    for piece in chunks(session, repository, blob, offset=offset, stop=stop):
        seen.update(piece)
        file.write(piece)
        task.advance(len(piece))
    file.flush()
    if seen.hexdigest() != blob.digest.hex:
        if resumed:
            raise _BadPartial
        file.truncate(0)
        _compare(session, repository, blob, seen.hexdigest())


def fetch_blobs(
    session: Session,
    repository: str,
    blobs: Sequence[Descriptor],
    folder: Path,
    task: Task = NO_TASK,
    *,
    workers: int = 4,
) -> dict[Digest, Path]:
    """Several blobs at once into ``folder``, each named by its digest's hex. One failure stops all."""
    wanted = {blob.digest: blob for blob in blobs}
    task.total(sum(blob.size for blob in wanted.values()))
    stop = threading.Event()

    def one(blob: Descriptor) -> Path:
        return fetch_blob(session, repository, blob, folder / blob.digest.hex, task, stop=stop)

    with Crew(workers, name="blob") as crew:
        futures = {digest: crew.submit(one, blob) for digest, blob in wanted.items()}
        first_failure(list(futures.values()), stop)
    return {digest: future.result() for digest, future in futures.items()}


def first_failure(futures: Sequence[Future[_T]], stop: threading.Event) -> None:
    """Wait for all; when one fails, or on Ctrl-C, stop the others, and raise what happened first."""
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        if any(not future.done() or future.exception() is not None for future in futures):
            stop.set()
        for future in futures:
            future.cancel()
    started = [future for future in futures if not future.cancelled()]
    wait(started)
    for future in started:
        error = future.exception()
        if error is not None and not isinstance(error, Stopped):
            raise error
