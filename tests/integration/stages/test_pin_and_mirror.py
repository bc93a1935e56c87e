"""A base from a registry in nvcr.io's shape, pinned and mirrored into one with a password."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.config.lock import Lock, LockedBase
from pipeline.errors import ConfigError, RegistryError
from pipeline.image.mirror import mirror
from pipeline.image.pin import pin
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Index, Manifest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.session import RetryPolicy
from pipeline.registry.source import RegistrySource
from tests.support.images.pushed import push_image, push_index
from tests.support.servers.registry import Fault, FaultyProxy, TokenRegistry

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

QUICK = RetryPolicy(attempts=5, first=0.01, longest=3.0)
ROOT = Path(__file__).parents[3]
AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


@dataclass(frozen=True)
class Base:
    """nvidia/pytorch: an index of two platforms and an attestation, one layer in common, one of zstd."""

    registry: TokenRegistry
    client: RegistryClient
    index: Index
    amd64: Manifest
    arm64: Manifest

    def reference(self, tag: str = "24.01-py3") -> Reference:
        return Reference.parse(f"{self.registry.address}/nvidia/pytorch:{tag}")


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    with TokenRegistry() as registry:
        credentials = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: credentials, patience=QUICK) as client:
            common, own = random.Random(1).randbytes(2 << 20), random.Random(2).randbytes(1 << 20)
            zstd = OCI_LAYER + "+zstd"
            name = "nvidia/pytorch"
            amd64 = push_image(client, name, common, own, layer_type=zstd, tag="amd64")
            arm64 = push_image(client, name, common, platform="linux/arm64", layer_type=zstd, tag="arm64")
            said = push_image(client, name, b"{}", tag="said", layer_type="application/vnd.in-toto+json")
            index = push_index(
                client,
                name,
                {"unknown/unknown": said, "linux/amd64": amd64, "linux/arm64": arm64},
                tag="24.01-py3",
            )
            yield Base(registry=registry, client=client, index=index, amd64=amd64, arm64=arm64)


@pytest.fixture
def target(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    credentials = Credentials(username=registry.username, password=registry.password)
    with RegistryClient(registry.address, credentials=lambda _: credentials, patience=QUICK) as client:
        yield client


def test_pin_takes_the_platform_out_of_an_index_and_never_an_attestation(base: Base) -> None:
    pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
    assert (pinned.digest, pinned.index_digest) == (base.amd64.digest, base.index.digest)
    assert not pinned.locked
    assert str(pinned.pinned) == f"{base.registry.address}/nvidia/pytorch@{base.amd64.digest}"
    assert pin(base.reference(), ARM64, None, lambda _: base.client).digest == base.arm64.digest
    alone = pin(base.reference("amd64"), AMD64, None, lambda _: base.client)
    assert (alone.digest, alone.index_digest) == (base.amd64.digest, None)
    by_digest = base.reference().with_digest(base.index.digest)
    assert pin(by_digest, AMD64, None, lambda _: base.client).digest == base.amd64.digest


def test_pin_says_what_a_base_is_made_for(base: Base) -> None:
    for tag in ("24.01-py3", "arm64"):
        with pytest.raises(ConfigError, match="not made for linux/s390x") as caught:
            pin(base.reference(tag), Platform.parse("linux/s390x"), None, lambda _: base.client)
        assert "linux/arm64" in caught.value.hint
    with pytest.raises(RegistryError, match="does not exist"):
        pin(base.reference("99.99"), AMD64, None, lambda _: base.client)


def test_a_locked_digest_is_used_and_a_moved_tag_is_reported(base: Base) -> None:
    now = dt.datetime.now(dt.timezone.utc)
    held = LockedBase(digest=base.amd64.digest, index_digest=base.index.digest, locked_at=now)
    lock = Lock().updated(base.reference(), AMD64, held)
    same = pin(base.reference(), AMD64, lock, lambda _: base.client)
    assert same.locked
    assert same.moved_to is None
    old = LockedBase(digest=Digest.of(b"old"), index_digest=Digest.of(b"older"), locked_at=now)
    moved = pin(base.reference(), AMD64, Lock().updated(base.reference(), AMD64, old), lambda _: base.client)
    assert (moved.digest, moved.moved_to) == (old.digest, base.index.digest)
    nobody = RegistryClient("127.0.0.1:1", credentials=lambda _: None, patience=QUICK)
    unreachable = pin(base.reference(), AMD64, lock, lambda _: nobody)
    assert (unreachable.digest, unreachable.moved_to) == (base.amd64.digest, None)


def test_one_platform_keeps_its_digest_and_its_zstd_layers(base: Base, target: RegistryClient) -> None:
    pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
    repository = Reference.parse(f"{target.host}/mirror/one")
    pushed = mirror(pinned, repository, base.client, target)
    assert (pushed.digest, pushed.adopted, pushed.build_key) == (base.amd64.digest, False, None)
    assert target.get_manifest("mirror/one", str(pushed.digest)) == base.amd64
    assert target.tags("mirror/one") == [f"key-{base.amd64.digest.hex}"]
    source = RegistrySource(target, "mirror/one", base.amd64)
    with source.open_layer(1) as stream:
        assert stream.read() == random.Random(2).randbytes(1 << 20)
    assert target.head("mirror/one", str(base.arm64.digest)) is None
    again = mirror(pinned, repository, base.client, target)
    assert again.adopted
    assert again.digest == pushed.digest


def test_all_platforms_keep_the_indexs_digest(base: Base, target: RegistryClient) -> None:
    pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
    repository = Reference.parse(f"{target.host}/mirror/all")
    pushed = mirror(pinned, repository, base.client, target, all_platforms=True)
    assert pushed.digest == base.amd64.digest
    copied = target.get_manifest("mirror/all", f"key-{base.index.digest.hex}")
    assert copied == base.index
    for child in base.index.manifests:
        assert target.head("mirror/all", str(child.digest)) is not None
    assert mirror(pinned, repository, base.client, target, all_platforms=True).adopted


def test_a_mirror_through_bad_lines_arrives_and_sends_nothing_twice(
    base: Base, registry: PrivateRegistry
) -> None:
    credentials = {
        base.registry.address: Credentials(username=base.registry.username, password=base.registry.password),
        registry.address: Credentials(username=registry.username, password=registry.password),
    }
    with FaultyProxy(base.registry.address) as before, FaultyProxy(registry.address) as behind:
        before.faults += [
            Fault(method="GET", path="/blobs/", times=3, cut_response=1 << 19),
            Fault(method="GET", path="/blobs/", times=2, status=503),
            Fault(method="GET", path="/manifests/", times=1, status=429, headers={"Retry-After": "0"}),
        ]
        behind.faults += [
            Fault(method="PATCH", times=2, cut_request=1 << 19),
            Fault(method="PUT", path="/blobs/", times=1, status=500),
            Fault(method="POST", times=1, status=502),
        ]
        source = RegistryClient(
            before.address, credentials=lambda _: credentials[base.registry.address], patience=QUICK
        )
        target = RegistryClient(
            behind.address, credentials=lambda _: credentials[registry.address], patience=QUICK
        )
        pinned = pin(base.reference(), AMD64, None, lambda _: source)
        repository = Reference.parse(f"{behind.address}/mirror/faults")
        assert mirror(pinned, repository, source, target).digest == base.amd64.digest
        assert [fault.times for fault in before.faults + behind.faults] == [0] * 6
        sent = behind.count("PATCH", "")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, "head", lambda *_: None)  # as after a kill before the tag was put
            mirror(pinned, repository, source, target)
        assert behind.count("PATCH", "") == sent


def test_a_mirror_of_bytes_that_lie_leaves_no_image(base: Base, registry: PrivateRegistry) -> None:
    with FaultyProxy(base.registry.address) as before:
        before.faults.append(
            Fault(method="GET", path="/blobs/", times=99, change=lambda b: b[:-1] + bytes([b[-1] ^ 1]))
        )
        theirs = Credentials(username=base.registry.username, password=base.registry.password)
        ours = Credentials(username=registry.username, password=registry.password)
        source = RegistryClient(before.address, credentials=lambda _: theirs, patience=QUICK)
        target = RegistryClient(registry.address, credentials=lambda _: ours, patience=QUICK)
        pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
        with pytest.raises(RegistryError, match="gives other bytes"):
            mirror(pinned, Reference.parse(f"{target.host}/mirror/lies"), source, target)
        assert target.head("mirror/lies", str(base.amd64.digest)) is None


@dataclass(frozen=True)
class Between:
    """Clients of the two registries, each through a proxy that fails on request."""

    before: FaultyProxy
    behind: FaultyProxy
    source: RegistryClient
    target: RegistryClient


@pytest.fixture
def between(base: Base, registry: PrivateRegistry) -> Iterator[Between]:
    theirs = Credentials(username=base.registry.username, password=base.registry.password)
    ours = Credentials(username=registry.username, password=registry.password)
    with (
        FaultyProxy(base.registry.address) as before,
        FaultyProxy(registry.address) as behind,
        RegistryClient(before.address, credentials=lambda _: theirs, patience=QUICK) as source,
        RegistryClient(behind.address, credentials=lambda _: ours, patience=QUICK) as target,
    ):
        yield Between(before=before, behind=behind, source=source, target=target)


@pytest.mark.parametrize("where", ["source", "target"])
def test_a_mirror_while_a_registry_answers_500_ends_clearly_and_the_next_run_well(
    where: str, base: Base, between: Between
) -> None:
    proxy = between.before if where == "source" else between.behind
    pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
    repository = Reference.parse(f"{between.behind.address}/mirror/down-{where}")
    proxy.faults.append(Fault(path="/blobs/", times=10**6, status=500))
    with pytest.raises(RegistryError, match="status 500") as caught:
        mirror(pinned, repository, between.source, between.target)
    assert "try again" in caught.value.message + caught.value.hint
    assert between.target.head(repository.repository, str(base.amd64.digest)) is None
    proxy.faults.clear()
    assert mirror(pinned, repository, between.source, between.target).digest == base.amd64.digest


_MIRROR = """
import os, sys
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.image.mirror import mirror
from pipeline.image.pin import pin
from pipeline.registry.credentials import Credentials
from pipeline.registry.client import RegistryClient
base, repository = map(Reference.parse, sys.argv[1:])
users = [Credentials(username=os.environ[f"USER{n}"], password=os.environ[f"WORD{n}"]) for n in (0, 1)]
source = RegistryClient(base.registry, credentials=lambda _: users[0])
target = RegistryClient(repository.registry, credentials=lambda _: users[1])
mirror(pin(base, Platform.parse("linux/amd64"), None, lambda _: source), repository, source, target)
"""


def test_a_mirror_that_is_killed_leaves_no_image_and_the_next_run_ends_it(
    base: Base, registry: PrivateRegistry, between: Between
) -> None:
    name = "mirror/killed"
    repository = Reference.parse(f"{between.behind.address}/{name}")
    slow = Fault(method="PUT", path="/manifests/", times=10**6, delay=20.0)
    between.behind.faults.append(slow)  # all blobs are there, no manifest is
    users = {"USER0": base.registry.username, "WORD0": base.registry.password}
    users |= {"USER1": registry.username, "WORD1": registry.password}
    argv = [sys.executable, "-c", _MIRROR, str(base.reference()), str(repository)]
    child = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **users})
    try:
        until = time.monotonic() + 60
        while not between.behind.count("PUT", "/manifests/") and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        child.kill()
        assert child.wait(30) == -signal.SIGKILL
    assert between.behind.count("PUT", "/manifests/")
    between.behind.faults.clear()
    sent = between.behind.count("PATCH", "")
    assert between.target.head(name, str(base.amd64.digest)) is None
    pinned = pin(base.reference(), AMD64, None, lambda _: base.client)
    assert mirror(pinned, repository, between.source, between.target).digest == base.amd64.digest
    assert between.behind.count("PATCH", "") == sent, "what had arrived is not sent again"
