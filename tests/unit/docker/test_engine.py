"""What an engine's events mean. The engine itself is in tests/integration."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.docker.config import docker_config
from pipeline.docker.engine import BuildRequest, Engine
from pipeline.docker.events import build_failure
from pipeline.errors import RegistryError, ToolError
from pipeline.oci.digest import Digest
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials

REFERENCE = Reference.parse("127.0.0.1:5000/demo:key-1")
DIGEST = str(Digest.of(b"manifest"))


class Client:
    """Answers a push with one list of events an attempt."""

    def __init__(self, *attempts: list[dict[str, Any]]) -> None:
        self.attempts = list(attempts)
        self.asked: list[dict[str, Any]] = []

    def push(self, repository: str, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked.append({"repository": repository, **options})
        return iter(self.attempts.pop(0))

    def build(self, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked.append(options)
        return iter(self.attempts.pop(0))


class Counter:
    def __init__(self) -> None:
        self.announced = self.done = 0
        self.lines: list[str] = []

    def total(self, amount: int) -> None:
        self.announced += amount

    def advance(self, amount: int) -> None:
        self.done += amount

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)


def push(client: Client, credentials: Credentials | None = None, task: Any = None) -> Digest:
    return Engine(client, "unix:///fake").push(REFERENCE, credentials, task or Counter())  # type: ignore[arg-type]


def failed(message: str) -> list[dict[str, Any]]:
    return [{"status": "Preparing", "id": "a"}, {"errorDetail": {"message": message}, "error": message}]


DONE = [
    {"status": "key-1: digest: …"},
    {"progressDetail": {}, "aux": {"Tag": "key-1", "Digest": DIGEST, "Size": 528}},
]


def test_the_digest_comes_from_the_last_event() -> None:
    client = Client(DONE)
    assert str(push(client, Credentials(username="u", password="p"))) == DIGEST
    assert client.asked[0]["repository"] == "127.0.0.1:5000/demo"
    assert client.asked[0]["auth_config"] == {"username": "u", "password": "p"}


def test_with_the_containerd_image_store_it_is_in_the_text_of_a_status() -> None:
    assert str(push(Client([{"status": f"key-1: digest: {DIGEST} size: 402"}]))) == DIGEST


def test_without_credentials_none_are_looked_up_elsewhere() -> None:
    client = Client(DONE)
    push(client)
    assert client.asked[0]["auth_config"] == {}


@pytest.mark.parametrize(
    "message",
    [
        "toomanyrequests: Rate exceeded",
        "received unexpected HTTP status: 503 Service Unavailable",
        "error parsing HTTP 502 response body",
        "unexpected EOF",
        "net/http: TLS handshake timeout",
        "Client.Timeout exceeded while awaiting headers: context deadline exceeded",
        "write tcp 10.0.0.1:2->10.0.0.2:443: write: connection reset by peer",
    ],
)
def test_what_passes_by_itself_is_tried_again(message: str) -> None:
    client = Client(failed(message), failed(message), DONE)
    assert str(push(client)) == DIGEST
    client = Client(*[failed(message)] * 9)
    with pytest.raises(RegistryError, match="pushing 127"):
        push(client)
    assert len(client.asked) == 5


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("denied: requested access to the resource is denied", "docker login 127.0.0.1:5000"),
        ("unauthorized: authentication required", "docker login 127.0.0.1:5000"),
        ("no basic auth credentials", "docker login 127.0.0.1:5000"),
        ("tag invalid: The image tag 'v5.0' already exists and cannot be overwritten", "can reach"),
        ("name unknown: The repository with name 'demo' does not exist", "can reach"),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", "can reach"),
        ("manifest sha256:5030aaff is not valid", "can reach"),
    ],
)
def test_an_answer_is_not_asked_for_again(message: str, hint: str) -> None:
    client = Client(failed(message), DONE)
    with pytest.raises(RegistryError) as caught:
        push(client)
    assert len(client.asked) == 1
    assert hint in caught.value.hint
    assert message in caught.value.message


def test_a_push_that_reports_no_digest_is_not_taken_as_done() -> None:
    with pytest.raises(RegistryError, match="did not report its digest"):
        push(Client([{"status": "done"}]))


def test_layers_that_are_sent_are_counted_and_layers_that_exist_are_not() -> None:
    task = Counter()
    events: list[dict[str, Any]] = [
        {"status": "Layer already exists", "id": "a", "progressDetail": {}},
        {"status": "Pushing", "id": "b", "progressDetail": {"current": 10, "total": 100}},
        {"status": "Pushing", "id": "b", "progressDetail": {"current": 120, "total": 100}},
        {"status": "Pushing", "id": "c", "progressDetail": {"current": 512}},
        {"status": "Pushed", "id": "b", "progressDetail": {}},
    ]
    push(Client(events + DONE), task=task)
    assert (task.announced, task.done) == (100, 100)


def test_an_error_inside_a_build_is_raised_with_the_last_lines(tmp_path: Path) -> None:
    events = [
        {"stream": "Step 2/2 : RUN false\n"},
        {"stream": "no such thing\n"},
        {"error": "The command '/bin/sh -c false' returned a non-zero code: 1", "errorDetail": {"code": 1}},
    ]
    task = Counter()
    order = BuildRequest(
        tag="a:b", context=tmp_path, path=tmp_path / "Dockerfile", dockerfile="FROM x\nRUN false\n"
    )
    client = Client(events)
    with pytest.raises(ToolError) as caught, (tmp_path / "context").open("w+b") as tar:
        Engine(client, "unix:///fake").build(tar, "Dockerfile", order, task=task)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"building {order.path} failed: The command '/bin/sh -c false'")
    assert "  | no such thing" in caught.value.message
    assert task.lines == ["Step 2/2 : RUN false", "no such thing"]
    assert client.asked[0]["forcerm"] is True


def test_nobody_listening_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no Docker Engine answers at unix://") as caught:
        Engine.connect(f"unix://{tmp_path}/none")
    assert "DOCKER_HOST" in caught.value.hint
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)  # bound, and nobody accepts
        with pytest.raises(ToolError, match="no Docker Engine answers"):
            Engine.connect(f"unix://{path}")


def test_docker_host_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/elsewhere")
    with pytest.raises(ToolError, match="elsewhere"):
        Engine.connect()


def test_a_long_build_is_reported_by_its_end() -> None:
    lines = ["", *(f"line {number}" for number in range(100))]
    reported = build_failure(Path("a/Dockerfile"), " why \n", lines, root="/r").message.splitlines()
    assert reported[0] == "building a/Dockerfile failed: why"
    assert reported[1:] == [f"  | line {number}" for number in range(85, 100)]


def test_credentials_of_a_build_are_for_the_owner_alone_and_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "cli-plugins").mkdir(parents=True)
    (home / "config.json").write_text(
        '{"credsStore": "gone", "proxies": {"default": {"httpProxy": "http://p"}}}'
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(home))
    with docker_config({"r.io": Credentials(username="u", password="p"), "docker.io": None}) as folder:
        path = folder / "config.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        text = path.read_text(encoding="utf-8")
        assert '"r.io": {"auth": "dTpw"}' in text
        assert '"https://index.docker.io/v1/": {}' in text
        assert '"httpProxy": "http://p"' in text
        assert "credsStore" not in text
        assert (folder / "cli-plugins").samefile(home / "cli-plugins")
    assert not folder.exists()
