"""ECR's host names of every partition, read and written, and every place that has to know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.authn import login_hint
from pipeline.aws.ecr_policies import policy
from pipeline.cluster import bootstrap
from pipeline.cluster.settings import parse
from pipeline.config.ecr_hosts import EcrHost, parse_host, partition_of
from pipeline.config.reading import parse_registry
from pipeline.config.types import EcrSettings
from pipeline.docker.events import push_failure
from pipeline.oci.reference import Reference
from pipeline.registry.errors import refused

ACCOUNT = "123456789012"
# host, region, FIPS, dual-stack, partition
HOSTS = [
    ("dkr.ecr.us-east-1.amazonaws.com", "us-east-1", False, False, "aws"),
    ("dkr.ecr.ap-southeast-5.amazonaws.com", "ap-southeast-5", False, False, "aws"),
    ("dkr.ecr.mx-central-1.amazonaws.com", "mx-central-1", False, False, "aws"),
    ("dkr.ecr-fips.us-east-2.amazonaws.com", "us-east-2", True, False, "aws"),
    ("dkr-ecr.eu-west-1.on.aws", "eu-west-1", False, True, "aws"),
    ("dkr-ecr-fips.us-west-2.on.aws", "us-west-2", True, True, "aws"),
    ("dkr.ecr.us-gov-west-1.amazonaws.com", "us-gov-west-1", False, False, "aws-us-gov"),
    ("dkr.ecr-fips.us-gov-east-1.amazonaws.com", "us-gov-east-1", True, False, "aws-us-gov"),
    ("dkr-ecr-fips.us-gov-east-1.on.aws", "us-gov-east-1", True, True, "aws-us-gov"),
    ("dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", False, False, "aws-cn"),
    ("dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn", "cn-northwest-1", False, True, "aws-cn"),
    ("dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", False, False, "aws-eusc"),
    ("dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu", "eusc-de-east-1", False, True, "aws-eusc"),
    ("dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", False, False, "aws-iso"),
    ("dkr.ecr.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1", False, False, "aws-iso-b"),
    ("dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1", False, False, "aws-iso-e"),
    ("dkr.ecr.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1", False, False, "aws-iso-f"),
]
OTHERS = [
    "nvcr.io",
    "public.ecr.aws",
    "my.ecr.example.com",
    "123456789012.dkr.ecr.example.com",
    "1234.dkr.ecr.us-east-1.amazonaws.com",
    f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com.example.com",
    f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com.cn",
    f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com",
    f"{ACCOUNT}.dkr.ecr.us-east-1.on.aws",
    f"{ACCOUNT}.dkr-ecr.us-east-1.amazonaws.com",
    f"{ACCOUNT}.dkr-ecr.us-iso-east-1.",
    f"{ACCOUNT}.dkr.ecr.us_east_1.amazonaws.com",
    f"x{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com",
    f"{ACCOUNT}.dkr.ecr.us-east-1.evil.amazonaws.com",
]


@pytest.mark.parametrize(("rest", "region", "fips", "dual_stack", "partition"), HOSTS)
def test_a_host_name_is_read_and_written_again(
    rest: str, region: str, *, fips: bool, dual_stack: bool, partition: str
) -> None:
    host = f"{ACCOUNT}.{rest}"
    found = parse_host(host)
    assert found == EcrHost(account=ACCOUNT, region=region, fips=fips, dual_stack=dual_stack)
    assert str(found) == host
    assert parse_host(host.upper()) == found
    assert partition_of(region).name == partition


@pytest.mark.parametrize("host", OTHERS)
def test_other_host_names_are_not_ecr(host: str) -> None:
    assert parse_host(host) is None
    assert "docker login" in login_hint(host) or "NGC" in login_hint(host)


@pytest.mark.parametrize(("rest", "region", "_fips", "_dual", "partition"), HOSTS)
def test_every_part_knows_the_host(
    rest: str, region: str, *, _fips: bool, _dual: bool, partition: str
) -> None:
    host = f"{ACCOUNT}.{rest}"
    settings = parse_registry(f"{host}/team/x", "here")
    assert settings.ecr is not None
    assert (settings.ecr.account, settings.ecr.region, settings.ecr.prefix) == (ACCOUNT, region, "team/x")
    assert settings.host == host, "images go where the address says, FIPS or not"
    assert "aws sts" in login_hint(host)
    denied = refused(host, "x", 403, b"", had_credentials=True, action="ecr:PutImage")
    assert "ecr:PutImage" in denied.hint
    said = "denied: Your authorization token has expired. Reauthenticate and try again."
    ended = push_failure(said, Reference.parse(f"{host}/team/x:v1"), root="/")
    assert "docker login" not in ended.hint
    assert "aws sts" in ended.hint
    document = policy("node", account=ACCOUNT, region=region)
    assert document["Statement"][0]["Resource"].startswith(f"arn:{partition}:ecr:{region}:")


@pytest.mark.parametrize("region", sorted({region for _, region, *_ in HOSTS}))
def test_account_and_region_give_the_host(region: str) -> None:
    host = EcrSettings(account=ACCOUNT, region=region).host
    found = parse_host(host)
    assert found is not None
    assert (found.region, found.fips, found.dual_stack) == (region, False, False)


@pytest.mark.parametrize("way", ["substitution", "timer"])
def test_the_rendered_bootstrap_has_credentials_for_all_of_them(way: str) -> None:
    names = [f"{ACCOUNT}.{rest}/containers" for rest, *_ in HOSTS]
    settings = parse(
        {"registries": [*names, "nvcr.io/nvidia"], "ecr_credentials": way, "region": "eusc-de-east-1"}
    )
    script = bootstrap.script(settings)
    for rest, region, *_ in HOSTS:
        assert f"machine {ACCOUNT}.{rest} login AWS" in script
        assert f"get-login-password --region {region})" in script
    assert "machine nvcr.io" not in script


def test_no_other_module_looks_into_a_host_name() -> None:
    root = Path(__file__).parents[3] / "pipeline"
    own = {root / "config/ecr_hosts.py", root / "node/pyxis_importer.py"}
    looking = [
        path
        for path in root.rglob("*.py")
        if path not in own
        and any(part in path.read_text() for part in ('".ecr', "dkr.ecr", ".dkr", "amazonaws.com.cn"))
    ]
    assert not looking
