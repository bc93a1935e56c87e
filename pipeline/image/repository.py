"""The wanted settings of an ECR repository, its present ones, and how to change the differences.

`wanted`, `compare` and `lifecycle_policy` are pure; `look` reads, `apply` changes. A repository is never made
less strict than its owner made it by hand unless that is asked for, and nothing here deletes an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.config.names import check_version
from pipeline.config.types import EcrSettings, RegistrySettings
from pipeline.errors import ConfigError
from pipeline.image import registry_rules
from pipeline.oci.reference import Reference
from pipeline.system.log import log

# What ECR calls a repository where other rules hold for the tags that match its filters.
_WITH_EXCLUSION = "_WITH_EXCLUSION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository's settings as ECR reports them; ``registry_scan`` is the registry's own frequency for it.

    ``scan_type`` (BASIC or ENHANCED) is set for the whole registry.
    """

    name: str
    arn: str
    mutability: str
    exclusions: tuple[str, ...]  # filters of tags for which the opposite of ``mutability`` holds
    scan_on_push: bool
    encryption: str
    kms_key: str | None
    lifecycle: Mapping[str, Any] | None
    scan_type: str
    registry_scan: str | None
    signed_by: tuple[str, ...] = ()
    """ARNs of the profiles with which ECR signs what is pushed here; empty where this was not asked."""

    @property
    def scanned(self) -> bool:
        """Whether what is pushed is scanned, by the repository's setting or by the registry's rules."""
        if self.registry_scan in ("SCAN_ON_PUSH", "CONTINUOUS_SCAN"):
            return True
        return self.scan_on_push and self.scan_type == "BASIC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One setting that is not as the config wants it.

    One that is not ``fixable`` must be changed by a person; ``how`` says how.
    """

    repository: str
    setting: str
    found: str
    wanted: str
    fixable: bool = True
    how: str = "sqshpipe ecr apply"

    @property
    def sentence(self) -> str:
        return f"{self.repository}  {self.setting} is {self.found}, not {self.wanted}: {self.how}"

    def as_json(self) -> dict[str, str]:
        """For programs; the keys do not change between versions."""
        return {
            "repository": self.repository,
            "setting": self.setting,
            "found": self.found,
            "wanted": self.wanted,
            "how": self.how,
        }


def lifecycle_policy(settings: EcrSettings) -> dict[str, Any]:
    """A policy that deletes untagged leftovers alone.

    Every image that sqshpipe puts keeps its ``key-`` tag, and the children of an index are kept by ECR as
    long as the index is there; so no digest that a release names is ever expired, tagged images are never
    counted at all.
    """
    return {
        "rules": [
            {
                "rulePriority": 1,
                "description": "sqshpipe: untagged leftovers; never anything that has a tag",
                "selection": {
                    "tagStatus": "untagged",
                    "countType": "sinceImagePushed",
                    "countUnit": "days",
                    "countNumber": settings.untagged_days,
                },
                "action": {"type": "expire"},
            }
        ]
    }


def compare(found: Repository | None, name: str, settings: EcrSettings) -> tuple[Difference, ...]:
    """Every setting in which the repository differs from the config; one difference when it is not there."""
    if found is None:
        return (Difference(repository=name, setting="repository", found="missing", wanted="there"),)
    return (
        *_mutability(found, settings),
        *_scanning(found, settings),
        *_encryption(found, settings),
        *_lifecycle(found, settings),
        *_signing(found, settings),
    )


def _mutability(found: Repository, settings: EcrSettings) -> list[Difference]:
    wanted = "IMMUTABLE" if settings.immutable else "MUTABLE"
    rule, with_exclusion = found.mutability.removesuffix(_WITH_EXCLUSION), found.exclusions
    if not found.mutability.endswith(_WITH_EXCLUSION):
        with_exclusion = ()
    ours = [each for each in with_exclusion if _may_be_ours(each)]
    if "*" in (each.replace("**", "*") for each in ours):
        rule = "MUTABLE" if rule == "IMMUTABLE" else "IMMUTABLE"  # the filter takes every tag
        ours = []
    if rule == wanted and not ours:
        return []
    said = found.mutability + (f" ({', '.join(with_exclusion)})" if with_exclusion else "")
    return [Difference(repository=found.name, setting="tags", found=said, wanted=wanted)]


def _may_be_ours(pattern: str) -> bool:
    """Whether a filter can match a tag that sqshpipe puts: ``key-…``, or a version, which is any free name.

    Only a filter without a wildcard can be sure not to: one that is a channel's name, as ``latest``.
    """
    if "*" in pattern:
        return True
    try:
        check_version(pattern)
    except ConfigError:
        return pattern.startswith("key-")
    return True


def _scanning(found: Repository, settings: EcrSettings) -> list[Difference]:
    if settings.scanning == "off" or (
        settings.scanning == "basic" and found.scan_type == "BASIC" and found.scanned
    ):
        return []
    if settings.scanning == "basic" and found.scan_type == "BASIC":
        return [Difference(repository=found.name, setting="scanning", found="off", wanted="on push")]
    if settings.scanning == "basic":
        # enhanced finds more than basic: not a fault, as long as it covers the repository
        covered = found.registry_scan in ("SCAN_ON_PUSH", "CONTINUOUS_SCAN")
        return [] if covered else [_not_covered(found, "ENHANCED, not for this repository")]
    if found.scan_type == "ENHANCED" and found.scanned:
        return []
    return [_not_covered(found, f"{found.scan_type}, {'on' if found.scanned else 'off'} for this repository")]


def _not_covered(found: Repository, is_: str) -> Difference:
    return Difference(
        repository=found.name,
        setting="registry scanning",
        found=is_,
        wanted="ENHANCED with a rule for this repository",
        how="sqshpipe ecr apply --registry-scanning, which changes scanning and its price for the account",
    )


def _encryption(found: Repository, settings: EcrSettings) -> list[Difference]:
    wanted = "KMS" if settings.kms_key else "AES256"
    key_differs = settings.kms_key is not None and not _same_key(found.kms_key, settings.kms_key)
    if settings.kms_key is None or (found.encryption in ("KMS", "KMS_DSSE") and not key_differs):
        return []  # a KMS key that nobody asked for is not a fault
    return [
        Difference(
            repository=found.name,
            setting="encryption",
            found=f"{found.encryption} {found.kms_key or ''}".strip(),
            wanted=f"{wanted} {settings.kms_key or ''}".strip(),
            fixable=False,
            how="ECR sets it when a repository is made: make another one and mirror into it",
        )
    ]


def _same_key(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or found.endswith(("/" + wanted, ":" + wanted)))


def _lifecycle(found: Repository, settings: EcrSettings) -> list[Difference]:
    wanted = lifecycle_policy(settings)
    if found.lifecycle == wanted:
        return []
    rules = "none" if found.lifecycle is None else _rules_text(found.lifecycle)
    untagged = f"untagged after {settings.untagged_days} days"
    return [Difference(repository=found.name, setting="lifecycle", found=rules, wanted=untagged)]


def _rules_text(policy: Mapping[str, Any]) -> str:
    rules = [rule.get("selection", {}) for rule in policy.get("rules", [])]
    if any(rule.get("tagStatus") != "untagged" for rule in rules):
        return "a policy that can delete published images"
    return f"{len(rules)} other rule" + ("s" if len(rules) != 1 else "")


def _signing(found: Repository, settings: EcrSettings) -> list[Difference]:
    if settings.signing_profile is None or settings.signing_profile in found.signed_by:
        return []
    return [
        Difference(
            repository=found.name,
            setting="registry signing",
            found=", ".join(found.signed_by) or "off",
            wanted=settings.signing_profile,
            how="sqshpipe ecr apply --registry-signing, which adds a rule to those of the account",
        )
    ]


def drift(ecr: Ecr, registry: RegistrySettings, images: Iterable[str]) -> list[Difference]:
    """How the repositories of ``images`` differ from images.yaml. Raises RegistryError as `look` does."""
    if registry.ecr is None:
        return []
    names = [registry.repository(image).repository for image in images]
    return [one for name in names for one in compare(look(ecr, name, registry.ecr), name, registry.ecr)]


def look(ecr: Ecr, name: str, settings: EcrSettings | None = None) -> Repository | None:
    """The repository as it is; None without one. RegistryError names the permission that is missing.

    ECR's signing is looked at only where `settings` want it.
    """
    try:
        answer = ecr.call("describe_repositories", registryId=ecr.account, repositoryNames=[name])
    except AwsRefused as error:
        if error.code == "RepositoryNotFoundException":
            return None
        raise
    one = answer["repositories"][0]
    encryption = one.get("encryptionConfiguration", {})
    scan_type, frequency = registry_rules.scanning_of(ecr, name)
    return Repository(
        name=name,
        arn=str(one.get("repositoryArn", "")),
        mutability=str(one.get("imageTagMutability", "MUTABLE")),
        exclusions=tuple(
            str(each.get("filter", "")) for each in one.get("imageTagMutabilityExclusionFilters", ())
        ),
        scan_on_push=bool(one.get("imageScanningConfiguration", {}).get("scanOnPush")),
        encryption=str(encryption.get("encryptionType", "AES256")),
        kms_key=encryption.get("kmsKey"),
        lifecycle=_read_lifecycle(ecr, name),
        scan_type=scan_type,
        registry_scan=frequency,
        signed_by=registry_rules.profiles(ecr, name) if settings and settings.signing_profile else (),
    )


def _read_lifecycle(ecr: Ecr, name: str) -> Mapping[str, Any] | None:
    try:
        answer = ecr.call("get_lifecycle_policy", registryId=ecr.account, repositoryName=name)
    except AwsRefused as error:
        if error.code == "LifecyclePolicyNotFoundException":
            return None
        raise
    policy = json.loads(answer["lifecyclePolicyText"])
    return policy if isinstance(policy, dict) else None


def apply(
    ecr: Ecr,
    name: str,
    settings: EcrSettings,
    *,
    registry_scanning: bool = False,
    registry_signing: bool = False,
) -> tuple[Difference, ...]:
    """Create or change the repository; returns what was changed. Nothing changes when it is as wanted.

    The registry's scanning and signing are the whole account's, and are only touched when asked for.
    """
    changed: list[Difference] = []
    for difference in compare(look(ecr, name, settings), name, settings):
        if difference.setting == "repository":
            changed.append(difference)
            create(ecr, name, settings)
            changed += apply(
                ecr,
                name,
                settings,
                registry_scanning=registry_scanning,
                registry_signing=registry_signing,
            )
        elif difference.setting == "registry signing":
            if registry_signing:
                registry_rules.add_signing(ecr, settings)
                changed.append(difference)
        elif difference.fixable and _fix(ecr, difference, settings, registry_scanning=registry_scanning):
            changed.append(difference)
    return tuple(changed)


def create(ecr: Ecr, name: str, settings: EcrSettings) -> None:
    """Create the repository with the settings that its creation takes; no error if it exists already."""
    encryption: dict[str, str] = {"encryptionType": "AES256"}
    if settings.kms_key:
        encryption = {"encryptionType": "KMS", "kmsKey": settings.kms_key}
    try:
        ecr.call(
            "create_repository",
            registryId=ecr.account,
            repositoryName=name,
            imageTagMutability="IMMUTABLE" if settings.immutable else "MUTABLE",
            imageScanningConfiguration={"scanOnPush": settings.scanning == "basic"},
            encryptionConfiguration=encryption,
        )
    except AwsRefused as error:
        if error.code != "RepositoryAlreadyExistsException":
            raise
    log.info("made a repository in ECR", repository=name)


def ensure(ecr: Ecr, name: str, settings: EcrSettings) -> bool:
    """Make the repository with its lifecycle when it is missing, change nothing when it is there.

    True when it was made: what a push needs, and all that a builder's role may have to do.
    """
    try:
        ecr.call("describe_repositories", registryId=ecr.account, repositoryNames=[name])
    except AwsRefused as error:
        if error.code != "RepositoryNotFoundException":
            raise
        create(ecr, name, settings)
        _put_lifecycle(ecr, name, settings)
        return True
    return False


def _fix(ecr: Ecr, difference: Difference, settings: EcrSettings, *, registry_scanning: bool) -> bool:
    name = difference.repository
    if difference.setting == "tags":
        ecr.call(
            "put_image_tag_mutability",
            registryId=ecr.account,
            repositoryName=name,
            imageTagMutability=difference.wanted,
        )
        return True
    if difference.setting == "scanning":
        ecr.call(
            "put_image_scanning_configuration",
            registryId=ecr.account,
            repositoryName=name,
            imageScanningConfiguration={"scanOnPush": True},
        )
        return True
    if difference.setting == "lifecycle":
        _put_lifecycle(ecr, name, settings)
        return True
    if difference.setting == "registry scanning" and registry_scanning:
        registry_rules.add_scanning(ecr, settings)
        return True
    return False


def _put_lifecycle(ecr: Ecr, name: str, settings: EcrSettings) -> None:
    ecr.call(
        "put_lifecycle_policy",
        registryId=ecr.account,
        repositoryName=name,
        lifecyclePolicyText=json.dumps(lifecycle_policy(settings)),
    )


def prepare(registry: RegistrySettings, repository: Reference) -> None:
    """Make the ECR repository that a push needs; other registries make theirs by themselves."""
    if registry.ecr is not None:
        ensure(Ecr(registry.ecr.account, registry.ecr.region), repository.repository, registry.ecr)
