"""Which engine a command speaks to: contexts as the docker command itself writes them, and TLS."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from demo.engine import PrivateEngine
from pipeline.docker.context import chosen_endpoint
from pipeline.docker.engine import Engine
from pipeline.errors import ConfigError, ToolError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that DOCKER_CONFIG names, and no other choice of an engine."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


def _docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True, timeout=60)


def test_a_context_leads_to_its_engine(engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    _docker("context", "create", "private", "--docker", f"host={engine.host}")
    assert chosen_endpoint().host == "unix:///var/run/docker.sock", "a context that nobody chose"

    monkeypatch.setenv("DOCKER_CONTEXT", "private")
    with Engine.connect() as found:
        assert (found.host, found.answers()) == (engine.host, True)

    monkeypatch.delenv("DOCKER_CONTEXT")
    _docker("context", "use", "private")
    with Engine.connect() as found:
        assert found.host == engine.host
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert chosen_endpoint().host == "unix:///var/run/docker.sock", "the variable wins over the file"
    monkeypatch.setenv("DOCKER_HOST", "unix:///other.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "private")
    assert chosen_endpoint().host == "unix:///other.sock", "DOCKER_HOST wins over both, as for docker"


@pytest.mark.parametrize("chosen_by", ["variable", "file"])
def test_a_context_that_does_not_exist_is_an_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, chosen_by: str
) -> None:
    """The usual socket instead would be another engine than the one that the user asked for."""
    if chosen_by == "file":
        (config / "config.json").write_text('{"currentContext": "gone"}')
    else:
        monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(ConfigError, match=r"docker context gone.*does not exist") as caught:
        Engine.connect()
    assert ("DOCKER_CONTEXT" if chosen_by == "variable" else "config.json") in caught.value.headline


@pytest.mark.parametrize("text", ["", "[]", '{"Endpoints": {}}', '{"Endpoints": {"docker": {}}}', "\0"])
def test_a_damaged_context_is_one_sentence(config: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    _docker("context", "create", "private", "--docker", "host=unix:///x.sock")
    next(config.rglob("meta.json")).write_text(text)
    monkeypatch.setenv("DOCKER_CONTEXT", "private")
    with pytest.raises(ConfigError, match="docker context private cannot be read"):
        Engine.connect()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca.pem, cert.pem and key.pem, for a server and a client at 127.0.0.1."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    argv = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    argv += f" -addext subjectAltName=IP:127.0.0.1 -keyout {folder}/key.pem -out {folder}/cert.pem"
    subprocess.run(argv.split(), check=True, capture_output=True, timeout=60)
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())
    return folder


@pytest.fixture
def tls_server(certificates: Path) -> Iterator[str]:
    """What answers /version as an engine does, to clients with that certificate alone; ``tcp://…``."""

    class Version(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"ApiVersion": "1.45"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = HTTPServer(("127.0.0.1", 0), Version)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("skip", [False, True], ids=["verified", "skip-tls-verify"])
def test_the_certificates_of_a_context_are_used(
    certificates: Path, tls_server: str, monkeypatch: pytest.MonkeyPatch, *, skip: bool
) -> None:
    files = ",".join(f"{each}={certificates}/{each}.pem" for each in ("ca", "cert", "key"))
    extra = ",skip-tls-verify=true" if skip else ""
    _docker("context", "create", "far", "--docker", f"host={tls_server},{files}{extra}")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    with Engine.connect() as found:
        assert found.host == tls_server
        variables = dict(found.variables)
    # The docker command, which builds with BuildKit, reaches the same engine by these variables alone.
    monkeypatch.delenv("DOCKER_CONTEXT")
    answer = subprocess.run(
        ["docker", "version", "--format", "{{.Server.APIVersion}}"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout.strip() == "1.45", answer.stderr


def test_missing_certificates_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"certificates for the Docker Engine at tcp://127\.0\.0\.1:1"):
        Engine.connect()


def test_an_engine_over_ssh_is_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    _docker("context", "create", "far", "--docker", "host=ssh://me@far.example")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    with pytest.raises(ToolError, match=r"ssh://me@far\.example") as caught:
        Engine.connect()
    assert "-L /tmp/far.sock:/var/run/docker.sock me@far.example" in caught.value.hint
