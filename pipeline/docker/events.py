"""What the events of a build and a push say: lines, progress, the digest, and failures to be raised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.authn import login_hint
from pipeline.aws.ecr_actions import hint as ecr_hint
from pipeline.docker.errors import full_hint
from pipeline.errors import RegistryError, SqshpipeError, ToolError
from pipeline.oci.reference import Reference
from pipeline.progress import Task
from pipeline.system.disk import says_full
from pipeline.text import said

LAST_LINES = 15
_DIGEST_STATUS = re.compile(r": digest: (sha256:[0-9a-f]{64}) size: \d+")
STEP = re.compile(r"Step \d+/\d+ : ")

# What may pass by itself. Everything else (denied, tag invalid, name unknown, connection refused …) is an
# answer.
_WORTH_RETRYING = re.compile(
    r"toomanyrequests|too many requests|\b429\b"
    r"|(status|response|HTTP)\D{0,20}\b5\d\d\b|\b5\d\d (Internal|Bad Gateway|Service|Gateway)"
    r"|\bEOF\b|timed? ?out|deadline exceeded|connection reset|broken pipe",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"denied|unauthorized|no basic auth|authentication required|\b40[13]\b", re.IGNORECASE)


class Passing(RegistryError):
    """A failure that may be gone at the next attempt."""


class Denied(RegistryError):
    """The registry did not take the engine's password: it is wrong, it has ended, or a right is missing."""


def build_failure(path: Path, reason: str, step: Sequence[str], *, root: str) -> ToolError:
    """The report of a failed build: the builder's reason, then the last lines of the step that failed.

    ``root`` is the folder where the engine keeps its data, named when it is full.
    """
    lines = [f"  | {said(line)}" for line in step if line.strip()][-LAST_LINES:]
    first, *more = [line for line in reason.strip().split("\n") if line.strip()] or ["no reason is given"]
    hint = "the lines above are what the step said last" if lines else ""
    return ToolError(
        f"building {path} failed: {said(first)}",
        details=[*(f"  {said(line)}" for line in more), *lines],
        hint=full_hint(root) if says_full(" ".join([reason, *lines])) else hint,
    )


def push_failure(message: str, reference: Reference, *, root: str) -> SqshpipeError:
    """What an error event of a push means: worth another attempt, no right to push, or just no.

    ``root`` is the folder where the engine keeps its data: a disk that is full may also be the registry's.
    """
    text = f"pushing {reference} failed: {message.strip()}"
    if says_full(message) and root in message:
        return ToolError(text, hint=full_hint(root))
    if _REFUSED.search(message):
        hint = login_hint(reference.registry)
        return Denied(text, hint=ecr_hint("", message) if "ecr:" in message else hint)
    if _WORTH_RETRYING.search(message):
        return Passing(
            text, hint="the registry is overloaded or the network bad; run the same command again later"
        )
    return RegistryError(text, hint=f"is {reference.registry} a registry that the Docker Engine can reach?")


def pushed_digest(event: Mapping[str, Any]) -> str | None:
    """Reported in ``aux``; with the containerd image store in the text of the last status alone."""
    reported = (event.get("aux") or {}).get("Digest")
    match = _DIGEST_STATUS.search(str(event.get("status", "")))
    return str(reported) if reported else match and match[1]


class Transfer:
    """Sums the per-layer progress of a push up for a meter. The engine counts uncompressed bytes."""

    def __init__(self, task: Task) -> None:
        self._meter = task
        self._known: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        layer, detail = str(event.get("id", "")), event.get("progressDetail") or {}
        total, current = int(detail.get("total") or 0), int(detail.get("current") or 0)
        if not layer or event.get("status") != "Pushing" or not total:
            return
        current = min(current, total)
        if total > self._known.get(layer, 0):
            self._meter.total(total - self._known.get(layer, 0))
            self._known[layer] = total
        if current > self._done.get(layer, 0):
            self._meter.advance(current - self._done.get(layer, 0))
            self._done[layer] = current


def lines(event: Mapping[str, Any]) -> Iterator[str]:
    """The lines for people in an event, without terminal colours."""
    text = event.get("stream")
    if text is None and event.get("status") and not event.get("progressDetail"):
        text = " ".join(str(event[key]) for key in ("id", "status") if event.get(key))
    yield from (shown for line in re.split(r"[\r\n]+", str(text or "")) if (shown := said(line)).strip())
