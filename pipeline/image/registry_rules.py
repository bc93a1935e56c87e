"""Rules of a whole registry in ECR: which repositories are scanned, and signed with a profile of AWS Signer.

They are one setting of the account and region: what others put there stays.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.config.types import EcrSettings
from pipeline.errors import ConfigError

_ESCAPED = str.maketrans({"?": "[?]", "[": "[[]"})


def scanning_of(ecr: Ecr, name: str) -> tuple[str, str | None]:
    """(BASIC or ENHANCED, the registry's own frequency for a repository or None). Raises RegistryError."""
    configuration = ecr.call("get_registry_scanning_configuration").get("scanningConfiguration", {})
    best: str | None = None
    for rule in configuration.get("rules", []):
        if any(_filter_matches(entry, name) for entry in rule.get("repositoryFilters", [])):
            frequency = str(rule.get("scanFrequency", ""))
            best = frequency if best is None or frequency == "CONTINUOUS_SCAN" else best
    return str(configuration.get("scanType", "BASIC")), best


def _filter_matches(entry: Mapping[str, Any], name: str) -> bool:
    """ECR's wildcard filter: ``*`` stands for any characters, and without one the text may be anywhere."""
    text = str(entry.get("filter", ""))
    return fnmatch.fnmatchcase(name, text) if "*" in text else text in name


def add_scanning(ecr: Ecr, settings: EcrSettings) -> None:
    """Add our rule to those that the account has; theirs stay, since the call replaces all of them."""
    if not settings.prefix:
        raise ConfigError(
            "the registry's scanning rule needs registry.ecr.prefix",
            hint="without a prefix it would cover, and cost for, every repository of the account",
        )
    there = ecr.call("get_registry_scanning_configuration").get("scanningConfiguration", {})
    ours = {"filter": f"{settings.prefix}/*", "filterType": "WILDCARD"}
    kept = [rule for rule in there.get("rules", []) if ours not in rule.get("repositoryFilters", [])]
    rule = {"scanFrequency": "CONTINUOUS_SCAN", "repositoryFilters": [ours]}
    ecr.call("put_registry_scanning_configuration", scanType="ENHANCED", rules=[*kept, rule])


def profiles(ecr: Ecr, repository: str) -> tuple[str, ...]:
    """ARNs of the profiles with which ECR signs what is pushed to a repository. Raises RegistryError."""
    return tuple(
        str(rule.get("signingProfileArn", ""))
        for rule in _rules(ecr)
        if not rule.get("repositoryFilters")  # all repositories
        or any(_is_signed(entry, repository) for entry in rule["repositoryFilters"])
    )


def add_signing(ecr: Ecr, settings: EcrSettings) -> None:
    """Add our rule to those that the account has; theirs stay, since the call replaces all of them.

    Raises ConfigError without a prefix, RegistryError.
    """
    if not settings.prefix:
        raise ConfigError(
            "the registry's signing rule needs registry.ecr.prefix",
            hint="without a prefix it would sign what is pushed to every repository of the account",
        )
    ours = [{"filter": f"{settings.prefix}/*", "filterType": "WILDCARD_MATCH"}]
    kept = [rule for rule in _rules(ecr) if rule.get("repositoryFilters") != ours]
    rule = {"signingProfileArn": settings.signing_profile, "repositoryFilters": ours}
    ecr.call("put_signing_configuration", signingConfiguration={"rules": [*kept, rule]})


def _rules(ecr: Ecr) -> list[dict[str, Any]]:
    try:
        answer = ecr.call("get_signing_configuration")
    except AwsRefused as error:
        if error.code == "SigningConfigurationNotFoundException":
            return []
        raise
    return list((answer.get("signingConfiguration") or {}).get("rules") or [])


def _is_signed(entry: Mapping[str, Any], repository: str) -> bool:
    """A filter matches the whole name; ``*`` is any text, a shell's other wildcards have no meaning."""
    return fnmatch.fnmatchcase(repository, str(entry.get("filter", "")).translate(_ESCAPED))
