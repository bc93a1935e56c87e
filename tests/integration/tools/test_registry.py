"""The registry client against Debian's docker-registry: passwords, tokens, and a line that breaks."""

from __future__ import annotations

import io
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.registry import PrivateRegistry
from pipeline.errors import RegistryError
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, OCI_MANIFEST, Descriptor
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.errors import Refused
from pipeline.registry.session import RetryPolicy
from pipeline.registry.source import RegistrySource
from tests.support.images.pushed import push_image
from tests.support.servers.registry import Fault, FaultyProxy, TokenRegistry, error_body

pytestmark = pytest.mark.needs("docker-registry", "htpasswd")

QUICK = RetryPolicy(attempts=5, first=0.01, longest=3.0)


def blob(size: int, seed: int = 0) -> tuple[Descriptor, bytes]:
    data = random.Random(seed).randbytes(size)
    return Descriptor(media_type=OCI_LAYER + "+gzip", digest=Digest.of(data), size=size), data


def client(address: str, registry: PrivateRegistry) -> RegistryClient:
    credentials = Credentials(username=registry.username, password=registry.password)
    return RegistryClient(address, credentials=lambda _: credentials, patience=QUICK)


@pytest.fixture
def direct(registry: PrivateRegistry) -> Iterator[RegistryClient]:
    with client(registry.address, registry) as made:
        yield made


@pytest.fixture
def proxy(registry: PrivateRegistry) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.address) as made:
        yield made


@pytest.fixture
def through(proxy: FaultyProxy, registry: PrivateRegistry) -> Iterator[RegistryClient]:
    with client(proxy.address, registry) as made:
        made.ping()  # past the challenge, so that faults meet what they are meant for
        proxy.seen.clear()
        yield made


def test_an_image_goes_in_and_comes_out(direct: RegistryClient) -> None:
    layers = [random.Random(n).randbytes(200_000 + n) for n in range(3)]
    manifest = push_image(direct, "round/trip", *layers)
    head = direct.head("round/trip", "v1")
    assert head is not None
    assert (head.digest, head.size, head.media_type) == (manifest.digest, len(manifest.raw), OCI_MANIFEST)
    source = RegistrySource(direct, "round/trip", manifest)
    assert [str(d) for d in source.config().diff_ids] == [str(Digest.of(layer)) for layer in layers]
    for number, layer in enumerate(layers):
        with source.open_layer(number) as stream:
            assert stream.read(10) == layer[:10]
            assert stream.read() == layer[10:]
    assert direct.tags("round/trip") == ["v1"]
    assert direct.head("round/trip", "v2") is None
    assert direct.head("round/none", "v2") is None


def test_what_is_there_is_not_sent_again(through: RegistryClient, proxy: FaultyProxy) -> None:
    descriptor, data = blob(100_000, 1)
    assert through.push_blob("again/one", descriptor, io.BytesIO(data))
    sent = proxy.count("PATCH", "")
    assert not through.push_blob("again/one", descriptor, io.BytesIO(data))
    assert through.mount_blob("again/two", descriptor.digest, "again/one")
    assert through.has_blob("again/two", descriptor.digest)
    assert proxy.count("PATCH", "") == sent
    assert not through.mount_blob("again/two", Digest.of(b"nowhere"), "again/one")


def test_layers_are_fetched_side_by_side(direct: RegistryClient, tmp_path: Path) -> None:
    made = [blob(500_000, seed) for seed in range(10, 16)]
    for descriptor, data in made:
        direct.push_blob("side/by", descriptor, io.BytesIO(data))
    paths = direct.fetch_blobs("side/by", [descriptor for descriptor, _ in made] * 2, tmp_path)
    assert {d: path.read_bytes() for d, path in paths.items()} == {d.digest: data for d, data in made}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(d.digest.hex for d, _ in made)


def test_a_download_that_is_cut_three_times_is_resumed(
    direct: RegistryClient, through: RegistryClient, proxy: FaultyProxy, tmp_path: Path
) -> None:
    descriptor, data = blob(5 << 20, 2)
    direct.push_blob("cut/down", descriptor, io.BytesIO(data))
    proxy.faults.append(Fault(method="GET", path="/blobs/", times=3, cut_response=(1 << 20) + 12_345))
    with through.open_blob("cut/down", descriptor) as stream:
        assert stream.read() == data
    ranges = [seen.headers.get("Range") for seen in proxy.seen if "/blobs/" in seen.path]
    assert len(ranges) == 4
    assert [bool(header) for header in ranges] == [False, True, True, True]
    proxy.faults.append(Fault(method="GET", path="/blobs/", times=3, cut_response=(1 << 20) + 12_345))
    assert through.fetch_blob("cut/down", descriptor, tmp_path / "blob").read_bytes() == data


def test_a_partial_file_is_resumed_and_a_damaged_one_is_not_trusted(
    through: RegistryClient, proxy: FaultyProxy, tmp_path: Path
) -> None:
    descriptor, data = blob(1 << 20, 3)
    through.push_blob("part/one", descriptor, io.BytesIO(data))
    (tmp_path / "blob.partial").write_bytes(data[:700_000])
    through.fetch_blob("part/one", descriptor, tmp_path / "blob")
    assert [s.headers.get("Range") for s in proxy.seen if s.method == "GET" and "/blobs/" in s.path] == [
        "bytes=700000-"
    ]
    for bad in (b"x" * 700_000, data + b"x", data[:-1] + b"x"):
        (tmp_path / "other.partial").write_bytes(bad)
        (tmp_path / "other").unlink(missing_ok=True)
        through.fetch_blob("part/one", descriptor, tmp_path / "other")
        assert (tmp_path / "other").read_bytes() == data
        assert not (tmp_path / "other.partial").exists()
    (tmp_path / "other").write_bytes(data[:-1] + b"x")  # the name alone proves nothing
    through.fetch_blob("part/one", descriptor, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == data


def test_bytes_that_are_not_the_digests_are_never_handed_over(
    direct: RegistryClient, through: RegistryClient, proxy: FaultyProxy, tmp_path: Path
) -> None:
    descriptor, data = blob(300_000, 4)
    direct.push_blob("lies/one", descriptor, io.BytesIO(data))
    manifest = push_image(direct, "lies/one", b"layer")

    def flip(piece: bytes) -> bytes:
        return piece[:-1] + bytes([piece[-1] ^ 1])

    proxy.faults.append(Fault(method="GET", path="/blobs/", times=100, change=flip))
    with (
        pytest.raises(RegistryError, match="gives other bytes"),
        through.open_blob("lies/one", descriptor) as stream,
    ):
        stream.read()
    with pytest.raises(RegistryError, match="gives other bytes"):
        through.fetch_blob("lies/one", descriptor, tmp_path / "blob")
    assert [path for path in tmp_path.iterdir() if path.name == "blob"] == []
    proxy.faults.append(
        Fault(method="GET", path="/manifests/", times=2, change=lambda b: b.replace(b"2", b"3"))
    )
    for reference in ("v1", str(manifest.digest)):
        with pytest.raises(RegistryError, match="which is something else"):
            through.get_manifest("lies/one", reference)
    other = str(Digest.of(b"other"))
    proxy.faults.append(Fault(path="/manifests/", headers={"Docker-Content-Digest": other}, times=3))
    with pytest.raises(RegistryError, match="which is something else"):
        through.head("lies/one", str(manifest.digest))
    with pytest.raises(RegistryError, match="which is something else"):
        through.get_manifest("lies/one", "v1")
    with pytest.raises(RegistryError, match="which is something else"):
        through.put_manifest("lies/one", "v2", manifest.raw, manifest.media_type)


def test_an_upload_that_is_cut_arrives_whole(
    direct: RegistryClient, through: RegistryClient, proxy: FaultyProxy
) -> None:
    descriptor, data = blob(3 << 20, 5)
    proxy.faults.append(Fault(method="PATCH", times=2, cut_request=1 << 20))
    proxy.faults.append(Fault(method="PUT", path="/blobs/", times=1, cut_response=0, status=502))
    assert through.push_blob("cut/up", descriptor, io.BytesIO(data))
    assert direct.read_blob("cut/up", descriptor) == data


def test_an_upload_whose_last_answer_is_lost_is_done(through: RegistryClient, proxy: FaultyProxy) -> None:
    descriptor, data = blob(100_000, 6)
    lost = Fault(method="PUT", path="/blobs/", times=1, headers={"Content-Length": "7"}, cut_response=0)
    proxy.faults.append(lost)
    assert through.push_blob("lost/answer", descriptor, io.BytesIO(data))
    assert lost.times == 0
    assert through.read_blob("lost/answer", descriptor) == data


def test_a_source_that_differs_from_its_descriptor_is_refused(direct: RegistryClient) -> None:
    descriptor, data = blob(100_000, 7)
    changed = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(Refused, match="DIGEST_INVALID"):
        direct.push_blob("bad/source", descriptor, io.BytesIO(changed))
    for wrong in (data[:-1], data + b"x"):
        with pytest.raises(RegistryError, match="lacks bytes, or has more"):
            direct.push_blob("bad/source", descriptor, io.BytesIO(wrong))
    assert not direct.has_blob("bad/source", descriptor.digest)


@pytest.mark.parametrize("status", [429, 500, 503, 504])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/manifests/"),
        ("GET", "/manifests/"),
        ("PUT", "/manifests/"),
        ("HEAD", "/blobs/"),
        ("GET", "/blobs/"),
        ("POST", "/blobs/"),
        ("PATCH", "/blobs/"),
        ("PUT", "/blobs/"),
        ("GET", "/tags/"),
    ],
)
def test_a_passing_trouble_on_any_request_is_ridden_out(
    through: RegistryClient, proxy: FaultyProxy, status: int, method: str, path: str
) -> None:
    headers = {"Retry-After": "0"} if status == 429 else {}
    fault = Fault(method=method, path=path, times=2, status=status, headers=headers)
    proxy.faults.append(fault)
    repository = f"trouble/{method.lower()}-{path.strip('/')}-{status}"
    layer = f"{repository} layer".encode()
    manifest = push_image(through, repository, layer)
    assert through.head(repository, "v1") is not None
    assert through.read_blob(repository, manifest.layers[0]) == layer
    assert through.tags(repository) == ["v1"]
    assert fault.times == 0


def test_a_lasting_trouble_ends_in_a_sentence(through: RegistryClient, proxy: FaultyProxy) -> None:
    proxy.faults.append(Fault(path="/manifests/", times=100, status=503))
    with pytest.raises(Refused, match="status 503") as caught:
        through.head("any/thing", "v1")
    assert proxy.count("HEAD", "/manifests/") == QUICK.attempts
    assert "any/thing:v1" in caught.value.message
    proxy.faults[:] = [Fault(path="/manifests/", times=100, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(Refused, match="slow down") as caught:
        through.head("any/thing", "v1")
    assert "3600 s" in caught.value.hint
    assert proxy.count("HEAD", "/manifests/") == QUICK.attempts + 1, "an hour is not waited for"


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "DENIED", "denies"),
        (400, "TAG_INVALID", "TAG_INVALID"),
        (404, "NAME_UNKNOWN", "no such repository"),
    ],
)
def test_what_is_refused_is_asked_once(
    through: RegistryClient, proxy: FaultyProxy, status: int, code: str, says: str
) -> None:
    body = error_body(code, "because")
    proxy.faults.append(Fault(method="PUT", path="/manifests/", times=100, status=status, body=body))
    with pytest.raises(Refused, match=says) as caught:
        through.put_manifest("any/thing", "v1", b"{}", OCI_MANIFEST)
    assert caught.value.code == code
    assert "because" in caught.value.message
    sent = [seen for seen in proxy.seen if seen.method == "PUT"]
    assert len([seen for seen in sent if seen.headers.get("Authorization")]) == 1


def test_wrong_and_missing_passwords_are_distinguished(registry: PrivateRegistry) -> None:
    wrong = Credentials(username=registry.username, password="wrong-secret")
    with (
        RegistryClient(registry.address, credentials=lambda _: wrong) as client,
        pytest.raises(Refused, match="refuses the password") as caught,
    ):
        client.ping()
    assert "wrong-secret" not in f"{caught.value} {caught.value!r} {client!r} {wrong!r}"
    with (
        RegistryClient(registry.address, credentials=lambda _: None) as client,
        pytest.raises(Refused, match="asks for a password") as caught,
    ):
        client.ping()
    assert "docker login" in caught.value.hint


def test_the_token_flow_of_nvcr(tmp_path: Path) -> None:
    with TokenRegistry(seconds=60) as registry:
        credentials = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: credentials, patience=QUICK) as client:
            layer = b"layer" * 1000
            manifest = push_image(client, "nvidia/pytorch", layer, tag="24.01-py3")
            assert client.read_blob("nvidia/pytorch", manifest.layers[0]) == layer
            assert client.mount_blob("nvidia/other", manifest.layers[0].digest, "nvidia/pytorch")
            bought = len(registry.sold)
            assert client.head("nvidia/pytorch", "24.01-py3") is not None
            assert len(registry.sold) == bought, "a token that still holds is used again"
        assert ["repository:nvidia/pytorch:pull"] in registry.sold
        assert ["repository:nvidia/other:pull,push", "repository:nvidia/pytorch:pull"] in registry.sold
        wrong = Credentials(username=registry.username, password="wrong")
        with (
            RegistryClient(registry.address, credentials=lambda _: wrong) as client,
            pytest.raises(RegistryError, match=r"refuses the password of \$oauthtoken"),
        ):
            client.head("nvidia/pytorch", "24.01-py3")
        with (
            RegistryClient(registry.address, credentials=lambda _: None) as client,
            pytest.raises(RegistryError, match="no token without a password"),
        ):
            client.head("nvidia/pytorch", "24.01-py3")


def test_a_token_that_ended_is_bought_again() -> None:
    with TokenRegistry(seconds=-120) as registry:
        registry.seconds = 300
        credentials = Credentials(username=registry.username, password=registry.password)
        with RegistryClient(registry.address, credentials=lambda _: credentials, patience=QUICK) as client:
            push_image(client, "a/b", b"layer")
            registry.seconds = -120  # sold already over: the registry refuses it
            client.session._auth._tokens.clear()
            with pytest.raises(RegistryError):
                client.head("a/b", "v1")
            registry.seconds = 300
            assert client.head("a/b", "v1") is not None


def test_the_registry_of_a_killed_owner_is_gone() -> None:
    script = (
        "import os, signal; from demo.registry import PrivateRegistry as P; made = P(); made.start();"
        "print(made._process.pid, made._own_folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = done.stdout.splitlines()[-1].split()
    shutil.rmtree(folder)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_tags_over_several_pages(
    through: RegistryClient, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.registry.client._PAGE", 3)
    manifest = push_image(through, "many/tags", b"layer")
    wanted = sorted(f"v{n}" for n in range(1, 9))
    for tag in wanted:
        through.put_manifest("many/tags", tag, manifest.raw, manifest.media_type)
    assert through.tags("many/tags") == wanted
    assert proxy.count("GET", "/tags/") > 1


def test_the_password_stays_with_the_registry(
    direct: RegistryClient, through: RegistryClient, proxy: FaultyProxy, registry: PrivateRegistry
) -> None:
    """Blobs often come by redirect from an object store that must not see, and refuses, Authorization."""
    descriptor, data = blob(50_000, 8)
    direct.push_blob("re/direct", descriptor, io.BytesIO(data))
    with FaultyProxy(registry.address) as elsewhere:
        elsewhere.faults.append(Fault(times=100, status=418))
        target = f"http://{elsewhere.address}/store/{descriptor.digest}"
        proxy.faults.append(
            Fault(method="GET", path="/blobs/", times=100, status=307, headers={"Location": target})
        )
        with pytest.raises(Refused, match="status 418"):
            through.read_blob("re/direct", descriptor)
        assert elsewhere.seen
        assert all("Authorization" not in seen.headers for seen in elsewhere.seen)
    proxy.faults[:] = [
        Fault(path="/blobs/", times=1, status=307, headers={"Location": "http://example.com/"})
    ]
    with pytest.raises(RegistryError, match="without TLS"):
        through.read_blob("re/direct", descriptor)
