"""What is wrong with AWS's own configuration is one sentence, from the real boto3 and the real files."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from pipeline.attest.signing import open_signer
from pipeline.aws import ecr_tokens
from pipeline.aws.ecr import Ecr
from pipeline.aws.errors import NoAwsCredentials
from pipeline.aws.s3 import S3Bucket
from pipeline.errors import ConfigError, RegistryError, SqshpipeError
from pipeline.registry import docker_login
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import KnownCredentials, credentials_for
from tests.support.fake_registry import Streamed

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "SQSHPIPE_REGISTRY",
)
KEYS = "aws_access_key_id = made-up\naws_secret_access_key = made-up-secret\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows nothing of AWS; ``config`` in the folder is its configuration."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ecr_tokens, "TOKENS", ecr_tokens.EcrTokens())
    return tmp_path


SSO = """[default]
sso_session = corp
sso_account_id = 123456789012
sso_role_name = Dev
[sso-session corp]
sso_region = us-east-1
sso_start_url = https://corp.awsapps.com/start
"""
# What stands in the configuration file or the environment, the error's class, and a part of its sentence.
BROKEN: dict[str, tuple[str, dict[str, str], type[SqshpipeError], str]] = {
    "source_profile": (
        "[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = gone\n",
        {},
        ConfigError,
        "gone",
    ),
    "profile": ("", {"AWS_PROFILE": "absent"}, NoAwsCredentials, "absent"),
    "source_profile in a circle": (
        (
            "[default]\nsource_profile = b\nrole_arn = x\n[profile b]\nsource_profile = c\nrole_arn = y\n"
            "[profile c]\nsource_profile = b\nrole_arn = z\n"
        ),
        {},
        ConfigError,
        "configuration",
    ),
    "credential_process fails": (
        "[default]\ncredential_process = /bin/false\n",
        {},
        NoAwsCredentials,
        "CredentialRetrievalError",
    ),
    "credential_process missing": (
        "[default]\ncredential_process = /not/there\n",
        {},
        NoAwsCredentials,
        "/not/there",
    ),
    "credential_process not JSON": (
        "[default]\ncredential_process = /bin/echo secret-text\n",
        {},
        ConfigError,
        "configuration",
    ),
    "key without secret": ("[default]\naws_access_key_id = made-up\n", {}, NoAwsCredentials, "secret"),
    "key without secret in variables": ("", {"AWS_ACCESS_KEY_ID": "x"}, NoAwsCredentials, "AWS_SECRET"),
    "unparsable": ("[default\nkey", {}, ConfigError, "config"),
    "not text": ("\0\udcff", {}, ConfigError, "configuration"),
    "web identity": (
        "",
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/not/there/token", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
        NoAwsCredentials,
        "/not/there/token",
    ),
    "endpoint": ("[default]\n" + KEYS, {"AWS_ENDPOINT_URL": "not an address"}, ConfigError, "endpoint"),
    "endpoint with a password": (
        "[default]\n" + KEYS,
        {"AWS_ENDPOINT_URL": "htp:/user:secret-text@host"},
        ConfigError,
        "AWS_ENDPOINT_URL",
    ),
    "retry mode": ("[default]\n" + KEYS, {"AWS_DEFAULTS_MODE": "odd"}, ConfigError, "odd"),
    "sign-in": (SSO, {}, NoAwsCredentials, "sign-in is over"),
    "nothing": ("", {}, NoAwsCredentials, "no AWS credentials"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_configuration_is_a_sentence(home: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    text, variables, kind, part = BROKEN[case]
    (home / "config").write_bytes(text.encode("utf-8", "surrogateescape"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for ask in (
        lambda: Ecr("123456789012", "us-east-1").call("describe_repositories"),
        lambda: credentials_for(HOST),
        lambda: KnownCredentials("other").renew(HOST),
    ):
        with pytest.raises(kind) as caught:
            ask()
        assert part in str(caught.value)
        assert "secret-text" not in str(caught.value)
        assert caught.value.exit_code in (2, 4)


def test_every_path_says_why_aws_gave_nothing(home: Path) -> None:
    (home / "config").write_text(SSO)

    def challenge(_: httpx.Request) -> httpx.Response:
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="ecr"'})

    with (
        RegistryClient(HOST, transport=Streamed(challenge)) as client,
        pytest.raises(RegistryError, match="the AWS sign-in is over") as caught,
    ):
        client.head("team/x", "v1")
    assert "aws sso login" in caught.value.hint


def test_a_login_of_docker_serves_where_aws_has_nothing(home: Path) -> None:
    login = {"username": "AWS", "password": "p"}
    (home / "config.json").write_text(json.dumps({"auths": {HOST: login}}))
    found = credentials_for(HOST)
    assert found is not None
    assert found.username == "AWS"
    assert docker_login.find(HOST) == found


@pytest.mark.parametrize("case", ["source_profile", "unparsable", "endpoint", "credential_process fails"])
@pytest.mark.parametrize("service", ["s3", "kms"])
def test_other_services_say_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, case: str, service: str
) -> None:
    text, variables, kind, part = BROKEN[case]
    (home / "config").write_text(text)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind) as caught:
        _ = S3Bucket("s3://bucket/x") if service == "s3" else open_signer("awskms:key")
    assert part in str(caught.value)
