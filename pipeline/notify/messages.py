"""Notifications: published, blocked, failed, base moved. Each is sent once, with a retry, and blocks nothing.

Each message is sent in its own thread. A run waits a few seconds at most for its messages. A message that
could not be sent is a warning. One marker file for each message keeps a repeated run from sending it
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import tenacity

from pipeline.config.types import Notify
from pipeline.errors import ScanRejected, SqshpipeError
from pipeline.system import process
from pipeline.system.log import log
from pipeline.text import shown

Kind = Literal["published", "blocked", "failed", "base-moved"]
_ATTEMPTS = 3
_SEND_SECONDS = 10.0
_PATIENCE = 15.0
_MARKER_DAYS = 30
_LONGEST = 2000  # characters of a message
_SIGNS = {"published": "✅", "blocked": "⛔", "failed": "❌", "base-moved": "🔄"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What happened to which image; ``text`` is one sentence and holds no secret.

    ``about`` is what makes it another event than the last of its kind: a version, a digest.
    """

    kind: Kind
    image: str
    text: str
    about: str
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"sqshpipe: {self.image} {self.kind.replace('-', ' ')}"


Send = Callable[[Notify, Notification], None]


def ended(image: str, version: str, code: int, error: str, *, path: str = "") -> Notification:
    """The notification for the end of a run. ``code`` is its exit code, ``error`` its sentence."""
    name = f"{image}:{version}"
    if code == 0:
        return Notification(
            kind="published",
            image=image,
            text=f"{name} is published",
            about=version,
            details={"path": path} if path else {},
        )
    kind: Kind = "blocked" if code == ScanRejected.exit_code else "failed"
    return Notification(kind=kind, image=image, text=f"{name}: {error}", about=f"{version} {error}")


class Notifier:
    """Sends each event to all targets that are configured for its kind.

    A context manager: its end waits a few seconds for messages that are still being sent. ``markers`` is a
    folder with one file for each message that was sent.
    """

    def __init__(
        self,
        targets: Sequence[Notify],
        markers: Path,
        *,
        send: Send | None = None,
        patience: float = _PATIENCE,
        pause: float = 1.0,
    ) -> None:
        self._targets = targets
        self._markers = markers
        self._send = send or deliver
        self._patience = patience
        self._pause = pause
        self._open: list[threading.Thread] = []

    def __enter__(self) -> Notifier:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + self._patience
        for thread in self._open:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = sum(thread.is_alive() for thread in self._open)
        if late:
            log.warning("not waiting longer for messages", open=late)

    def send(self, event: Notification) -> None:
        """Start to send ``event``; returns at once and never raises."""
        for target in self._targets:
            if event.kind in target.on:
                # A daemon: a message that hangs must not hold the program.
                thread = threading.Thread(target=self._deliver, args=(target, event), daemon=True)
                thread.start()
                self._open.append(thread)

    def _deliver(self, target: Notify, event: Notification) -> None:
        marker = self._markers / _identity(target, event)
        if not _claim(marker):
            return
        try:
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(_ATTEMPTS),
                wait=tenacity.wait_exponential(multiplier=self._pause),
                reraise=True,
            ):
                with attempt:
                    self._send(target, event)
        except Exception as error:  # noqa: BLE001 - an error of a message must not stop the release
            with contextlib.suppress(OSError):
                marker.unlink()
            log.warning("a message could not be sent", to=_name(target), kind=event.kind, why=_safe(error))


def deliver(target: Notify, event: Notification) -> None:
    """Send one event to one target, without a retry. Raises the error of the transport as it is."""
    if target.sns is not None:
        _to_sns(target.sns, event)
    elif target.webhook_env is not None:
        _to_webhook(os.environ.get(target.webhook_env, ""), target.webhook_env, event)
    elif target.command is not None:
        process.run(target.command, stdin=json.dumps(asdict(event)).encode(), timeout=_SEND_SECONDS)


def _to_sns(topic: str, event: Notification) -> None:
    import boto3
    from botocore.config import Config

    patience = Config(connect_timeout=_SEND_SECONDS, read_timeout=_SEND_SECONDS, retries={"max_attempts": 0})
    client = boto3.client("sns", region_name=topic.split(":")[3], config=patience)
    client.publish(TopicArn=topic, Subject=event.title[:100], Message=json.dumps(asdict(event), indent=2))


def _to_webhook(address: str, variable: str, event: Notification) -> None:
    import httpx

    if not address:
        raise SqshpipeError(f"{variable} is not set")
    lines = [f"{_SIGNS[event.kind]} *{_plain(event.title)}*", *map(_plain, event.text.split("\n"))]
    lines += [f"• {name}: `{_plain(value)}`" for name, value in event.details.items()]
    httpx.post(address, json={"text": "\n".join(lines)}, timeout=_SEND_SECONDS).raise_for_status()


def _plain(text: str) -> str:
    """Text in which Slack finds no link and nobody to call: text of a registry may be in it."""
    return shown(text, longest=_LONGEST).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _claim(marker: Path) -> bool:
    """True for the first process that sends this event; without a folder for markers always."""
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(marker.parent)
    except OSError as error:
        log.warning(
            "cannot remember which notifications were sent", folder=str(marker.parent), reason=error.strerror
        )
        return True
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:
        log.warning(
            "cannot remember which notifications were sent", folder=str(marker.parent), reason=error.strerror
        )
    return True


def _forget_old(folder: Path) -> None:
    oldest = time.time() - _MARKER_DAYS * 86400
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _identity(target: Notify, event: Notification) -> str:
    parts = (_name(target), event.kind, event.image, event.about)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _name(target: Notify) -> str:
    """The target without a secret: a webhook's address is one, its variable is not."""
    return target.sns or target.webhook_env or " ".join(target.command or ())


def _safe(error: Exception) -> str:
    """What went wrong, without the address that an HTTP error quotes."""
    if isinstance(error, SqshpipeError):
        return error.message
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return f"status {status}" if status else type(error).__name__
