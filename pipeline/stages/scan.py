"""Scan: the gate between the registry and the cluster. Nothing is converted without a `ScanReport`.

The gate fails closed: it passes on a complete result that the policy accepts, and on nothing else. Only
``scanner: none`` goes without, and says so in the release's record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import structlog

from pipeline.config.types import Config, ImageSpec, ScanPolicy
from pipeline.errors import ConfigError, RegistryError, ScanRejected, ToolError
from pipeline.oci.manifest import NotOneImage
from pipeline.oci.reference import Reference
from pipeline.scanning.findings import Base, ScanResult
from pipeline.scanning.policy import Verdict, evaluate
from pipeline.scanning.waivers import read_waivers
from pipeline.stages import scan_ecr
from pipeline.stages.push import PushedImage
from pipeline.stages.scan_ecr import Waiting
from pipeline.tools.credentials import CredentialsProvider, credentials_for
from pipeline.tools.ecr.client import Ecr
from pipeline.tools.ecr.hosts import parse_host
from pipeline.tools.login import place_of
from pipeline.tools.registry import RegistryClient, image_manifest
from pipeline.tools.trivy import Trivy

log = structlog.get_logger()

ClientFor = Callable[[str], RegistryClient]
_NAMED = 5  # findings that the sentence of a rejection names


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What is known about the findings of one image, by digest.

    ``unscanned`` is said plainly and stands in the release record: a decision of the policy, not a result.
    """

    image: PushedImage
    scanner: str
    status: Literal["unscanned", "passed"]
    verdict: Verdict | None = None

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        if self.verdict is None:
            return "nothing was scanned, as the policy says (scanner: none); the record says so too"
        counts = ", ".join(f"{number} {name}" for name, number in self.verdict.counts.items())
        waived = sum(one.decision == "waived" for one in self.verdict.judged)
        return f"passed ({self.scanner}): {counts or 'no findings'}" + (
            f", {waived} waived" if waived else ""
        )

    def record(self) -> dict[str, Any]:
        """What the release record says of the scan: counts and waivers; all findings go beside it."""
        told: dict[str, Any] = {"status": self.status, "scanner": self.scanner}
        if self.verdict is not None:
            whole = self.verdict.as_json()
            told |= {"completed_at": whole["completed_at"], "findings": whole["counts"]}
            told["waived"] = [
                {"id": one["id"], "package": one["package"], **one["waiver"]}
                for one in whole["findings"]
                if one["decision"] == "waived"
            ]
            told["warnings"] = whole["warnings"]
        return told


class Blocked(ScanRejected):
    """The result is complete and findings block; ``verdict`` has them all."""

    def __init__(self, message: str, *, hint: str, verdict: Verdict) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict


def scan(
    pushed: PushedImage,
    policy: ScanPolicy,
    *,
    image: str = "",
    client_for: ClientFor | None = None,
    credentials: CredentialsProvider = credentials_for,
    ecr: Ecr | None = None,
    base_in: Reference | None = None,
    waiting: Waiting | None = None,
    now: datetime | None = None,
) -> ScanReport:
    """Ask for the verdict on the pushed digest.

    ``image`` is the name in images.yaml, for waivers. ``client_for`` lets findings be told apart by the
    layers of the
    base; ``base_in`` is a repository of ours that has the base itself, for scanners that know no layers.
    ``ecr`` is
    found from the registry's name where it is not given.

    Raises:
        ScanRejected: findings that block (`Blocked`), or no complete result in time.
        ConfigError: the policy names a scanner that this registry does not have.
    """
    scanner = chosen(policy, pushed.repository)
    if scanner == "none":
        return ScanReport(image=pushed, scanner="none", status="unscanned")
    moment = now or datetime.now(timezone.utc)
    waivers = read_waivers(policy.waivers)
    result = _result(scanner, pushed, policy, credentials, ecr, waiting, moment)
    base = Base() if client_for is None else layers_of_base(pushed.reference, pushed.base.pinned, client_for)
    if base.layers is None or not any(finding.layer for finding in result.findings):
        base = Base(layers=base.layers, findings=_base_findings(scanner, pushed, ecr, base_in))
    name = image or pushed.repository.repository.rpartition("/")[2]
    verdict = evaluate(result, policy, waivers, base, image=name, today=moment.date())
    for warning in verdict.warnings:
        log.warning(warning, image=name)
    if not verdict.passed:
        raise blocked(verdict, name)
    return ScanReport(image=pushed, scanner=result.scanner, status="passed", verdict=verdict)


def chosen(policy: ScanPolicy, repository: Reference) -> Literal["none", "ecr", "trivy"]:
    """Which scanner the policy means for a repository. ``auto`` never means none: that has to be said."""
    if policy.scanner != "auto":
        return policy.scanner
    if parse_host(repository.registry) is not None:
        return "ecr"
    try:
        Trivy.find()
    except ToolError:
        raise ConfigError(
            f"nothing here can scan {repository}",
            hint="install trivy, or say scan: {scanner: none}; the record then says unscanned",
        ) from None
    return "trivy"


def blocked(verdict: Verdict, image: str) -> Blocked:
    """The rejection, with its worst findings by name."""
    worst = [
        f"{one.finding.id} ({one.finding.severity}) in {one.finding.package}" for one in verdict.blocking
    ]
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    return Blocked(
        f"{image}: {len(worst)} findings block: {', '.join(worst[:_NAMED])}{more}",
        hint=f"update the packages, or waive them for a time in waivers.yaml; sqshpipe scan {image} tells",
        verdict=verdict,
    )


def _result(
    scanner: Literal["ecr", "trivy"],
    pushed: PushedImage,
    policy: ScanPolicy,
    credentials: CredentialsProvider,
    ecr: Ecr | None,
    waiting: Waiting | None,
    now: datetime,
) -> ScanResult:
    if scanner == "trivy":
        known = credentials(place_of(credentials, pushed.repository.name))
        return Trivy.find().scan_image(pushed.reference, known, platform=str(pushed.base.platform))
    return scan_ecr.wait(
        ecr or ecr_of(pushed.repository),
        pushed.repository.repository,
        pushed.digest,
        timeout=policy.timeout,
        max_age=policy.max_age,
        waiting=waiting,
        now=now,
    )


def ecr_of(repository: Reference) -> Ecr:
    """The ECR that a repository lies in. ConfigError when it lies elsewhere."""
    where = parse_host(repository.registry)
    if where is None:
        raise ConfigError(
            f"{repository} is not in ECR, so scan: {{scanner: ecr}} cannot be asked",
            hint="use scanner: trivy, or scanner: none, which publishes with a record that says unscanned",
        )
    return Ecr(where.account, where.region)


def layers_of_base(image: Reference, base: Reference, client_for: ClientFor) -> Base:
    """The layers that ``image`` has from ``base``, by blob digest and diff_id; both references have digests.

    They are told by their diff_ids, since an engine may compress a layer anew when it pushes. Unknown, with a
    warning, when the base cannot be read.
    """
    try:
        whole = image_manifest(client_for(image.registry), image, None)
        whole_ids = client_for(image.registry).get_config(image.repository, whole).diff_ids
        if image.digest == base.digest:
            below, below_ids = whole, whole_ids
        else:
            below = image_manifest(client_for(base.registry), base, None)
            below_ids = client_for(base.registry).get_config(base.repository, below).diff_ids
    except (RegistryError, NotOneImage) as error:
        log.warning("what the base brought cannot be told", reason=error.message)
        return Base()
    if whole_ids[: len(below_ids)] != below_ids:
        return Base()
    blobs = (layer.digest for layer in (*whole.layers[: len(below_ids)], *below.layers))
    return Base(layers=frozenset({*below_ids, *blobs}))


def _base_findings(
    scanner: str, pushed: PushedImage, ecr: Ecr | None, base_in: Reference | None
) -> frozenset[tuple[str, str]] | None:
    """What ECR has found in the base itself, where it is mirrored; None when it is not known."""
    if scanner != "ecr" or base_in is None:
        return None
    outcome = scan_ecr.ask(ecr or ecr_of(base_in), base_in.repository, pushed.base.digest)
    if not isinstance(outcome, ScanResult):
        return None
    return frozenset((finding.id, finding.package) for finding in outcome.findings)


def mirrored_base(config: Config, spec: ImageSpec) -> Reference | None:
    """Our repository that has the base of ``spec`` as it is, if images.yaml mirrors it."""
    for other in config.images.values():
        if other.mirrored and (other.base, other.platform) == (spec.base, spec.platform):
            return config.registry.repository(other.name)
    return None
