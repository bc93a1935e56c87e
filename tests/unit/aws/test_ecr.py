"""What AWS says in words that help: refused calls, missing keys, wrong regions. And passwords that end."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import pytest
from botocore import exceptions as aws

from pipeline.aws import ecr_tokens
from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.aws.errors import NoAwsCredentials
from pipeline.config.ecr_hosts import parse_host
from pipeline.errors import RegistryError
from pipeline.registry.credentials import KnownCredentials, RenewableProvider

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


class FakeClient:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.calls = 0

    def __getattr__(self, _name: str) -> Any:
        def call(**_parameters: object) -> Any:
            self.calls += 1
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome() if callable(self.outcome) else self.outcome

        return call


def ecr(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> Ecr:
    made = Ecr("123456789012", "us-east-1")
    monkeypatch.setattr(made, "_clients", {"ecr": FakeClient(outcome)})
    return made


def refusal(code: str, message: str = "no") -> aws.ClientError:
    return aws.ClientError({"Error": {"Code": code, "Message": message}}, "PutImage")


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (HOST, "us-east-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
    ],
)
def test_ecr_hosts_are_known(host: str, region: str) -> None:
    found = parse_host(host)
    assert found is not None
    assert (found.account, found.region) == ("123456789012", region)


@pytest.mark.parametrize(
    "host", ["nvcr.io", "1234.dkr.ecr.us-east-1.amazonaws.com", HOST + ".example.com", "public.ecr.aws"]
)
def test_other_hosts_are_not(host: str) -> None:
    assert parse_host(host) is None


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (
            refusal("AccessDeniedException", "User: arn:aws:iam::1:role/ci is not authorized to perform"),
            AwsRefused,
            "denies ecr:DescribeImageScanFindings on team/demo to arn:aws:iam::1:role/ci",
            "ecr:DescribeImageScanFindings (and inspector2:ListFindings",
        ),
        (refusal("UnrecognizedClientException"), AwsRefused, "access key", "get-caller-identity"),
        (refusal("ExpiredTokenException"), AwsRefused, "expired", "sso login"),
        (
            refusal("RepositoryNotFoundException"),
            AwsRefused,
            "us-east-1 has no repository team/demo",
            "ecr apply",
        ),
        (refusal("ThrottlingException"), AwsRefused, "ThrottlingException", "throttles"),
        (refusal("KmsException", "key is disabled"), AwsRefused, "key is disabled", ""),
        (aws.NoCredentialsError(), NoAwsCredentials, "no AWS credentials", "aws sso login"),
        (
            aws.EndpointConnectionError(endpoint_url="https://api.ecr.us-east-1.amazonaws.com"),
            RegistryError,
            "ECR in us-east-1 cannot be reached, asked for ecr:DescribeImageScanFindings",
            "region",
        ),
        (aws.ReadTimeoutError(endpoint_url="x"), RegistryError, "DescribeImageScanFindings", ""),
    ],
)
def test_each_failure_names_the_call_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[RegistryError], message: str, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        ecr(monkeypatch, error).call("describe_image_scan_findings", repositoryName="team/demo")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_profile_or_region_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    with pytest.raises(NoAwsCredentials, match="not-there"):
        Ecr("123456789012", "us-east-1").call("describe_repositories")
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(RegistryError, match="not an AWS region"):
        Ecr("123456789012", "no such region").call("describe_repositories")


class Clock:
    """Passwords p1, p2, … each for 12 hours of a clock that the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        self.given = 0
        monkeypatch.setattr("time.time", lambda: self.now)
        monkeypatch.setattr(ecr_tokens, "Ecr", lambda _account, _region: self)

    def call(self, operation: str) -> dict[str, Any]:
        assert operation == "get_authorization_token"
        self.given += 1
        token = base64.b64encode(f"AWS:p{self.given}".encode()).decode()
        ends = dt.datetime.fromtimestamp(self.now + 12 * 3600, dt.timezone.utc)
        return {"authorizationData": [{"authorizationToken": token, "expiresAt": ends}]}


def test_a_password_is_kept_and_renewed_before_its_twelve_hours_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = Clock(monkeypatch), ecr_tokens.EcrTokens()

    def password() -> str:
        given = provider(HOST)
        assert given is not None
        assert given.username == "AWS"
        assert given.password not in repr(given)
        return given.password

    assert [password(), password()] == ["p1", "p1"]
    clock.now += 10.9 * 3600
    assert password() == "p1"
    clock.now += 0.2 * 3600
    assert password() == "p2"
    renewed = provider.renew(HOST)
    assert renewed is not None
    assert (renewed.password, password()) == ("p3", "p3")
    assert provider("nvcr.io") is None


def test_ecr_hosts_get_theirs_from_aws_and_others_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(ecr_tokens, "TOKENS", ecr_tokens.EcrTokens())
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    provider = KnownCredentials("other.example.com")
    assert isinstance(provider, RenewableProvider)
    first, second = provider(HOST), provider.renew(HOST)
    assert first is not None
    assert second is not None
    assert (first.password, second.password) == ("p1", "p2")
    assert provider("nvcr.io") is None
    assert clock.given == 2
