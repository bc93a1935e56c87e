"""A registry in trouble: 429 and 503 on every kind of request, passing and lasting. Nobody waits in here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.errors import Refused, refused
from pipeline.registry.referrers import attach, referrers
from tests.support.servers.fake_registry import HOST, USER, FakeRegistry, Trouble

CONFIG, LAYER, NEW = b"{}", b"layer", b"another layer"
ATTEMPTS = 4


def described(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def raw_manifest(**more: object) -> bytes:
    blobs = (described(CONFIG, OCI_CONFIG), described(LAYER))
    config, layer = (
        {"mediaType": one.media_type, "digest": str(one.digest), "size": one.size} for one in blobs
    )
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer], **more}
    return json.dumps(value).encode()


RAW = raw_manifest()


@pytest.fixture
def registry() -> FakeRegistry:
    made = FakeRegistry()
    for name in ("v1", str(Digest.of(RAW))):
        made.manifests[name] = (RAW, OCI_MANIFEST)
    made.blobs = {str(Digest.of(data)): data for data in (CONFIG, LAYER)}
    return made


def after_a_cut(client: RegistryClient, registry: FakeRegistry) -> bool:
    registry.cut_next_patch = True
    return client.push_blob("a/b", described(NEW), io.BytesIO(NEW))


def fetched(client: RegistryClient, folder: Path) -> bytes:
    return client.fetch_blob("a/b", described(LAYER), folder / "blob").read_bytes()


# What is asked, the request that is in trouble, and what comes out of it in the end.
Asked = Callable[[RegistryClient, FakeRegistry, Path], Any]
KINDS: dict[str, tuple[str, str, Asked, Any]] = {
    "token": ("GET", "/token", lambda c, _r, _p: c.tags("a/b"), ["v1"]),
    "HEAD manifest": ("HEAD", "/manifests/", lambda c, _r, _p: c.head("a/b", "v1").digest, Digest.of(RAW)),
    "GET manifest": ("GET", "/manifests/", lambda c, _r, _p: c.get_manifest("a/b", "v1").raw, RAW),
    "PUT manifest": (
        "PUT",
        "/manifests/",
        lambda c, _r, _p: c.put_manifest("a/b", "v2", RAW, OCI_MANIFEST),
        Digest.of(RAW),
    ),
    "HEAD blob": ("HEAD", "/blobs/", lambda c, _r, _p: c.has_blob("a/b", Digest.of(LAYER)), True),
    "GET blob": ("GET", "/blobs/", lambda c, _r, _p: c.read_blob("a/b", described(LAYER)), LAYER),
    "GET blob into a file": ("GET", "/blobs/", lambda c, _r, p: fetched(c, p), LAYER),
    "POST upload": (
        "POST",
        "/uploads/",
        lambda c, _r, _p: c.push_blob("a/b", described(NEW), io.BytesIO(NEW)),
        True,
    ),
    "PATCH upload": (
        "PATCH",
        "/uploads/",
        lambda c, _r, _p: c.push_blob("a/b", described(NEW), io.BytesIO(NEW)),
        True,
    ),
    "PUT upload": (
        "PUT",
        "/uploads/",
        lambda c, _r, _p: c.push_blob("a/b", described(NEW), io.BytesIO(NEW)),
        True,
    ),
    "GET upload": ("GET", "/uploads/", lambda c, r, _p: after_a_cut(c, r), True),
    "mount": ("POST", "/uploads/", lambda c, _r, _p: c.mount_blob("a/b", Digest.of(LAYER), "c/d"), True),
    "tags": ("GET", "/tags/", lambda c, _r, _p: c.tags("a/b"), ["v1"]),
    "referrers": ("GET", "/referrers/", lambda c, _r, _p: referrers(c, "a/b", Digest.of(RAW)), ()),
}
TROUBLES = [(429, {}), (429, {"Retry-After": "7"}), (503, {}), (503, {"Retry-After": "7"})]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "headers"), TROUBLES)
def test_trouble_that_passes_is_waited_out(
    registry: FakeRegistry, tmp_path: Path, kind: str, status: int, headers: dict[str, str]
) -> None:
    method, path, ask, expected = KINDS[kind]
    trouble = Trouble(method=method, path=path, status=status, times=2, headers=headers)
    registry.troubles.append(trouble)
    with registry.client(ATTEMPTS) as client:
        assert ask(client, registry, tmp_path) == expected
    assert trouble.times == 0
    if headers:
        assert all(7 <= seconds <= 7.5 for seconds in registry.slept[-2:]), "as long as the server asks"
    if kind.endswith("upload"):
        assert registry.blobs[str(Digest.of(NEW))] == NEW


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "GET upload"])
@pytest.mark.parametrize(("status", "headers"), TROUBLES)
def test_trouble_that_lasts_ends_in_a_sentence(
    registry: FakeRegistry, tmp_path: Path, kind: str, status: int, headers: dict[str, str]
) -> None:
    method, path, ask, _ = KINDS[kind]
    registry.troubles.append(Trouble(method=method, path=path, status=status, times=10**6, headers=headers))
    with registry.client(ATTEMPTS) as client, pytest.raises(Exception) as caught:  # noqa: PT011 - see below
        ask(client, registry, tmp_path)
    assert type(caught.value) is Refused
    assert caught.value.status == status
    said = f"{caught.value.message} {caught.value.hint}"
    assert ("slow down" if status == 429 else "status 503") in said
    assert "try again" in said
    assert ("a token from" if kind == "token" else "a/b") in said
    assert registry.count(method, path) == ATTEMPTS
    assert len(registry.slept) == ATTEMPTS - 1
    assert USER.password not in said
    assert not (tmp_path / "blob").exists()


def test_an_upload_that_cannot_be_asked_for_is_begun_anew(registry: FakeRegistry) -> None:
    registry.troubles.append(Trouble(method="GET", path="/uploads/", status=503, times=10**6))
    with registry.client(ATTEMPTS) as client:
        assert after_a_cut(client, registry)
    assert registry.blobs[str(Digest.of(NEW))] == NEW
    assert registry.count("POST", "/uploads/") == 2


def test_an_hour_is_not_waited_for(registry: FakeRegistry) -> None:
    for _, path, _, _ in KINDS.values():
        hour = {"Retry-After": "3600"}
        registry.troubles += [
            Trouble(method=method, path=path, status=429, times=10**6, headers=hour)
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH")
        ]
    with registry.client(ATTEMPTS) as client, pytest.raises(Refused, match="slow down") as caught:
        client.head("a/b", "v1")
    assert "3600 s" in caught.value.hint
    assert registry.slept == []


def test_referrers_are_read_over_all_pages_and_attached_once(registry: FakeRegistry) -> None:
    with registry.client() as client:
        subject = client.head("a/b", "v1")
        assert subject is not None
        for _ in range(2):
            for name in ("one", "two", "three"):
                attach(client, "a/b", subject, artifact_type=f"x/{name}", data=name.encode(), annotations={})
        found = referrers(client, "a/b", subject.digest)
    assert sorted(one.artifact_type for one in found) == ["x/one", "x/three", "x/two"]


ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("HEAD", "/v2/team/demo/manifests/v1", "BatchGetImage"),
        ("GET", "/v2/team/demo/manifests/v1", "BatchGetImage"),
        ("PUT", "/v2/team/demo/manifests/v1", "PutImage"),
        ("HEAD", "/v2/team/demo/blobs/sha256:0", "BatchCheckLayerAvailability"),
        ("GET", "/v2/team/demo/blobs/sha256:0", "GetDownloadUrlForLayer"),
        ("POST", "/v2/team/demo/blobs/uploads/", "InitiateLayerUpload"),
        ("PATCH", "/v2/team/demo/blobs/uploads/x", "UploadLayerPart"),
        ("PUT", "/v2/team/demo/blobs/uploads/x", "CompleteLayerUpload"),
        ("GET", "/v2/team/demo/tags/list", "ListImages"),
        ("GET", "/v2/team/demo/referrers/sha256:0", "BatchGetImage"),
    ],
)
def test_a_refusal_of_ecrs_names_the_action_that_would_allow_it(method: str, path: str, action: str) -> None:
    from pipeline.aws.ecr_actions import needed

    assert needed(method, path) == f"ecr:{action}"
    error = refused(ECR, "it", 403, b"", had_credentials=True, action=needed(method, path))
    assert f"allow the action ecr:{action};" in error.hint
    body = (
        b'{"errors": [{"code": "DENIED", "message": "User: x is not authorized to perform: ecr:Other on"}]}'
    )
    reported = refused(ECR, "it", 403, body, had_credentials=True, action=needed(method, path))
    assert "allow the action ecr:Other;" in reported.hint, "AWS's own word counts"
    assert "ecr:" not in refused(HOST, "it", 403, b"", had_credentials=True, action=action).hint
