"""ECR's scan of one digest: start it, wait for it. An incomplete result never counts as clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.errors import ScanRejected
from pipeline.oci.digest import Digest
from pipeline.scan.ecr_result import Ended, Pending, read
from pipeline.scan.findings import ScanResult
from pipeline.system.log import log

_THROTTLED = frozenset({"ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
# A scan that ECR starts by itself shows within this time; then we ask for one.
_START_AFTER = 20.0
_MAX_PAGES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How to wait: seconds, growing from ``first`` to ``longest``. Tests replace the clock."""

    first: float = 2.0
    growth: float = 1.5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


def ask(ecr: Ecr, repository: str, digest: Digest) -> ScanResult | Pending | Ended:
    """What ECR says of the digest now. RegistryError when it refuses or the image is not there."""
    image = {"imageDigest": str(digest)}
    pages: list[Mapping[str, Any]] = []
    more: dict[str, Any] = {}
    try:
        while len(pages) < _MAX_PAGES:
            page = ecr.call(
                "describe_image_scan_findings",
                registryId=ecr.account,
                repositoryName=repository,
                imageId=image,
                maxResults=1000,
                **more,
            )
            pages.append(page)
            token = page.get("nextToken")
            if not token or token == more.get("nextToken"):
                return read(pages)
            more = {"nextToken": token}
        return Pending(state="COMPLETE", why=f"ECR lists findings on more than {_MAX_PAGES} pages")
    except AwsRefused as error:
        if error.code == "ScanNotFoundException":
            return read([])
        if error.code in _THROTTLED:
            return Pending(state="THROTTLED", why="AWS throttles our requests")
        raise


def begin(ecr: Ecr, repository: str, digest: Digest, *, oldest: datetime) -> None:
    """Start a scan when there is no scan, or a basic one older than ``oldest``; do not wait."""
    outcome = ask(ecr, repository, digest)
    missing = isinstance(outcome, Pending) and outcome.state == ""
    if missing or (isinstance(outcome, ScanResult) and _stale(outcome, oldest)):
        _start(ecr, repository, digest)


def _stale(result: ScanResult, oldest: datetime) -> bool:
    return result.scanner == "ecr basic" and result.completed_at < oldest


def wait(
    ecr: Ecr,
    repository: str,
    digest: Digest,
    *,
    timeout: timedelta,
    max_age: timedelta,
    waiting: Waiting | None = None,
    now: datetime | None = None,
) -> ScanResult:
    """Wait for a complete result that is no older than ``max_age``.

    Raises ScanRejected when ECR says that none will come, or when none came within ``timeout``.
    """
    pace = waiting or Waiting()
    begun = pace.clock()
    oldest = (now or datetime.now(timezone.utc)) - max_age
    what = f"{repository}@{digest}"
    delay, started, last = pace.first, False, ""
    while True:
        outcome = ask(ecr, repository, digest)
        elapsed = pace.clock() - begun
        if isinstance(outcome, Ended):
            raise ScanRejected(f"{what} is not scanned: {outcome.why} ({outcome.state})", hint=outcome.hint)
        if isinstance(outcome, ScanResult):
            if not _stale(outcome, oldest):
                return outcome
            if not started and not _start(ecr, repository, digest):
                log.warning("the scan is older than max_age, and ECR makes no other today", image=what)
                return outcome
            started, why = True, "a newer scan is running"
        else:
            why = outcome.why
            if outcome.state == "" and not started and elapsed >= _START_AFTER:
                started = True
                _start(ecr, repository, digest)
        if elapsed >= timeout.total_seconds():
            raise ScanRejected(
                f"{what} has no complete scan after {elapsed / 60:.0f} minutes: {why}",
                hint="run it again, raise scan.timeout, or see whether scanning is on: sqshpipe ecr apply",
            )
        if why != last:
            log.info("waiting for the scan", image=what, reason=why)
            last = why
        pace.sleep(min(delay, max(0.1, timeout.total_seconds() - elapsed)))
        delay = min(delay * pace.growth, pace.longest)


def _start(ecr: Ecr, repository: str, digest: Digest) -> bool:
    """Ask for a basic scan. False: ECR will not (once a day; not where scanning is enhanced)."""
    try:
        ecr.call(
            "start_image_scan",
            registryId=ecr.account,
            repositoryName=repository,
            imageId={"imageDigest": str(digest)},
        )
    except AwsRefused as error:
        if error.code in ("LimitExceededException", "ValidationException", "UnsupportedImageTypeException"):
            log.info("ECR starts no scan by hand here", reason=error.code)
            return False
        raise
    return True
