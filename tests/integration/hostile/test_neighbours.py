"""Others on the same machine and the same line: planted links, names that are paths, lines that are injected,
servers that pretend, redirects that collect passwords.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import http.server
import io
import ipaddress
import json
import os
import ssl
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.cli import logs, output
from pipeline.config import names
from pipeline.config.types import ConvertOptions
from pipeline.convert import convert as conversion
from pipeline.convert.interface import Converted
from pipeline.errors import (
    ConfigError,
    FormatError,
    PublishError,
    RegistryError,
    SqshpipeError,
    VerificationError,
)
from pipeline.node import pyxis_importer
from pipeline.oci.archive import open_archive
from pipeline.oci.digest import Digest
from pipeline.oci.manifest import OCI_LAYER, Descriptor
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference
from pipeline.registry.client import RegistryClient
from pipeline.registry.credentials import Credentials
from pipeline.registry.errors import refused
from pipeline.registry.session import RetryPolicy
from pipeline.store import leases, prune
from pipeline.store.store import Store
from pipeline.system import http as our_http
from pipeline.system import scratch
from tests.support.images.hostile_images import base
from tests.support.images.images import image
from tests.support.servers.fake_registry import Streamed
from tests.support.store.releases import new_store, publish

LINUX = Platform(os="linux", architecture="amd64")
EVIL = "\x1b[2J\x1b]0;owned\x07\r\nsqshpipe: published /fake\u202e"


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder and a file of somebody else, which must stay as they are."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "kept").write_bytes(b"kept")
    before = {path: path.lstat().st_mtime_ns for path in [folder, folder / "kept"]}
    yield folder
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert (folder / "kept").read_bytes() == b"kept"
    assert {path: path.lstat().st_mtime_ns for path in before} == before


# --- planted links and files


def test_links_planted_in_scratch_are_not_followed(tmp_path: Path, victim: Path) -> None:
    shared = tmp_path / "scratch"
    shared.mkdir(mode=0o1777)
    (shared / "sqshpipe-a").symlink_to(victim)
    (shared / "sqshpipe-b").mkdir()
    (shared / "sqshpipe-b" / ".lock").symlink_to(victim / "kept")
    (shared / "sqshpipe-c").mkdir()
    (shared / "sqshpipe-c" / "down").symlink_to(victim)
    (shared / "sqshpipe-c" / ".upper").symlink_to(victim)
    with scratch.scratch_folder(shared) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "link").symlink_to(victim)
    assert not folder.exists()


def test_links_planted_where_a_lease_will_be_are_not_followed(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder where all users leave leases: links, fifos, folders, names that terminals heed."""
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    release = store.resolve("demo:v1.0")
    leases.prepare(store.layout)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    settings = pyxis_importer.Settings({"schema": 1, "store": str(store.root)})
    first = store.layout.leases / f"{pyxis_importer.lease_stem()}.json"
    first.symlink_to(victim / "kept")
    (store.layout.leases / f"{EVIL.replace('/', '_')}.json").write_text("{}")
    os.mkfifo(store.layout.leases / "fifo.json")
    (store.layout.leases / "up.json").symlink_to(victim)
    found = pyxis_importer.Found(
        "demo", "v1.0", {"sha256": release.sha256, "file": f"blobs/sha256/{release.sha256}.sqsh"}
    )
    pyxis_importer.leave_lease(settings, found)
    pyxis_importer.release(settings)
    assert [lease.name for lease in leases.read_all(store.layout) if lease.job] == []
    prune.prune(store.layout, prune_policy(), prune.no_jobs)
    assert store.resolve("demo:v1.0").path.exists()


def prune_policy() -> object:
    from tests.support.faults.crash_actions import ALL_OLD

    return ALL_OLD


@pytest.mark.parametrize(
    ("link", "error", "reason"),
    [(True, PublishError, "Too many levels of symbolic links"), (False, VerificationError, "is damaged")],
    ids=["link", "other bytes"],
)
def test_bytes_planted_under_a_digests_name_are_not_published(
    link: bool, error: type[SqshpipeError], reason: str, tmp_path: Path, victim: Path
) -> None:
    store = new_store(tmp_path / "store")
    publish(store, "v1.0")
    content = b"what shall be published"
    blob = store.layout.blob(hashlib.sha256(content).hexdigest())
    if link:
        blob.symlink_to(victim / "kept")
    else:
        blob.write_bytes(b"x" * len(content))
    kept = (victim / "kept").read_bytes()
    with pytest.raises(error, match=reason):
        publish(store, "v2.0", content)
    assert store.release("demo", "v2.0") is None
    assert store.resolve("demo:latest").version == "v1.0"
    assert (victim / "kept").read_bytes() == kept


@pytest.mark.parametrize("mask", [0, 0o077], ids=["open", "private"])
def test_working_folders_are_ours_alone_whatever_the_umask(
    mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def converter(
        source: object, _options: object, *, output: Path, scratch: Path, **_more: object
    ) -> Converted:
        seen.append(stat.S_IMODE(scratch.stat().st_mode))
        output.write_bytes(b"hsqs")
        return Converted(tree={}, versions={})  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "_converter", lambda _name: converter)
    before = os.umask(mask)
    try:
        conversion.convert(
            image(tmp_path / "image", [base()]),
            ConvertOptions(converter="native"),
            output=tmp_path / "x.sqsh",
            scratch=tmp_path / "scratch",
            cache=tmp_path / "cache",
        )
    finally:
        os.umask(before)
    assert seen == [0o700]
    assert stat.S_IMODE((tmp_path / "x.sqsh").stat().st_mode) == 0o644


# --- names that become paths, lines that are injected

HOSTILE_NAMES = [
    *(
        "..",
        ".",
        "",
        "../x",
        "a/../b",
        "/etc",
        "a//b",
        "-rf",
        ".hidden",
        "A",
        "blobs",
        "leases",
        "a b",
        "a\nb",
    ),
    *(
        "a\0b",
        "x" * 200,
        "a:b",
        "a;b",
        "$(x)",
        "`x`",
        "a\x1b[31m",
        "\u202ea",
        "é",
        "a.",
        "_a",
        "a/b",
        "~",
        "*",
    ),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_becomes_a_path(name: str, tmp_path: Path) -> None:
    checks = [names.check_image, lambda text: names.check_version(text + "/..")]
    if name not in ("blobs", "leases"):  # folders of the store, which a channel is not
        checks.append(names.check_channel)
    for check in checks:
        with pytest.raises(ConfigError) as caught:
            check(name)
        assert "\n" not in caught.value.message.replace("\\n", "")
    with pytest.raises(ConfigError):
        Store(tmp_path).resolve(f"{name}:{name}")
    assert list(tmp_path.iterdir()) == []
    for value in (f"sha256:{name}", f"{name}:{'a' * 64}", f"sha256:{'a' * 63}/"):
        with pytest.raises(FormatError):
            Digest.parse(value)


@pytest.mark.parametrize(
    "text", ["h.example/../x:1", "h.example/a/../../b", "h.example/a@sha256:..", "h\n.example/a:1"]
)
def test_no_reference_becomes_a_path(text: str) -> None:
    with pytest.raises(ConfigError):
        Reference.parse(text)


def test_an_archive_names_only_what_is_in_it(tmp_path: Path, victim: Path) -> None:
    """docker-archive: members are read where they lie, never unpacked, and names lead nowhere else."""
    for layers in (["../victim/kept"], [str(victim / "kept")], ["link"]):
        file = tmp_path / "image.tar"
        config = json.dumps(
            {
                "os": "linux",
                "architecture": "amd64",
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
            }
        ).encode()
        with tarfile.open(file, "w") as archive:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(victim / "kept")
            archive.addfile(link)
            escaping = tarfile.TarInfo("../victim/new")
            escaping.size = 1
            archive.addfile(escaping, io.BytesIO(b"x"))
            manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": layers}]).encode()
            for name, data in (("c.json", config), ("manifest.json", manifest)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        with pytest.raises(FormatError):
            open_archive(file, platform=LINUX).manifest()


def test_what_a_registry_says_is_printed_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"errors": [{"code": EVIL, "message": EVIL * 50}]}).encode()
    for status in (400, 401, 403, 404, 429, 500):
        error = refused("h.example", f"manifest {EVIL}", status, body, had_credentials=False)
        output.failure(error)
        reported = capsys.readouterr().err
        assert "\x1b" not in reported
        assert "\u202e" not in reported
        assert not any(line.startswith("sqshpipe: published") for line in reported.splitlines())
    logs._StderrLogger().msg(logs._plain_line(None, "info", {"event": EVIL, "image": EVIL, "why": EVIL}))
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.isprintable()


# --- TLS and redirects


def _certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.timezone.utc)
    alternative: x509.GeneralName = x509.DNSName(name)
    if name[0].isdigit():
        alternative = x509.IPAddress(ipaddress.ip_address(name))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / f"{name}.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + pem)
    return file


class _Hello(http.server.BaseHTTPRequestHandler):
    asked: list[str | None] = []  # noqa: RUF012 - shared on purpose

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[Callable[[str], tuple[str, Path]]]:
    """Starts an HTTPS server with a certificate of its own making for a name."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(name: str) -> tuple[str, Path]:
        file = _certificate(tmp_path, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}", file

    _Hello.asked.clear()
    our_http._everybodys_context.cache_clear()
    yield start
    our_http._everybodys_context.cache_clear()
    for server in servers:
        server.shutdown()
        server.server_close()


PASSWORD = Credentials(username="user", password="very-secret")


@pytest.mark.parametrize("plain", [False, None])
def test_a_server_with_a_certificate_of_its_own_is_refused(
    plain: bool | None, tls_server: Callable[[str], tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, file = tls_server("127.0.0.1")
    patience = RetryPolicy(attempts=2, first=0.01)
    if plain is None:
        monkeypatch.setattr(our_http, "is_loopback", lambda _host: False)  # as any other host is treated
    with (
        RegistryClient(host, credentials=lambda _: PASSWORD, plain_http=plain, patience=patience) as client,
        pytest.raises(RegistryError, match="certificate that cannot be trusted"),
    ):
        client.ping()
    assert _Hello.asked == [], "nothing was sent to it"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    our_http._everybodys_context.cache_clear()  # as in a process that begins with it
    with RegistryClient(host, credentials=lambda _: PASSWORD, plain_http=plain, patience=patience) as client:
        client.ping()
    assert len(_Hello.asked) == 1


def test_a_certificate_of_another_name_is_refused(
    tls_server: Callable[[str], tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, file = tls_server("registry.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    our_http._everybodys_context.cache_clear()
    with (
        RegistryClient(
            host, credentials=lambda _: PASSWORD, plain_http=False, patience=RetryPolicy(attempts=1)
        ) as client,
        pytest.raises(RegistryError, match="certificate"),
    ):
        client.ping()
    assert _Hello.asked == []


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        *(
            (host, True)
            for host in (
                "127.0.0.1:5000",
                "localhost",
                "[::1]:5000",
                "x.localhost",
                "127.9.9.9",
                "trusted:80",
            )
        ),
        *(
            (host, False)
            for host in ("registry.example.com", "10.0.0.1:5000", "127.0.0.1.example.com", "0.0.0.0")
        ),
        *(
            (host, False)
            for host in ("localhost.example.com", "localhostx", "[fe80::1]", "2130706433", "trusted.example")
        ),
    ],
)
def test_plain_http_is_for_loopback_and_named_hosts_alone(
    host: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(our_http.PLAIN_HTTP_VARIABLE, "trusted")
    assert our_http.base_url(host).startswith("http://" if plain else "https://")


DATA = b"layer"
BLOB = Descriptor(media_type=OCI_LAYER, digest=Digest.of(DATA), size=len(DATA))


def _redirecting(location: str) -> tuple[RegistryClient, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if (request.url.host, request.url.port) != ("registry.example.com", None):
            return httpx.Response(200, content=DATA)
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return httpx.Response(307, headers={"Location": location})

    client = RegistryClient(
        "registry.example.com",
        credentials=lambda _: PASSWORD,
        patience=RetryPolicy(attempts=2, sleep=lambda _: None),
        transport=Streamed(answer),
    )
    return client, seen


@pytest.mark.parametrize(
    "location",
    ["https://storage.example.net/x", "https://registry.example.com:8443/x", "https://registry.example.com.evil.net/x",
     "https://user:pw@storage.example.net/x", "//storage.example.net/x"],
)  # fmt: skip
def test_a_redirect_to_another_host_carries_no_credentials(location: str) -> None:
    client, seen = _redirecting(location)
    with client, client.open_blob("a/b", BLOB) as stream:
        assert stream.read() == DATA
    assert "very-secret" not in str(seen[-1].url)
    for request in seen:
        if (request.url.host, request.url.port) != ("registry.example.com", None):
            sent = request.headers.get("authorization", "")
            assert PASSWORD.password not in sent
            assert sent != seen[1].headers["authorization"]
            assert "cookie" not in request.headers


@pytest.mark.parametrize(
    "location",
    ["http://storage.example.net/x", "http://registry.example.com/x", "http://127.0.0.1:9/x", "file:///etc/passwd",
     "ftp://storage.example.net/x", "gopher://x", "", "http://[", "javascript:x"],
)  # fmt: skip
def test_a_redirect_that_leaves_tls_or_http_is_refused(location: str) -> None:
    client, seen = _redirecting(location)
    with client, pytest.raises(RegistryError) as caught, client.open_blob("a/b", BLOB) as stream:
        stream.read()
    assert {request.url.host for request in seen} == {"registry.example.com"}
    assert PASSWORD.password not in str(caught.value)
