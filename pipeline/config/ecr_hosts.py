"""ECR's registry host names, read and written (pure). No other module looks into such a name.

    ACCOUNT.dkr.ecr.REGION.SUFFIX             ACCOUNT.dkr.ecr-fips.REGION.SUFFIX
    ACCOUNT.dkr-ecr.REGION.DUAL_STACK         ACCOUNT.dkr-ecr-fips.REGION.DUAL_STACK

SUFFIX and DUAL_STACK belong to the partition of the region: a group of regions with accounts of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REGION_PATTERN = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition as ARNs name it. ``dual_stack`` is empty where ECR has no such host names."""

    name: str
    regions: str  # how their names begin
    suffix: str
    dual_stack: str


# The last one takes the regions that no other one takes.
_PARTITIONS = (
    Partition(
        name="aws-cn", regions="cn-", suffix="amazonaws.com.cn", dual_stack="on.amazonwebservices.com.cn"
    ),
    Partition(name="aws-us-gov", regions="us-gov-", suffix="amazonaws.com", dual_stack="on.aws"),
    Partition(name="aws-eusc", regions="eusc-", suffix="amazonaws.eu", dual_stack="on.amazonwebservices.eu"),
    Partition(name="aws-iso", regions="us-iso-", suffix="c2s.ic.gov", dual_stack=""),
    Partition(name="aws-iso-b", regions="us-isob-", suffix="sc2s.sgov.gov", dual_stack=""),
    Partition(name="aws-iso-e", regions="eu-isoe-", suffix="cloud.adc-e.uk", dual_stack=""),
    Partition(name="aws-iso-f", regions="us-isof-", suffix="csp.hci.ic.gov", dual_stack=""),
    Partition(name="aws", regions="", suffix="amazonaws.com", dual_stack="on.aws"),
)
_HOST = re.compile(r"([0-9]{12})\.dkr([.-])ecr(-fips)?\.([a-z0-9-]{1,40})\.([a-z0-9.-]{1,60})")


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrHost:
    """An account's registry in one region; ``str()`` gives the host name."""

    account: str
    region: str
    fips: bool = False
    dual_stack: bool = False

    def __str__(self) -> str:
        partition = partition_of(self.region)
        fips = "-fips" if self.fips else ""
        if self.dual_stack:
            return f"{self.account}.dkr-ecr{fips}.{self.region}.{partition.dual_stack}"
        return f"{self.account}.dkr.ecr{fips}.{self.region}.{partition.suffix}"


def partition_of(region: str) -> Partition:
    """The partition that a region belongs to."""
    return next(partition for partition in _PARTITIONS if region.startswith(partition.regions))


def parse_host(host: str) -> EcrHost | None:
    """What an ECR registry's host name says; None for every other host, also for ``public.ecr.aws``.

    The suffix must be that of the region's partition: no other host may get AWS credentials.
    """
    match = _HOST.fullmatch(host.lower())
    if match is None or re.match(REGION_PATTERN, match[4]) is None:
        return None
    partition = partition_of(match[4])
    dual_stack = match[2] == "-"
    if match[5] != (partition.dual_stack if dual_stack else partition.suffix):
        return None
    return EcrHost(account=match[1], region=match[4], fips=bool(match[3]), dual_stack=dual_stack)
