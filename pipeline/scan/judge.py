"""The verdict for one digest and one policy; the gate, a check, a rescan and `sqshpipe scan` all use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal

from pipeline.authn import place_of
from pipeline.aws.ecr import Ecr
from pipeline.config.ecr_hosts import parse_host
from pipeline.config.types import Config, ScanPolicy
from pipeline.errors import ConfigError, RegistryError, ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import NotOneImage
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import CredentialsProvider, credentials_for
from pipeline.registry.images import image_manifest
from pipeline.scan import ecr as scan_ecr
from pipeline.scan import vex, vex_attached
from pipeline.scan.ecr import Waiting
from pipeline.scan.findings import Base, ScanResult
from pipeline.scan.policy import Verdict, evaluate
from pipeline.scan.trivy import Trivy
from pipeline.scan.waivers import read_waivers
from pipeline.system.log import log

ClientFor = Callable[[str], RegistryClient]
Scanner = Literal["none", "ecr", "trivy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The image that is judged: `image` is a reference with a digest. Waivers call it `name`.

    `base` (with a digest) is the image that it was built from, None when unknown. `base_in` is the base
    in one of our repositories, for scanners that do not report the layer of a finding.
    """

    name: str
    image: Reference
    platform: str
    base: Reference | None = None
    base_in: Reference | None = None

    @property
    def digest(self) -> Digest:
        if self.image.digest is None:
            raise ConfigError(f"{self.image} has no digest, and a scan is asked for by digest")
        return self.image.digest


def subject_of(
    config: Config | None, name: str, image: Reference, platform: str, base: Reference, base_digest: Digest
) -> Subject:
    """What is judged for an image that was built from `base` when the digest of `base` was `base_digest`.

    `base_in` is the repository of `image` when `image` is itself a copy of the base, else the repository
    of an image of `config` that mirrors the base, else None.
    """
    plain = base.with_digest(None)
    base_in = None
    if image.digest == base_digest:
        base_in = image.with_digest(None)
    elif config is not None and config.registry.given:
        mirrors = (
            other.name
            for other in config.images.values()
            if other.mirrored and (other.base, str(other.platform)) == (plain, platform)
        )
        base_in = next(map(config.registry.repository, mirrors), None)
    pinned = plain.with_tag(None).with_digest(base_digest)
    return Subject(name=name, image=image, platform=platform, base=pinned, base_in=base_in)


def chosen(policy: ScanPolicy, repository: Reference) -> Scanner:
    """Which scanner the policy means for a repository. ConfigError when nothing here can scan it.

    `auto` never means none: to publish without a scan has to be said.
    """
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


def ecr_of(repository: Reference) -> Ecr:
    """The ECR that holds a repository. ConfigError when it lies elsewhere."""
    where = parse_host(repository.registry)
    if where is None:
        raise ConfigError(
            f"{repository} is not in ECR, so scan: {{scanner: ecr}} cannot be asked",
            hint="use scanner: trivy, or scanner: none, which publishes with a record that says unscanned",
        )
    return Ecr(where.account, where.region)


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Asks the scanner about a subject and evaluates the answer by a policy."""

    client_for: ClientFor | None = None
    credentials: CredentialsProvider = credentials_for
    ecr_for: Callable[[Reference], Ecr] = ecr_of
    waiting: Waiting = field(default_factory=Waiting)
    now: datetime = field(default_factory=_now)

    def judge(
        self, subject: Subject, policy: ScanPolicy, *, timeout: timedelta | None = None
    ) -> Verdict | None:
        """The verdict on `subject`; None when the policy says that nothing is scanned.

        `timeout` is how long to wait for a result; the policy's own when None. Raises ScanRejected when there
        is no complete result in time, ConfigError for a scanner that this registry does not have,
        RegistryError, ToolError.
        """
        scanner = chosen(policy, subject.image)
        if scanner == "none":
            return None
        if scanner == "trivy":
            known = self.credentials(place_of(self.credentials, subject.image.name))
            result = Trivy.find().scan_image(subject.image, known, platform=subject.platform)
        else:
            result = scan_ecr.wait(
                self.ecr_for(subject.image),
                subject.image.repository,
                subject.digest,
                timeout=policy.timeout if timeout is None else timeout,
                max_age=policy.max_age,
                waiting=self.waiting,
                now=self.now,
            )
        return self.evaluate(subject, policy, result)

    def evaluate(self, subject: Subject, policy: ScanPolicy, result: ScanResult) -> Verdict:
        """The verdict that `policy` makes of a complete result. Raises ConfigError for bad waivers."""
        waivers = read_waivers(policy.waivers)
        base = self._base(subject, result) if policy.new_since_base else Base()
        stated = vex.accepted(
            self._vex(subject, policy),
            result.findings,
            image=subject.image,
            architecture=subject.platform.split("/")[1],
            name=subject.name,
            max_age=policy.vex.max_age,
            now=self.now,
        )
        today = self.now.date()
        verdict = evaluate(result, policy, waivers, base, image=subject.name, today=today, vex=stated)
        for warning in verdict.warnings:
            log.warning(warning, image=subject.name)
        return verdict

    def _vex(self, subject: Subject, policy: ScanPolicy) -> list[vex.Document]:
        """The policy's documents. What is attached to the image and cannot be read excuses nothing."""
        found = vex.read_files(policy.vex.files)
        if policy.vex.attached and self.client_for is not None:
            client = self.client_for(subject.image.registry)
            try:
                found += vex_attached.read(client, subject.image.repository, subject.digest)
            except RegistryError as error:
                log.warning("attached VEX cannot be read", image=subject.name, reason=error.headline)
        return found

    def begin(self, subject: Subject, policy: ScanPolicy) -> None:
        """Start ECR's scan when there is no recent one, without waiting. Other scanners need no start."""
        if chosen(policy, subject.image) == "ecr":
            oldest = self.now - policy.max_age
            ecr = self.ecr_for(subject.image)
            scan_ecr.begin(ecr, subject.image.repository, subject.digest, oldest=oldest)

    def _base(self, subject: Subject, result: ScanResult) -> Base:
        layers = None
        if subject.base is not None and self.client_for is not None:
            layers = layers_of_base(subject.image, subject.base, self.client_for)
        if layers is not None and any(finding.layer for finding in result.findings):
            return Base(layers=layers)
        return Base(layers=layers, findings=self._base_findings(subject))

    def _base_findings(self, subject: Subject) -> frozenset[tuple[str, str]] | None:
        """What ECR has found in the base itself, where it lies in our registry; None when not known."""
        base = subject.base
        if base is None or base.digest is None or subject.base_in is None:
            return None
        if parse_host(subject.base_in.registry) is None:
            return None
        try:
            outcome = scan_ecr.ask(self.ecr_for(subject.base_in), subject.base_in.repository, base.digest)
        except RegistryError as error:
            log.warning("the findings of the base cannot be read", base=str(base), reason=error.headline)
            return None
        if not isinstance(outcome, ScanResult):
            return None
        return frozenset((finding.id, finding.package) for finding in outcome.findings)


def layers_of_base(image: Reference, base: Reference, client_for: ClientFor) -> frozenset[Digest] | None:
    """The layers that `image` has from `base`, by blob digest and diff_id; both references have digests.

    Compared by diff_id, since an engine may compress a layer again when it pushes. None, with a warning, when
    the base cannot be read; None when the image was not built on it.
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
        log.warning("the layers of the base cannot be read", base=str(base), reason=error.headline)
        return None
    if whole_ids[: len(below_ids)] != below_ids:
        return None
    blobs = (layer.digest for layer in (*whole.layers[: len(below_ids)], *below.layers))
    return frozenset({*below_ids, *blobs})
