"""Looking again at what is published: a release that passed once may have become unacceptable since.

Only a complete result of the image's scanner takes a release away. ECR stops to look at images that nobody
pulls, and a cluster that runs a .sqsh never pulls: then nothing is known. That is told, its SBOM is scanned
so that people know more, and whatever that says, what jobs run on stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import structlog

from pipeline.config.types import Config, ScanPolicy
from pipeline.errors import PublishError, SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.scanning.findings import Base, ScanResult
from pipeline.scanning.policy import Verdict, evaluate
from pipeline.scanning.waivers import read_waivers
from pipeline.stages.scan import ClientFor, blocked, chosen, ecr_of, layers_of_base
from pipeline.stages.scan_ecr import Waiting, begin, wait
from pipeline.store import attachments
from pipeline.store.layout import SBOM
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.tools.credentials import CredentialsProvider, credentials_for
from pipeline.tools.ecr.client import Ecr
from pipeline.tools.trivy import Trivy

log = structlog.get_logger()

Status = Literal["acceptable", "unacceptable", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known now of one published release; ``why`` in words, ``verdict`` where there is one.

    ``by_sbom`` says that the scanner knew nothing, and the verdict is one of the SBOM.
    """

    release: Release
    status: Status
    why: str
    verdict: Verdict | None = None
    by_sbom: bool = False
    yanked: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "image": self.release.image,
            "version": self.release.version,
            "platform": self.release.platform,
            "status": self.status,
            "why": self.why,
            "by_sbom": self.by_sbom,
            "yanked": self.yanked,
            "verdict": self.verdict.as_json() if self.verdict is not None else None,
        }


def look_again(
    store: Store,
    config: Config | None,
    *,
    images: tuple[str, ...] = (),
    client_for: ClientFor | None = None,
    credentials: CredentialsProvider = credentials_for,
    ecr_for: Callable[[Reference], Ecr] = ecr_of,
    waiting: Waiting | None = None,
    now: datetime | None = None,
) -> list[Look]:
    """Ask again for every published release of ``images`` (all if none is named), and yank by policy.

    Policies are those of ``config``; an image that it does not have is judged by the defaults. Basic scanning
    looks once, at the push: results older than ``scan.max_age`` are asked for anew, all at once, and then
    waited for together, no longer than the longest ``scan.timeout``. One release that cannot be asked for is
    *unknown* and does not stop the others.
    """
    asker = _Asker(client_for, credentials, ecr_for, waiting or Waiting(), now or datetime.now(timezone.utc))
    offered = [
        (release, spec.scan if spec is not None else ScanPolicy())
        for image in images or tuple(store.images())
        for spec in (config.images.get(image) if config is not None else None,)
        for release in store.releases(image)
        if release.state == "published"
    ]
    asker.begin(offered)
    looks = []
    for release, policy in offered:
        look = asker.look(release, policy, _sbom(store, release))
        if look.status == "unacceptable" and not look.by_sbom and policy.published == "yank":
            store.mark(release.name, "yank", reason=f"scan: {look.why}")
            look = replace(look, yanked=True)
        _tell(look)
        looks.append(look)
    return looks


def image_of(release: Release) -> Reference | None:
    """The image that the release was made from, with its digest; None for one made elsewhere."""
    if not release.source or "repository" not in release.source or "digest" not in release.source:
        return None
    return Reference.parse(release.source["repository"]).with_digest(Digest.parse(release.source["digest"]))


def _sbom(store: Store, release: Release) -> Path | None:
    path = store.layout.attachments(release.image, release.version, release.platform) / SBOM
    try:
        return path if attachments.read(store.layout, release, SBOM) is not None else None
    except PublishError as error:
        log.warning("an SBOM is not used", reason=error.message)
        return None


def _tell(look: Look) -> None:
    name = look.release.name
    if look.status == "unacceptable":
        log.warning("no longer acceptable", release=name, yanked=look.yanked, why=look.why)
    elif look.status == "unknown":
        log.warning("nothing is known of it now", release=name, why=look.why)
    else:
        log.info("still acceptable", release=name)


class _Asker:
    """Gets the newest result there is for a release: the scanner's, else one of its SBOM."""

    def __init__(
        self,
        client_for: ClientFor | None,
        credentials: CredentialsProvider,
        ecr_for: Callable[[Reference], Ecr],
        waiting: Waiting,
        now: datetime,
    ) -> None:
        self._client_for = client_for
        self._credentials = credentials
        self._ecr_for = ecr_for
        self._waiting = waiting
        self._now = now
        self._until = waiting.clock()

    def begin(self, offered: Sequence[tuple[Release, ScanPolicy]]) -> None:
        """Ask for the scans that are too old, so that they run side by side. What fails is told by `look`."""
        longest = max((policy.timeout for _, policy in offered), default=timedelta())
        self._until = self._waiting.clock() + longest.total_seconds()
        for release, policy in offered:
            with contextlib.suppress(SqshpipeError):
                image = image_of(release)
                if image is not None and image.digest and chosen(policy, image) == "ecr":
                    oldest = self._now - policy.max_age
                    begin(self._ecr_for(image), image.repository, image.digest, oldest=oldest)

    def look(self, release: Release, policy: ScanPolicy, sbom: Path | None) -> Look:
        try:
            return self._judged(release, policy, sbom)
        except SqshpipeError as error:
            return Look(release=release, status="unknown", why=error.message)

    def _judged(self, release: Release, policy: ScanPolicy, sbom: Path | None) -> Look:
        result, why = self._from_scanner(release, policy)
        if result is not None:
            return self._verdict(release, policy, result)
        if policy.scanner == "none" or sbom is None:
            return Look(release=release, status="unknown", why=why)
        log.warning("nothing is known of its image now, scanning its SBOM", release=release.name, why=why)
        try:
            look = self._verdict(release, policy, Trivy.find().scan_sbom(sbom))
        except SqshpipeError as error:
            told = f"{why}; its SBOM could not be scanned: {error.message}"
            return Look(release=release, status="unknown", why=told)
        told = "; ".join(part for part in (look.why, f"told by its SBOM, since {why}") if part)
        return replace(look, why=told, by_sbom=True)

    def _verdict(self, release: Release, policy: ScanPolicy, result: ScanResult) -> Look:
        base = self._base(release) if policy.new_since_base else Base()
        waivers = read_waivers(policy.waivers)
        today = self._now.date()
        verdict = evaluate(result, policy, waivers, base, image=release.image, today=today)
        for warning in verdict.warnings:
            log.warning(warning, release=release.name)
        if verdict.passed:
            return Look(release=release, status="acceptable", why="", verdict=verdict)
        told = blocked(verdict, release.name).message
        return Look(release=release, status="unacceptable", why=told, verdict=verdict)

    def _from_scanner(self, release: Release, policy: ScanPolicy) -> tuple[ScanResult | None, str]:
        image = image_of(release)
        if image is None or image.digest is None:
            return None, "it was made elsewhere, no image is known"
        try:
            scanner = chosen(policy, image)
            if scanner == "none":
                return None, "the policy says that nothing is scanned"
            if scanner == "trivy":
                known = self._credentials(image.registry)
                return Trivy.find().scan_image(image, known, platform=release.platform), ""
            left = timedelta(seconds=max(0.0, self._until - self._waiting.clock()))
            found = wait(
                self._ecr_for(image),
                image.repository,
                image.digest,
                timeout=min(left, policy.timeout),
                max_age=policy.max_age,
                waiting=self._waiting,
                now=self._now,
            )
        except SqshpipeError as error:
            return None, error.message
        return found, ""

    def _base(self, release: Release) -> Base:
        image = image_of(release)
        if self._client_for is None or not release.base or image is None:
            return Base()
        base = Reference.parse(release.base["reference"]).with_digest(Digest.parse(release.base["digest"]))
        return layers_of_base(image, base, self._client_for)
