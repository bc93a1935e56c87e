"""Each action that the role lacks, from the command line: the sentence names the call and what allows it.

No engine: an entry without a Dockerfile takes every call of the path but the engine's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.aws import ecr_tokens
from pipeline.errors import EXIT_PLAN_HAS_CHANGES, RegistryError, ScanRejected, SqshpipeError
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support.command_line import app
from tests.support.images.pushed import push_image
from tests.support.servers import aws, scans
from tests.support.servers.ecr_front import HOST, EcrFront
from tests.support.servers.registry import TokenRegistry
from tests.support.store.releases import new_store

pytestmark = pytest.mark.needs("docker-registry")

IMAGE = ("release", "base", "--tag", "v1")
# The action that is taken away, the verb that needs it.
REFUSED = {
    "DescribeRepositories": IMAGE,
    "CreateRepository": IMAGE,
    "PutLifecyclePolicy": IMAGE,
    "GetAuthorizationToken": IMAGE,
    "BatchGetImage": IMAGE,
    "BatchCheckLayerAvailability": IMAGE,
    "InitiateLayerUpload": IMAGE,
    "UploadLayerPart": IMAGE,
    "CompleteLayerUpload": IMAGE,
    "PutImage": IMAGE,
    "DescribeImageScanFindings": IMAGE,
    "StartImageScan": IMAGE,
    "GetDownloadUrlForLayer": IMAGE,
    "GetLifecyclePolicy": ("ecr", "apply"),
    "GetRegistryScanningConfiguration": ("ecr", "apply"),
    "PutImageTagMutability": ("ecr", "apply"),
    "PutImageScanningConfiguration": ("ecr", "apply"),
    "PutRegistryScanningConfiguration": ("ecr", "apply", "--registry-scanning"),
}


@pytest.fixture(scope="module")
def running() -> Iterator[EcrFront]:
    with EcrFront() as front:
        yield front


@pytest.fixture(scope="module")
def ngc() -> Iterator[TokenRegistry]:
    with TokenRegistry() as registry:
        held = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: held) as client:
            push_image(client, "nvidia/pytorch", b"layer", tag="24.01")
        yield registry


@pytest.fixture
def project(
    running: EcrFront, ngc: TokenRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> EcrFront:
    """images.yaml in the current folder, and an ECR that has nothing of it."""
    running.use(monkeypatch, tmp_path)
    running.denied.clear()
    running.scans.clear()
    running.used.clear()
    running.every = [scans.complete([])]
    monkeypatch.setattr(ecr_tokens, "TOKENS", ecr_tokens.EcrTokens())
    login = Credentials(username=ngc.username, password=ngc.password).basic().partition(" ")[2]
    (tmp_path / "config.json").write_text(f'{{"auths": {{"{ngc.address}": {{"auth": "{login}"}}}}}}')
    configure(tmp_path, ngc, f"prefix-{abs(hash(tmp_path)) % 10**8}")
    monkeypatch.chdir(tmp_path)
    return running


def configure(
    folder: Path, ngc: TokenRegistry, prefix: str, region: str = aws.REGION, more: str = ""
) -> None:
    new_store(folder / "store")
    (folder / "images.yaml").write_text(
        f"""\
version: 1
registry: {{ecr: {{account: "{aws.ACCOUNT}", region: {region}, prefix: {prefix}{more}}}}}
store: {{root: {folder}/store}}
defaults: {{scan: {{max_age: 9999d, timeout: 30m}}}}
images:
  base: {{base: "{ngc.address}/nvidia/pytorch:24.01"}}
"""
    )


def sqshpipe(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def error_of(result: Result) -> SqshpipeError:
    assert isinstance(result.exception, SqshpipeError), (result.output, result.exception)
    return result.exception


@pytest.mark.parametrize("action", REFUSED)
def test_a_missing_permission_is_named(
    project: EcrFront, ngc: TokenRegistry, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = REFUSED[action]
    monkeypatch.setattr("pipeline.scan.ecr._START_AFTER", 0.0)
    prefix = f"p-{action.lower()}"
    if words[0] == "ecr":
        configure(tmp_path, ngc, prefix)
        make_drift(project, f"{prefix}/base")
    if "--registry-scanning" in words:
        configure(tmp_path, ngc, prefix, more=", scanning: enhanced")
    if action == "StartImageScan":
        project.every = []
    project.denied = {action}
    error = error_of(sqshpipe(*words))
    assert isinstance(error, RegistryError), error
    said = f"{error.message} {error.hint}"
    assert f"ecr:{action}" in said
    assert f"allow the action ecr:{action}" in error.hint
    assert "denies" in error.message
    assert not list(tmp_path.glob("store/base/*.json"))


def make_drift(front: EcrFront, name: str) -> None:
    body = f'{{"repositoryName": "{name}", "imageTagMutability": "MUTABLE"}}'.encode()
    assert front.ask_moto("CreateRepository", body)[0] == 200


@pytest.mark.parametrize(
    "words",
    [
        IMAGE,
        ("release", "base", "--until", "push"),
        ("registry", "mirror", "base"),
        ("ecr", "apply"),
        ("ecr", "apply", "--dry-run"),
    ],
)
def test_without_credentials_the_call_that_needs_them_is_named(
    project: EcrFront, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    error = error_of(sqshpipe(*words))
    assert "no AWS credentials were found, asked for ecr:DescribeRepositories" in error.message
    assert "aws sso login" in error.hint
    assert not project.used


@pytest.mark.parametrize("words", [IMAGE, ("registry", "mirror", "base"), ("ecr", "apply")])
@pytest.mark.parametrize("region", [aws.REGION, "us-esat-1"])
def test_without_a_network_or_in_a_wrong_region_the_call_is_named(
    project: EcrFront,
    ngc: TokenRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    region: str,
) -> None:
    """Nothing listens where AWS should be: that is all that a wrong region and no network are from here."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    configure(tmp_path, ngc, "any", region)
    error = error_of(sqshpipe(*words))
    assert f"ECR in {region} cannot be reached, asked for ecr:DescribeRepositories" in error.message
    assert "check the network and the region" in error.hint


def test_a_registry_of_another_region_is_not_found_by_name(
    project: EcrFront, ngc: TokenRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control plane answers, the registry's host does not exist."""
    configure(tmp_path, ngc, "other-region", "eu-nowhere-1")
    monkeypatch.setenv("SQSHPIPE_PLAIN_HTTP", f"{HOST},{aws.ACCOUNT}.dkr.ecr.eu-nowhere-1.amazonaws.com")
    error = error_of(sqshpipe(*IMAGE))
    assert "eu-nowhere-1.amazonaws.com is not a name that can be looked up, asked for" in error.message
    assert "check account, region and the network" in error.hint


def test_a_plan_says_what_it_could_not_ask(project: EcrFront, capfd: pytest.CaptureFixture[str]) -> None:
    project.denied = {"GetRegistryScanningConfiguration"}
    assert sqshpipe("registry", "mirror", "base").exit_code == 0
    capfd.readouterr()
    planned = sqshpipe("plan", "--json")
    assert planned.exit_code == EXIT_PLAN_HAS_CHANGES
    assert '"repositories": null' in planned.stdout


def test_a_scan_that_failed_is_reported_and_the_other_images_are_looked_at(
    project: EcrFront, ngc: TokenRegistry, tmp_path: Path
) -> None:
    configure(tmp_path, ngc, "several")
    config = tmp_path / "images.yaml"
    config.write_text(config.read_text() + config.read_text().splitlines()[-1].replace("base:", "unseen:", 1))
    config.write_text(config.read_text().rstrip("}\n").rstrip() + ", scan: {scanner: none}}\n")
    project.every = [scans.state("FAILED", "broken")]
    assert sqshpipe("registry", "mirror", "base", "unseen").exit_code == 0
    result = sqshpipe("scan", "--json")
    assert isinstance(error_of(result), ScanRejected)
    reported = json.loads(result.stdout)
    assert (reported["base"]["status"], reported["base"]["passed"]) == ("unknown", False)
    assert "broken (FAILED)" in reported["base"]["why"]
    assert (reported["unseen"]["status"], reported["unseen"]["passed"]) == ("unscanned", None)
