"""The path against an ECR of moto, docker-registry and a front: made, mirrored, scanned, blocked, waived,
published."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import structlog

from pipeline.aws import ecr_tokens
from pipeline.config.types import EcrSettings, RegistrySettings, ScanPolicy
from pipeline.errors import RegistryError, ScanRejected
from pipeline.image.mirror import mirror
from pipeline.image.pin import BaseImage, pin
from pipeline.image.push import PushedImage, tag_version
from pipeline.image.repository import prepare
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials, KnownCredentials
from pipeline.registry.errors import Refused
from pipeline.registry.session import RetryPolicy
from pipeline.scan.ecr import Waiting
from pipeline.scan.gate import Blocked, scan
from pipeline.scan.judge import Judge
from tests.support.images.pushed import push_image, push_index
from tests.support.servers import aws, scans
from tests.support.servers.ecr_front import HOST, EcrFront
from tests.support.servers.registry import Fault, TokenRegistry

pytestmark = pytest.mark.needs("docker-registry")

QUICK = RetryPolicy(attempts=5, first=0.01, longest=3.0)
NOW = datetime(2026, 6, 15, tzinfo=timezone.utc)
SETTINGS = RegistrySettings(
    ecr=EcrSettings(account=aws.ACCOUNT, region=aws.REGION, prefix="team"), plain_http=True
)


@pytest.fixture(scope="module")
def running() -> Iterator[EcrFront]:
    with EcrFront() as front:
        yield front


@pytest.fixture
def front(running: EcrFront, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EcrFront:
    running.use(monkeypatch, tmp_path)
    running.scans.clear()
    running.denied.clear()
    running.faults.clear()
    running.seen.clear()
    running.calls.clear()
    running.clock = 0.0
    monkeypatch.setattr(ecr_tokens, "TOKENS", ecr_tokens.EcrTokens())
    return running


@pytest.fixture
def demo(request: pytest.FixtureRequest) -> Reference:
    """A repository that no other test uses."""
    return SETTINGS.repository(f"demo-{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture
def ecr(front: EcrFront) -> Iterator[RegistryClient]:
    with RegistryClient(HOST, credentials=KnownCredentials(), patience=QUICK) as client:
        yield client


@pytest.fixture(scope="module")
def ngc() -> Iterator[RegistryClient]:
    with TokenRegistry() as registry:
        held = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: held, patience=QUICK) as client:
            layers = [random.Random(n).randbytes(1 << 20) for n in range(3)]
            amd64 = push_image(client, "nvidia/pytorch", *layers, tag="amd64", layer_type=OCI_LAYER + "+zstd")
            arm64 = push_image(client, "nvidia/pytorch", layers[0], tag="arm64", platform="linux/arm64")
            push_index(client, "nvidia/pytorch", {"linux/amd64": amd64, "linux/arm64": arm64}, tag="24.01")
            yield client


def pinned(ngc: RegistryClient) -> BaseImage:
    reference = Reference.parse(f"{ngc.host}/nvidia/pytorch:24.01")
    return pin(reference, Platform.parse("linux/amd64"), None, lambda _: ngc)


def mirrored(ngc: RegistryClient, ecr: RegistryClient, demo: Reference) -> PushedImage:
    prepare(SETTINGS, demo)
    return mirror(pinned(ngc), demo, ngc, ecr)


def judge(pushed: PushedImage, waivers: Path | None = None, now: datetime = NOW) -> str:
    quick = Waiting(first=0.001, longest=0.001)
    times = {"timeout": timedelta(seconds=5), "max_age": timedelta(days=999)}
    policy = ScanPolicy(scanner="auto", waivers=waivers, **times)
    judge = Judge(waiting=quick, now=now)
    return scan(pushed, policy, image="demo", config=None, judge=judge).status


def test_from_a_missing_repository_to_a_version_past_the_gate(
    front: EcrFront, demo: Reference, ngc: RegistryClient, ecr: RegistryClient, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="no such repository") as missing:
        mirror(pinned(ngc), demo, ngc, ecr)
    assert "sqshpipe ecr apply" in missing.value.hint
    pushed = mirrored(ngc, ecr, demo)
    assert pushed.digest == pinned(ngc).digest
    assert front.images(demo.repository) == {str(pushed.digest)}
    found = scans.complete([scans.basic_finding("CVE-1", "openssl", "CRITICAL")])
    script = [scans.state("PENDING"), scans.state("IN_PROGRESS"), scans.state("COMPLETE"), found]
    front.scans[str(pushed.digest)] = script
    with pytest.raises(Blocked, match="CVE-1"):
        judge(pushed)
    assert ecr.head(demo.repository, "v1.0") is None, "a version that the gate stopped is not burnt"
    waivers = tmp_path / "waivers.yaml"
    waivers.write_text(
        "version: 1\nwaivers:\n- {id: CVE-1, package: openssl, reason: not reachable, until: 2026-06-30}\n"
    )
    assert judge(pushed, waivers) == "passed"
    with pytest.raises(Blocked, match="CVE-1"):
        judge(pushed, waivers, now=NOW + timedelta(days=16))
    tag_version(pushed, "v1.0", ecr)
    tag_version(pushed, "v1.0", ecr)  # the same digest under an immutable tag is done
    head = ecr.head(demo.repository, "v1.0")
    assert head is not None
    assert head.digest == pushed.digest
    other = push_image(ecr, demo.repository, b"other", tag="other")
    with pytest.raises(RegistryError):
        ecr.put_manifest(demo.repository, "v1.0", other.raw, other.media_type)
    assert all(not seen.headers.get("Authorization") for seen in front.seen if "/s3/" in seen.path)


def test_all_platforms_keep_the_indexs_digest_in_ecr(
    front: EcrFront, demo: Reference, ngc: RegistryClient, ecr: RegistryClient
) -> None:
    prepare(SETTINGS, demo)
    base = pinned(ngc)
    pushed = mirror(base, demo, ngc, ecr, all_platforms=True)
    assert pushed.digest == base.digest
    assert str(base.index_digest) in front.images(demo.repository)
    assert mirror(base, demo, ngc, ecr, all_platforms=True).adopted


def test_a_password_that_ends_in_the_middle_of_a_push_and_of_a_download_is_renewed(
    front: EcrFront, demo: Reference, ecr: RegistryClient, tmp_path: Path
) -> None:
    prepare(SETTINGS, demo)
    data = random.Random(9).randbytes(3 << 20)
    blob = Descriptor(media_type=OCI_LAYER, digest=Digest.of(data), size=len(data))

    class Slow(io.BytesIO):
        """Half-way through the upload 13 hours pass."""

        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            if self.tell() >= (2 << 20):
                front.clock = 13 * 3600.0
            return piece

    assert ecr.push_blob(demo.repository, blob, Slow(data))
    assert front.calls.count("GetAuthorizationToken") == 2
    front.clock += 13 * 3600
    front.faults.append(Fault(method="GET", path="/blobs/", times=3, cut_response=(1 << 20) - 7))
    assert ecr.fetch_blob(demo.repository, blob, tmp_path / "blob").read_bytes() == data
    assert front.calls.count("GetAuthorizationToken") == 3
    ranges = [
        seen.headers.get("Range")
        for seen in front.seen
        if seen.path.startswith("/v2/") and seen.method == "GET"
    ]
    assert not ranges[0]
    assert sum(bool(one) for one in ranges) == 3, "cut three times, each time resumed from there"


@pytest.mark.parametrize("status", [429, 503])
def test_trouble_on_every_kind_of_request_is_ridden_out(
    front: EcrFront, demo: Reference, ngc: RegistryClient, ecr: RegistryClient, status: int
) -> None:
    headers = {"Retry-After": "0"} if status == 429 else {}
    kinds = [
        ("HEAD", "manifests"),
        ("PUT", "manifests"),
        ("HEAD", "blobs"),
        ("POST", "blobs"),
        ("PATCH", "blobs"),
    ]
    kinds.append(("PUT", "blobs"))
    front.faults += [Fault(method=m, path=f"/{kind}/", status=status, headers=headers) for m, kind in kinds]
    pushed = mirrored(ngc, ecr, demo)
    assert [fault.times for fault in front.faults] == [0] * len(kinds)
    assert str(pushed.digest) in front.images(demo.repository)


def test_what_aws_refuses_names_the_call_and_the_permission(
    front: EcrFront, demo: Reference, ngc: RegistryClient, ecr: RegistryClient
) -> None:
    front.denied = {"CreateRepository"}
    with pytest.raises(RegistryError, match="denies ecr:CreateRepository") as caught:
        prepare(SETTINGS, SETTINGS.repository("fresh"))
    assert "allow the action ecr:CreateRepository" in caught.value.hint
    front.denied = set()
    pushed = mirrored(ngc, ecr, demo)
    front.denied = {"DescribeImageScanFindings"}
    with pytest.raises(RegistryError, match="denies ecr:DescribeImageScanFindings"):
        judge(pushed)
    front.denied = set()
    front.throttled = {"DescribeImageScanFindings": 3}
    front.scans[str(pushed.digest)] = [scans.complete([])]
    assert judge(pushed) == "passed"
    front.denied = {"GetAuthorizationToken"}
    fresh = RegistryClient(HOST, credentials=ecr_tokens.EcrTokens(), patience=QUICK)
    with fresh, pytest.raises(RegistryError, match="denies ecr:GetAuthorizationToken"):
        fresh.head(demo.repository, "v1")


def test_no_state_but_a_complete_one_passes(
    front: EcrFront, demo: Reference, ngc: RegistryClient, ecr: RegistryClient
) -> None:
    pushed = mirrored(ngc, ecr, demo)
    for state in ("FAILED", "UNSUPPORTED_IMAGE", "SCAN_ELIGIBILITY_EXPIRED", "LIMIT_EXCEEDED"):
        front.scans[str(pushed.digest)] = [scans.state(state)]
        with pytest.raises(ScanRejected, match=state):
            judge(pushed)


def test_no_password_is_ever_shown(
    front: EcrFront,
    demo: Reference,
    ngc: RegistryClient,
    ecr: RegistryClient,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Greps everything that was logged, raised or shown, with the path in trouble all along."""
    logged: list[object] = []
    structlog.configure(processors=[lambda _l, _n, event: logged.append(dict(event)) or repr(event)])
    try:
        front.faults.append(Fault(method="PATCH", status=503, times=2))
        pushed = mirrored(ngc, ecr, demo)
        front.clock = 13 * 3600.0
        ecr.head(demo.repository, "v1")
        shown = [repr(pushed), repr(ecr), repr(ecr.session), repr(ecr.session._auth), repr(ecr_tokens.TOKENS)]
        front.passwords.clear()
        front.denied = {"GetAuthorizationToken"}
        with pytest.raises(RegistryError) as caught:
            ecr.head(demo.repository, "v2")
        shown += [str(caught.value), repr(caught.getrepr(style="short"))]
    finally:
        structlog.reset_defaults()
    secret = "made-up-secret"
    held = {seen.headers["Authorization"] for seen in front.seen if seen.headers.get("Authorization")}
    assert held
    everything = "\n".join([*map(repr, logged), *shown, *capfd.readouterr()])
    assert logged
    for one in {secret, *held, *(token.removeprefix("Basic ") for token in held)}:
        assert one not in everything
