"""Judge published releases again: one that passed once may have become unacceptable since.

Only a complete result of the image's scanner withdraws a release. ECR stops watching images that nobody
pulls, and a cluster that runs a .sqsh never pulls: then the state is unknown. That is reported, and its SBOM
is scanned so that people know more; whatever that says, what jobs run on stays.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pipeline.config.types import Config, ScanPolicy
from pipeline.errors import PublishError, SqshpipeError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.scan.gate import blocked
from pipeline.scan.judge import Judge, Subject, subject_of
from pipeline.scan.policy import Verdict
from pipeline.scan.trivy import Trivy
from pipeline.store import attachments
from pipeline.store.layout import SBOM
from pipeline.store.record import IMAGE, Release
from pipeline.store.store import Store
from pipeline.system.log import log

Status = Literal["acceptable", "unacceptable", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescan:
    """What is known now of one published release; `why` is a sentence, `verdict` is there when there is one.

    `by_sbom`: the scanner had no result, the verdict is on the SBOM.
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


def rescan(
    store: Store, config: Config | None, *, images: tuple[str, ...] = (), judge: Judge
) -> list[Rescan]:
    """Judge every published release of `images` (all if none is named) again, and yank by policy.

    Policies are those of `config`; an image that it does not have is judged by the defaults. Basic scanning
    scans once, at the push: results older than `scan.max_age` are requested again, all at the
    same time, and then waited for together, no longer than the longest `scan.timeout`. A release
    whose state cannot be found out is *unknown* and does not stop the others.
    """
    offered = [
        (release, spec.scan if spec is not None else ScanPolicy())
        for image in images or tuple(store.images())
        for spec in (config.images.get(image) if config is not None else None,)
        for release in store.releases(image)
        if release.state == "published" and release.kind == IMAGE
    ]
    subjects = [_subject(release, config) for release, _ in offered]
    longest = max((policy.timeout for _, policy in offered), default=timedelta())
    until = judge.waiting.clock() + longest.total_seconds()
    for subject, (_, policy) in zip(subjects, offered, strict=True):
        with contextlib.suppress(SqshpipeError):  # reported when its turn comes
            if subject is not None:
                judge.begin(subject, policy)
    results = []
    for subject, (release, policy) in zip(subjects, offered, strict=True):
        left = timedelta(seconds=max(0.0, until - judge.waiting.clock()))
        result = _rescan(release, subject, policy, judge, min(left, policy.timeout), _sbom(store, release))
        if result.status == "unacceptable" and not result.by_sbom and policy.published == "yank":
            store.mark(release.name, "yank", reason=f"scan: {result.why}")
            result = replace(result, yanked=True)
        _report(result)
        results.append(result)
    return results


def _subject(release: Release, config: Config | None) -> Subject | None:
    """What the gate judged when `release` was made; None for a file that was made elsewhere."""
    image = image_of(release)
    if image is None:
        return None
    if not release.base:
        return Subject(name=release.image, image=image, platform=release.platform)
    base, digest = Reference.parse(release.base["reference"]), Digest.parse(release.base["digest"])
    return subject_of(config, release.image, image, release.platform, base, digest)


def _rescan(
    release: Release,
    subject: Subject | None,
    policy: ScanPolicy,
    judge: Judge,
    timeout: timedelta,
    sbom: Path | None,
) -> Rescan:
    if subject is None:
        return Rescan(release=release, status="unknown", why="it was made elsewhere, no image is known")
    try:
        verdict = judge.judge(subject, policy, timeout=timeout)
    except SqshpipeError as error:
        return _by_sbom(release, subject, policy, judge, sbom, error.headline)
    if verdict is None:
        why = "the policy says that nothing is scanned"
        return Rescan(release=release, status="unknown", why=why)
    return _judged(release, verdict)


def _judged(release: Release, verdict: Verdict) -> Rescan:
    if verdict.passed:
        return Rescan(release=release, status="acceptable", why="", verdict=verdict)
    why = blocked(verdict, release.name).message
    if not verdict.certain:
        why = f"the findings of its base cannot be read, so nobody knows which are new: {why}"
        return Rescan(release=release, status="unknown", why=why, verdict=verdict)
    return Rescan(release=release, status="unacceptable", why=why, verdict=verdict)


def _by_sbom(
    release: Release, subject: Subject, policy: ScanPolicy, judge: Judge, sbom: Path | None, why: str
) -> Rescan:
    """What the SBOM says where the scanner knows nothing, because of `why`."""
    if policy.scanner == "none" or sbom is None:
        return Rescan(release=release, status="unknown", why=why)
    log.warning("the scanner has no result, scanning the SBOM", release=release.name, why=why)
    try:
        verdict = judge.evaluate(subject, policy, Trivy.find().scan_sbom(sbom))
    except SqshpipeError as error:
        both = f"{why}; its SBOM could not be scanned: {error.headline}"
        return Rescan(release=release, status="unknown", why=both)
    result = _judged(release, verdict)
    both = "; ".join(part for part in (result.why, f"found by its SBOM, since {why}") if part)
    return replace(result, why=both, by_sbom=True)


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
        log.warning("an SBOM is not used", reason=error.headline)
        return None


def _report(result: Rescan) -> None:
    name = result.release.name
    if result.status == "unacceptable":
        log.warning("no longer acceptable", release=name, yanked=result.yanked, why=result.why)
    elif result.status == "unknown":
        log.warning("its state is unknown now", release=name, why=result.why)
    else:
        log.info("still acceptable", release=name)
