"""A real Docker Engine pushes into ECR: layers that are there are not sent again, immutable tags hold."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from demo.engine import PrivateEngine
from pipeline.config.types import EcrSettings, RegistrySettings
from pipeline.docker.engine import Engine
from pipeline.errors import RegistryError
from pipeline.image.build import BuiltImage
from pipeline.image.pin import BaseImage
from pipeline.image.push import PushedImage, push
from pipeline.image.repository import prepare
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from tests.support import aws
from tests.support.ecr_front import EcrFront
from tests.support.registry import Fault

pytestmark = pytest.mark.needs("root", "docker-registry")
SETTINGS = RegistrySettings(ecr=EcrSettings(account=aws.ACCOUNT, region=aws.REGION, prefix="team"))
BASE = BaseImage(
    reference=Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3"),
    platform=Platform.parse("linux/amd64"),
    digest=Digest.of(b"base"),
    index_digest=None,
    locked=True,
)


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[EcrFront]:
    with EcrFront() as made:
        made.use(monkeypatch, tmp_path)
        yield made


def a_layer(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def test_an_engine_pushes_through_endings_and_immutable_tags(front: EcrFront, engine: PrivateEngine) -> None:
    prepare(SETTINGS, SETTINGS.repository("engine"))
    target = Reference.parse(f"{front.address}/team/engine:key-1")
    with Engine.connect(engine.host) as connected:
        raw = docker.APIClient(base_url=engine.host)
        try:
            made = [
                json.loads(raw.import_image_from_data(a_layer(text)))["status"] for text in ("one", "two")
            ]
        finally:
            raw.close()
        connected.tag(made[0], target)
        ended, _ = front.new_password()
        front.clock = 13 * 3600.0
        with pytest.raises(RegistryError) as refused:
            connected.push(target, Credentials(username="AWS", password=ended))
        assert ended not in str(refused.value)
        fresh = Credentials(username="AWS", password=front.new_password()[0])
        digest = connected.push(target, fresh)
        assert front.images("team/engine") == {str(digest)}
        with RegistryClient(front.address, credentials=lambda _: fresh) as client:
            head = client.head("team/engine", "key-1")
        assert head is not None
        assert head.digest == digest
        sent = front.count("PATCH", "/blobs/")
        again = target.with_tag("key-2")
        connected.tag(made[0], again)
        assert connected.push(again, fresh) == digest
        assert front.count("PATCH", "/blobs/") == sent, "layers that ECR has are not sent again"
        connected.tag(made[1], target)
        with pytest.raises(RegistryError, match="immutable"):
            connected.push(target, fresh)
        for reference in (target, again):
            connected.untag(reference)


def test_a_password_that_ends_in_the_middle_of_an_engines_push_is_renewed(
    front: EcrFront, engine: PrivateEngine
) -> None:
    """The engine got its password when the push began; 13 hours pass while the last layer is on its way."""
    repository = SETTINGS.repository("long")
    prepare(SETTINGS, repository)
    local = Reference.parse(f"{front.address}/team/long")
    given: list[str] = []

    class Passwords:
        """As `EcrTokens` gives them."""

        def __call__(self, _host: str) -> Credentials:
            given.append(front.new_password()[0])
            return Credentials(username="AWS", password=given[-1])

        def renew(self, host: str) -> Credentials:
            return self(host)

    with Engine.connect(engine.host) as connected:
        raw = docker.APIClient(base_url=engine.host)
        try:
            image = json.loads(raw.import_image_from_data(a_layer("a long way")))["status"]
        finally:
            raw.close()
        take = front.take

        def passing(method: str, path: str, headers: dict[str, str]) -> Fault | None:
            if method == "PATCH" and len(given) == 1:
                front.clock = 13 * 3600.0
            return take(method, path, headers)

        front.take = passing  # type: ignore[method-assign]
        built = BuiltImage(image="long", local_id=image, config_digest=None, key="a" * 64, base=BASE)
        passwords = Passwords()
        with RegistryClient(front.address, credentials=Passwords()) as client:
            pushed = push(built, local, connected, client, credentials=passwords)
        assert str(pushed.digest) in front.images("team/long")
        assert len(given) >= 2
        connected.untag(local.with_tag(f"key-{'a' * 64}"))


def test_two_runs_that_push_one_key_at_once_end_with_one_image(
    front: EcrFront, engine: PrivateEngine
) -> None:
    """Both have built and found nothing there; each pushes other bytes under the same key."""
    repository = SETTINGS.repository("race")
    prepare(SETTINGS, repository)
    local = Reference.parse(f"{front.address}/team/race")
    key = "b" * 64
    password = Credentials(username="AWS", password=front.new_password()[0])
    together = threading.Barrier(2)
    take = front.take

    def wait_for_both(method: str, path: str, headers: dict[str, str]) -> Fault | None:
        if method == "PUT" and "/manifests/" in path:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(20)
        return take(method, path, headers)

    front.take = wait_for_both  # type: ignore[method-assign]

    def one_run(host: str, text: str) -> PushedImage:
        raw = docker.APIClient(base_url=host)
        image = json.loads(raw.import_image_from_data(a_layer(text)))["status"]
        raw.close()
        built = BuiltImage(image="race", local_id=image, config_digest=None, key=key, base=BASE)
        with (
            Engine.connect(host) as connected,
            RegistryClient(front.address, credentials=lambda _: password) as client,
        ):
            return push(built, local, connected, client, credentials=lambda _: password)

    with PrivateEngine() as other, ThreadPoolExecutor(2) as pool:
        pushed = list(pool.map(one_run, (engine.host, other.host), ("one", "another")))
    with RegistryClient(front.address, credentials=lambda _: password) as client:
        head = client.head("team/race", f"key-{key}")
    assert head is not None
    assert {one.digest for one in pushed} == {head.digest}
    assert sorted(one.adopted for one in pushed) == [False, True]
