"""Until when Amazon Inspector watches published images, and what to set so that it watches longer.

Enhanced scanning with a continuous rule looks at an image again for each new vulnerability, as long as the
image was pushed within one duration, or was used within another: pulled, or in use in a container of ECS or
EKS. A cluster that runs a .sqsh does neither. Afterwards the findings are closed, and nobody looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import RegistryError
from pipeline.image.registry_rules import scanning_of
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.scan.judge import ecr_of
from pipeline.scan.rescan import image_of
from pipeline.store.record import Release
from pipeline.store.store import Store
from pipeline.system.log import log

Mode = Literal["LAST_PULL_DATE", "LAST_IN_USE_AT"]
SET = "aws inspector2 update-configuration --ecr-configuration rescanDuration=LIFETIME"
RULE = "sqshpipe ecr apply --registry-scanning makes a rule that scans continuously"
_AT_ONCE = 100  # images that one call describes


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long Inspector watches an image after its push (None: as long as it exists) and its last use."""

    pushed: timedelta | None
    used: timedelta
    mode: Mode

    @property
    def sentence(self) -> str:
        pushed = "as long as the image exists" if self.pushed is None else f"{self.pushed.days} days"
        use = "pull" if self.mode == "LAST_PULL_DATE" else "use in ECS or EKS"
        return f"after the push {pushed}, after the last {use} {self.used.days} days"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One image: the first day on which nobody watches it, and what to set."""

    unwatched_from: date
    advice: str

    def sentence(self, name: str, today: date | None = None) -> str:
        """For people."""
        past = self.unwatched_from <= (today or datetime.now(timezone.utc).date())
        when = f"since {self.unwatched_from}" if past else f"from {self.unwatched_from} on"
        return f"nobody watches {name} {when}: {self.advice}"

    def as_json(self, release: Release) -> dict[str, str]:
        """For machines."""
        day = self.unwatched_from.isoformat()
        return {"release": release.name, "unwatched_from": day, "advice": self.advice}


def durations(ecr: Ecr) -> Durations:
    """What is set in Inspector for this account and region. Raises RegistryError."""
    answer = ecr.call("get_configuration", service="inspector2")
    state: dict[str, Any] = (answer.get("ecrConfiguration") or {}).get("rescanDurationState") or {}
    pushed = str(state.get("rescanDuration") or "DAYS_14")
    return Durations(
        pushed=None if pushed == "LIFETIME" else _days(pushed),
        used=_days(str(state.get("pullDateRescanDuration") or "DAYS_14")),
        # without a word about it, it is the newer way, which counts less for us
        mode="LAST_PULL_DATE" if state.get("pullDateRescanMode") == "LAST_PULL_DATE" else "LAST_IN_USE_AT",
    )


def look(ecr: Ecr, repository: str, digests: Iterable[Digest]) -> dict[Digest, Watch]:
    """Until when Inspector watches these images; without those that are gone or watched for their whole life.

    Basic scanning looks at an image when somebody asks, so that nothing ends. Raises RegistryError.
    """
    scan_type, frequency = scanning_of(ecr, repository)
    if scan_type != "ENHANCED":
        return {}
    images = _images(ecr, repository, list(dict.fromkeys(digests)))
    if frequency != "CONTINUOUS_SCAN":
        return {
            digest: Watch(unwatched_from=_time(image, "imagePushedAt").date(), advice=RULE)
            for digest, image in images.items()
        }
    set_ = durations(ecr)
    if set_.pushed is None:
        return {}
    return {digest: _watch(image, set_, set_.pushed) for digest, image in images.items()}


def of_releases(
    releases: Iterable[Release], *, ecr_for: Callable[[Reference], Ecr] = ecr_of, strict: bool = False
) -> list[tuple[Release, Watch]]:
    """The releases whose image in ECR is or will be unwatched, the earliest day first.

    Where ECR or Inspector cannot be asked, a warning says so and that repository's releases are left out;
    with `strict` RegistryError is raised.
    """
    images: dict[Reference, list[tuple[Release, Digest]]] = {}
    for release in releases:
        image = image_of(release)
        if image is not None and image.digest is not None and parse_host(image.registry) is not None:
            images.setdefault(image.with_digest(None), []).append((release, image.digest))
    found: list[tuple[Release, Watch]] = []
    for repository, held in images.items():
        try:
            watches = look(ecr_for(repository), repository.repository, [digest for _, digest in held])
        except RegistryError as error:
            if strict:
                raise
            log.warning(
                "until when its images are watched is not known",
                repository=str(repository),
                reason=error.headline,
                hint=error.hint,
            )
            continue
        found += [(release, watches[digest]) for release, digest in held if digest in watches]
    return sorted(found, key=lambda pair: (pair[1].unwatched_from, pair[0].name))


def published(store: Store, images: Iterable[str]) -> list[Release]:
    """The releases of these images that resolve, newest first."""
    return [one for image in images for one in store.releases(image) if one.state == "published"]


def _watch(image: dict[str, Any], set_: Durations, pushed: timedelta) -> Watch:
    ends = [_time(image, "imagePushedAt") + pushed]
    if set_.mode == "LAST_PULL_DATE" and "lastRecordedPullTime" in image:
        ends.append(_time(image, "lastRecordedPullTime") + set_.used)
    advice = f"Inspector watches {set_.sentence}; longer with {SET}, before that day"
    return Watch(unwatched_from=(max(ends) + timedelta(days=1)).date(), advice=advice)


def _images(ecr: Ecr, repository: str, digests: list[Digest]) -> dict[Digest, dict[str, Any]]:
    found: dict[Digest, dict[str, Any]] = {}
    for first in range(0, len(digests), _AT_ONCE):
        part = digests[first : first + _AT_ONCE]
        try:
            found |= _described(ecr, repository, part)
        except AwsRefused as error:
            if error.code != "ImageNotFoundException":
                raise
            for digest in part:  # one that was deleted fails the whole call
                found |= _one(ecr, repository, digest)
    return found


def _one(ecr: Ecr, repository: str, digest: Digest) -> dict[Digest, dict[str, Any]]:
    try:
        return _described(ecr, repository, [digest])
    except AwsRefused as error:
        if error.code != "ImageNotFoundException":
            raise
        return {}


def _described(ecr: Ecr, repository: str, digests: list[Digest]) -> dict[Digest, dict[str, Any]]:
    ids = [{"imageDigest": str(digest)} for digest in digests]
    answer = ecr.call("describe_images", registryId=ecr.account, repositoryName=repository, imageIds=ids)
    return {Digest.parse(str(one["imageDigest"])): one for one in answer.get("imageDetails", ())}


def _time(image: dict[str, Any], key: str) -> datetime:
    value = image.get(key)
    if not isinstance(value, datetime):
        raise RegistryError(f"ECR does not say {key} of an image")
    return value.astimezone(timezone.utc)


def _days(text: str) -> timedelta:
    """``DAYS_14`` as a time. Raises RegistryError for a word that is new."""
    found = re.fullmatch(r"DAYS_([0-9]{1,5})", text)
    if found is None:
        raise RegistryError(f"Inspector's duration {text!r} is not known", hint="is this sqshpipe too old?")
    return timedelta(days=int(found[1]))
