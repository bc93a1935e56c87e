"""AWS in trouble, behind the real boto3: throttling, 5xx, refusals and silence on every call that is made."""

from __future__ import annotations

import functools
import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as aws
from botocore.awsrequest import AWSResponse

from pipeline.aws import ecr_tokens
from pipeline.aws.ecr import AwsRefused, Ecr
from pipeline.aws.errors import NoAwsCredentials
from pipeline.aws.s3 import S3Bucket
from pipeline.errors import ConfigError, RegistryError
from pipeline.oci.digest import Digest
from pipeline.scan.ecr import Waiting, ask, wait
from pipeline.scan.ecr_result import Pending

IMAGE = {"imageDigest": str(Digest.of(b"image"))}
REPOSITORY = {"repositoryName": "team/demo"}
# Every call that sqshpipe makes, with parameters that boto3 takes.
CALLS: dict[str, dict[str, Any]] = {
    "get_authorization_token": {},
    "describe_repositories": {"repositoryNames": ["team/demo"]},
    "create_repository": REPOSITORY,
    "get_lifecycle_policy": REPOSITORY,
    "put_lifecycle_policy": {**REPOSITORY, "lifecyclePolicyText": "{" + " " * 100 + "}"},
    "get_registry_scanning_configuration": {},
    "put_registry_scanning_configuration": {"scanType": "BASIC", "rules": []},
    "put_image_tag_mutability": {**REPOSITORY, "imageTagMutability": "IMMUTABLE"},
    "put_image_scanning_configuration": {**REPOSITORY, "imageScanningConfiguration": {"scanOnPush": True}},
    "start_image_scan": {**REPOSITORY, "imageId": IMAGE},
    "describe_image_scan_findings": {**REPOSITORY, "imageId": IMAGE},
}
Answer = tuple[int, dict[str, Any]] | Exception
OK: Answer = (200, {"registryId": "123456789012"})
PASSING: list[Answer] = [
    (400, {"__type": "ThrottlingException", "message": "Rate exceeded"}),
    (429, {"__type": "TooManyRequestsException", "message": "Rate exceeded"}),
    (503, {"__type": "ServiceUnavailable", "message": "busy"}),
    (500, {"__type": "ServerException", "message": "oops"}),
    aws.ConnectTimeoutError(endpoint_url="https://api.ecr"),
    aws.ReadTimeoutError(endpoint_url="https://api.ecr"),
]


def name_of(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))


@functools.cache
def session() -> boto3.Session:
    """One session for all tests: it reads the descriptions of AWS's services once, not for each client."""
    return boto3.Session("made-up", "made-up", region_name="us-east-1")


class Aws:
    """Answers each request to ECR with the next of ``answers``, the last for ever; notes what was waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.slept: list[float] = []
        monkeypatch.setattr("botocore.endpoint.time", self)
        self.ecr = Ecr("123456789012", "us-east-1")
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        with monkeypatch.context() as patch:
            shared = session()
            patch.setattr("boto3.Session", lambda **_: shared)
            self.ecr._connected("ecr").meta.events.register("before-send.ecr", self._send)

    def sleep(self, seconds: float) -> None:
        """Stands in for time.sleep."""
        self.slept.append(seconds)

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        self.asked.append(request.headers["X-Amz-Target"].decode().rpartition(".")[2])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return AWSResponse(request.url, status, {"Content-Type": "application/x-amz-json-1.1"}, Raw(body))


class Raw:
    """A body as urllib3 gives it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()

    def stream(self, **_: Any) -> Any:
        yield self._body


def error_name(answer: Answer) -> str:
    return str(answer[1]["__type"]) if isinstance(answer, tuple) else type(answer).__name__


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("trouble", PASSING, ids=error_name)
def test_trouble_that_passes_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, operation: str, trouble: Answer
) -> None:
    made = Aws(monkeypatch, trouble, trouble, OK)
    assert made.ecr.call(operation, **CALLS[operation])["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert made.asked == [name_of(operation)] * 3
    assert len(made.slept) == 2


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("trouble", PASSING, ids=error_name)
def test_trouble_that_lasts_names_the_call_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, operation: str, trouble: Answer
) -> None:
    made = Aws(monkeypatch, trouble)
    with pytest.raises(RegistryError) as caught:
        made.ecr.call(operation, **CALLS[operation])
    assert f"ecr:{name_of(operation)}" in caught.value.message
    assert "try again" in caught.value.hint or "check the network" in caught.value.hint
    assert len(made.asked) == 8


@pytest.mark.parametrize("operation", CALLS)
def test_a_missing_permission_is_named_for_every_call(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    who = "arn:aws:sts::123456789012:assumed-role/ci/run"
    said = f"User: {who} is not authorized to perform: ecr:{name_of(operation)} on resource: x"
    made = Aws(monkeypatch, (400, {"__type": "AccessDeniedException", "message": said}))
    with pytest.raises(AwsRefused) as caught:
        made.ecr.call(operation, **CALLS[operation])
    assert f"AWS denies ecr:{name_of(operation)}" in caught.value.message
    assert who in caught.value.message
    assert f"allow the action ecr:{name_of(operation)}" in caught.value.hint
    assert len(made.asked) == 1, "a refusal is an answer"


def test_without_credentials_the_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    ecr = Ecr("123456789012", "us-east-1")
    for operation, parameters in CALLS.items():
        with pytest.raises(NoAwsCredentials) as caught:
            ecr.call(operation, **parameters)
        assert f"asked for ecr:{name_of(operation)}" in caught.value.message
        assert "aws sso login" in caught.value.hint


def test_a_region_that_is_not_enabled_and_a_proxy_that_breaks_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {"__type": "UnrecognizedClientException", "message": "The security token is invalid"}
    with pytest.raises(AwsRefused, match="does not know the access key") as caught:
        Aws(monkeypatch, (400, unknown)).ecr.call("describe_repositories")
    assert "is us-east-1 one?" in caught.value.hint
    broken = aws.SSLError(endpoint_url="https://api.ecr", error="self-signed certificate")
    with pytest.raises(RegistryError, match="TLS certificate") as refused:
        Aws(monkeypatch, broken).ecr.call("describe_repositories")
    assert "AWS_CA_BUNDLE" in refused.value.hint


@pytest.mark.parametrize(
    "content", [None, b"", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
def test_a_file_of_authorities_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    """It was called a certificate of ECR's that is not trusted, or a bucket without rights."""
    bundle = tmp_path / "authorities.pem"
    if content is not None:
        bundle.write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.getsockname()[1]}")
        for name, value in {"CA_BUNDLE": str(bundle), "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
        for ask in (
            lambda: Ecr("123456789012", "us-east-1").call("describe_repositories"),
            lambda: S3Bucket("s3://b").size("a"),
        ):
            with pytest.raises(ConfigError, match="authorities for TLS in"):
                ask()


def test_the_gate_waits_through_throttling_and_ends_clearly_at_a_5xx(monkeypatch: pytest.MonkeyPatch) -> None:
    throttled = Aws(monkeypatch, PASSING[0])
    assert isinstance(ask(throttled.ecr, "team/demo", Digest.of(b"image")), Pending)
    down = Aws(monkeypatch, PASSING[2])
    with pytest.raises(RegistryError, match="ecr:DescribeImageScanFindings on team/demo with status 503"):
        wait(
            down.ecr,
            "team/demo",
            Digest.of(b"image"),
            timeout=timedelta(minutes=5),
            max_age=timedelta(days=1),
            waiting=Waiting(sleep=down.sleep),
        )


def test_a_password_whose_answer_is_refused_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Aws(monkeypatch, PASSING[0])
    monkeypatch.setattr(ecr_tokens, "Ecr", lambda *_: made.ecr)
    host = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    with pytest.raises(RegistryError, match="ecr:GetAuthorizationToken"):
        ecr_tokens.EcrTokens()(host)
    made.answers = [(200, {"authorizationData": [{"authorizationToken": "!", "expiresAt": 1}]})]
    with pytest.raises(RegistryError, match="cannot be read"):
        ecr_tokens.EcrTokens()(host)
